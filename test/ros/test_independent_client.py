"""A DDS implementation that is not ours (Cyclone DDS, no rclpy) sends six images and gets the boxes."""

import json
from pathlib import Path

import numpy as np
import pytest
from client_runner import run_client
from kit import CAMERAS, PARAMETERS, NodeProcess, first_jpegs, new_domain

from bev_perception.geometry import quaternion_from_rotation
from bev_perception.ros.tools.peer import FIRING_OFFSETS

ROOT = Path(__file__).resolve().parents[2]
START = 1_800_000_000_000_000_000  # ns


def transform(parent, child, stamp, child2parent):
    w, x, y, z = map(float, quaternion_from_rotation(child2parent[:3, :3]))
    return {
        "stamp": stamp,
        "parent": parent,
        "child": child,
        "translation": [float(v) for v in child2parent[:3, 3]],
        "rotation": [x, y, z, w],
    }


@pytest.mark.timeout(150)
def test_cyclone_client_gets_boxes(tmp_path, small_drive, untrained):
    python = ROOT / ".venv-client" / "bin" / "python"
    assert python.exists(), "the client's venv is missing: run `make test`, or `make .venv-client/.installed`"
    spec = {"cameras": {}, "transforms": [], "static_transforms": []}
    jpegs = first_jpegs(small_drive)
    for rig in small_drive.cameras:
        image = tmp_path / f"{rig.name}.jpg"
        image.write_bytes(jpegs[rig.name])
        stamp = START + FIRING_OFFSETS[rig.name] * 1_000_000
        spec["cameras"][rig.name] = {
            "image": str(image),
            "format": "jpeg",
            "stamp": stamp,
            "frame_id": rig.name,
            "width": rig.calibration.width,
            "height": rig.calibration.height,
            "k": rig.calibration.intrinsics.ravel().tolist(),
        }
        spec["transforms"].append(transform("odom", "base_link", stamp, np.eye(4)))
        spec["static_transforms"].append(transform("base_link", rig.name, stamp, rig.sensor2ego))
    spec_path = tmp_path / "spec.json"
    spec_path.write_text(json.dumps(spec))

    domain = new_domain()
    node = NodeProcess("perception_node", domain, tmp_path / "node.log", PARAMETERS | {"checkpoint": untrained})
    try:
        node.wait_log("is ready")
        answer = run_client(python, domain, spec_path, timeout=60)
        assert node.interrupt() == 0
    finally:
        node.kill()
    assert "error" not in answer, f"{answer}\n{node.text()}"
    assert answer["frame_id"] == "base_link"
    assert (answer["stamp"] - START) % 1_000_000_000 == 0  # the anchor's stamp, of the first set or a repetition
    assert len(answer["detections"]) == PARAMETERS["max_detections"] and len(spec["cameras"]) == len(CAMERAS)
    for detection in answer["detections"]:
        assert detection["stamp"] == answer["stamp"] and min(detection["size"]) > 0
        assert 0 < detection["results"][0]["score"] < 1 and detection["results"][0]["class_id"]
