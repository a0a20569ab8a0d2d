"""Fixtures for tests against the real node."""

import base64
import json
import os

import pytest

#: how coverage tells its settings to the processes that a measured one starts
COVERAGE = "COVERAGE_PROCESS_CONFIG"


def pytest_collection_modifyitems(items):
    """Mark every test of this directory."""
    for item in items:
        if "/test/ros/" in str(item.path):
            item.add_marker(pytest.mark.ros)


@pytest.fixture(scope="package", autouse=True)
def nodes_are_measured():
    """Let coverage save what it has seen when a node ends by os._exit.

    For nodes alone: readers of a training end like that in a thread, where saving may crash.
    """
    if COVERAGE not in os.environ:
        yield
        return
    before = os.environ[COVERAGE]
    settings = json.loads(base64.b64decode(before))
    settings["patch"] = [*settings["patch"], "_exit"]
    os.environ[COVERAGE] = base64.b64encode(json.dumps(settings).encode()).decode()
    yield
    os.environ[COVERAGE] = before


@pytest.fixture
def node():
    """A lifecycle node named bev_perception, without anything of ours."""
    import rclpy
    from kit import new_domain
    from rclpy.lifecycle import LifecycleNode

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=new_domain())
    made = LifecycleNode("bev_perception", context=context)
    yield made
    made.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def start(tmp_path, small_drive, untrained):
    """Start a node and a peer: start(cameras=..., raw=..., **parameters) -> (node, peer)."""
    from kit import CAMERAS, PARAMETERS, NodeProcess, Peer, new_domain

    opened = []

    def begin(cameras=CAMERAS, raw=False, wait="is ready", **parameters):
        domain = new_domain()
        own = {"checkpoint": untrained, "image_transport": "raw" if raw else "compressed"}
        if cameras != CAMERAS:
            own["cameras"] = "[" + ",".join(cameras) + "]"
        log = tmp_path / f"node{len(opened)}.log"
        node = NodeProcess("perception_node", domain, log, PARAMETERS | own | parameters)
        opened.append(node.kill)
        known = tuple(camera for camera in cameras if camera in CAMERAS)
        peer = Peer(domain, small_drive, known, raw)
        opened.append(peer.close)
        if wait:
            node.wait_log(wait)
            peer.connect()
        return node, peer

    yield begin
    for close in reversed(opened):
        close()
