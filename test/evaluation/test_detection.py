"""Scoring by the official devkit on the real nuScenes material; skipped where it is absent."""

import json

import numpy as np
import pytest

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.nuscenes import NuScenesError, open_devkit
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import open_split
from bev_perception.evaluation.detection import score_results
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.submissions import to_submission, write_submission
from bev_perception.geometry import invert_transform, rotation_from_quaternion, transform_points
from bev_perception.types import Boxes3D

category_to_detection_name = pytest.importorskip("nuscenes.eval.detection.utils").category_to_detection_name
SPLIT = ("v1.0-mini", "mini_val")


def boxes(n, seed=0):
    rng = np.random.default_rng(seed)
    return Boxes3D(
        rng.uniform(-20, 20, (n, 3)),
        rng.uniform(1, 5, (n, 3)),
        rng.uniform(-3, 3, n),
        rng.uniform(-5, 5, (n, 2)),
        np.sort(rng.uniform(0, 1, n))[::-1],
        rng.integers(0, 10, n),
        NUSCENES_CLASSES,
    )


def test_range_is_measured_from_the_car_not_from_the_lidar():
    ahead = Boxes3D(
        np.array([[49.5, 0, 0], [50.5, 0, 0], [29.5, 0, 0], [30.5, 0, 0]]),
        np.ones((4, 3)),
        np.zeros(4),
        np.zeros((4, 2)),
        np.ones(4),
        np.array([0, 0, 9, 9]),
        NUSCENES_CLASSES,
    )
    assert len(to_submission(ahead, "s", np.eye(4), np.eye(4))) == 2
    forward = np.eye(4)
    forward[0, 3] = 1.0  # the lidar sits 1 m ahead of the car's origin
    assert len(to_submission(ahead, "s", forward, np.eye(4))) == 0
    assert to_submission(boxes(0), "s", np.eye(4), np.eye(4)) == []


@pytest.mark.parametrize(
    ("file", "mean_ap", "nds"),
    [
        ("TRELPy_5fc8b23/results_nusc.json", 0.075516, 0.103363),
        ("fastbev21/results_nusc_converted_stored.json", 0.3528, 0.4169),
    ],
)
def test_results_of_others_get_their_published_scores(nuscenes_root, curves, tmp_path, file, mean_ap, nds):
    scores = score_results(nuscenes_root / "results" / file, nuscenes_root, *SPLIT, tmp_path)
    places = 6 if mean_ap < 0.1 else 4
    assert round(scores.mean_ap, places) == mean_ap and round(scores.nds, places) == nds
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "metrics_summary.json").read_text())["nd_score"] == scores.nds
    table = scores.table()
    assert f"NDS  {scores.nds:.4f}" in table and table.count("\n") == 8 + 10


class Truth:
    """The real annotations as nuScenes counts them."""

    def __init__(self, root):
        self.devkit = open_devkit(root, SPLIT[0])
        self.attributes = {row["token"]: row["name"] for row in self.devkit.attribute}

    def seen(self, token):
        """The annotations of a sample that belong to a class and that some sensor has seen."""
        rows = [self.devkit.get("sample_annotation", a) for a in self.devkit.get("sample", token)["anns"]]
        return [row for row in rows if row["num_lidar_pts"] + row["num_radar_pts"] and self.label(row) is not None]

    def label(self, row):
        name = category_to_detection_name(row["category_name"])
        return None if name is None else NUSCENES_CLASSES.index(name)

    def boxes(self, token, lidar2global):
        """As boxes of the lidar frame, with the level heading and velocity that are right once they are turned back."""
        rows = self.seen(token)
        ground = np.linalg.inv(lidar2global[:2, :2])
        headings = np.array([rotation_from_quaternion(*row["rotation"])[:2, 0] for row in rows]).reshape(-1, 2)
        headings = headings @ ground.T
        velocities = np.array([self.devkit.box_velocity(row["token"])[:2] for row in rows]).reshape(-1, 2)
        return Boxes3D(
            transform_points(invert_transform(lidar2global), np.array([r["translation"] for r in rows]).reshape(-1, 3)),
            np.array([row["size"] for row in rows]).reshape(-1, 3)[:, [1, 0, 2]],
            np.arctan2(headings[:, 1], headings[:, 0]),
            np.nan_to_num(velocities) @ ground.T,
            np.linspace(1, 0.5, len(rows)),
            np.array([self.label(row) for row in rows], int),
            NUSCENES_CLASSES,
        )

    def set_attributes(self, entries, token):
        """Say what the objects do, which their speed alone does not tell (a cyclist may stand)."""
        at = {tuple(np.round(row["translation"], 6)): row["attribute_tokens"] for row in self.seen(token)}
        for entry in entries:
            for attribute in at[tuple(np.round(entry["translation"], 6))]:
                entry["attribute_name"] = self.attributes[attribute]


