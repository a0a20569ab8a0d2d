"""The command `show`, from data to files; most tests look at what would be drawn, some at the files themselves."""

import dataclasses
import os
import shutil

import cv2
import numpy as np
import pytest
from nuscenes_root import VERSION

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import ConfigError
from bev_perception.data.drive import CAMERAS
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import OccupancyLabels, labels_path, write_labels
from bev_perception.data.rosbag import BagReader
from bev_perception.data.synthetic import World
from bev_perception.evaluation.running import run_rows
from bev_perception.families.variants import load_variant, variants_directory
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.models.device import choose_device
from bev_perception.pipeline.loading import write_initial_weights
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.types import OCC3D_GRID
from bev_perception.visualization import show
from bev_perception.visualization.show import (
    BagFrames,
    KeyFrames,
    ShowSettings,
    show_boxes,
    show_labels,
    show_occupancy,
    show_points,
)

SCENE = "scene-0916"  # not the first


@pytest.fixture
def settings(untrained, tmp_path):
    return ShowSettings("sparsebev_tiny", untrained, tmp_path / "new" / "out", "cpu")


@pytest.fixture(scope="module")
def occupancy_weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "sparseocc_tiny.safetensors"
    write_initial_weights("sparseocc_tiny", path, seed=0)
    return path


def watch(patch):
    """Have nothing drawn; return what the drawing functions are called with, {name: [arguments]}."""
    calls = {}

    def stand_in(name):
        def draw(*args, **_):
            calls.setdefault(name, []).append(args)
            return np.full((8, 8, 3), 60, np.uint8)

        return draw

    for name in ("draw_frame", "draw_points", "draw_occupancy"):
        patch.setattr(show, name, stand_in(name))
    return calls


@pytest.fixture
def drawn(monkeypatch):
    return watch(monkeypatch)


@pytest.fixture(scope="module")
def scene(untrained, synthetic_nuscenes, tmp_path_factory):
    """The key frames of a scene, and what is drawn of them with seven boxes each."""
    out = tmp_path_factory.mktemp("scene") / "new" / "out"
    frames = KeyFrames(synthetic_nuscenes, VERSION, SCENE)
    with pytest.MonkeyPatch.context() as patch:
        calls = watch(patch)
        assert show_boxes(ShowSettings("sparsebev_tiny", untrained, out, "cpu"), frames, 0.0, max_boxes=7) == 5
    stamps = [frames.records.stamps[i] * 1000 for i in frames.rows]
    assert sorted(path.name for path in out.iterdir()) == [f"boxes_{stamp}.png" for stamp in stamps]
    return frames, calls["draw_frame"]


@pytest.fixture
def bag_source(bag):
    return BagFrames(BagReader(bag), SynchronizerSettings(CAMERAS))


def with_limits(config, count):
    decode = dataclasses.replace(config.head.decode, score_threshold=0.0, max_num=count)
    return dataclasses.replace(config, head=dataclasses.replace(config.head, decode=decode))


def test_boxes_are_those_of_the_evaluation_in_base_link(scene, untrained):
    frames, calls = scene
    config = load_variant("sparsebev_tiny")
    config = with_limits(config, 7)
    evaluated = run_rows(config, untrained, choose_device("cpu"), frames.records, frames.rows[:2])
    for (i, expected), (frame, images, boxes, note, _) in zip(evaluated, calls[:2], strict=True):
        expected = expected.boxes
        np.testing.assert_allclose(boxes.centers, expected.centers, atol=1e-9)
        np.testing.assert_allclose(boxes.yaws, expected.yaws, atol=1e-9)
        assert len(boxes) == 7 and frame.stamp == frames.records.stamps[i] * 1000
        assert set(images) == set(CAMERAS)
        assert "UNTRAINED" in note and SCENE in note and frames.records.tokens[i] in note


def test_truth_is_drawn_without_a_variant(synthetic_nuscenes, tmp_path, drawn):
    """By the command line: the boxes that are in the tables, in their places."""
    command = ["show", "truth", "--data", str(synthetic_nuscenes), "--scene", SCENE, "--out", str(tmp_path / "new")]
    assert cli.main(command) == 0
    frames = KeyFrames(synthetic_nuscenes, VERSION, SCENE)
    calls = drawn["draw_frame"]
    assert len(calls) == len(list((tmp_path / "new").glob("truth_*.png"))) == 5
    for i, (frame, images, boxes, note) in zip(frames.rows, calls, strict=True):
        annotations = frames.records.annotations(i)
        near = (np.abs(annotations.boxes[:, :2]) < 50).all(axis=1) & annotations.valid
        assert len(boxes) == near.sum() > 0 and set(images) == set(CAMERAS) and note.startswith("truth  " + SCENE)
        assert frame.stamp == frames.records.stamps[i] * 1000
        centers = transform_points(frames.records.lidar2ego(i), annotations.boxes[near, :3])
        np.testing.assert_allclose(boxes.centers, centers, atol=1e-9)


