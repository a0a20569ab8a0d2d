"""Submissions of detections and tracks of Sparse4D against the published reference."""

import json
import re

import numpy as np
import pytest

from bev_perception.evaluation.submissions import CLASS_RANGE, META, to_submission, to_tracking_submission
from bev_perception.families.sparse4d.decode import Decoded
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.types import Boxes3D

from .cases import parametrize

TOKEN = "sample0"


def of_format(case):
    return None if case.info["system"] == "sparse4d" and "tracking_threshold" in case.config else ""


def transform(case, name):
    rotation = rotation_from_quaternion(*case.inputs[f"{name}_rotation"])
    return make_transform(rotation, case.inputs[f"{name}_translation"])


def boxes_of(case):
    """The case's boxes as decoding gives them; those that the reference leaves out of tracks have none."""
    boxes = case.inputs["boxes_3d"].astype(np.float64)
    found = Boxes3D(
        boxes[:, :3],
        boxes[:, 3:6],
        boxes[:, 6],
        boxes[:, 7:9],
        case.inputs["scores_3d"].astype(np.float64),
        case.inputs["labels_3d"],
        tuple(case.config["classes"]),
        track_ids=case.inputs["instance_ids"],
    )
    return Decoded(found, case.inputs["cls_scores"]).tracked(case.config["tracking_threshold"])


@parametrize(of_format)
@pytest.mark.parametrize("task", ["detection", "tracking"])
def test_submission(case, task):
    assert case.config["class_range_m"] == CLASS_RANGE
    expected = json.loads((case.path / "outputs.json").read_text())[task]
    assert expected["meta"] == META | {"use_external": expected["meta"]["use_external"]}
    (wanted,) = expected["results"].values()
    make = to_submission if task == "detection" else to_tracking_submission
    found = make(boxes_of(case), TOKEN, transform(case, "lidar2ego"), transform(case, "ego2global"))
    assert len(found) == len(wanted)
    atol = case.info["tolerance"]["atol"]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("translation", "size", "velocity", f"{task}_score"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=atol)
        sign = np.sign(np.dot(ours["rotation"], theirs["rotation"]))
        np.testing.assert_allclose(sign * np.array(ours["rotation"]), theirs["rotation"], rtol=0, atol=atol)
        assert ours[f"{task}_name"] == theirs[f"{task}_name"]
        if task == "detection":
            assert ours["attribute_name"] == theirs["attribute_name"]
        else:
            assert ours["tracking_id"] == re.search(r"\d+", theirs["tracking_id"])[0]
