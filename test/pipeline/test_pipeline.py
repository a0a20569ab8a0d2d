import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bev_perception.config import ConfigError, ImageConfig
from bev_perception.data.drive import CAMERAS
from bev_perception.geometry import make_transform, transform_points
from bev_perception.models.encoder import CameraModel
from bev_perception.models.protocol import NotFiniteError
from bev_perception.pipeline.loading import load_pipeline, write_initial_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.sensing.preprocess import NoUsableViewError, reference2ego
from bev_perception.types import FrameError

SECOND = 1_000_000_000
CPU = torch.device("cpu")


@pytest.fixture
def pipeline(untrained):
    made = load_pipeline(
        "sparsebev_tiny", untrained, "cpu", PipelineSettings(score_threshold=0.0, max_detections=20, nms="none")
    )
    yield made
    made.close()


def at(frame, seconds, shift=0.0):
    """The frame moved in time and space, with all its views."""
    move = make_transform(np.eye(3), [shift, 0, 0])
    by = round(seconds * SECOND)
    views = tuple(
        view
        and dataclasses.replace(
            view,
            image=dataclasses.replace(view.image, stamp=view.image.stamp + by),
            ego2global=move @ view.ego2global,
        )
        for view in frame.views
    )
    return dataclasses.replace(frame, stamp=frame.stamp + by, views=views, ego2global=move @ frame.ego2global)


def without(frame, *cameras):
    views = tuple(None if camera in cameras else v for camera, v in zip(frame.cameras, frame.views, strict=True))
    return dataclasses.replace(frame, views=views, missing=dict.fromkeys(cameras, "gone"))


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("centers", "sizes", "yaws", "scores", "labels")
    )


def test_boxes_are_in_base_link_and_sorted(pipeline, frames):
    result = pipeline.step(frames[0])
    boxes = result.boxes
    assert len(boxes) == 20 and result.stamp == frames[0].stamp and result.history == 0
    assert (np.diff(boxes.scores) <= 0).all()
    assert np.abs(boxes.centers[:, :2]).max() < 75 and (boxes.sizes > 0).all()
    assert set(result.timings) == {"preprocess", "model", "decode"}


def test_learnt_queries_start_at_the_floor_of_the_range(untrained, frames):
    """It is 5 m below the roof-mounted lidar, 3.2 m below base_link; proposals are above, where things are seen."""
    pipeline = load_pipeline("sparsebev_tiny", untrained, "cpu", PipelineSettings(score_threshold=0.0))
    np.testing.assert_allclose(pipeline.step(frames[0]).boxes.centers[:, 2].min(), -5 + 1.84, atol=0.1)
    pipeline.close()


def test_memory_is_committed_at_the_interval_not_at_the_camera_rate(pipeline, frames):
    for k in range(12):  # one second at 12 Hz
        pipeline.step(at(frames[k % 6], (k // 6) * 0.5))
    assert pipeline.memory_frames == 4
    assert pipeline.memory_bytes > 0


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda f: at(f, -5), "time ran backwards"),
        (lambda f: at(f, 0), "time ran backwards"),
        (lambda f: at(f, 3), "gap"),
        (lambda f: at(f, 0.1, shift=30), "pose jump"),
    ],
)
def test_a_break_wipes_the_memory_and_the_result_is_as_from_the_start(pipeline, frames, change, cause):
    for k in range(3):
        pipeline.step(at(frames[0], 0.5 * k))
    broken = change(at(frames[0], 1.0))
    result = pipeline.step(broken)
    assert result.reset.startswith(cause) and result.history == 0
    assert pipeline.health.snapshot().resets == {cause: 1}
    fresh = Pipeline(pipeline.variants, pipeline.device, pipeline.settings)
    assert same(result.boxes, fresh.step(broken).boxes)
    fresh.close()


def test_normal_driving_and_a_requested_reset(pipeline, frames):
    assert pipeline.step(frames[0]).reset is None
    assert pipeline.step(at(frames[0], 0.5, shift=15)).reset is None  # 30 m/s
    pipeline.reset("service")
    result = pipeline.step(at(frames[0], 1.0, shift=30))
    assert result.reset == "requested: service" and result.history == 0


def test_history_changes_the_result(pipeline, frames):
    alone = pipeline.step(frames[5])
    pipeline.reset("test")
    for frame in frames[:5]:
        pipeline.step(frame)
    assert not same(alone.boxes, pipeline.step(frames[5]).boxes)


