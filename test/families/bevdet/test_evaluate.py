"""Evaluation of the family: queues that are computed anew, and where the boxes of its detectors are."""

import dataclasses

import numpy as np
import pytest
import torch

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.cli.__main__ import main
from bev_perception.data.drive import CAMERAS
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import open_split
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings, evaluate
from bev_perception.evaluation.running import recompute_rows, run_rows
from bev_perception.families.bevdet.model import BEVDet
from bev_perception.families.variants import load_variant
from bev_perception.models.checkpoints import save_checkpoint
from bev_perception.models.protocol import Perception
from bev_perception.results.boxes import to_ego
from bev_perception.types import Boxes3D

from .small import small_config, small_model

pytest.importorskip("nuscenes")
SPLIT = ("v1.0-mini", "mini_val")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, *SPLIT)


def aligned(alignment):
    config = small_config("plain", past=2)
    frames = dataclasses.replace(config.frames, missing="current")
    return dataclasses.replace(config, frames=frames, head=dataclasses.replace(config.head, alignment=alignment))


def heatmaps(records, alignment, monkeypatch):
    """The heatmaps [k, ...] of the first key frames, whose images are the same in both alignments."""
    found = []
    monkeypatch.setattr(BEVDet, "decode", lambda self, outputs, limits: found.append(outputs) or Perception())
    model = small_model("plain", past=2)
    model.config, model.head = (config := aligned(alignment)), config.head
    list(recompute_rows(config, model, CPU, records, range(3)))
    return [output.tasks[0].heatmap for output in found]


def test_alignments_differ_once_there_is_a_past(records, monkeypatch):
    in_view, after_view = (heatmaps(records, name, monkeypatch) for name in ("in_view", "after_view"))
    torch.testing.assert_close(in_view[0], after_view[0])  # the past is the current frame, which stands still
    for one, other in zip(in_view[1:], after_view[1:], strict=True):
        assert (one - other).abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_annotations_as_boxes_score_full_marks(records, tmp_path, monkeypatch, recompute):
    """Streamed, boxes are in base_link at the lidar's stamp; computed anew, in that at the front camera's exposure."""
    answers = []
    for i in range(len(records)):
        boxes, labels = training_boxes(records, i, NUSCENES_CLASSES, [-np.inf] * 3 + [np.inf] * 3)
        columns = boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.ones(len(boxes))
        ego2global = records.ego2global(i)
        if recompute:
            ego2global = records.images(records.cameras(i))[CAMERAS.index("cam_front")].ego2global
        base = np.linalg.inv(ego2global) @ records.lidar2global(i)
        answers.append(to_ego(Boxes3D(*columns, labels, NUSCENES_CLASSES), base))
    planted = iter(answers)
    monkeypatch.setattr(BEVDet, "decode", lambda self, outputs, limits: Perception(boxes=next(planted)))
    config = small_config("plain", past=2)
    weights = tmp_path / "small.safetensors"
    save_checkpoint(small_model("plain", past=2), weights, {})
    scores = evaluate(EvalSettings(config, weights, records.root, *SPLIT, tmp_path / "out", "cpu", recompute=recompute))
    assert scores.class_aps["car"] == pytest.approx(1.0)
    assert scores.class_errors["car"]["mATE"] < 1e-3


def test_models_that_only_remember_are_refused(records):
    rows = run_rows(load_variant("sparsebev_tiny"), None, CPU, records, range(1), recompute=True)
    with pytest.raises(EvaluationError, match="evaluated with what it remembers; leave --alignment out"):
        next(rows)


def test_frames_are_not_computed_anew_without_some_cameras(records):
    """The reference frame is that of one of them, and all of them are lifted."""
    rows = run_rows(load_variant("bevdet_tiny"), None, CPU, records, range(1), recompute=True, without=("cam_front",))
    with pytest.raises(EvaluationError, match="computed with every camera; leave --without out"):
        next(rows)


def test_the_option_sets_the_key(records, tmp_path, capsys):
    arguments = ["eval", "--data", str(records.root), "--alignment", "in_view", "--out", str(tmp_path)]
    assert main([*arguments, "--variant", "sparsebev_tiny"]) == 1
    assert "head.alignment" in capsys.readouterr().err
