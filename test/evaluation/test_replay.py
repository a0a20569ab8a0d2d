"""Bags against the truth of nuScenes: a planted detector that knows the truth, and the real key frames."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from made_up_labels import make_labels, write_all_labels
from nuscenes_root import SCENES, VERSION

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.drive import CAMERAS
from bev_perception.data.nuscenes import open_scene
from bev_perception.data.records import open_records
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.data.synthetic import World
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.replay import Replay, move_occupancy
from bev_perception.evaluation.submissions import CLASS_RANGE
from bev_perception.families.variants import variants_directory
from bev_perception.geometry import (
    invert_transform,
    make_transform,
    rotation_from_quaternion,
    rotation_from_yaw,
    yaw_from_rotation,
)
from bev_perception.health import Health
from bev_perception.pipeline.offline import collect_frames, read_results
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.tracking.tracker import Tracks, follow
from bev_perception.types import Occupancy, Result, VoxelGrid

pytest.importorskip("nuscenes")
LAG = 0.032  # s from the front camera to the lidar, in the made-up data set
WORLD = World(seed=3)  # that data set's


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_records(synthetic_nuscenes, VERSION)


@pytest.fixture(scope="module")
def bags(synthetic_nuscenes, tmp_path_factory):
    """The first scene as a bag, and the first three key frames of the second one."""
    directory, paths = tmp_path_factory.mktemp("bags"), []
    for scene, share in zip(SCENES, (1.0, 0.6), strict=True):
        drive = open_scene(synthetic_nuscenes, VERSION, scene)
        length = round(len(drive) * share)
        part = dataclasses.replace(
            drive, length=length, make_events=lambda drive=drive, length=length: itertools.islice(iter(drive), length)
        )
        write_bag(part, directory / scene, progress=False)
        paths.append(directory / scene)
    return paths


def seen_by_a_perfect_detector(frame, seconds_ahead=0.0):
    """All boxes, in base_link at the frame's stamp, where they are then or some time later.

    nuscenes-devkit averages errors over scores, which must differ for that.
    """
    boxes = WORLD.boxes(frame.stamp + round(seconds_ahead * 1e9))
    boxes = dataclasses.replace(boxes, scores=np.random.default_rng(frame.stamp).uniform(0.1, 1.0, len(boxes)))
    return Result(frame.stamp, to_ego(boxes, invert_transform(frame.ego2global)), None, {}, None, {}, 0)


def replayed(bags, records, result_of, anchor=""):
    replay = Replay(records)
    for bag in bags:
        events = replay.watch(BagReader(bag).events())
        for frame in collect_frames(events, SynchronizerSettings(CAMERAS, anchor), Health()):
            result = result_of(frame)
            if result is not None:
                replay.add(frame, result)
    return replay


def test_a_perfect_detector_loses_nothing_but_the_time_to_the_lidar(bags, records, tmp_path):
    replay = replayed(bags, records, seen_by_a_perfect_detector)
    scores = replay.score(VERSION, tmp_path)
    assert replay.coverage() == "scored on 8 of the 10 key frames of scene-0103, scene-0916"
    # sets 83 ms apart; the second bag breaks off within its 16th
    assert replay.summary(Health().snapshot()).startswith("40 frames, 3.2 s of recording, 12.0 Hz\nboxes a frame: car")
    for name, fastest in (("car", 8.0), ("truck", 7.0), ("pedestrian", 1.2)):
        assert scores.class_aps[name] > 0.97  # some cross the border of what counts on the way
        errors = scores.class_errors[name]
        assert errors["mATE"] < fastest * LAG
        assert max(errors["mASE"], errors["mAOE"]) < 0.01 and errors["mAVE"] < 0.05
    assert scores.class_errors["car"]["mATE"] > 0.02  # parked and driving
    document = json.loads((tmp_path / "results_nusc.json").read_text())
    assert list(document["results"]) == records.tokens
    assert sum(not boxes for boxes in document["results"].values()) == 2  # those that the second bag breaks off before


def test_with_that_time_made_up_for_nothing_is_lost(bags, records, tmp_path):
    """And any camera may be the anchor."""
    ahead = 0.040 - 0.033  # s; when the lidar and that camera fire in the made-up data set
    results = replayed(bags, records, lambda f: seen_by_a_perfect_detector(f, ahead), anchor="cam_back")
    scores = results.score(VERSION, tmp_path)
    for name in ("car", "truck", "pedestrian"):
        assert scores.class_aps[name] == pytest.approx(1.0)
        errors = dict(scores.class_errors[name])
        assert errors.pop("mAVE") < 0.02  # the truth's velocities are differences over 1 s, along a bend
        assert max(errors.values()) < 1e-6


def test_a_perfect_detector_with_the_tracker_keeps_every_track(bags, records, tmp_path):
    """At 12 Hz, scored at the key frames; but for what crosses the border of what counts."""
    pytest.importorskip("motmetrics")
    replay, tracks = Replay(records, tracking=True), Tracks()
    for bag in bags:
        tracks = tracks.cleared()
        events = replay.watch(BagReader(bag).events())
        for frame in collect_frames(events, SynchronizerSettings(CAMERAS), Health()):
            boxes = seen_by_a_perfect_detector(frame).boxes
            tracks, ids = follow(tracks, boxes, frame.ego2global, frame.stamp)
            boxes = dataclasses.replace(boxes, scores=np.ones(len(boxes)), track_ids=ids)
            replay.add(frame, Result(frame.stamp, boxes, None, {}, None, {}, 0))
    scores = replay.score_tracking(VERSION, tmp_path)
    assert scores.overall["ids"] == 0 and scores.overall["amota"] > 0.97 and scores.overall["amotp"] < 8.0 * LAG
    document = json.loads((tmp_path / "tracking_nusc.json").read_text())
    assert list(document["results"]) == records.tokens and json.loads((tmp_path / "tracking_metrics.json").read_text())


def test_a_frame_without_a_result_counts_as_nothing_found(bags, records, tmp_path, monkeypatch):
    scored = []
    monkeypatch.setattr("bev_perception.evaluation.replay.score_results", lambda *given: scored.append(given))
    lost = records.image_stamps(records.cameras(1))[0] * 1000
    results = replayed(bags[:1], records, lambda f: None if f.stamp == lost else seen_by_a_perfect_detector(f))
    results.score(VERSION, tmp_path)
    assert results.coverage() == "scored on 5 of the 5 key frames of scene-0103; 1 of them gave no result"
    ((path, *_, scenes, tokens, _),) = scored
    submitted = json.loads(path.read_text())["results"]
    assert tokens == set(submitted) == set(records.tokens[:5]) and scenes == ["scene-0103"]
    assert [token for token, boxes in submitted.items() if not boxes] == [records.tokens[1]]


def test_what_cannot_be_scored_is_named(bags, records, tmp_path, monkeypatch):
    frames = list(collect_frames(BagReader(bags[0]).events(), SynchronizerSettings(CAMERAS), Health()))
    keys = {stamp * 1000 for i in range(len(records)) for stamp in records.image_stamps(records.cameras(i))}
    frame = next(frame for frame in frames if frame.stamp in keys)
    with pytest.raises(EvaluationError, match="no image of the recording has the stamp of a key frame of v1.0-mini"):
        Replay(records).score(VERSION, tmp_path)
    away = frame.ego2global.copy()
    away[0, 3] += 100
    with pytest.raises(EvaluationError, match="fixed frame is not the global frame"):
        Replay(records).add(dataclasses.replace(frame, ego2global=away), seen_by_a_perfect_detector(frame))
    with pytest.raises(EvaluationError, match="no image of the recording has the stamp of a key frame of v1.0-mini"):
        Replay(records).score_occupancy(VERSION, tmp_path)
    Replay().add(frame, dataclasses.replace(seen_by_a_perfect_detector(frame), boxes=None))
    replay = replayed(bags[:1], records, seen_by_a_perfect_detector)
    annotations = records.annotations
    monkeypatch.setattr(records, "annotations", lambda i: dataclasses.replace(annotations(i), names=np.array([])))
    with pytest.raises(EvaluationError, match="the truth of test is not published"):
        replay.score(VERSION, tmp_path)


@pytest.fixture(scope="module")
def labels(records, tmp_path_factory):
    return write_all_labels(records, tmp_path_factory.mktemp("labels"))


def test_occupancy_is_judged_where_the_car_is_at_the_time_of_the_lidar(bags, records, labels, tmp_path):
    """Labels, moved to where the car was at the front camera's time, lose nothing; seen as they are, they do."""

    def replayed_labels(move, lost=()):
        replay = Replay(records, labels)
        events = replay.watch(BagReader(bags[0]).events())
        for frame in collect_frames(events, SynchronizerSettings(CAMERAS), Health()):
            row = next((i for i in range(5) if records.image_stamps(records.cameras(i))[0] * 1000 == frame.stamp), None)
            if row is None or row in lost:
                continue
            truth = Occupancy(make_labels(records, row).semantics, OCC3D_CLASSES)
            if move:
                truth = move_occupancy(truth, records.ego2global(row), frame.ego2global)
            replay.add(frame, Result(frame.stamp, None, truth, {}, None, {}, 0))
        return replay

    whole = replayed_labels(move=True)
    scores = whole.score_occupancy(VERSION, tmp_path)
    assert scores.samples == 5 and scores.summary["RayIoU"] > 0.99
    assert whole.coverage() == "scored on 5 of the 5 key frames of scene-0103"
    assert "boxes" not in whole.summary(Health().snapshot())
    assert json.loads((tmp_path / "occupancy_metrics.json").read_text())["samples"] == 5
    as_it_is = replayed_labels(move=False).score_occupancy(VERSION, tmp_path)
    assert as_it_is.summary["mIoU, camera mask"] < scores.summary["mIoU, camera mask"] - 0.05
    partial = replayed_labels(move=True, lost={3})
    worse = partial.score_occupancy(VERSION, tmp_path)
    assert worse.samples == 5 and worse.summary["RayIoU"] < 0.9  # what was lost counts as free
    assert partial.coverage().endswith("; 1 of them gave no result")
    nobody = replayed_labels(move=True, lost=set(range(5)))
    with pytest.raises(EvaluationError, match="no key frame got an occupancy"):
        nobody.score_occupancy(VERSION, tmp_path)