def test_an_unusable_frame_costs_itself_only(pipeline, frames):
    pipeline.step(frames[0])
    memory = pipeline._streams[0].memory
    nothing = without(frames[1], *CAMERAS)
    with pytest.raises(NoUsableViewError, match="gone"):
        pipeline.step(nothing)
    assert pipeline._streams[0].memory is memory
    assert pipeline.health.snapshot().drops == {"no usable view": 1}
    assert pipeline.step(frames[2]).reset is None


def test_a_lost_view_is_masked(pipeline, frames):
    result = pipeline.step(without(frames[0], "cam_back"))
    assert result.missing == {"cam_back": "gone"}
    assert pipeline.health.snapshot().drops == {"missing view": 1}
    front = frames[0].views[0]
    other = dataclasses.replace(
        without(frames[0], "cam_back"),
        views=tuple(v for i, v in enumerate(frames[0].views) if i != 3),
        cameras=tuple(c for c in CAMERAS if c != "cam_back"),
    )
    pipeline.reset("test")
    five = pipeline.step(at(other, 0.5)).boxes
    # a rig of the five cameras that are left says the same as six with one lost
    assert front is not None and np.allclose(five.scores, result.boxes.scores, atol=1e-5)


def test_settings_change_what_is_handed_out(pipeline, frames):
    pipeline.settings = dataclasses.replace(pipeline.settings, max_detections=3)
    assert len(pipeline.step(frames[0]).boxes) == 3
    pipeline.settings = dataclasses.replace(pipeline.settings, score_threshold=1.0)
    assert len(pipeline.step(at(frames[0], 0.5)).boxes) == 0


def test_a_lower_precision_of_the_encoder_gives_nearly_the_same_boxes(pipeline, frames):
    (loaded,) = pipeline.variants
    config = dataclasses.replace(loaded.config, image=ImageConfig(height=64, width=176))  # CPUs are slow in bf16
    found = []
    for precision in ("fp32", "bf16"):
        settings = PipelineSettings(score_threshold=0.0, nms="none", precision=precision)
        other = Pipeline([dataclasses.replace(loaded, config=config)], CPU, settings)
        found.append([other.step(at(frames[k], 0.5 * k)).boxes for k in range(2)])  # the second looks at the memory
        assert other._streams[0].memory.entries[0].levels[0].dtype == torch.float32
        other.close()
    for full, half in zip(*found, strict=True):
        assert not np.array_equal(full.centers, half.centers)
        assert np.abs(full.scores - half.scores).max() < 3e-3
        # the order among nearly equal scores is another one: compare each box with the nearest; and without training
        # the perspective head's peaks are noise, so only learnt queries, at the floor of the range, start the same
        learnt = full.centers[:, 2] < -2.5
        distances = np.abs(full.centers[learnt, None] - half.centers).max(axis=2).min(axis=1)
        assert len(distances) > 40 and np.median(distances) < 0.03 and np.quantile(distances, 0.95) < 0.1


def test_a_precision_that_the_device_lacks_is_refused(untrained):
    with pytest.raises(ConfigError, match="'tf32' is a format of NVIDIA's GPUs; on cpu choose 'fp32'"):
        load_pipeline("sparsebev_tiny", untrained, "cpu", PipelineSettings(precision="tf32"))


