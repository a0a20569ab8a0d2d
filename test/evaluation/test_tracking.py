"""Tracks scored by the official devkit: synthetic ground truth written as a submission, and what is done to it."""

import dataclasses
import json

import numpy as np
import pytest
from nuscenes_root import SCENES, VERSION

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.nuscenes import open_devkit
from bev_perception.data.records import open_split
from bev_perception.evaluation import tracking
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.submissions import (
    read_submission,
    task_of,
    to_submission,
    to_tracking_submission,
    write_submission,
)
from bev_perception.evaluation.tracking import score_tracks
from bev_perception.geometry import invert_transform, rotation_from_quaternion, yaw_from_rotation
from bev_perception.types import NO_TRACK, Boxes3D

pytest.importorskip("nuscenes")
pytest.importorskip("motmetrics")
SPLIT = (VERSION, "mini_val")
CATEGORIES = {"vehicle.car": "car", "vehicle.truck": "truck", "human.pedestrian.adult": "pedestrian"}
FOUND = ("car", "truck", "pedestrian")


class Truth:
    """The annotations of the synthetic dataroot as boxes with track ids, and as entries of either task."""

    def __init__(self, root):
        self.devkit, self.records = open_devkit(root, VERSION), open_split(root, *SPLIT)
        self.ids = {row["token"]: k for k, row in enumerate(self.devkit.instance)}

    def boxes(self, i):
        """In the global frame."""
        sample = self.devkit.get("sample", self.records.tokens[i])
        rows = [self.devkit.get("sample_annotation", token) for token in sample["anns"]]
        return Boxes3D(
            np.array([row["translation"] for row in rows]),
            np.array([row["size"] for row in rows])[:, [1, 0, 2]],
            np.array([yaw_from_rotation(rotation_from_quaternion(*row["rotation"])) for row in rows]),
            np.zeros((len(rows), 2)),
            np.ones(len(rows)),
            np.array([NUSCENES_CLASSES.index(CATEGORIES[row["category_name"]]) for row in rows]),
            NUSCENES_CLASSES,
            np.array([self.ids[row["instance_token"]] for row in rows]),
        )

    def submission(self, change=lambda i, boxes: boxes, write=to_tracking_submission):
        """All samples, each changed by change(row, boxes)."""
        results = {}
        for i, token in enumerate(self.records.tokens):
            ego2global = self.records.ego2global(i)
            results[token] = write(change(i, self.boxes(i)), token, invert_transform(ego2global), ego2global)
        return results


@pytest.fixture(scope="module")
def truth(synthetic_nuscenes):
    return Truth(synthetic_nuscenes)


@pytest.fixture
def score(synthetic_nuscenes, tmp_path):
    """Return score(results, ...) -> TrackingScores; writes to tmp_path."""

    def run(results, **options):
        write_submission(results, tmp_path / "tracking_nusc.json")
        return score_tracks(tmp_path / "tracking_nusc.json", synthetic_nuscenes, *SPLIT, tmp_path, **options)

    return run


def test_truth_scores_full_marks(truth, score, tmp_path):
    found = score(truth.submission())
    assert found.overall["amota"] == 1.0 and found.overall["recall"] == 1.0
    assert found.overall["amotp"] < 1e-6
    assert [found.overall[key] for key in ("ids", "frag", "fp", "fn")] == [0, 0, 0, 0]
    for name, scores in found.classes.items():
        assert scores["amota"] == 1.0 if name in FOUND else np.isnan(scores["amota"])
    assert json.loads((tmp_path / "tracking_metrics.json").read_text())["amota"] == 1.0
    assert (tmp_path / "plots" / "tracking_curves.png").stat().st_size > 10_000
    first, *lines = found.table().splitlines()
    assert first.startswith("all: over the 3 of 7 classes with objects here")
    assert len(lines) == 9 and lines[-1].split()[:4] == ["all", "1.000", "0.000", "1.000"]


def cars_all_along(truth):
    """The ids of the two cars that are nearest to the ego car in every key frame of the first scene."""
    seen = {}
    for i, scene in enumerate(truth.records.scenes):
        if scene == SCENES[0]:
            boxes, ego = truth.boxes(i), truth.records.ego2global(i)[:2, 3]
            distances = np.linalg.norm(boxes.centers[:, :2] - ego, axis=1)
            for k in np.flatnonzero((boxes.labels == 0) & (distances < 45)):
                seen.setdefault(int(boxes.track_ids[k]), []).append(distances[k])
    frames = truth.records.scenes.count(SCENES[0])
    always = [track for track, distances in seen.items() if len(distances) == frames]
    return sorted(always, key=lambda track: max(seen[track]))[:2]


def test_ids_that_are_swapped_are_counted(truth, score):
    """Two cars exchange their ids after three of five key frames, which is one switch each."""
    a, b = cars_all_along(truth)

    def swap(i, boxes):
        if i < 3 or truth.records.scenes[i] != SCENES[0]:
            return boxes
        ids = boxes.track_ids
        return dataclasses.replace(boxes, track_ids=np.where(ids == a, b, np.where(ids == b, a, ids)))

    found = score(truth.submission(swap))
    assert found.classes["car"]["ids"] == 2 and found.overall["ids"] == 2
    assert found.overall["fp"] == found.overall["fn"] == 0
    assert found.classes["car"]["amota"] < 1.0 and found.classes["truck"]["amota"] == 1.0


