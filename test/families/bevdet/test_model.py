import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bev_perception.families.bevdet.temporal import BevMemory, warp
from bev_perception.families.bevdet.view_transform import cell_index
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.models.checkpoints import CheckpointError, load_checkpoint, load_fitting, save_checkpoint
from bev_perception.models.memory import device_bytes
from bev_perception.models.protocol import NotFiniteError
from bev_perception.strict import ConfigError
from bev_perception.types import Cameras, Limits

from .small import distance, frame_at, rig, small_config, small_model, stream, without

KINDS = [("plain", "boxes"), ("camera", "columns"), ("stereo", "boxes"), ("stereo", "voxels")]
#: distances of answers that differ by rounding, and of others
SAME, OTHER = 1e-3, 1e-2
every_kind = pytest.mark.parametrize("depth_net, head", KINDS)


def batched(cameras):
    return Cameras(*(x[None] for x in vars(cameras).values()))


def queue(model, frames, **kwargs):
    """The outputs for frames, the newest first, all computed at once."""
    with torch.inference_mode():
        return model.perceive(
            [f.images[None] for f in frames],
            [batched(f.cameras) for f in frames],
            [f.reference2global[None] for f in frames],
            **kwargs,
        )


@every_kind
def test_a_stream_gives_what_the_whole_queue_gives(depth_net, head):
    """Where all cameras of a frame look at once, a remembered map is that of the queue, warped."""
    model = small_model(depth_net, head, past=2)
    frames = [frame_at(step) for step in range(1 + model.config.frames.past)]
    wanted = queue(model, frames[::-1], alignment="after_view")
    found = stream(model, frames)[-1].outputs
    assert distance(found, wanted) < SAME and distance(found.depth, wanted.depth) < SAME
    assert distance(stream(model, frames[-1:])[-1].outputs, wanted) > OTHER  # past frames count


@every_kind
def test_before_the_first_frame_there_are_copies_of_it(depth_net, head):
    model = small_model(depth_net, head, past=2)
    first = frame_at(0)
    wanted = queue(model, [first] * (1 + model.config.frames.past))
    assert distance(stream(model, [first])[0].outputs, wanted) < SAME


@pytest.mark.parametrize("depth_net, same", [("plain", True), ("stereo", False)])
def test_in_the_second_frame_the_missing_map_is_the_current_one(depth_net, same):
    """A stereo stream differs here from the reference, which matches a copy of the current images with itself."""
    model = small_model(depth_net, past=2)
    frames = [frame_at(0), frame_at(1)]
    first, second = stream(model, frames)
    current2older = np.linalg.inv(first.entry.ego2global) @ second.entry.ego2global
    older = warp(first.entry.bev, current2older[None], model.head.grid)
    with torch.inference_mode():
        wanted = model.see([second.entry.bev, older, second.entry.bev], second.outputs.depth)
    assert distance(second.outputs, wanted) == 0
    copies = [frames[1]] * (model.config.frames.past - 1)
    apart = distance(second.outputs, queue(model, [frames[1], frames[0], *copies], alignment="after_view"))
    assert apart < SAME if same else apart > OTHER


def test_the_two_alignments_differ_only_with_motion():
    model = small_model("plain")
    moving, still = [frame_at(1), frame_at(0)], [frame_at(0), frame_at(0, seed=1)]
    for frames, differ in ((moving, True), (still, False)):
        lifted, warped = (queue(model, frames, alignment=alignment) for alignment in ("in_view", "after_view"))
        assert distance(lifted, warped) > OTHER if differ else distance(lifted, warped) < SAME


def test_without_history_the_older_maps_are_zeros():
    model = small_model("stereo", past=1)
    frames = [frame_at(step) for step in (2, 1, 0)]
    found = queue(model, frames, with_history=False)
    assert distance(queue(model, [frames[0], frame_at(7), frame_at(8)], with_history=False), found) == 0
    assert distance(queue(model, frames), found) > OTHER


