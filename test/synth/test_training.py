"""The small synthetic world teaches what needs lidar points and objects with an identity."""

import json
import math

import pytest

from bev_perception.cli import main


def test_instances_learn_from_sequences(dataroot, tmp_path):
    """Two epochs over two scenes: two sequences a scene, boxes, denoising and lidar depth."""
    changes = ["epochs=2", "batch=2", "resize=[0.1, 0.12]", "warmup_steps=2"]
    options = [f"--set=training.{change}" for change in changes]
    options += ["--set=image.height=64", "--set=image.width=160", "--device=cpu", "--precision=fp32", "--workers=0"]
    data = ["--data", str(dataroot), "--split", "synth_all", "--out", str(tmp_path / "out")]
    assert main(["train", "--variant", "sparse4d_tiny", *data, *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8
    assert lines[-1]["loss_dense_depth"] > 0
    assert lines[-1]["loss_box_3"] > 0
    assert lines[-1]["loss_cls_dn_3"] > 0


@pytest.mark.parametrize("variant, loss", [("bevdet_tiny", "task0.loss_heatmap"), ("bevdetocc_tiny", "loss_occ")])
def test_a_grid_is_learnt_with_lidar_depth_and_a_past_frame(dataroot, tmp_path, variant, loss):
    """An epoch of four steps: the losses of head and depth are there, and finite."""
    changes = ["epochs=1", "batch=2", "resize=[0.1, 0.12]", "warmup_steps=2", "family.past_from=0"]
    options = [f"--set=training.{change}" for change in changes]
    options += ["--set=image.height=64", "--set=image.width=160", "--device=cpu", "--precision=fp32", "--workers=0"]
    data = ["--data", str(dataroot), "--split", "synth_all", "--out", str(tmp_path / "out")]
    assert main(["train", "--variant", variant, *data, *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4
    for name in (loss, "loss_depth"):
        assert 0 < lines[-1][name] < math.inf, name