def test_misses_and_false_boxes_are_counted_within_the_range_and_the_scenes_asked_for(truth, score):
    """Of one scene within 30 m: the boxes of one key frame are missing, another has a car where none is."""

    def change(i, boxes):
        if i == len(truth.records) - 1:  # the last of its scene: the devkit fills gaps within a track
            return boxes.select(boxes.labels != 0)
        if i == len(truth.records) - 2:
            nowhere = boxes.select([0])
            ego = truth.records.ego2global(i)[:3, 3]
            far = np.argmax([min(np.linalg.norm(boxes.centers - p, axis=1)) for p in around(ego)])
            ghost = dataclasses.replace(
                nowhere, centers=around(ego)[far][None], labels=np.array([0]), track_ids=np.array([10**6])
            )
            return joined(boxes, ghost)
        return boxes

    def cars_near(i):
        boxes, ego = truth.boxes(i), truth.records.ego2global(i)[:2, 3]
        return ((boxes.labels == 0) & (np.linalg.norm(boxes.centers[:, :2] - ego, axis=1) < 30)).sum()

    found = score(truth.submission(change), scenes=[SCENES[1]], max_range=30.0)
    assert found.classes["car"]["fn"] == cars_near(len(truth.records) - 1) > 0
    assert found.classes["car"]["fp"] == 1 and found.overall["ids"] == 0
    assert found.table().startswith("within 30 m of the car\nall: over the 3 of 7 classes")


def around(ego):
    """Places 10 m to 20 m from the ego car."""
    angles = np.linspace(0, 2 * np.pi, 36)
    return np.concatenate([ego + r * np.c_[np.cos(angles), np.sin(angles), 0 * angles] for r in (10, 15, 20)])


def joined(a, b):
    names = ("centers", "sizes", "yaws", "velocities", "scores", "labels", "track_ids")
    return dataclasses.replace(a, **{name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in names})


def test_only_some_samples(truth, score):
    """Of a recording that ends early, the key frames that it does not hold are not scored."""
    kept = truth.records.tokens[:3]
    results = {token: entries if token in kept else [] for token, entries in truth.submission().items()}
    whole, part = score(results), score(results, samples=kept)
    assert whole.overall["fn"] > 0 and part.overall["fn"] == 0 and part.overall["amota"] == 1.0


def test_entries_are_those_of_detection_with_a_track(truth):
    """But for classes that the task does not have, and boxes without a track."""
    boxes = truth.boxes(0)
    labels, ids = boxes.labels.copy(), boxes.track_ids.copy()
    cone, ids[1] = NUSCENES_CLASSES.index("traffic_cone"), NO_TRACK
    labels[0] = cone
    boxes = dataclasses.replace(boxes, labels=labels, track_ids=ids)
    near = dataclasses.replace(boxes, centers=boxes.centers * [0, 0, 1])
    detection = to_submission(near, "s", np.eye(4), np.eye(4))
    entries = to_tracking_submission(near, "s", np.eye(4), np.eye(4))
    assert len(entries) == len(detection) - 2
    for entry, other in zip(entries, detection[2:], strict=True):
        assert entry["tracking_name"] == other["detection_name"]
        assert entry["tracking_score"] == other["detection_score"]
        shared = ("sample_token", "translation", "size", "rotation", "velocity")
        assert [entry[key] for key in shared] == [other[key] for key in shared]
    assert [entry["tracking_id"] for entry in entries] == [str(k) for k in ids[2:]]
    with pytest.raises(EvaluationError, match="have no track ids"):
        to_tracking_submission(dataclasses.replace(near, track_ids=None), "s", np.eye(4), np.eye(4))


@pytest.mark.parametrize("task", ["detection", "tracking"])
def test_the_task_is_read_from_the_file(truth, tmp_path, task):
    write = {"detection": to_submission, "tracking": to_tracking_submission}[task]
    path = tmp_path / "results.json"
    write_submission(truth.submission(write=write), path)
    assert task_of(path) == task
    path.write_text(" " * ((1 << 16) - 8) + path.read_text())  # names lie across the blocks that are read
    assert task_of(path) == task and any(read_submission(path, task).values())
    path.write_text("[")
    assert task_of(path) == "detection"


def test_results_that_cannot_be_scored_are_explained(truth, score, monkeypatch):
    results = truth.submission()
    detection = truth.submission(write=to_submission)
    empty = {token: [] for token in results}
    with pytest.raises(EvaluationError, match="holds not one box"):
        score(empty)
    with pytest.raises(EvaluationError, match="lacks 1 of the 10 samples"):
        score(dict(list(results.items())[1:]))
    with pytest.raises(EvaluationError, match="nuscenes-devkit refuses .* KeyError"):
        score(detection)
    with pytest.raises(EvaluationError, match="not one box of the samples to be scored"):
        score({**results, **{token: [] for token in results if token.startswith(SCENES[0])}}, scenes=[SCENES[0]])
    with pytest.raises(EvaluationError, match="a range of -1 m"):
        score(results, max_range=-1)
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="scores of tracks need motmetrics and pandas; pip install"):
        score(results)
