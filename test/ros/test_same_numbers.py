"""The same bag gives the same boxes offline and through DDS, the node and the bag player, in processes of their own."""

import subprocess
import sys

import numpy as np
import pytest
from kit import PARAMETERS, NodeProcess, new_domain, wait_until

from bev_perception.data.messages import stamp_ns
from bev_perception.data.rosbag import write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.pipeline.offline import read_results
from bev_perception.ros.tools.peer import Listener


@pytest.mark.timeout(240)
def test_node_and_offline_run_agree(tmp_path, untrained):
    write_bag(synthetic_drive(1.5, seed=5, image_size=(400, 225)), tmp_path / "bag", progress=False)
    out = tmp_path / "results.jsonl"
    arguments = ["--bag", tmp_path / "bag", "--variant", "sparsebev_tiny", "--checkpoint", untrained, "--out", out]
    command = [sys.executable, "-m", "bev_perception.cli", "run", *map(str, arguments)]
    subprocess.run([*command, "--device", "cpu", "--score-threshold", "0"], check=True)
    offline = {frame["stamp"]: frame for frame in read_results(out).frames()}
    assert len(offline) == 18

    domain = new_domain()
    parameters = PARAMETERS | {"checkpoint": untrained, "max_detections": 300, "nms": "auto"}
    node = NodeProcess("perception_node", domain, tmp_path / "node.log", parameters)
    listener = Listener(domain)
    try:
        node.wait_log("is ready")
        player = NodeProcess("bag_player", domain, tmp_path / "player.log", {"bag": tmp_path / "bag", "lockstep": True})
        assert player.process.wait(120) == 0, player.text()
        wait_until(lambda: len(listener.objects) >= len(offline), 20, "the last result")
        live = {stamp_ns(message.header.stamp): message.objects for message in list(listener.objects)}
    finally:
        node.kill()
        listener.close()

    assert list(live) == list(offline)
    for stamp, objects in live.items():
        boxes = offline[stamp]["boxes"]
        assert [o.class_name for o in objects] == [b["class"] for b in boxes]
        assert [o.track_id for o in objects] == [b["track_id"] for b in boxes]
        for name, ours in (
            ("score", [[o.score] for o in objects]),
            ("center", [[o.pose.position.x, o.pose.position.y, o.pose.position.z] for o in objects]),
            ("size", [[o.size.x, o.size.y, o.size.z] for o in objects]),
            ("velocity", [[o.velocity.x, o.velocity.y] for o in objects]),
        ):
            theirs = np.array([b[name] for b in boxes]).reshape(len(boxes), -1)
            assert np.allclose(ours, theirs, rtol=0, atol=1e-5), (stamp, name)
        yaws = [2 * np.arctan2(o.pose.orientation.z, o.pose.orientation.w) for o in objects]
        difference = np.array(yaws) - [b["yaw"] for b in boxes]
        assert np.abs((difference + np.pi) % (2 * np.pi) - np.pi).max() < 1e-5
