"""Frames that fail in a row, over DDS: they are shown with their cause, and a node that cannot recover gives up."""

import time

import pytest
from kit import NODE, PARAMETERS, Peer, new_domain, wait_until
from planted_node import MESSAGE, PlantedNode

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, small_drive, untrained):
    """A running node whose pipeline fails on command, with one camera; the last test ends it."""
    domain = new_domain()
    directory = tmp_path_factory.mktemp("breakdown")
    node = PlantedNode(directory, domain, PARAMETERS | {"checkpoint": untrained, "cameras": "[cam_front]"})
    peer = Peer(domain, small_drive, ("cam_front",))
    try:
        node.wait_log("is ready")
        peer.connect()
        yield node, peer
    finally:
        node.kill()
        peer.close()


def send_until(peer, condition, what):
    """Send sets slowly enough for each to be worked on, until the diagnostics' values fulfil `condition`."""

    def told():
        peer.send_set()
        time.sleep(0.05)
        return condition(peer.values())

    wait_until(told, 30, lambda: f"{what}; diagnostics say {peer.values()}")
    return peer.values()


def test_frames_that_fail_in_a_row_are_an_error_until_one_succeeds(planted):
    node, peer = planted
    peer.wait_diagnostics(lambda v: v["level"] == "0")
    node.fault("frame")
    time.sleep(0.5)
    published = len(peer.stamps())
    values = send_until(peer, lambda v: "in a row" in v["message"], "the row of failures")
    assert values["level"] == "2" and "failed: not finite: the model's boxes hold NaN" in values["message"]
    for _ in range(12):  # however many of them: such a frame says nothing of the next one
        peer.send_set()
        time.sleep(0.1)
    assert peer.state() == "active" and "Traceback" not in node.text()
    assert len(peer.stamps()) == published
    node.fault("")
    peer.wait_detection(peer.send_set())
    peer.wait_diagnostics(lambda v: v["level"] != "2")


def test_a_model_that_only_raises_takes_the_node_through_the_error_transition(planted):
    node, peer = planted
    node.fault("error")
    values = send_until(peer, lambda v: "in a row" in v["message"], "the row of failures")
    assert values["level"] == "2" and MESSAGE in values["message"]
    values = send_until(peer, lambda v: v["state"] == "unconfigured", "the state unconfigured")
    assert values["level"] == "2" and MESSAGE in values["message"] and "configure" in values["message"]
    assert int(values["dropped: model error"]) >= 10 and "device" not in values
    assert peer.state() == "unconfigured"
    images = f"{NODE}/input/cam_front/image/compressed"
    wait_until(lambda: peer.node.count_subscribers(images) == 0, 10, "the end of the images' subscription")
    wait_until(lambda: peer.node.count_publishers(f"{NODE}/detections") == 0, 10, "the end of the publishers")
    assert node.text().count("Traceback") == 1

    assert peer.transition("configure") and peer.transition("activate")  # the fault is still there
    send_until(peer, lambda v: v["state"] == "unconfigured", "the state unconfigured again")
    node.fault("")
    assert peer.transition("configure")
    peer.wait_diagnostics(lambda v: v["level"] == "0" and v["message"] == "inactive")
    assert peer.transition("activate")
    peer.wait_diagnostics(lambda v: v["state"] == "active" and v["level"] != "2")  # what failed before is past
    peer.connect()


def test_a_context_that_somebody_else_shuts_down_ends_the_node(planted):
    node, peer = planted
    before = len(node.text())
    node.fault("shutdown")
    peer.send_set()
    assert node.process.wait(20) == 0
    text = node.text()[before:]
    assert text.count("ROS context") == 1
    assert "Traceback" not in text and len(text) < 5000