def test_boxes_are_drawn_with_the_ways_that_their_tracks_have_come(settings, synthetic_nuscenes, monkeypatch):
    """Also of the key frames before the one to be shown."""
    shown = []

    def draw(frame, images, boxes, note, truth, trails, scores):
        shown.append((frame, boxes, trails))
        return np.full((8, 8, 3), 60, np.uint8)

    monkeypatch.setattr(show, "draw_frame", draw)
    assert show_boxes(settings, KeyFrames(synthetic_nuscenes, VERSION, sample=f"{SCENE}-2"), 0.0, 20) == 1
    ((frame, boxes, trails),) = shown
    assert len(set(boxes.track_ids.tolist())) == 20 and trails
    now = dict(zip(boxes.track_ids.tolist(), transform_points(frame.ego2global, boxes.centers), strict=True))
    assert now.keys() & trails.keys() and all(2 <= len(line) <= 3 for line in trails.values())
    for track in now.keys() & trails.keys():
        np.testing.assert_allclose(trails[track][-1], now[track])


def test_truth_is_what_the_world_holds_in_base_link(scene):
    world = World(3)
    for frame, _, _, _, truth in scene[1]:
        real = to_ego(world.boxes(frame.stamp), invert_transform(frame.ego2global))
        assert len(truth) > 5
        for k in range(len(truth)):
            distances = np.linalg.norm(real.centers - truth.centers[k], axis=1)
            match = distances.argmin()
            assert distances[match] < 1e-3 and truth.labels[k] == real.labels[match]
            assert np.cos(truth.yaws[k] - real.yaws[match]) > 0.9999
            np.testing.assert_allclose(truth.sizes[k], real.sizes[match], atol=1e-6)


def test_one_sample_is_drawn_as_within_its_scene(scene, settings, synthetic_nuscenes, drawn):
    assert show_boxes(settings, KeyFrames(synthetic_nuscenes, VERSION, sample=f"{SCENE}-1"), 0.0, 7) == 1
    (alone,), within = drawn["draw_frame"], scene[1][1]
    assert alone[0].stamp == within[0].stamp
    np.testing.assert_allclose(alone[2].centers, within[2].centers)
    np.testing.assert_allclose(alone[4].centers, within[4].centers)


def test_a_variant_with_future_frames_gets_whole_queues(synthetic_nuscenes, tmp_path, drawn, bag_source):
    text = (variants_directory() / "sparsebev_tiny.yaml").read_text()
    text = text.replace("name: sparsebev_tiny", "name: tiny_future").replace("past: 3,", "past: 1, future: 1,")
    variant = tmp_path / "tiny_future.yaml"
    variant.write_text(text)
    weights = tmp_path / "weights.safetensors"
    write_initial_weights(variant, weights, seed=0)
    settings = ShowSettings(str(variant), weights, tmp_path / "out", "cpu")
    source = KeyFrames(synthetic_nuscenes, VERSION, sample=f"{SCENE}-2")
    assert show_boxes(settings, source, 0.0, 5) == 1
    (frame, _, boxes, _, truth) = drawn["draw_frame"][0]
    config = load_variant(variant)
    config = with_limits(config, 5)
    ((i, expected),) = run_rows(config, weights, choose_device("cpu"), source.records, source.rows)
    np.testing.assert_allclose(boxes.centers, expected.boxes.centers)
    assert len(truth) and frame.stamp == source.records.stamps[i] * 1000
    with pytest.raises(ConfigError, match="into the future"):
        show_boxes(settings, bag_source, 0.0)


def test_key_frames_without_images_are_left_out(synthetic_nuscenes, tmp_path, caplog):
    root = shutil.copytree(synthetic_nuscenes, tmp_path / "root", copy_function=os.link)
    whole = KeyFrames(root, VERSION, SCENE)
    records, rows = whole.records, whole.rows
    (root / records.paths(records.cameras(rows[1]))[2]).unlink()
    assert KeyFrames(root, VERSION, SCENE).rows == [rows[0], *rows[2:]]
    assert "1 of 5 key frames lack images" in caplog.text
    with pytest.raises(NuScenesError, match="are not under"):
        KeyFrames(root, VERSION, sample=records.tokens[rows[1]])
    shots = list(KeyFrames(root, VERSION, sample=records.tokens[rows[3]]).shots(past=2))
    assert [(shot.row, shot.shown) for shot in shots] == [(rows[2], False), (rows[3], True)]
    # nothing of the scene before
    assert [shot.row for shot in KeyFrames(root, VERSION, sample=records.tokens[rows[0]]).shots(past=2)] == rows[:1]


