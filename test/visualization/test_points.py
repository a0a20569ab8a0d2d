"""Sampling points: what is recorded is what the model samples, and it is drawn where it projects."""

import dataclasses

import numpy as np
import pytest
import torch

from bev_perception.data.drive import CAMERAS
from bev_perception.families.sparsebev.model import SparseBEV
from bev_perception.families.sparsebev.recording import record_sampling
from bev_perception.families.variants import load_variant
from bev_perception.geometry import intrinsics_4x4, invert_transform, project
from bev_perception.models.sampling_trace import SamplingTrace
from bev_perception.ops.sampling import sample_features
from bev_perception.pipeline.loading import load_pipeline
from bev_perception.sensing.image_transform import image_transform
from bev_perception.types import Boxes3D
from bev_perception.visualization.canvas import SURROUND, draw_dots
from bev_perception.visualization.pictures import TILE_HEIGHT, TILE_WIDTH
from bev_perception.visualization.points import draw_points, stage_colors

CONFIG = dataclasses.replace(
    load_variant("sparsebev_tiny"),
    reference_frame=dataclasses.replace(
        load_variant("sparsebev_tiny").reference_frame, sensor="base_link", translation=(0.0, 0.0, 0.0), yaw=0.0
    ),
)
IMAGE_SIZE = (CONFIG.image.height, CONFIG.image.width)


def make_trace(frame, points, scores=None):
    """A trace of points [S, T, Q, K, 3] in base_link, of frames that are all taken where the first is."""
    points = torch.tensor(np.array(points), dtype=torch.float32)
    matrices = []
    for view in frame.views:
        ida = image_transform((view.calibration.height, view.calibration.width), CONFIG.image).ida
        matrices.append(ida @ intrinsics_4x4(view.calibration.intrinsics) @ invert_transform(view.sensor2ego))
    frames, queries = points.shape[1:3]
    reference2image = torch.tensor(np.array(matrices), dtype=torch.float32).expand(frames, -1, -1, -1)
    scores = np.zeros(queries) if scores is None else np.array(scores)
    boxes = dataclasses.replace(boxes_at(np.zeros((queries, 3))), scores=scores)
    return SamplingTrace(points, reference2image, IMAGE_SIZE, np.zeros(frames), boxes)


def boxes_at(centers):
    n = len(centers)
    return Boxes3D(
        np.array(centers, float).reshape(n, 3),
        np.full((n, 3), 0.2),
        np.zeros(n),
        np.zeros((n, 2)),
        np.ones(n),
        np.zeros(n, int),
        CONFIG.class_names,
    )


def tile(picture, name):
    row = next(r for r, names in enumerate(SURROUND) if name in names)
    column = SURROUND[row].index(name)
    y, x = row * TILE_HEIGHT, column * TILE_WIDTH
    return picture[y : y + TILE_HEIGHT, x : x + TILE_WIDTH]


def drawn(picture, color):
    v, u = np.nonzero((np.abs(picture.astype(int) - color) < 60).all(-1))
    return np.stack([u, v], axis=1)


def expected_pixel(frame, name, point):
    view = frame.views[frame.cameras.index(name)]
    matrix = intrinsics_4x4(view.calibration.intrinsics) @ invert_transform(view.sensor2ego)
    pixels, depth = project(matrix, np.array([point]))
    assert depth[0] > 0
    return (pixels[0] + 0.5) * TILE_WIDTH / view.calibration.width - 0.5


def draw(frame, images, trace, queries=(0,), **more):
    samples = trace.samples(list(queries), more.pop("seen", 0))
    return draw_points(
        frame, images, samples, list(queries), boxes_at([(0, 0, -50.0)] * len(queries)), frame, CONFIG, **more
    )


