"""SparseBEV on a small configuration: memory, missing cameras, numbers of cameras, training mode, wrong settings."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from vehicle import SECOND, START, frame, memory_of, rig, run, run_queue

from bev_perception.config import BackboneConfig, ConfigError, FramesConfig, NeckConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.sparsebev.model import time_differences
from bev_perception.families.sparsebev.proposals.config import ProposalsConfig
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.models.encoder import reference2image
from bev_perception.models.memory import FrameFeatures
from bev_perception.models.query_layers import level_weights_by_frame
from bev_perception.types import ModelInput


def tiny():
    """sparsebev_tiny over four frames and four levels, with what inference runs alone."""
    config = load_variant("sparsebev_tiny")
    return dataclasses.replace(
        config,
        frames=FramesConfig(past=3),
        backbone=BackboneConfig("resnet", 18),
        neck=NeckConfig("fpn", 64, 4),
        head=dataclasses.replace(
            config.head, num_levels=4, embed_dims=64, num_heads=8, num_query=100, proposals=ProposalsConfig()
        ),
    )


@pytest.fixture(scope="module")
def model():
    """The model with weights off their initial values, so that every part has a say."""
    torch.manual_seed(0)
    model = build_model(tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return model


def small(config, **head):
    """The variant with other settings of the head, and what must follow them."""
    return dataclasses.replace(config, head=dataclasses.replace(config.head, **head))


def assert_same(a, b, atol=1e-4):
    torch.testing.assert_close(a.logits, b.logits, atol=atol, rtol=1e-4)
    torch.testing.assert_close(a.boxes, b.boxes, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("cameras", [1, 4, 6])
def test_any_number_of_cameras(model, cameras):
    outputs, memory = run(model, frame(0, cameras))
    head = model.config.head
    assert outputs.logits.shape == (head.num_layers, 1, head.num_query, 10)
    assert outputs.boxes.shape == (head.num_layers, 1, head.num_query, 10)
    assert outputs.logits.isfinite().all() and outputs.boxes.isfinite().all()
    assert [tuple(level.shape) for level in memory.entries[0].levels] == [
        (cameras, 32 >> i, 88 >> i, head.embed_dims) for i in range(4)
    ]
    assert all(level.is_contiguous() for level in memory.entries[0].levels)


def test_frame_by_frame_equals_all_frames_at_once(model):
    """A drive with memory gives what the queue of the last frames gives, encoded together; the rig turns and moves."""
    drive = [
        frame(i, ego=make_transform(rotation_from_yaw(0.2 * i), np.array([100.0 + 3 * i, -50 + i, 0.1 * i])))
        for i in range(6)
    ]
    memory = None
    for inputs in drive:
        outputs, memory = run(model, inputs, memory)
    queue = drive[:1:-1]  # frames 5, 4, 3, 2
    with torch.inference_mode():
        assert_same(outputs, run_queue(model, queue), atol=0)
        levels = model.pyramid(torch.cat([inputs.images for inputs in queue]))
        matrices = np.stack([inputs.global2image @ drive[-1].reference2global for inputs in queue])
        at_once = model.detect(
            [[level[None, 6 * t : 6 * t + 6] for level in levels] for t in range(4)],
            torch.from_numpy(matrices).float()[None],
            torch.tensor([[0.0, 0.5, 1.0, 1.5]]),
            (128, 352),
        )
    assert_same(outputs, at_once)


def test_the_memory_given_stays_as_it_was(model):
    _, memory = run(model, frame(0))
    kept = [level.clone() for level in memory.entries[0].levels]
    first, grown = run(model, frame(1), memory)
    again, _ = run(model, frame(1), memory)
    assert (len(memory), len(grown)) == (1, 2)
    assert grown.entries[1] is memory.entries[0]
    assert all(torch.equal(a, b) for a, b in zip(kept, memory.entries[0].levels, strict=True))
    assert_same(first, again, atol=0)


def test_history_matters_and_a_short_one_repeats_its_oldest_frame(model):
    _, memory = run(model, frame(0))
    short, _ = run(model, frame(1), memory)
    oldest = memory.entries[0]
    filled, _ = run(model, frame(1), memory_of(model, oldest, oldest, oldest))
    without, _ = run(model, frame(1))
    assert_same(short, filled, atol=0)
    assert (short.logits - without.logits).abs().max() > 1e-3


def test_memory_follows_the_trained_interval_not_the_frame_rate(model):
    """At 4 Hz every second frame is looked at, and at last the oldest there is."""
    memory = model.new_memory(0.25)
    for quarter in range(6):
        stamp = START + quarter * SECOND // 4
        inputs = dataclasses.replace(frame(quarter), stamp=stamp, stamps=np.full(6, stamp))
        outputs, grown = run(model, inputs, memory)
        before, memory = memory.entries, grown  # before: quarters 4, 3, 2, 1, 0 at last
    explicit, _ = run(model, inputs, memory_of(model, before[1], before[3], before[4]))
    assert_same(outputs, explicit, atol=0)


@pytest.mark.parametrize("missing", [1, 5])
def test_a_missing_camera_is_as_if_the_rig_had_none_there(model, missing):
    present = np.arange(6) != missing
    full = frame(3, present=present)
    garbage = dataclasses.replace(full, images=full.images.clone())
    garbage.images[missing] = 1e3
    stamps = full.stamps.copy()
    stamps[missing] = full.stamp - 10 * SECOND
    garbage = dataclasses.replace(garbage, stamps=stamps)
    fewer = ModelInput(
        full.images[present],
        full.cameras.select(present),
        full.reference2global,
        np.ones(5, bool),
        full.stamps[present],
        full.stamp,
    )
    outputs, memory = run(model, garbage)
    expected, _ = run(model, fewer)
    assert_same(outputs, expected)
    assert all(level[missing].abs().max() == 0 for level in memory.entries[0].levels)


def test_all_cameras_missing_gives_finite_boxes(model):
    _, memory = run(model, frame(0))
    outputs, _ = run(model, frame(1, present=[False] * 6), memory)
    assert outputs.logits.isfinite().all() and outputs.boxes.isfinite().all()


def test_a_variant_without_history():
    config = tiny()
    model = build_model(dataclasses.replace(config, frames=dataclasses.replace(config.frames, past=0)))
    outputs, memory = run(model, frame(0))
    again, memory = run(model, frame(0), memory)
    assert outputs.boxes.isfinite().all() and len(memory) == 0
    assert_same(outputs, again, atol=0)


def features(stamps, present, stamp=START):
    return FrameFeatures((), np.ones((len(stamps), 4, 4)), np.array(present), np.array(stamps, np.int64), stamp)


def test_time_differences_are_exact_and_leave_missing_cameras_out():
    current = features([START, START + 5, START + 9_000], [True, True, False])
    past = features([START - SECOND // 2, START - SECOND // 2 + 5, 0], [True, True, True])
    one_in_common = features([0, START - SECOND, 7], [False, True, True])
    none_in_common = features([0, 0, START], [False, False, True], stamp=START - 2 * SECOND)
    assert time_differences([current, past, one_in_common, none_in_common]).tolist() == [0.0, 0.5, 1 + 5e-9, 2.0]


def test_reference2image_hides_missing_cameras():
    entry = features([START, START], [True, False])
    found = reference2image([entry], 2 * np.eye(4))
    assert found.shape == (1, 2, 4, 4)
    assert (found[0, 0] == 2).all() and (found[0, 1] == 0).all()


@pytest.mark.parametrize("frames, groups", [(1, 4), (3, 4), (8, 4), (15, 4), (4, 4), (5, 2)])
def test_level_weights_keep_the_published_order(frames, groups):
    """Frame t, group g takes the weights of group (t G + g) // T, as all released weights were trained."""
    weights = torch.randn(2, 3, groups, 5, 4)
    found = level_weights_by_frame(weights, frames)
    assert found.shape == (2, frames, 3, groups, 5, 4)
    for t in range(frames):
        for g in range(groups):
            assert torch.equal(found[:, t, :, g], weights[:, :, (t * groups + g) // frames])


def test_a_batch_equals_its_samples(model):
    with torch.inference_mode():
        levels = [model.pyramid(frame(i).images) for i in range(8)]
        matrices = torch.from_numpy(rig(6).global2image).float().expand(2, 4, -1, -1, -1)
        differences = torch.tensor([[0.0, 0.5, 1.0, 1.5], [0.0, 0.0, 0.0, 0.0]])
        both = [[torch.stack([a, b]) for a, b in zip(levels[t], levels[t + 4], strict=True)] for t in range(4)]
        batch = model.detect(both, matrices, differences, (128, 352))
        for b in range(2):
            alone = model.detect(
                [[level[None] for level in levels[t + 4 * b]] for t in range(4)],
                matrices[b : b + 1],
                differences[b : b + 1],
                (128, 352),
            )
            torch.testing.assert_close(batch.logits[:, b], alone.logits[:, 0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(batch.boxes[:, b], alone.boxes[:, 0], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_weight(model):
    model = copy.deepcopy(model).train()
    levels = model.pyramid(frame(0, cameras=2).images)
    output = model.detect(
        [[level[None] for level in levels]] * 4,
        torch.from_numpy(rig(2).global2image).float().expand(1, 4, -1, -1, -1),
        torch.tensor([[0.0, 0.5, 1.0, 1.5]]),
        (128, 352),
    )
    (output.logits.square().mean() + output.boxes.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_legacy_boxes_turn_the_sampling_points(model):
    now, _ = run(model, frame(0))
    try:
        model.legacy_boxes = True
        legacy, _ = run(model, frame(0))
    finally:
        model.legacy_boxes = False
    assert (now.logits[0] - legacy.logits[0]).abs().max() > 1e-3


def test_initial_queries_stand_upright_on_a_grid():
    queries = build_model(tiny()).pts_bbox_head.init_query_bbox.weight
    assert queries[:3, :3].tolist() == pytest.approx(np.array([[0.05, 0.05, 0], [0.05, 0.15, 0], [0.05, 0.25, 0]]))
    assert queries[10, 0].item() == pytest.approx(0.15)
    assert (queries[:, 5] == 1.5).all() and (queries[:, 8:] == 0).all()


def test_initial_scores_are_about_one_percent():
    torch.manual_seed(1)
    outputs, _ = run(build_model(tiny()), frame(0))
    assert outputs.logits.sigmoid().median().item() == pytest.approx(0.01, abs=0.01)
    assert outputs.boxes.isfinite().all()


def test_capacity_of_the_memory(model):
    """It reaches the oldest of three frames, half a second apart, and what is nearest to it."""
    assert [model.new_memory(interval).capacity for interval in (0.5, 0.25, 0.4)] == [5, 8, 6]


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda c: small(c, num_query=99), "square"),
        (lambda c: small(c, num_levels=5), "num_outs"),
        (lambda c: small(c, embed_dims=256), "out_channels"),
        (lambda c: small(c, num_groups=3), "num_groups"),
        (lambda c: small(c, num_layers=0), r"num_layers \(0\) must be positive"),
        (lambda c: small(c, proposals=ProposalsConfig(perspective=True, queries=-1)), "must not be negative"),
        (lambda c: small(c, num_heads=7), "num_heads"),
        (lambda c: small(c, code_size=8), "code_size"),
        (lambda c: dataclasses.replace(c, family="sparsebeef"), "known: .*sparsebev"),
        (lambda c: dataclasses.replace(c, backbone=dataclasses.replace(c.backbone, depth=34)), "10, 18, 50, 101"),
        (lambda c: dataclasses.replace(c, backbone=BackboneConfig("vovnet", 57)), "known depths: 99"),
        (lambda c: dataclasses.replace(c, neck=dataclasses.replace(c.neck, type="pan")), "known: fpn, lss, none"),
        (lambda c: dataclasses.replace(c, neck=dataclasses.replace(c.neck, type="none")), "set neck.type to 'fpn'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        build_model(change(tiny()))


@pytest.mark.parametrize("order, offsets", [("sequential", (0, -1, -2, 1, 2)), ("interleaved", (0, -1, 1, -2, 2))])
def test_the_future_is_sampled_where_moving_boxes_will_be(order, offsets):
    config = tiny()
    frames = dataclasses.replace(config.frames, past=2, future=2, order=order)
    assert frames.offsets == offsets
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(config, frames=frames))
    seen = []
    model.pts_bbox_head.decoder_layer.sampling.register_forward_hook(lambda m, args, out: seen.append(out[0]))
    with torch.inference_mode():
        model.pts_bbox_head.init_query_bbox.weight[:, 8] = 4.0  # m/s along x
        outputs = run_queue(model, [frame(5 + offset) for offset in offsets])
    assert outputs.boxes.isfinite().all()
    points = seen[0]  # [1, T, Q, G, P, 3]
    for t, offset in enumerate(offsets):
        moved = (points[:, t] - points[:, 0]).reshape(-1, 3)
        torch.testing.assert_close(moved, torch.tensor([2.0 * offset, 0, 0]).expand_as(moved), atol=1e-4, rtol=0)


@pytest.mark.parametrize("correct", [False, True])
@torch.no_grad()
def test_each_pass_tells_the_velocity_anew_or_corrects_the_one_before(correct):
    config = small(tiny(), proposals=ProposalsConfig(correct_velocity=correct))
    torch.manual_seed(0)
    model = build_model(config).eval()
    head = model.pts_bbox_head
    head.init_query_bbox.weight[:, 8:] = torch.tensor([4.0, -1.0])  # m/s
    last = head.decoder_layer.reg_branch[-1]
    last.weight.zero_()
    last.bias[8:] = torch.tensor([0.3, 0.6])  # m until frame 1
    memory = run(model, frame(0))[1]
    outputs, _ = run(model, frame(1), memory)
    told = torch.tensor([0.6, 1.2])  # m/s, as frame 1 is half a second old
    passes = torch.arange(1, config.head.num_layers + 1)[:, None]
    expected = torch.tensor([4.0, -1.0]) + passes * told if correct else told.expand(len(passes), 2)
    velocities = outputs.boxes[:, 0, :, 8:]  # [layers, Q, 2]
    torch.testing.assert_close(velocities, expected[:, None].expand_as(velocities), atol=1e-4, rtol=0)


def proposing():
    """The variant as it is: with queries that start where its perspective head sees objects."""
    config = load_variant("sparsebev_tiny")
    assert config.head.proposals.perspective and config.head.proposals.queries
    torch.manual_seed(3)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_proposals_are_queries_after_the_learnt_ones():
    model = proposing()
    outputs, _ = run(model, frame(0))
    head = model.config.head
    assert outputs.boxes.shape[2] == head.num_query + head.proposals.queries
    assert outputs.seen.heat.shape[1] == 6 and outputs.boxes.isfinite().all()
    # a head that sees other things lets other queries start; the learnt ones start where they did
    placed = []
    layer = model.pts_bbox_head.decoder_layer
    hook = layer.register_forward_pre_hook(lambda _, inputs: placed.append(inputs[0]))
    run(model, frame(0))
    model.perspective_head.codes[2].bias[2] += 0.5  # further away
    run(model, frame(0))
    hook.remove()
    before, after = placed[0], placed[model.config.head.num_layers]
    assert torch.equal(before[:, : head.num_query], after[:, : head.num_query])
    assert not torch.allclose(before[:, head.num_query :, :3], after[:, head.num_query :, :3], atol=1e-3)


@torch.no_grad()
def test_proposals_start_with_the_motion_that_the_memory_shows():
    """What always looks the same from a vehicle that drives at 4 m/s drives at 4 m/s."""
    model = proposing()
    placed = []
    layer = model.pts_bbox_head.decoder_layer
    layer.register_forward_pre_hook(lambda _, inputs: placed.append(inputs[0]))
    memory = None
    for i in range(4):
        ego = make_transform(np.eye(3), np.array([2.0 * i, 0, 0]))
        inputs = dataclasses.replace(frame(i, ego=ego), images=frame(0).images)
        memory = run(model, inputs, memory)[1]
    head = model.config.head
    first, last = (boxes[0, head.num_query :, 8:] for boxes in (placed[0], placed[-head.num_layers]))
    assert not first.any()
    moving = last[last.norm(dim=-1) > 0]
    assert len(moving) > 5 and moving.isfinite().all()
    torch.testing.assert_close(moving.median(dim=0).values, torch.tensor([4.0, 0.0]), atol=0.5, rtol=0)


@torch.no_grad()
def test_missing_cameras_propose_nothing_wild():
    model = proposing()
    blind = frame(0)
    blind = dataclasses.replace(blind, present=np.zeros_like(blind.present))
    outputs, _ = run(model, blind)
    assert outputs.boxes.isfinite().all() and outputs.logits.isfinite().all()


def test_proposals_without_a_perspective_head_are_refused():
    with pytest.raises(ConfigError, match="need head.proposals.perspective: true"):
        ProposalsConfig(queries=64)