@pytest.mark.parametrize(
    "values",
    [
        {"score_threshold": 2.0},
        {"max_detections": 0},
        {"memory_interval": 0.0},
        {"memory_interval": np.nan},
        {"tracker": "sort"},
        {"nms": "soft"},
    ],
)
def test_settings_out_of_range_are_named(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        PipelineSettings(**values)


def test_a_variant_that_needs_the_future_is_refused(pipeline):
    config = pipeline.variants[0].config
    config = dataclasses.replace(config, frames=dataclasses.replace(config.frames, future=7))
    with pytest.raises(ConfigError, match="7 frames into the future"):
        Pipeline([dataclasses.replace(pipeline.variants[0], config=config)], pipeline.device)


def test_without_a_checkpoint_the_shipped_weights_run(shipped, untrained, occupancy_weights):
    pipeline = load_pipeline("sparsebev_tiny", device="cpu", second=("sparseocc_tiny", occupancy_weights))
    assert [v.checkpoint.path for v in pipeline.variants] == [shipped, occupancy_weights]
    pipeline.close()
    for arguments in ({"variant": "sparseocc_tiny"}, {"variant": "sparsebev_tiny", "second": ("sparseocc_tiny", None)}):
        with pytest.raises(
            ConfigError, match=r"no weights are shipped for sparseocc_tiny; give the path.*init-weights"
        ):
            load_pipeline(**arguments, device="cpu")


@pytest.fixture(scope="module")
def occupancy_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sparseocc_tiny.safetensors"
    write_initial_weights("sparseocc_tiny", path, seed=1)
    return path


@pytest.fixture(scope="module")
def twin_weights(untrained, occupancy_weights, tmp_path_factory):
    """Weights of sparseocc_tiny that encode images as those of sparsebev_tiny do."""
    state, encoder = load_file(occupancy_weights), load_file(untrained)
    state |= {key: value for key, value in encoder.items() if key.startswith(("img_backbone.", "img_neck."))}
    path = tmp_path_factory.mktemp("weights") / "twin.safetensors"
    save_file(state, path, {"trained": "false"})
    return path


def run_all(frames, *args, **kwargs):
    pipeline = load_pipeline(*args, device="cpu", settings=PipelineSettings(0.0, 20), **kwargs)
    results = [pipeline.step(frame) for frame in frames]
    pipeline.close()
    return pipeline, results


def test_occupancy_alone(occupancy_weights, frames):
    pipeline, results = run_all(frames[:2], "sparseocc_tiny", occupancy_weights)
    assert pipeline.encoders == (("sparseocc_tiny",),) and not pipeline.trained
    assert [result.boxes for result in results] == [None, None]
    assert results[1].occupancy.semantics.shape == (200, 200, 16) and results[1].history == 1
    assert results[1].occupancy.class_names[-1] == "free" and results[1].occupancy.instances is None


@pytest.mark.parametrize("shared", [True, False])
def test_detection_and_occupancy_together_say_what_each_says_alone(
    untrained, occupancy_weights, twin_weights, frames, shared, monkeypatch
):
    weights = twin_weights if shared else occupancy_weights
    alone = run_all(frames[:3], "sparsebev_tiny", untrained)[1], run_all(frames[:3], "sparseocc_tiny", weights)[1]
    encoded = []
    encode = CameraModel.encode
    monkeypatch.setattr(CameraModel, "encode", lambda model, inputs: encoded.append(1) or encode(model, inputs))
    pipeline, results = run_all(frames[:3], "sparsebev_tiny", untrained, second=("sparseocc_tiny", weights))
    assert len(encoded) == (3 if shared else 6)
    names = ("sparsebev_tiny", "sparseocc_tiny")
    assert pipeline.encoders == ((names,) if shared else tuple((name,) for name in names))
    for together, boxes, occupancy in zip(results, *alone, strict=True):
        assert same(together.boxes, boxes.boxes)
        assert np.array_equal(together.occupancy.semantics, occupancy.occupancy.semantics)
    assert (results[0].occupancy.occupied).any()  # else their equality would say nothing


def poison(module, value=math.nan):
    """Let a module's outputs hold one NaN; return what ends it."""

    def spoil(_module, _inputs, outputs):
        first = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        first[(0,) * first.dim()] = value
        return outputs

    return module.register_forward_hook(spoil)


@pytest.mark.parametrize("part", ["img_neck", "pts_bbox_head.transformer.decoder.decoder_layer.ffn"])
def test_a_frame_that_is_not_finite_costs_itself_alone(pipeline, frames, part):
    """One NaN in one feature gave 300 boxes of score 0.5 for as long as it was remembered."""
    (loaded,) = pipeline.variants
    twin = Pipeline([loaded], CPU, pipeline.settings)
    pipeline.step(frames[0]), twin.step(frames[0])
    memory = pipeline._streams[0].memory
    hook = poison(loaded.model.get_submodule(part))
    for frame in frames[1:4]:
        with pytest.raises(NotFiniteError, match=r"sparsebev_tiny: the model's features or outputs hold NaN"):
            pipeline.step(frame)
    hook.remove()
    assert pipeline._streams[0].memory is memory
    snapshot = pipeline.health.snapshot()
    assert snapshot.drops == {"not finite": 3} and snapshot.failures == 3 and "NaN" in snapshot.failure
    assert same(pipeline.step(frames[5]).boxes, twin.step(frames[5]).boxes)
    assert pipeline.health.snapshot().failures == 0
    twin.close()


@pytest.mark.parametrize("part", ["img_neck", "pts_bbox_head.transformer.decoder.decoder_layer"])
def test_occupancy_that_is_not_finite_is_no_free_space(occupancy_weights, frames, part):
    pipeline = load_pipeline("sparseocc_tiny", occupancy_weights, "cpu")
    pipeline.step(frames[0])
    hook = poison(pipeline.variants[0].model.get_submodule(part))
    with pytest.raises(NotFiniteError, match="sparseocc_tiny: the model's features or outputs hold NaN"):
        pipeline.step(frames[1])
    hook.remove()
    assert pipeline.step(frames[2]).occupancy is not None
    pipeline.close()


@pytest.mark.parametrize("name", ["ego2global", "lidar2global"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pose_that_is_not_finite_costs_its_frame(pipeline, frames, name, value):
    pose = np.eye(4)
    pose[0, 3] = value
    with pytest.raises(NotFiniteError, match="the frame's pose holds NaN or infinity; check tf"):
        pipeline.step(dataclasses.replace(frames[0], **{name: pose}))
    assert pipeline.health.snapshot().drops == {"not finite": 1}
    assert pipeline.step(frames[1]).reset is None


def test_a_changed_memory_interval_changes_the_room_of_the_memory(pipeline, frames):
    stream = pipeline._streams[0]
    pipeline.step(frames[0])
    assert stream.memory.capacity == 8  # 1.5 s, one every 0.25 s, and two beside
    stream.memory = dataclasses.replace(stream.memory, entries=8 * stream.memory.entries)
    pipeline.settings = dataclasses.replace(pipeline.settings, memory_interval=0.05)
    pipeline.step(at(frames[0], 0.1))
    assert stream.memory.capacity == 32 and pipeline.memory_frames == 9
    pipeline.settings = dataclasses.replace(pipeline.settings, memory_interval=0.5)
    pipeline.step(at(frames[0], 0.6))
    assert stream.memory.capacity == 5 and pipeline.memory_frames == 5


def test_boxes_are_in_base_link_with_those_of_the_reference_frame_beside_them(pipeline, frames):
    live = pipeline.step(frames[0])
    # the lidar where the variant has it: 0.94 m ahead, 1.84 m up, turned to the right
    lidar2ego = reference2ego(pipeline.variants[0].config)
    pipeline.reset("again")
    lidar2global = frames[0].ego2global @ lidar2ego
    again = pipeline.step(dataclasses.replace(frames[0], lidar2global=lidar2global))
    np.testing.assert_allclose(again.boxes.centers, live.boxes.centers, atol=1e-3)
    np.testing.assert_allclose(again.reference_boxes.centers, live.reference_boxes.centers, atol=1e-3)
    moved = transform_points(lidar2ego, live.reference_boxes.centers)
    np.testing.assert_allclose(moved, live.boxes.centers, atol=1e-9)


def test_variants_that_give_the_same_are_refused(untrained):
    with pytest.raises(ConfigError, match="sparsebev_tiny and sparsebev_tiny both give boxes; run one of them"):
        load_pipeline("sparsebev_tiny", untrained, "cpu", second=("sparsebev_tiny", untrained))


def test_the_whole_step_computes_in_float32_unless_the_encoder_is_told_otherwise(pipeline, frames, monkeypatch):
    """PyTorch lets convolutions use TF32 by default, in whatever comes after the encoder, too."""
    seen = []
    monkeypatch.setattr("bev_perception.pipeline.pipeline.strict_float32", lambda device: noted(seen))
    model = pipeline.variants[0].model
    for module in (model.img_backbone, model.perspective_head.heat[-1], model.pts_bbox_head):
        module.register_forward_pre_hook(lambda module, inputs: seen.append(type(module).__name__))
    pipeline.step(frames[0])
    assert (seen[0], seen[-1]) == ("begin", "end") and "SparseBEVHead" in seen and "Conv2d" in seen


@contextlib.contextmanager
def noted(seen):
    seen.append("begin")
    yield
    seen.append("end")


def test_a_frame_that_fails_wipes_nothing(pipeline, frames):
    """A stray stamp and a broken pose at once: the memory continues into the next good frame."""
    for k in range(2):
        pipeline.step(at(frames[0], 0.5 * k))
    memory = pipeline._streams[0].memory
    hook = poison(pipeline.variants[0].model.img_neck)
    for seconds in (-5.0, 9.0):
        with pytest.raises(NotFiniteError):
            pipeline.step(at(frames[0], seconds))
    pipeline.reset("asked for")
    with pytest.raises(NotFiniteError):
        pipeline.step(at(frames[0], 1.0))
    hook.remove()
    assert pipeline._streams[0].memory is memory and not pipeline.health.snapshot().resets
    result = pipeline.step(at(frames[0], 1.0))
    assert result.reset == "requested: asked for" and result.history == 0  # it is still wanted
    assert pipeline.step(at(frames[0], 1.5)).reset is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["heat", "codes"])
def test_proposals_that_are_not_finite_cost_the_frame(pipeline, frames, part, value):
    hook = poison(getattr(pipeline.variants[0].model.perspective_head, part)[-1], value)
    with pytest.raises(NotFiniteError):
        pipeline.step(frames[0])
    hook.remove()
    assert len(pipeline.step(frames[1]).boxes)


def test_every_error_of_a_frame_is_counted_wherever_it_is_raised(pipeline, frames, monkeypatch):
    def fail(*_):
        raise FrameError("nothing to see")

    monkeypatch.setattr(pipeline.variants[0].model, "predict", fail)
    with pytest.raises(FrameError):
        pipeline.step(frames[0])
    snapshot = pipeline.health.snapshot()
    assert snapshot.drops == {"bad frame": 1} and snapshot.failure == "bad frame: nothing to see"


# ---------------------------------------------------------------- track ids


def test_boxes_have_track_ids_that_last(pipeline, frames):
    """At 12 Hz most of the same weights' boxes are near those before; both frames of reference have the same ids."""
    first, second = pipeline.step(frames[0]), pipeline.step(frames[1])
    for result in (first, second):
        assert len(set(result.boxes.track_ids.tolist())) == 20
        np.testing.assert_array_equal(result.boxes.track_ids, result.reference_boxes.track_ids)
    assert set(first.boxes.track_ids.tolist()) == set(range(1, 21))
    assert len(set(first.boxes.track_ids.tolist()) & set(second.boxes.track_ids.tolist())) > 5


def test_after_a_wipe_ids_are_new(pipeline, frames):
    used = set(pipeline.step(frames[0]).boxes.track_ids.tolist())
    for broken in (at(frames[0], -5), at(frames[0], 3), at(frames[0], 3.1, shift=30)):
        result = pipeline.step(broken)
        assert result.reset and not used & set(result.boxes.track_ids.tolist())
        used |= set(result.boxes.track_ids.tolist())
    pipeline.reset("asked for")
    assert not used & set(pipeline.step(at(frames[0], 3.2, shift=30)).boxes.track_ids.tolist())


def test_a_frame_that_fails_leaves_the_tracks_as_they_were(pipeline, frames):
    pipeline.step(frames[0])
    tracks = pipeline._tracks
    hook = poison(pipeline.variants[0].model.img_neck)
    for seconds in (0.1, -5.0):  # the second one would have wiped them
        with pytest.raises(NotFiniteError):
            pipeline.step(at(frames[0], seconds))
    hook.remove()
    assert pipeline._tracks is tracks
    assert 1 in pipeline.step(at(frames[0], 0.2)).boxes.track_ids


def test_further_boxes_of_an_object_are_dropped_as_the_setting_or_the_variant_says(pipeline, frames, monkeypatch):
    model, loaded = pipeline.variants[0].model, pipeline.variants[0]
    decode = model.decode

    def all_alike(*arguments):
        """Cars at one place; every second of another class."""
        seen = decode(*arguments)
        n = len(seen.boxes)
        same = dataclasses.replace(seen.boxes, centers=np.ones((n, 3)), labels=np.arange(n) % 2)
        return dataclasses.replace(seen, boxes=same)

    monkeypatch.setattr(model, "decode", all_alike)
    stream = pipeline._streams[0]
    for k, (setting, own, kept) in enumerate(
        [("none", "distance", 20), ("auto", "none", 20), ("auto", "distance", 2), ("distance", "none", 2)]
    ):
        config = dataclasses.replace(loaded.config, nms=own)
        monkeypatch.setattr(stream, "config", config)
        pipeline.settings = dataclasses.replace(pipeline.settings, nms=setting)
        result = pipeline.step(at(frames[0], 0.1 * k))
        assert len(result.boxes) == len(result.reference_boxes) == len(result.boxes.track_ids) == kept
    assert set(result.boxes.labels.tolist()) == {0, 1}


def test_without_a_tracker_and_with_ids_of_the_model(pipeline, frames, monkeypatch):
    pipeline.settings = dataclasses.replace(pipeline.settings, tracker="none")
    assert pipeline.step(frames[0]).boxes.track_ids is None
    model = pipeline.variants[0].model
    decode = model.decode

    def with_ids(*arguments):
        seen = decode(*arguments)
        own = dataclasses.replace(seen.boxes, track_ids=np.arange(100, 100 + len(seen.boxes)))
        return dataclasses.replace(seen, boxes=own)

    monkeypatch.setattr(model, "decode", with_ids)
    for k, tracker in enumerate(("none", "greedy")):
        pipeline.settings = dataclasses.replace(pipeline.settings, tracker=tracker)
        result = pipeline.step(frames[k + 1])
        assert result.boxes.track_ids.tolist() == result.reference_boxes.track_ids.tolist() == list(range(100, 120))
