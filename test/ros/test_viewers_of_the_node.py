"""The live viewer of a node: its own, and the one that subscribes to its topics."""

import pytest
from kit import CAMERAS, wait_until

from bev_perception.cli.ros import with_viewer
from bev_perception.ros.tools.peer import NODE
from bev_perception.ros.topic_viewer import JoinedTopics
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.strict import UserError


class Kept:
    """A viewer that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def show(self, frame, result=None, truth=None):
        self.shown.append((frame, result))

    def close(self):
        pass


def test_frames_meet_their_results_from_both_sides(start, tmp_path):
    """The node writes a file itself; beside it, its topics are joined again by their stamps."""
    pytest.importorskip("rerun")
    file = tmp_path / "node.rrd"
    node, peer = start(viewer=str(file))
    kept = Kept()
    joined = JoinedTopics(peer.node, NODE, f"{NODE}/input", SynchronizerSettings(CAMERAS), kept)
    peer.tf_static.publish(peer.extrinsics)

    def shows_results():
        peer.wait_detection(peer.send_set())
        return any(result is not None and result.timings for _, result in kept.shown)

    wait_until(shows_results, 60, "a frame with its result")
    frame, result = kept.shown[-1]
    assert frame.stamp == result.stamp and len(result.boxes) == 7 and joined.shown == len(kept.shown)
    assert {view.image.camera for view in frame.views} == set(CAMERAS) and "model" in result.timings
    assert node.interrupt() == 0
    assert file.stat().st_size > 50_000


def test_options_before_ros_arguments_become_the_parameter(tmp_path):
    ros = ["--ros-args", "-p", "device:=cpu"]
    assert with_viewer(ros) == ros
    assert with_viewer(["--viewer", *ros]) == ["--ros-args", "-p", "viewer:='window'", "--", *ros]
    assert with_viewer(["--save", str(tmp_path / "a.rrd")])[2] == f"viewer:='{tmp_path}/a.rrd'"
    with pytest.raises(UserError, match="needs a file"):
        with_viewer(["--save"])
