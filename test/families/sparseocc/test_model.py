"""SparseOcc on a small configuration: voxels, what is drawn, memory, missing cameras, gradients, wrong settings."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vehicle import frame, rig, run, run_queue

from bev_perception.config import ConfigError, FramesConfig, ReferenceFrameConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.sparseocc.decode import decode_occupancy
from bev_perception.families.sparseocc.mask_decoder import RandomVoxels, draw_numbers, pick_voxels
from bev_perception.families.sparseocc.voxel_decoder import all_cubes, children_of, least_free
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.models.query_layers import EncodedViews

#: enough where it does not matter, for speed
CAMERAS = 2


def smaller(**head):
    """sparseocc_tiny over four frames, with a coarser grid, which runs in a moment, and other settings of the head."""
    config = load_variant("sparseocc_tiny")
    size = {"occ_size": (40, 32, 16), "occ_range": (-8.0, -6.4, -1.0, 8.0, 6.4, 5.4)}
    kept = {"kept_training": (90, 200, 500), "kept_testing": (80, 160, 400)}
    head = dataclasses.replace(config.head, num_query=12, dropout=0.1, **size | kept | head)
    return dataclasses.replace(config, frames=FramesConfig(past=3), head=head)


def lively(config):
    """A model with weights off their initial values, so that every part has a say."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model():
    return lively(smaller())


def assert_same(a, b):
    for one, other in zip(a.stages, b.stages, strict=True):
        assert torch.equal(one.locations, other.locations) and torch.equal(one.logits, other.logits)
    assert torch.equal(a.class_logits, b.class_logits) and torch.equal(a.mask_logits, b.mask_logits)


def by_location(stage, values, sample=0):
    """{location: row of values [B, K, ...]} of a stage."""
    return {tuple(at): row for at, row in zip(stage.locations[sample].tolist(), values[sample], strict=True)}


def test_children_come_parent_by_parent_in_the_published_order():
    one, other = children_of(torch.tensor([[[3, 1, 0], [0, 0, 2]]])).reshape(2, 8, 3).tolist()
    assert one == [[6, 2, 0], [7, 2, 0], [6, 3, 0], [6, 2, 1], [7, 3, 0], [7, 2, 1], [6, 3, 1], [7, 3, 1]]
    assert other == [[0, 0, 4], [1, 0, 4], [0, 1, 4], [0, 0, 5], [1, 1, 4], [1, 0, 5], [0, 1, 5], [1, 1, 5]]


def test_cubes_fill_the_grid_z_first():
    cubes = all_cubes((2, 3, 2), torch.device("cpu"))
    assert cubes.tolist() == [list(at) for at in itertools.product(range(2), range(3), range(2))]


def test_sure_voxels_are_told_apart():
    """Where the probability of not being free rounds to 1, the better voxels are still known."""
    surest = torch.linspace(20, 60, 8)
    logits = torch.zeros(1, 8, 3)
    logits[0, :, 1] = surest[torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])]
    assert least_free(logits, 5).tolist() == [[2, 4, 6, 7, 0]]
    assert torch.equal(least_free(-logits[..., [1, 0, 2]], 8)[0].sort().values, torch.arange(8))