def test_voxels_move_with_the_car():
    """0.8 m ahead and turned by a quarter: the voxel ahead comes nearer and is to the right; beyond it is free."""
    grid = VoxelGrid((-4.0, -4.0, -1.0), 0.4, (20, 20, 4))
    semantics = np.full(grid.shape, 2, np.uint8)
    semantics[14, 10, 1] = 1  # its middle is 1.8 m ahead, 0.2 m to the left
    instances = np.zeros(grid.shape, np.int16)
    instances[14, 10, 1] = 7
    there = Occupancy(semantics, ("wall", "car", "free"), grid, instances)
    same = move_occupancy(there, np.eye(4), np.eye(4))
    np.testing.assert_array_equal(same.semantics, semantics)
    other = make_transform(rotation_from_yaw(math.pi / 2), np.array([0.8, 0.0, 0.0]))
    moved = move_occupancy(there, np.eye(4), other)
    # x = 0.2 ahead, y = -1.0: to the right
    assert np.argwhere(moved.semantics == 1).tolist() == [[10, 7, 1]]
    assert moved.instances[10, 7, 1] == 7 and (moved.instances > 0).sum() == 1
    semantics[:] = 0
    assert (move_occupancy(there, np.eye(4), other).semantics == 2).any()


def test_real_key_frames(nuscenes_root, tmp_path, untrained, capsys):
    """`eval --bag` submits the boxes of `run --bag`, moved by the pose of the front camera's image."""
    root = tmp_path / "root"  # of links: the index is kept beside the tables
    (root / VERSION).mkdir(parents=True)
    for name in ("samples", "maps"):
        (root / name).symlink_to(nuscenes_root / name)
    for table in (nuscenes_root / VERSION).glob("*.json"):
        (root / VERSION / table.name).symlink_to(table)
    bag, boxes, out = tmp_path / "bag", tmp_path / "boxes.jsonl", tmp_path / "out"
    assert cli.main(["bag", "create", "--nuscenes", str(root), "--scene", "scene-0103", str(bag)]) == 0
    variant = tmp_path / "tiny_low.yaml"  # the scores of untrained weights are all low
    text = (variants_directory() / "sparsebev_tiny.yaml").read_text().replace("name: sparsebev_tiny", "name: tiny_low")
    text = text.replace("{height: 256, width: 704}", "{height: 64, width: 176}")
    variant.write_text(text.replace("head:\n", "head:\n  decode: {max_num: 50, score_threshold: 0.0}\n"))
    what = ["--bag", str(bag), "--variant", str(variant), "--checkpoint", str(untrained), "--device", "cpu"]
    assert cli.main(["run", *what, "--out", str(boxes)]) == 0
    assert cli.main(["eval", *what, "--data", str(root), "--version", VERSION, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "scored on 5 of the 40 key frames of scene-0103\n" in printed and "NDS  " in printed

    results = json.loads((out / "results_nusc.json").read_text())["results"]
    records = open_records(root, VERSION)
    front = [records.images(records.cameras(i))[0] for i in range(len(records))]
    row_of = {image.stamp * 1000: i for i, image in enumerate(front)}
    frames = list(read_results(boxes).frames())
    assert len(frames) == 5 and sum(map(len, results.values())) > 50
    for frame in frames:
        row = row_of[frame["stamp"]]
        ego2global = front[row].ego2global
        near = [b for b in frame["boxes"] if math.hypot(*b["center"][:2]) <= CLASS_RANGE[b["class"]]]
        submitted = results[records.tokens[row]]
        assert [b["class"] for b in near] == [b["detection_name"] for b in submitted]
        for box, entry in zip(near, submitted, strict=True):
            heading = ego2global[:3, :3] @ [math.cos(box["yaw"]), math.sin(box["yaw"]), 0]
            yaw = yaw_from_rotation(rotation_from_quaternion(*entry["rotation"]))
            wanted = ego2global @ [*box["center"], 1]
            np.testing.assert_allclose(entry["translation"], wanted[:3], atol=1e-6)
            np.testing.assert_allclose(entry["velocity"], ego2global[:2, :2] @ box["velocity"], atol=1e-6)
            assert math.cos(yaw - math.atan2(heading[1], heading[0])) > 1 - 1e-9
            assert entry["size"] == [box["size"][k] for k in (1, 0, 2)] and entry["detection_score"] == box["score"]