def test_the_camera_named_is_the_one_that_the_model_samples(frame_and_images):
    """Features that are constant in each camera tell which one a sample comes from."""
    frame, _ = frame_and_images
    rng = np.random.default_rng(2)
    trace = make_trace(frame, rng.uniform((-40, -40, -2), (40, 40, 4), (2, 1, 30, 8, 3)))
    samples = trace.samples(range(30), 0)
    maps = torch.arange(1.0, 7.0).view(1, 6, 1, 1, 1).expand(1, 6, 8, 22, 4).contiguous()
    for stage in range(2):
        points = trace.points[stage][None].unflatten(3, (1, 8))  # [B, T, Q, G, P, 3]
        weights = torch.ones(1, 1, 30, 1, 8, 1)
        sampled = sample_features([[maps]], points, trace.reference2image[None], weights, IMAGE_SIZE)[0, :, 0, :, 0]
        seen = samples.camera[stage] >= 0
        assert 0.3 < seen.mean() < 1
        np.testing.assert_allclose(sampled.numpy()[seen], samples.camera[stage][seen] + 1, atol=1e-4)
        assert not samples.visible[stage][~seen].any()


def test_a_point_is_drawn_where_it_projects_in_the_colour_of_its_stage(frame_and_images):
    frame, images = frame_and_images
    places = {"cam_front": (20.0, 1.0, 0.5), "cam_back": (-15.0, -2.0, 0.5), "cam_back_left": (-3.0, 14.0, 1.0)}
    trace = make_trace(frame, [[[[place]]] for place in places.values()])  # a stage each
    picture = draw(frame, images, trace)
    for (name, place), color in zip(places.items(), stage_colors(3), strict=True):
        for camera in CAMERAS:
            found = drawn(tile(picture, camera), color)
            assert bool(len(found)) == (camera == name)
        middle = drawn(tile(picture, name), color).mean(0)
        np.testing.assert_allclose(middle, expected_pixel(frame, name, place), atol=1.2)


def test_a_ring_where_another_camera_is_sampled(frame_and_images):
    frame, images = frame_and_images
    place = next(
        (12 * np.cos(a), 12 * np.sin(a), 0.8)
        for a in np.linspace(0.4, 0.7, 61)
        if make_trace(frame, [[[[(12 * np.cos(a), 12 * np.sin(a), 0.8)]]]]).samples([0], 0).visible.sum() == 2
    )
    trace = make_trace(frame, [[[[place]]]])
    samples = trace.samples([0], 0)
    assert frame.cameras[samples.camera.item()] == "cam_front"  # the first in the order of the cameras
    picture = draw(frame, images, trace)
    centres = {}
    for name in ("cam_front", "cam_front_left"):
        u, v = np.round(expected_pixel(frame, name, place)).astype(int)
        assert len(drawn(tile(picture, name), stage_colors(1)[0]))
        centres[name] = tile(picture, name)[v, u]
    assert np.abs(centres["cam_front"].astype(int) - stage_colors(1)[0]).max() < 60
    assert np.abs(centres["cam_front_left"].astype(int) - images["cam_front_left"][0, 0]).max() < 60


def test_points_that_no_camera_sees_are_left_out_of_the_images_but_not_of_the_view_from_above(frame_and_images):
    frame, images = frame_and_images
    trace = make_trace(frame, [[[[(10.0, -8.0, 60.0)]]]])
    assert (trace.samples([0], 0).camera == -1).all()
    picture = draw(frame, images, trace)
    color = stage_colors(1)[0]
    assert not len(drawn(picture[: 2 * TILE_HEIGHT, : 3 * TILE_WIDTH], color))
    above = drawn(picture[: 2 * TILE_HEIGHT - 250, 3 * TILE_WIDTH :], color)
    scale = (TILE_HEIGHT - 12) / 50
    np.testing.assert_allclose(above.mean(0), (TILE_HEIGHT + 8 * scale, TILE_HEIGHT - 10 * scale), atol=1)