@every_kind
def test_a_lost_camera_adds_nothing(depth_net, head):
    model = small_model(depth_net, head)
    frames = [frame_at(0), frame_at(1)]
    found = stream(model, [frame_at(step, present=[True, True, False, True]) for step in (0, 1)])[-1].outputs
    assert distance(found, stream(model, [without(f, 2) for f in frames])[-1].outputs) < SAME
    assert distance(found, stream(model, frames)[-1].outputs) > OTHER


def test_a_camera_that_was_lost_a_frame_ago_is_not_matched():
    model = small_model("stereo")
    lost, now = frame_at(0, present=[True, True, False, True]), frame_at(1)
    there = torch.from_numpy(lost.present)[:, None, None, None]
    other = dataclasses.replace(lost, images=torch.where(there, lost.images, torch.randn_like(lost.images)))
    found, wanted = (stream(model, [before, now])[-1].outputs for before in (lost, other))
    assert found.finite and distance(found, wanted) < SAME


@every_kind
def test_the_order_of_the_cameras_does_not_matter(depth_net, head):
    model = small_model(depth_net, head)
    frames = [frame_at(step) for step in (0, 1)]
    order = [2, 0, 3, 1]
    shuffled = [
        dataclasses.replace(f, images=f.images[order], cameras=f.cameras.select(np.array(order))) for f in frames
    ]
    assert distance(stream(model, shuffled)[-1].outputs, stream(model, frames)[-1].outputs) < SAME


def test_a_step_encodes_and_lifts_one_frame():
    model = small_model("stereo", past=2)
    calls = []
    for part in (model.img_backbone, model.img_view_transformer, model.pre_process_net):
        part.register_forward_hook(lambda module, args, out: calls.append(module))
    frames = [frame_at(step) for step in range(4)]
    stream(model, frames)
    assert len(calls) == 3 * len(frames)


def test_the_plan_of_the_pooling_is_kept_until_a_matrix_changes():
    view = small_model().img_view_transformer
    cameras = batched(rig())
    arguments = (cameras.sensor2ego, (64, 96), (4, 6), torch.device("cpu"))
    plan = view.plan(cameras, *arguments)
    assert view.plan(batched(rig()), *arguments) is plan
    moved = cameras.sensor2ego + np.eye(4)[3] * 0.5  # every translation
    assert view.plan(cameras, moved, *arguments[1:]) is not plan


def test_a_drive_keeps_the_plan_while_all_cameras_look_at_once():
    """Only motion between the exposures of a frame moves its points; cameras one after the other make new plans."""
    model = small_model("camera")
    plans = []
    model.img_view_transformer.register_forward_hook(lambda module, args, out: plans.append(args[1]))
    frames = [frame_at(step) for step in range(8)]
    stream(model, frames)
    assert len(set(map(id, plans))) == 1
    late = [dataclasses.replace(f, reference2global=before.reference2global) for before, f in pairwise(frames)]
    stream(model, late)
    assert len(set(map(id, plans[8:]))) > 1


def test_a_plan_of_inference_serves_training():
    model = small_model("plain")
    frames = [frame_at(1), frame_at(0)]
    queue(model, frames)
    arguments = (
        [f.images[None] for f in frames],
        [batched(f.cameras) for f in frames],
        [f.reference2global[None] for f in frames],
    )
    model.perceive(*arguments).tasks[0].heatmap.sum().backward()
    assert model.img_view_transformer.depth_net.weight.grad.abs().sum() > 0


def test_the_border_of_the_grid():
    """Fractions are cut towards zero: what lies up to one cell below the grid falls into its first cell."""
    grid = small_config().head.grid  # -16..16 m in cells of 2 m, and one cell from -4 to 4 m
    x = torch.tensor([-18.0, -17.9, -16.0, -14.1, -14.0, 15.9, 16.0, 1e30], dtype=torch.float64)
    points = torch.stack([x, torch.full_like(x, 0.5), torch.full_like(x, -11.9)])[:, None, None, :, None, None]
    row = 16 * 8  # of y
    assert (cell_index(points, grid).flatten() - row).tolist() == [-1 - row, 0, 0, 0, 1, 15, -1 - row, -1 - row]
    assert (cell_index(points.expand(-1, 2, -1, -1, -1, -1), grid)[1].flatten()[1] == 256 + row).item()
    assert (cell_index(points - 0.2, grid) == -1).all()  # and below


