"""Scoring by the official devkit on the real nuScenes material; skipped where it is absent."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.nuscenes import NuScenesError, open_devkit
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import open_split
from bev_perception.evaluation.detection import ERRORS, DetectionScores, count_duplicates, score_results
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
    assert scores.by_distance["0-20 m"] > scores.by_distance["20-40 m"] and "distance from the car: 0-20 m 0." in table
    assert f"({scores.nds:.4f})" in table and "over the 7 of 10 classes that have objects here" in table
    assert scores.known_means["mAP"] == pytest.approx(scores.mean_ap * 10 / 7)  # the other three have an AP of 0


def made_up_scores(objects):
    """Two classes with scores of their own, and the devkit's mean over both."""
    errors = dict.fromkeys(ERRORS.values(), 0.5)
    never = dict.fromkeys(ERRORS.values(), 1.0)
    cone = {**errors, "mAOE": np.nan, "mAVE": np.nan, "mAAE": np.nan}
    return DetectionScores(
        0.4,
        0.45,
        {**never},
        {"car": 0.8, "bus": 0.0, "cone": 0.4},
        {"car": errors, "bus": never, "cone": cone},
        objects,
    )


def test_a_class_without_objects_has_no_scores_and_is_left_out_of_the_means():
    """A split of a few scenes has no bus; that it is never found says nothing of the detector."""
    scores = made_up_scores({"car": 12, "bus": 0, "cone": 3})
    assert scores.known == ("car", "cone")
    assert scores.known_means == pytest.approx({"mAP": 0.6, **dict.fromkeys(ERRORS.values(), 0.5), "NDS": 0.55})
    lines = scores.table().splitlines()
    assert lines[0].startswith("means over the 2 of 3 classes") and lines[1].startswith("nuscenes-devkit")
    assert "mAP  0.6000 (0.4000)" in lines and "NDS  0.5500 (0.4500)" in lines
    rows = {line.split()[0]: line.split()[1:] for line in lines[-3:]}
    assert rows["bus"] == ["-"] * 6 and rows["cone"] == ["0.400", "0.500", "0.500", "-", "-", "-"]


def test_with_objects_of_every_class_there_is_one_number():
    table = made_up_scores({"car": 12, "bus": 2, "cone": 3}).table()
    assert table.splitlines()[0] == "mAP  0.4000" and "(" not in table
    nothing = made_up_scores({"car": 0, "bus": 0, "cone": 0})
    assert np.isnan(nothing.known_means["mAP"]) and "over the 0 of 3" in nothing.table()


class EvalBoxes:
    """As the devkit's."""

    def __init__(self, **samples):
        self.sample_tokens = list(samples)
        self._boxes = samples

    def __getitem__(self, token):
        return [
            SimpleNamespace(detection_name=name, translation=(x, 0.0, 0.0), detection_score=score)
            for name, x, score in self._boxes.get(token, [])
        ]


def test_further_boxes_on_objects_that_have_one_are_counted():
    truth = EvalBoxes(a=[("car", 0, -1), ("car", 4, -1), ("bus", 0, -1)], b=[("car", 50, -1)])
    found = EvalBoxes(
        a=[
            ("car", 0.1, 0.9),
            ("car", 0.5, 0.8),  # the same car again
            ("car", 0.6, 0.2),  # too unsure to be published
            ("car", 3.0, 0.5),
            ("bus", 0.3, 0.9),  # of another class, and the first of it
            ("car", 20, 0.9),  # on no object
        ],
        b=[("car", 53, 0.9)],
    )
    assert count_duplicates(truth, found) == pytest.approx(1 / 3)
    assert np.isnan(count_duplicates(truth, EvalBoxes(a=[], b=[])))


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
