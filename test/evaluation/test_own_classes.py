"""Data sets with classes of their own: scored by nuscenes-devkit, taught to a detector, drawn."""

import logging

import numpy as np
import pytest
from own_robot import CAMERAS, write_robot

from bev_perception import cli
from bev_perception.data.own_dataset import VERSION
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import open_split
from bev_perception.evaluation.detection import score_results
from bev_perception.evaluation.submissions import to_submission, write_submission
from bev_perception.families.variants import variants_directory
from bev_perception.types import Boxes3D

CLASSES = ("car", "forklift", "pedestrian")


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    bag, boxes, classes = write_robot(folder, 1.5)
    command = ["prepare", "dataset", "--bag", bag, "--cameras", *CAMERAS, "--boxes", boxes, "--classes", classes]
    assert cli.main([str(a) for a in [*command, folder / "root"]]) == 0
    return folder / "root"


@pytest.fixture
def variant(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nextends: sparsebev_tiny\nclass_names: [{', '.join(CLASSES)}]\n")
    return path


def test_the_truth_itself_has_all_of_its_classes_scored(dataroot, tmp_path):
    records = open_split(dataroot, VERSION, "own_val")
    results = {}
    for i, token in enumerate(records.tokens):
        boxes, labels = training_boxes(records, i, CLASSES, (-60, -60, -9, 60, 60, 9))
        found = Boxes3D(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.ones(len(boxes)), labels, CLASSES)
        results[token] = to_submission(found, token, records.lidar2ego(i), records.ego2global(i))
    write_submission(results, tmp_path / "results.json")
    for _ in range(2):  # the devkit's tables are as before
        scores = score_results(tmp_path / "results.json", dataroot, VERSION, "own_val", tmp_path / "scores")
        assert set(scores.known) == set(CLASSES)
        assert all(scores.class_aps[name] > 0.99 for name in CLASSES)
    from nuscenes.eval.detection.constants import DETECTION_NAMES

    assert len(DETECTION_NAMES) == 10


def test_a_detector_of_other_classes_is_told_so_before_it_learns(dataroot, variant, tmp_path, capsys):
    variant.write_text(variant.read_text().replace("car, forklift, pedestrian", "cat, dog"))
    assert cli.main(["train", "--variant", str(variant), "--data", str(dataroot), "--out", str(tmp_path / "t")]) == 1
    assert "has boxes of car, forklift, pedestrian, mine learns cat, dog" in capsys.readouterr().err


def test_the_truth_is_drawn_with_four_cameras(dataroot, tmp_path):
    assert cli.main(["show", "truth", "--data", str(dataroot), "--scene", "robot", "--out", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").iterdir())) == 3


@pytest.mark.slow
def test_fine_tuning_keeps_all_but_the_layers_of_classes(dataroot, variant, tmp_path, caplog):
    weights = variants_directory().parent / "weights" / "sparsebev_tiny.safetensors"
    how = ["--epochs", "2", "--batch", "3", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--lr", "1e-5"]
    out = tmp_path / "tuned"
    command = ["train", "--variant", variant, "--data", dataroot, "--init-fitting", weights, "--out", out, *how]
    with caplog.at_level(logging.WARNING):
        assert cli.main([str(a) for a in command]) == 0
    (said,) = [r.getMessage() for r in caplog.records if "start afresh" in r.getMessage()]
    assert "140 of 145 weights fit" in said
    assert all("cls_branch" in line or "label_enc" in line or "heat" in line for line in said.splitlines()[1:])
    scored = ["eval", "--variant", variant, "--data", dataroot, "--checkpoint", out / "weights.safetensors"]
    code = cli.main([str(a) for a in [*scored, "--split", "own_val", "--out", tmp_path / "e", "--device", "cpu"]])
    assert code in (0, 1) and (tmp_path / "e" / "results_nusc.json").is_file()  # 1: after two steps, perhaps no box