def test_an_older_map_moves_by_whole_cells():
    grid = small_config().head.grid
    bev = torch.randn(1, 3, 16, 16)
    forward = make_transform(
        np.eye(3), np.array([4.0, -2.0, 1.0])
    )  # the vehicle has moved two cells forward, one right
    found = warp(bev, forward[None], grid)
    wanted = torch.zeros_like(bev)
    wanted[..., 1:, :-2] = bev[..., :-1, 2:]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    volume = torch.stack([bev, 2 * bev], dim=2)
    torch.testing.assert_close(warp(volume, forward[None], grid), torch.stack([found, 2 * found], dim=2))


def test_an_older_map_turns_about_the_vehicle():
    """A quarter turn; the lower corners of cells, for which cells stand, turn onto lower corners."""
    grid = small_config().head.grid
    bev = torch.randn(1, 1, 16, 16)
    left = make_transform(rotation_from_yaw(np.pi / 2), np.zeros(3))
    found = warp(bev, left[None], grid)[0, 0]
    for x, y in ((8, 8), (11, 4), (3, 13)):  # the point (x, y) - 8 cells was at (8 - y, x) - 8 in the older frame
        torch.testing.assert_close(found[y, x], bev[0, 0, x, 16 - y], rtol=1e-4, atol=1e-4)


def test_memory_reaches_back_to_the_oldest_map():
    for depth_net in ("plain", "stereo"):
        memory = small_model(depth_net, past=2).new_memory(0.25)
        assert (memory.count, memory.interval, memory.missing) == (2, 0.5, "current")
        assert memory.capacity == 4 + 2
    assert small_model(past=0).new_memory(0.5).capacity == 0


def test_only_views_that_can_still_be_matched_are_remembered():
    """At any rate, a memory that has dropped views finds the same ones as a memory that has kept them all."""
    model = small_model("stereo", past=4)
    view = stream(model, [frame_at(0)])[0].entry.view
    for seconds in (0.1, 0.2, 0.25, 0.3, 0.5, 0.7):
        memory = model.new_memory(seconds)
        whole = dataclasses.replace(memory, thin=None)
        for k in range(12):
            stamp = round(k * seconds * 1e9)
            for share in (0.05, 0.5, 1.0):  # also frames that are not remembered
                ours, all_there = (m.history(stamp + round(share * seconds * 1e9))[0] for m in (memory, whole))
                assert ours is all_there is None or (ours.stamp, ours.view) == (all_there.stamp, view)
            entry = BevMemory(torch.zeros(1), np.eye(4), view, stamp)
            memory, whole = (m.after(entry, None, due=True) for m in (memory, whole))
        assert sum(entry.view is not None for entry in memory.entries) <= 0.5 / seconds + 2
        assert device_bytes([memory]) <= device_bytes([whole])


def test_limits():
    model = small_model()
    outputs = stream(model, [frame_at(0)])[0].outputs
    everything = model.decode(outputs, Limits(score=0.0)).boxes
    assert len(everything) > 3 and (np.diff(everything.scores) <= 0).all()
    assert len(model.decode(outputs, Limits(score=0.0, count=3)).boxes) == 3
    assert len(model.decode(outputs, Limits(score=1.0)).boxes) == 0


@pytest.mark.parametrize("head, heights", [("voxels", 4), ("columns", 4)])
def test_occupancy(head, heights):
    config = small_config("plain", head)
    model = build_model(config)
    outputs = stream(model, [frame_at(0)])[0].outputs
    occupancy = model.decode(outputs, Limits()).occupancy
    assert occupancy.semantics.shape == (16, 16, heights) and occupancy.grid.resolution == 2.0
    assert (occupancy.semantics == outputs.occupancy[0].argmax(dim=-1).numpy()).all()