def test_points_of_the_past_are_drawn_over_the_images_of_then(settings, synthetic_nuscenes, drawn):
    source = KeyFrames(synthetic_nuscenes, VERSION, sample=f"{SCENE}-2")
    assert show_points(settings, source, queries=[4, 50], frame=1) == 1
    ((frame, images, samples, queries, boxes, current, _, note),) = drawn["draw_points"]
    then, now = source.rows[0] - 1, source.rows[0]
    assert frame.stamp == source.records.stamps[then] * 1000
    assert current.stamp == source.records.stamps[now] * 1000
    front = cv2.imread(str(synthetic_nuscenes / source.records.paths(source.records.cameras(then))[0]))
    assert np.array_equal(images["cam_front"], front)
    assert queries == [4, 50] and len(boxes) == 2 and samples.points.shape[1] == 2
    assert "frame 1, 0.50 s ago" in note


def test_the_best_queries_are_drawn_with_the_boxes_that_they_found(scene, settings, synthetic_nuscenes, drawn):
    assert show_points(settings, KeyFrames(synthetic_nuscenes, VERSION, sample=f"{SCENE}-0"), top=2) == 1
    ((frame, _, _, queries, boxes, current, _, _),) = drawn["draw_points"]
    best = scene[1][0][2]
    assert frame is current and len(queries) == len(boxes) == 2
    np.testing.assert_allclose(boxes.centers[0], best.centers[0], atol=1e-6)
    assert boxes.scores[0] == pytest.approx(best.scores[0])


def test_occupancy_beside_its_labels(synthetic_nuscenes, occupancy_weights, tmp_path, drawn):
    settings = ShowSettings("sparseocc_tiny", occupancy_weights, tmp_path / "out", "cpu")
    token = f"{SCENE}-0"
    source = KeyFrames(synthetic_nuscenes, VERSION, sample=token)
    semantics = np.full(OCC3D_GRID.shape, 17, np.uint8)
    semantics[10, 20, 3] = 4
    labels = OccupancyLabels(semantics, instances=(semantics == 4).astype(np.uint8))
    write_labels(labels_path(tmp_path, SCENE, token, "gts"), labels)
    assert show_occupancy(settings, source) == 1
    assert show_occupancy(settings, source, tmp_path / "gts") == 1
    (without, within) = drawn["draw_occupancy"]
    assert without[1] is None and np.array_equal(within[1].semantics, semantics)
    assert within[1].instances is None  # the variant tells no objects apart, so the truth is drawn likewise
    for occupancy, _, frame, images, note in (without, within):
        assert occupancy.semantics.shape == OCC3D_GRID.shape and occupancy.class_names == OCC3D_CLASSES
        assert set(images) == set(CAMERAS) and frame.stamp == source.records.stamps[source.rows[0]] * 1000
        assert token in note and "UNTRAINED" in note
    assert np.array_equal(without[0].semantics, within[0].semantics)
    with pytest.raises(NuScenesError, match="no occupancy labels"):
        show_occupancy(settings, source, tmp_path / "elsewhere")


@pytest.mark.parametrize("objects", [True, False])
def test_a_file_of_labels_alone(tmp_path, drawn, objects):
    semantics = np.full(OCC3D_GRID.shape, 17, np.uint8)
    semantics[3, 3, 3] = 4
    instances = (semantics == 4).astype(np.int32)
    partly = semantics.copy()
    partly[9] = 255  # unknown: drawn as nothing
    write_labels(tmp_path / "labels.npz", OccupancyLabels(partly, instances=instances))
    show_labels(tmp_path / "labels.npz", tmp_path / "new" / "picture.png", OCC3D_CLASSES, objects)
    truth = drawn["draw_occupancy"][0][1]
    assert np.array_equal(truth.semantics, semantics)
    assert (truth.instances is not None) == objects
    assert cv2.imread(str(tmp_path / "new" / "picture.png")).shape == (8, 8, 3)
    with pytest.raises(ConfigError, match="hold the classes .*17, but .* 17 classes"):
        show_labels(tmp_path / "labels.npz", tmp_path / "p.png", OCC3D_CLASSES[1:])


