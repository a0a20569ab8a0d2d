"""Configurations of RViz and Foxglove that are made for given cameras, transport, frames and topics."""

import json
import subprocess
import sys

import pytest
import yaml

from bev_perception.data.drive import CAMERAS
from bev_perception.families.variants import variants_directory
from bev_perception.ros.viewers import Viewed, foxglove_layout, write_viewers

CONFIG = variants_directory().parent


def leaves(part):
    return [part] if isinstance(part, str) else leaves(part["first"]) + leaves(part["second"])


def test_what_is_shipped_comes_out_for_what_is_shipped(tmp_path):
    rviz, foxglove = write_viewers(tmp_path / "new", Viewed(CAMERAS, "compressed", "base_link"), CONFIG)
    assert yaml.safe_load(rviz.read_text()) == yaml.safe_load((CONFIG / "perception.rviz").read_text())
    assert json.loads(foxglove.read_text()) == json.loads((CONFIG / "perception.foxglove.json").read_text())


@pytest.mark.parametrize("transport", ["raw", "compressed"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_every_camera_is_shown_once(tmp_path, transport, count):
    cameras = [f"camera{i}" for i in range(count)]
    viewed = Viewed(cameras, transport, "chassis", "/robot1/bev_perception", {"input/camera0/camera_info": "/info"})
    rviz, foxglove = write_viewers(tmp_path, viewed, CONFIG)
    manager = yaml.safe_load(rviz.read_text())["Visualization Manager"]
    shown = {d["Name"]: d["Topic"]["Value"] for d in manager["Displays"] if d["Class"].endswith("/Image")}
    suffix = "/compressed" if transport == "compressed" else ""
    assert shown == {c: f"/robot1/bev_perception/input/{c}/image{suffix}" for c in cameras}
    assert manager["Global Options"]["Fixed Frame"] == manager["Views"]["Current"]["Target Frame"] == "chassis"

    layout = json.loads(foxglove.read_text())
    panels = layout["configById"]
    assert sorted(leaves(layout["layout"])) == sorted(panels)
    images = {p["foxglovePanelTitle"]: p["imageMode"] for p in panels.values() if "imageMode" in p}
    assert {c: image["imageTopic"] for c, image in images.items()} == shown
    assert images["camera0"]["calibrationTopic"] == "/info"
    assert set(panels["3D!perception"]["topics"]) == {
        f"/robot1/bev_perception/{name}" for name in ("markers", "occupancy_points", "costmap")
    }
    assert panels["Plot!scores"]["paths"][0]["value"] == "/robot1/bev_perception/objects.objects[:].score"
    for text in (rviz.read_text(), foxglove.read_text()):
        assert "base_link" not in text and "cam_front" not in text and "/bev_perception/" in text


def test_the_shipped_layout_is_left_alone():
    shipped = json.loads((CONFIG / "perception.foxglove.json").read_text())
    foxglove_layout(shipped, Viewed(["front"], "raw", "chassis"))
    assert shipped == json.loads((CONFIG / "perception.foxglove.json").read_text())


def test_launch_files_wait_for_no_large_import():
    code = "import sys, bev_perception.ros.launching, bev_perception.ros.viewers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "rclpy", "numpy"} & set(done.stdout.split())