@every_kind
def test_weights_that_are_not_finite_are_noticed(depth_net, head):
    model = small_model(depth_net, head)
    next(model.img_bev_encoder_neck.parameters()).data.fill_(float("nan"))
    with pytest.raises(NotFiniteError):
        model.decode(stream(model, [frame_at(0)])[0].outputs, Limits())


def test_a_checkpoint_of_another_variant_is_explained(tmp_path):
    path = tmp_path / "other.safetensors"
    save_checkpoint(small_model("camera", past=2), path, {})
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(small_model("stereo", "voxels", past=1), path)
    assert (
        "depth net camera instead of stereo, frames 3 instead of 2, head boxes of 1 task instead of occupancy"
        in str(raised.value)
    )
    config = small_config("camera", past=2)
    deeper = dataclasses.replace(config.head, depth=dataclasses.replace(config.head.depth, step=1))
    with pytest.raises(CheckpointError, match="another variant: depths 8 instead of 16\\."):
        load_checkpoint(build_model(dataclasses.replace(config, head=deeper)), path)


@pytest.mark.parametrize(
    "ours, theirs, sentence",
    [
        (
            "bevdet-stbase-4d-stereo-512x1408-cbgs",
            "bevdet-swinb-4d-stereo-512x1408-cbgs-geomim",
            "windows 16/16/16/8 instead of 12/12/12/12, position embedding there instead of none.",
        ),
        (
            "bevdet-occ-swinb-4d-stereo-512x1408-24e-geomim",
            "bevdet-occ-swinl-4d-stereo-512x1408-24e-geomim",
            "backbone's width 192 instead of 128.",
        ),
        ("flashocc-r50", "bevdet-occ-r50-4d-stereo-24e", "head occupancy of voxels instead of occupancy of columns"),
    ],
)
def test_what_differs_between_published_variants(ours, theirs, sentence):
    with torch.device("meta"):
        model, other = (build_model(load_variant(name)) for name in (ours, theirs))
    (found,) = model.explain_weights(other.state_dict())
    assert sentence in found


def test_other_classes_are_explained():
    config = small_config("plain", "voxels")
    fewer = dataclasses.replace(config, class_names=(*config.class_names[:5], "free"))
    (found,) = build_model(fewer).explain_weights(build_model(config).state_dict())
    assert found == "The file is of another variant: classes 18 instead of 6."


def test_occupancy_starts_from_a_detector(tmp_path, caplog):
    path = tmp_path / "detector.pth"
    detector, model = small_model("stereo", seed=1), small_model("stereo", "voxels", seed=2)
    torch.save({"state_dict": detector.state_dict()}, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    skipped = load_fitting(model, path)
    assert "final_conv.conv.weight" in skipped and "img_bev_encoder_backbone.layers.0.0.conv1.conv.weight" in skipped
    assert not any(name.startswith(("img_backbone.", "img_neck.")) for name in skipped)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in skipped else detector.state_dict()[name]), name
    assert "others start afresh" in caplog.text and "final_conv.conv.weight" in caplog.text
    torch.save({"state_dict": {"other": torch.ones(2)}}, path)
    with pytest.raises(CheckpointError, match="no weight whose name and shape fit"):
        load_fitting(model, path)


@pytest.mark.parametrize("wrapped", [True, False])
def test_official_files_may_be_wrapped(tmp_path, wrapped):
    """Averaged weights (EMA) come without a description of the training."""
    model, path = small_model(seed=1), tmp_path / "epoch_20_ema.pth"
    torch.save({"epoch": 20, "state_dict": model.state_dict(), "updates": 5} if wrapped else model.state_dict(), path)
    other = small_model(seed=2)
    load_checkpoint(other, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"frames": {"past": 1, "future": 1}}, "past frames alone"),
        ({"backbone": {"first_level": 1}}, "first_level"),
        ({"image": {"pad": 8}}, "image.pad (8) must be a multiple of 16"),
        ({"backbone": {"with_first": True}}, "with_first"),
        ({"neck": {"num_outs": 2}}, "num_outs"),
        ({"reference_frame": {"sensor": "lidar"}}, "base_link"),
        ({"class_names": ("car",)}, "class_names"),
    ],
)
def test_settings_that_do_not_fit_together(change, message):
    config = small_config()
    values = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_model(dataclasses.replace(config, **values))