def test_questions_that_cannot_be_answered(
    settings, synthetic_nuscenes, occupancy_weights, bag_source, tmp_path, caplog, capsys
):
    for wrong in ({"queries": [144]}, {"queries": [-1]}, {"frame": 4}, {"frame": -1}, {"top": 0}):
        with pytest.raises(ValueError, match="asked for"):
            show_points(settings, bag_source, **wrong)
    with pytest.raises(ConfigError, match="sparsebev_tiny gives boxes, no occupancy; choose another"):
        show_occupancy(settings, bag_source)
    occupancy = dataclasses.replace(settings, variant="sparseocc_tiny", checkpoint=occupancy_weights)
    with pytest.raises(ConfigError, match="sparseocc_tiny gives occupancy, no boxes; choose another"):
        show_boxes(occupancy, bag_source, 0.3)
    with pytest.raises(ConfigError, match="the variants of sparseocc have no queries that can be shown"):
        show_points(occupancy, bag_source)
    with pytest.raises(NuScenesError, match="no scene scene-1"):
        KeyFrames(synthetic_nuscenes, VERSION, "scene-1")
    with pytest.raises(NuScenesError, match="no sample 'x'"):
        KeyFrames(synthetic_nuscenes, VERSION, sample="x")
    with pytest.raises(ValueError, match="either a scene or a sample"):
        KeyFrames(synthetic_nuscenes, VERSION)
    nobody = BagFrames(bag_source._bag, SynchronizerSettings(CAMERAS, fixed_frame="mars"))
    with pytest.raises(ValueError, match="no frame to show"):
        show_boxes(settings, nobody, 0.3)
    assert "'base_link' to 'mars'" in caplog.text
    with pytest.raises(ValueError, match="max_detections is 0"):
        show_boxes(settings, bag_source, 0.3, max_boxes=0)
    with pytest.raises(ValueError, match="labels belong to key frames"):
        show_occupancy(occupancy, bag_source, tmp_path)
    assert cli.main(
        ["show", "boxes", "--variant", "v", "--checkpoint", "c", "--bag", "b", "--scene", "s", "--out", "o"]
    )
    assert "a bag is shown whole" in capsys.readouterr().err


def test_the_command_draws_boxes_and_points(untrained, synthetic_nuscenes, tmp_path, capsys):
    what = ["--variant", "sparsebev_tiny", "--checkpoint", str(untrained), "--device", "cpu", "--out", str(tmp_path)]
    data = ["--data", str(synthetic_nuscenes), "--version", VERSION, "--sample", f"{SCENE}-0"]
    assert cli.main(["show", "boxes", *what, *data, "--score-threshold", "0", "--max-boxes", "9"]) == 0
    assert cli.main(["show", "points", *what, *data, "--query", "3", "4"]) == 0
    assert "1 pictures" in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.split("_")[0] for name in names] == ["boxes", "points"]
    assert all(cv2.imread(str(tmp_path / name)).shape == (760, 2640, 3) for name in names)


def test_the_command_makes_a_video_of_a_bag_at_its_own_pace(bag, untrained, tmp_path, capsys):
    what = ["--variant", "sparsebev_tiny", "--checkpoint", str(untrained), "--device", "cpu", "--out", str(tmp_path)]
    bag = ["--bag", str(bag), "--cameras", "cam_front", "cam_back"]
    assert cli.main(["show", "boxes", *what, *bag, "--video"]) == 0
    assert "6 pictures as a video" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.mp4"]
    video = cv2.VideoCapture(str(tmp_path / "boxes.mp4"))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0, rel=0.02)
    count = 0
    while (read := video.read())[0]:
        assert read[1].shape == (760, 640 + 720, 3) and read[1].std() > 5
        count += 1
    assert count == 6


def test_the_command_draws_occupancy(synthetic_nuscenes, occupancy_weights, tmp_path, capsys):
    what = ["--variant", "sparseocc_tiny", "--checkpoint", str(occupancy_weights), "--device", "cpu"]
    data = ["--data", str(synthetic_nuscenes), "--version", VERSION, "--sample", f"{SCENE}-0"]
    assert cli.main(["show", "occupancy", *what, *data, "--out", str(tmp_path)]) == 0
    semantics = np.full(OCC3D_GRID.shape, 17, np.uint8)
    write_labels(tmp_path / "labels.npz", OccupancyLabels(semantics))
    alone = ["show", "occupancy", "--file", str(tmp_path / "labels.npz"), "--out", str(tmp_path / "alone.png")]
    assert cli.main(alone) == 0 and (tmp_path / "alone.png").is_file()
    assert len(list(tmp_path.glob("occupancy_*.png"))) == 1
    assert cli.main(["show", "occupancy", *what, "--out", str(tmp_path)]) == 1
    assert "--data or --bag to run, or --file" in capsys.readouterr().err


def test_the_real_road_runs_through_the_car(nuscenes_root, tmp_path):
    """Along the way of the car, ahead and behind, the real label has driveable surface at the bottom."""
    files = sorted((nuscenes_root / "gts").glob("*/*/labels.npz"))
    assert files
    for path in files:
        occupancy = show.load_labels(path, OCC3D_CLASSES)
        x = slice(round(30 / 0.4), round(60 / 0.4))  # from 10 m behind base_link to 20 m ahead
        lane = occupancy.semantics[x, 98:102]  # 0.8 m to each side
        road = (lane == OCC3D_CLASSES.index("driveable_surface")).any(-1)
        assert road.mean() > 0.9
        picture = show.draw_occupancy(occupancy)
        assert picture.std() > 10