def test_queries_and_frames_are_chosen(frame_and_images):
    frame, _ = frame_and_images
    points = np.zeros((1, 2, 3, 1, 3))
    points[0, 1, 2, 0] = (20.0, 0.0, 1.0)
    trace = make_trace(frame, points, [0.1, 0.9, 0.8])
    assert trace.best(2) == [1, 2] and trace.best(9) == [1, 2, 0]
    samples = trace.samples([2, 0], 1)
    np.testing.assert_allclose(samples.points[0, :, 0], [(20.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
    assert samples.camera.shape == (1, 2, 1) and samples.camera[0, 0, 0] == 0


def test_nothing_to_draw(frame_and_images):
    frame, images = frame_and_images
    trace = make_trace(frame, np.zeros((2, 1, 4, 3, 3)))
    a, b = (draw(frame, images, trace, queries=()) for _ in range(2))
    assert np.array_equal(a, b)


def test_stages_have_colours_of_their_own():
    for stages in (1, 3, 6):
        assert len(set(stage_colors(stages))) == stages


def test_a_dot_is_drawn_between_pixels():
    canvas = np.zeros((40, 40, 3), np.uint8)
    draw_dots(canvas, np.array([[10.5, 20.25]]), 4.0, (255, 255, 255))
    weights = canvas[..., 0] / 255
    v, u = np.mgrid[:40, :40]
    assert (u * weights).sum() / weights.sum() == pytest.approx(10.5, abs=0.1)
    assert (v * weights).sum() / weights.sum() == pytest.approx(20.25, abs=0.1)


def test_recording_changes_nothing_and_ends(bag_frames, untrained):
    pipelines = [load_pipeline("sparsebev_tiny", untrained, "cpu") for _ in range(2)]
    for pipeline in pipelines:
        pipeline.settings = dataclasses.replace(pipeline.settings, score_threshold=0.0)
    model = pipelines[1].variants[0].model
    assert isinstance(model, SparseBEV)
    results = [pipelines[0].step(frame) for frame in bag_frames[:2]]
    with record_sampling(model) as traces:
        recorded = [pipelines[1].step(frame) for frame in bag_frames[:2]]
    pipelines[1].step(bag_frames[2])
    assert len(traces) == 2 and not any(module._forward_hooks for module in model.modules())
    for a, b in zip(results, recorded, strict=True):
        assert np.array_equal(a.boxes.centers, b.boxes.centers) and np.array_equal(a.boxes.scores, b.boxes.scores)
    head, past = CONFIG.head, CONFIG.frames.past
    for trace, result in zip(traces, results, strict=True):
        shape = (
            head.num_layers,
            past + 1,
            head.num_query + head.proposals.queries,
            head.num_groups * head.num_points,
            3,
        )
        assert trace.points.shape == shape and trace.image_size == IMAGE_SIZE
        assert trace.boxes.scores[trace.best(1)] == pytest.approx(result.boxes.scores[0])
    assert (traces[0].time_differences == 0).all()
    age = (bag_frames[1].stamp - bag_frames[0].stamp) / 1e9
    assert traces[1].time_differences.tolist() == pytest.approx([0] + [age] * past, abs=0.02)
    assert len(np.unique(traces[1].points[:, 0, 0, 0, 0])) == head.num_layers  # the stages, one after the other
    for pipeline in pipelines:
        pipeline.close()


def test_recording_ends_after_an_error_too(untrained):
    model = load_pipeline("sparsebev_tiny", untrained, "cpu").variants[0].model
    with pytest.raises(RuntimeError, match="stop"), record_sampling(model):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_that_fails_leaves_no_stages_for_the_next(untrained, bag_frames, monkeypatch):
    pipeline = load_pipeline("sparsebev_tiny", untrained, "cpu")
    model = pipeline.variants[0].model
    with record_sampling(model) as traces:
        hook = model.pts_bbox_head.decoder_layer.ffn.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.step(bag_frames[0])
        hook.remove()
        pipeline.step(bag_frames[1])
    assert len(traces) == 1 and len(traces[0].points) == CONFIG.head.num_layers
    pipeline.close()