def test_the_kept_voxels_are_the_best_children_of_the_ones_before(model):
    output, memory = run(model, frame(0, CAMERAS))
    head = model.config.head
    assert [stage.scale for stage in output.stages] == [4, 2, 1]
    parents = None
    for stage, kept in zip(output.stages, head.kept_testing, strict=True):
        assert stage.locations.shape == (1, kept, 3) and stage.logits.shape == (1, kept, 18)
        places = {tuple(at) for at in stage.locations[0].tolist()}
        assert len(places) == kept
        grid = torch.tensor(head.occ_size) // stage.scale
        assert (stage.locations >= 0).all() and (stage.locations < grid).all()
        assert parents is None or {(x // 2, y // 2, z // 2) for x, y, z in places} <= parents
        parents = places
        free = stage.logits[0].softmax(dim=-1)[:, -1]
        assert (free.diff() >= -1e-6).all()
    passes, queries = head.mask_layers + 1, head.num_query
    assert output.class_logits.shape == (passes, 1, queries, 17)
    assert output.mask_logits.shape == (passes, 1, queries, head.kept_testing[-1])
    assert output.class_logits.isfinite().all() and output.mask_logits.isfinite().all()
    assert len(memory) == 1


def test_frame_by_frame_equals_all_frames_at_once(model):
    """A drive with memory gives what the queue of the last frames gives; the rig turns and moves."""
    drive = [
        frame(i, CAMERAS, ego=make_transform(rotation_from_yaw(0.2 * i), np.array([100.0 + 3 * i, -50 + i, 0.1 * i])))
        for i in range(6)
    ]
    memory = None
    for inputs in drive:
        output, memory = run(model, inputs, memory)
    with torch.inference_mode():
        assert_same(output, run_queue(model, drive[:1:-1]))
    assert (output.mask_logits - run(model, drive[-1])[0].mask_logits).abs().max() > 1e-3


def test_the_same_frame_gives_the_same_again(model):
    """Whatever came before, and whatever else draws random numbers."""
    first, _ = run(model, frame(0, CAMERAS))
    state = torch.get_rng_state()
    run(model, frame(1, CAMERAS))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    again, _ = run(model, frame(0, CAMERAS))
    assert_same(first, again)


def test_the_generator_decides_which_voxels_are_looked_at(model):
    inputs = frame(0, CAMERAS)
    with torch.inference_mode():
        levels = [[level[None] for level in model.pyramid(inputs.images)]] * 4
        matrices = torch.from_numpy(inputs.global2image).float().expand(1, 4, -1, -1, -1)
        one, same, other = (
            model.perceive(
                levels, matrices, (128, 352), draw_numbers(torch.Generator().manual_seed(seed), model.config.head, 2)
            )
            for seed in (1, 1, 2)
        )
    assert_same(one, same)
    assert torch.equal(one.mask_logits[0], other.mask_logits[0])
    assert not torch.equal(one.mask_logits[1], other.mask_logits[1])


@pytest.mark.parametrize("missing", [1, 3])
def test_a_missing_camera_is_as_if_the_rig_had_none_there(model, missing):
    present = np.arange(4) != missing
    full = frame(3, 4, present=present)
    full.images[missing] = 1e3
    fewer = dataclasses.replace(
        full,
        images=full.images[present],
        cameras=full.cameras.select(present),
        present=np.ones(3, bool),
        stamps=full.stamps[present],
    )
    (found, _), (expected, _) = run(model, full), run(model, fewer)
    stage, wanted = (by_location(output.stages[0], output.stages[0].logits) for output in (found, expected))
    common = stage.keys() & wanted.keys()
    assert len(common) >= 0.98 * len(wanted)  # rounding may move voxels over the cut
    for place in common:
        torch.testing.assert_close(stage[place], wanted[place], atol=1e-4, rtol=1e-4)
    whole, _ = run(model, frame(3, 4))
    differently = by_location(whole.stages[0], whole.stages[0].logits)
    assert any((stage[place] - differently[place]).abs().max() > 1e-2 for place in stage.keys() & differently.keys())


def test_all_cameras_missing_gives_finite_outputs(model):
    _, memory = run(model, frame(0, CAMERAS))
    output, _ = run(model, frame(1, CAMERAS, present=[False] * CAMERAS), memory)
    assert output.mask_logits.isfinite().all() and output.stages[-1].logits.isfinite().all()


def look_at(model, levels, matrices, choose):
    return model.pts_bbox_head(EncodedViews(levels, matrices, (128, 352)), choose)


def test_a_batch_equals_its_samples(model):
    def first_voxels(inside, locations):
        return locations[:, None, :16].expand(-1, inside.shape[1], -1, -1)

    with torch.inference_mode():
        encoded = [model.pyramid(frame(i, CAMERAS).images) for i in range(8)]
        matrices = torch.from_numpy(rig(CAMERAS).global2image).float().expand(2, 4, -1, -1, -1)
        both = [[torch.stack(pair) for pair in zip(encoded[t], encoded[t + 4], strict=True)] for t in range(4)]
        batch = look_at(model, both, matrices, first_voxels)
        for b in range(2):
            alone = [[level[None] for level in encoded[t + 4 * b]] for t in range(4)]
            output = look_at(model, alone, matrices[b : b + 1], first_voxels)
            for stage, wanted in zip(batch.stages, output.stages, strict=True):
                found, wanted = by_location(stage, stage.logits, b), by_location(wanted, wanted.logits)
                assert len(found.keys() & wanted.keys()) >= 0.98 * len(wanted)
            torch.testing.assert_close(batch.class_logits[:, b], output.class_logits[:, 0], atol=1e-3, rtol=1e-3)


def trained(model, seed=0):
    """A copy in training mode, and its output for noise."""
    model = copy.deepcopy(model).train()
    levels = model.pyramid(frame(0, CAMERAS).images)
    matrices = torch.from_numpy(rig(CAMERAS).global2image).float().expand(1, 4, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    return model, model.perceive(
        [[level[None] for level in levels]] * 4, matrices, (128, 352), draw_numbers(generator, model.config.head)
    )


def test_gradients_reach_every_weight(model):
    model, output = trained(model)
    stages = sum(stage.logits.square().mean() for stage in output.stages)
    (stages + output.class_logits.square().mean() + output.mask_logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("learns_from", [0, 1, 2, "masks"])
def test_gradients_stop_between_the_stages(model, learns_from):
    """A stage's logits train its own layer and the images; the masks train the last layer."""
    model, output = trained(model)
    loss = output.mask_logits if learns_from == "masks" else output.stages[learns_from].logits
    loss.square().mean().backward()
    decoder = model.pts_bbox_head.transformer["voxel_decoder"]
    for i, layer in enumerate(decoder.decoder_layers):
        learns = i == (2 if learns_from == "masks" else learns_from)
        for part in (layer, decoder.lift_feat_heads[i]):
            assert all((p.grad is not None and p.grad.abs().sum() > 0) == learns for p in part.parameters())
    assert model.img_neck.lateral_convs[0].conv.weight.grad.abs().sum() > 0


def test_training_keeps_other_voxels_and_drops_out(model):
    trained_model, output = trained(model)
    kept = model.config.head.kept_training
    assert tuple(stage.locations.shape[1] for stage in output.stages) == kept
    assert output.mask_logits.shape[-1] == kept[-1]
    torch.manual_seed(1)
    _, one = trained(model)
    torch.manual_seed(2)
    _, other = trained(model)
    assert not torch.equal(one.class_logits, other.class_logits)  # dropout, as nothing else draws from there


def test_the_published_initial_values():
    config = smaller()
    torch.manual_seed(0)
    transformer = build_model(config).pts_bbox_head.transformer
    for layer in transformer["voxel_decoder"].decoder_layers:
        offset = layer.sampling["sampling_offset"]
        assert offset.weight.abs().max() == 0 and 0.3 < offset.bias.abs().max() <= 0.5
        assert layer.mixing.parameter_generator.weight.abs().max() == 0
    layer = transformer["decoder"].decoder_layer
    assert layer.sampling["offset"].weight.abs().max() == 0 and layer.sampling["offset"].bias.abs().max() == 0
    assert 0.8 < transformer["decoder"].query_feat.weight.std() < 1.2


def test_the_grid_of_the_settings_is_the_grid_of_the_result():
    config = smaller(occ_size=(32, 48, 24), occ_range=(0.0, -12.0, -2.0, 16.0, 12.0, 10.0))
    model = build_model(config)
    output, _ = run(model, frame(0, CAMERAS))
    assert (output.stages[-1].locations.amax(dim=(0, 1)) < torch.tensor([32, 48, 24])).all()
    occupancy = decode_occupancy(output, config.head, config.class_names)
    assert occupancy.semantics.shape == (32, 48, 24)
    assert (occupancy.grid.origin, occupancy.grid.resolution) == ((0.0, -12.0, -2.0), 0.5)


def test_voxels_are_looked_at_where_they_are(model):
    """The points of the voxel layers surround the cubes' middles, those of masks the voxels' low corners; in m."""
    model = copy.deepcopy(model)
    transformer = model.pts_bbox_head.transformer
    layer, mask_layer = transformer["voxel_decoder"].decoder_layers[1], transformer["decoder"].decoder_layer
    with torch.no_grad():
        for linear, bias in ((layer.sampling["sampling_offset"], 0.25), (mask_layer.sampling["offset"], 0.5)):
            linear.weight.zero_()
            linear.bias.fill_(bias)
    seen = []

    class Views(EncodedViews):
        def sample(self, points, scores):
            seen.append(points)
            return super().sample(points, scores)

    levels = [[level[None] for level in model.pyramid(frame(0, cameras=1).images)]] * 4
    views = Views(levels, torch.from_numpy(rig(1).global2image).float().expand(1, 4, -1, -1, -1), (128, 352))
    locations = torch.tensor([[[0, 0, 0], [9, 7, 3]]])
    with torch.inference_mode():
        layer(torch.randn(1, 2, 64), locations, views)
        voxels = torch.tensor([0.0, 5.0, 15.0]).expand(1, 12, 16, 3)
        mask_layer(torch.randn(1, 12, 64), torch.randn(12, 64), voxels, views)
    low = torch.tensor([-8.0, -6.4, -1.0])
    expected = low + 1.6 * (locations + 0.5 + 0.25)  # cubes of 4 voxels of 0.4 m
    torch.testing.assert_close(seen[0], expected[:, :, None, None].expand_as(seen[0]))
    torch.testing.assert_close(seen[1], (low + 0.4 * (voxels[..., :1, :] + 0.5))[:, :, None].expand_as(seen[1]))


def naive_pick(inside, locations, ranks, places, size):
    batch, queries, count = ranks.shape
    found = np.zeros((batch, queries, count, 3), np.float32)
    for b, q, k in itertools.product(range(batch), range(queries), range(count)):
        members = locations[b][inside[b, q]]
        if len(members):
            found[b, q, k] = members[min(int(ranks[b, q, k] * np.float32(len(members))), len(members) - 1)]
        else:
            found[b, q, k] = places[b, q, k] * (np.array(size) if inside[b].any() else 1)
    return found


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.sampled_from([0, 0.1, 0.9]))
@settings(max_examples=40, deadline=None)
def test_picking_voxels_is_what_it_says(seed, batch, queries, voxels, density):
    rng = np.random.default_rng(seed)
    inside = rng.random((batch, queries, voxels)) < density
    locations = rng.integers(0, 16, (batch, voxels, 3))
    ranks, places = rng.random((batch, queries, 4), np.float32), rng.random((batch, queries, 4, 3), np.float32)
    ranks[..., 0] = 1.0  # a product may round up to it
    found = pick_voxels(*map(torch.from_numpy, (inside, locations, ranks, places)), (16, 16, 4))
    np.testing.assert_allclose(found, naive_pick(inside, locations, ranks, places, (16, 16, 4)), rtol=1e-6)


def test_numbers_are_drawn_in_the_published_order():
    """Of each sample the ranks of all queries, then places for the empty masks only."""
    inside = torch.zeros(2, 5, 30, dtype=torch.bool)
    inside[0, [0, 3, 4], :7] = True
    locations = torch.randint(0, 8, (2, 30, 3))
    choose = RandomVoxels(torch.rand(500, generator=torch.Generator().manual_seed(7)), 6, (8, 8, 8))
    found = [choose(inside, locations) for _ in range(2)]
    numbers = torch.Generator().manual_seed(7)
    for voxels in found:
        ranks, places = torch.zeros(2, 5, 6), torch.zeros(2, 5, 6, 3)
        ranks[0] = torch.rand(5, 6, generator=numbers)
        places[0, [1, 2]] = torch.rand(2, 6, 3, generator=numbers)
        ranks[1] = torch.rand(5, 6, generator=numbers)
        places[1] = torch.rand(5, 6, 3, generator=numbers)
        assert torch.equal(voxels, pick_voxels(inside, locations, ranks, places, (8, 8, 8)))
    assert not torch.equal(*found)
    assert found[0][0, 1].max() > 1 and found[0][1].max() <= 1


@pytest.mark.parametrize(
    "change, says",
    [
        ({"num_points": 6}, "num_points"),
        ({"occ_size": (60, 48, 24)}, r"occ_size \(60, 48, 24\) must be multiples of 8"),
        ({"kept_testing": (400, 160, 400)}, r"kept_testing\[0\] \(400\) must be at most 320"),
        ({"kept_training": (10, 81, 100)}, r"kept_training\[1\] \(81\) must be at most 80"),
        ({"kept_training": (10, 80, 641)}, r"kept_training\[2\] \(641\) must be at most 640"),
        ({"num_levels": 5}, "num_outs"),
        ({"embed_dims": 256}, "out_channels"),
        ({"num_groups": 3}, "num_groups"),
        ({"num_heads": 7}, "num_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        build_model(smaller(**change))


def test_other_frames_and_classes_are_refused():
    config = smaller()
    with pytest.raises(ConfigError, match="reference_frame.sensor must be 'base_link'"):
        build_model(dataclasses.replace(config, reference_frame=ReferenceFrameConfig()))
    with pytest.raises(ConfigError, match=r"last of class_names \(others\) must be 'free'"):
        build_model(dataclasses.replace(config, class_names=("free", "others")))
    with pytest.raises(ConfigError, match="needs the head settings SparseOccHeadConfig, not SparseBEV"):
        build_model(dataclasses.replace(load_variant("sparsebev_tiny"), family="sparseocc"))
    with pytest.raises(ConfigError, match="needs the head settings SparseBEVHeadConfig, not SparseOcc"):
        build_model(dataclasses.replace(config, family="sparsebev"))
