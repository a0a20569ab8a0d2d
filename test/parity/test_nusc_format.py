"""Submission formatting against every parity case with the schema of sparsebev_nusc_format."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bev_perception.evaluation.submissions import CLASS_RANGE, META, to_submission
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.types import Boxes3D

PARITY = Path(os.environ.get("BEV_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


def find_cases():
    found = []
    for path in sorted(PARITY.glob("*/case.json")):
        info = json.loads(path.read_text())
        if {"classes", "class_range", "infos"} <= info.keys() and (path.parent / "expected.json").exists():
            found.append(pytest.param((info, path.parent), id=path.parent.name))
    return found


CASES = find_cases()
pytestmark = pytest.mark.skipif(not CASES, reason=f"no formatting case in $BEV_PARITY or {PARITY}")


def transform(info, name):
    rotation = rotation_from_quaternion(*info[f"{name}_rotation"])
    return make_transform(rotation, np.array(info[f"{name}_translation"]))


@pytest.mark.parametrize("case", CASES)
def test_submission(case):
    info, directory = case
    inputs = np.load(directory / "inputs.npz")
    expected = json.loads((directory / "expected.json").read_text())
    assert info["class_range"] == CLASS_RANGE and expected["meta"] == META
    assert len(expected["results"]) == len(info["infos"])
    for i, sample in enumerate(info["infos"]):
        boxes = inputs[f"boxes.{i}"].astype(np.float64)
        centers = boxes[:, :3] + [0, 0, 0.5] * boxes[:, 5:6]  # the case has the middle of the bottom
        found = to_submission(
            Boxes3D(
                centers,
                boxes[:, 3:6],
                boxes[:, 6],
                boxes[:, 7:9],
                inputs[f"scores.{i}"].astype(np.float64),
                inputs[f"labels.{i}"],
                tuple(info["classes"]),
            ),
            sample["token"],
            transform(sample, "lidar2ego"),
            transform(sample, "ego2global"),
        )
        wanted = expected["results"][sample["token"]]
        names = ("sample_token", "detection_name", "attribute_name")
        assert [[f[n] for n in names] for f in found] == [[w[n] for n in names] for w in wanted]
        for f, w in zip(found, wanted, strict=True):
            assert f.keys() == w.keys()
            np.testing.assert_allclose(f["translation"], w["translation"], rtol=0, atol=1e-4)
            np.testing.assert_allclose(f["size"], w["size"], rtol=0, atol=1e-6)
            sign = np.sign(np.dot(f["rotation"], w["rotation"]))
            np.testing.assert_allclose(sign * np.array(f["rotation"]), w["rotation"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(f["velocity"], w["velocity"], rtol=0, atol=1e-5)
            assert f["detection_score"] == pytest.approx(w["detection_score"])