def recorded_boxes(records, i):
    """What training learns from, as boxes; not clipped to a range."""
    boxes, labels = training_boxes(records, i, NUSCENES_CLASSES, [-np.inf] * 3 + [np.inf] * 3)
    n = len(boxes)
    return Boxes3D(
        boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.linspace(1, 0.5, n), labels, NUSCENES_CLASSES
    )


@pytest.mark.parametrize(("source", "limit"), [("annotations", 1e-6), ("records", 5e-3)])
def test_truth_through_our_boxes_is_perfect(nuscenes_root, tmp_path, source, limit):
    """Headings and velocities of training are the reference's: those of the tilted lidar, a little off when level."""
    records = open_split(nuscenes_root, *SPLIT, cache=tmp_path)
    truth = Truth(nuscenes_root)
    results = {}
    for i, token in enumerate(records.tokens):
        boxes = truth.boxes(token, records.lidar2global(i)) if source == "annotations" else recorded_boxes(records, i)
        results[token] = to_submission(boxes, token, records.lidar2ego(i), records.ego2global(i))
        truth.set_attributes(results[token], token)
    path = tmp_path / "results_nusc.json"
    write_submission(results, path)
    scores = score_results(path, nuscenes_root, *SPLIT, tmp_path / "out")
    # a class of which a split has no object scores 0 in the devkit, whatever is said
    present = {NUSCENES_CLASSES[truth.label(row)] for token in records.tokens for row in truth.seen(token)}
    assert len(present) == 7
    for name in NUSCENES_CLASSES:
        assert scores.class_aps[name] == pytest.approx(1.0 if name in present else 0.0)
        if name in present:
            errors = np.array(list(scores.class_errors[name].values()))
            assert np.nanmax(errors) < limit, (name, errors)
            assert np.isnan(errors).sum() == (3 if name == "traffic_cone" else 0)


def write_results(path, tokens):
    write_submission({token: to_submission(boxes(5), token, np.eye(4), np.eye(4)) for token in tokens}, path)


def test_a_single_scene(nuscenes_root, tmp_path):
    """Its scores are not those of the split."""
    file = nuscenes_root / "results" / "fastbev21" / "results_nusc_converted_stored.json"
    scores = score_results(file, nuscenes_root, *SPLIT, tmp_path, ["scene-0916"])
    assert 0.2 < scores.mean_ap < 0.6 and round(scores.mean_ap, 4) != 0.3528


def test_results_that_do_not_fit_are_explained(nuscenes_root, tmp_path):
    records = open_split(nuscenes_root, *SPLIT, cache=tmp_path)
    path = tmp_path / "results.json"

    def refused(reason, *where, error=EvaluationError):
        with pytest.raises(error, match=reason):
            score_results(path, nuscenes_root, *(where or SPLIT), tmp_path / "out")

    path.write_text("[")
    refused("is no JSON")
    path.write_text('{"results": []}')
    refused("lacks 'meta' or 'results'")
    write_submission({token: [] for token in records.tokens}, path)
    refused("holds not one box")
    write_results(path, records.tokens[1:])
    refused("lacks 1 of the 81 samples")
    write_results(path, [*records.tokens, "unknown"])
    refused("nuscenes-devkit refuses")
    write_results(path, records.tokens)
    refused("unknown split 'vall'", "v1.0-mini", "vall")
    refused("hold no scene", "v1.0-mini", "mini_train")
    refused("lacks the tables", "v1.0-trainval", "val", error=NuScenesError)
    with pytest.raises(EvaluationError, match="scene-0001"):
        score_results(path, nuscenes_root, *SPLIT, tmp_path / "out", ["scene-0001"])