#: GMAC of backbone, neck, depth net, pre-processing, stages, their neck and the head, as published for one new frame
WORK = {
    "bevdet-r50": (88.1, 4.2, 0.13, 0, 7.3, 42.1, 6.2),
    "bevdet-r50-4d-cbgs": (88.1, 4.2, 0.15, 4.7, 12.3, 45.2, 6.2),
    "bevdet-r50-4d-depth-cbgs": (88.1, 13.3, 77.1, 4.7, 12.3, 45.2, 6.2),
    "bevdet-r50-4d-stereo-cbgs": (88.1, 4.2, 22.6, 4.7, 12.3, 45.2, 6.2),
    "bevdet-r50-4dlongterm-depth-cbgs": (88.1, 13.3, 77.1, 4.7, 18.9, 45.2, 6.2),
    "bevdet-stbase-4d-stereo-512x1408-cbgs": (1498, 159, 333, 18.9, 49.1, 181, 99.3),
    "bevdet-swinb-4d-256x704-cbgs": (371, 17.4, 0.15, 4.7, 12.3, 45.2, 6.2),
    "bevdet-swinb-4d-256x704-cbgs-geomim": (371, 17.4, 0.15, 4.7, 12.3, 45.2, 6.2),
    "bevdet-swinb-4d-stereo-256x704-cbgs-geomim": (371, 39.9, 80, 4.7, 12.3, 45.2, 24.8),
    "bevdet-swinb-4d-stereo-512x1408-cbgs-geomim": (1477, 159, 333, 18.9, 49.1, 181, 99.3),
    "bevdet-occ-r50-4d-stereo-24e": (88, 4.2, 24, 53, 159, 4.6, 19.7),
    "bevdet-occ-r50-4dlongterm-stereo-24e_384704": (132, 6.2, 36, 53, 407, 4.6, 19.7),
    "bevdet-occ-stbase-4d-stereo-512x1408-24e": (1498, 159, 325, 53, 159, 4.6, 19.7),
    "bevdet-occ-swinl-4d-stereo-512x1408-24e-geomim": (3222, 219, 325, 53, 159, 4.6, 19.7),
}


@pytest.mark.parametrize("name", WORK)
def test_work_of_a_step(name):
    """Counted on tensors without memory, part by part; pooling, warping and matching are no products of matrices."""
    config = load_variant(name)
    head = config.head
    with torch.device("meta"):
        model = build_model(config)
        height, width = config.image.height, config.image.width
        images = torch.empty(6, 3, height, width)
        x, y, z = head.grid.size
        grid = (z, y, x) if head.encoder.volumetric else (y, x)
        one = torch.empty(1, head.context, *grid)
        joined = torch.empty(1, (1 + model.past_maps) * head.context, *grid)
        vectors = torch.empty(6, 27)
        cost = torch.empty(6, head.depth.count, height // 4, width // 4) if head.stereo else None
    counts = []

    def run(part, *arguments):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            out = part(*arguments)
        counts.append(counter.get_total_flops() / 2e9)
        return out

    maps = run(model.img_backbone, images)
    (features,) = run(model.img_neck, maps[int(head.stereo) :])
    net = model.img_view_transformer.depth_net
    run(net, features) if head.depth_net == "plain" else run(net, features, vectors, cost)
    run(model.pre_process_net, one) if head.encoder.pre_blocks else counts.append(0)
    (bev,) = run(model.img_bev_encoder_neck, run(model.img_bev_encoder_backbone, joined))
    if head.boxes is not None:
        run(model.pts_bbox_head, bev)
    else:
        features = run(model.final_conv, bev)
        run(model.predicter, features.movedim(1, -1))
        counts[-2:] = [sum(counts[-2:])]
    for found, wanted in zip(counts, WORK[name], strict=True):
        assert found == pytest.approx(wanted, rel=0.02, abs=0.06)
