"""Each fault against the real node over DDS: it lives, says what was wrong, and detects on the next good set."""

import json
import struct
import time

import numpy as np
import pytest
from kit import MS, PARAMETERS, SECOND, NodeProcess, Peer, new_domain, wait_until
from rclpy.serialization import serialize_message
from safetensors.numpy import load_file, save_file
from sensor_msgs.msg import CompressedImage, Image
from tf2_msgs.msg import TFMessage

from bev_perception.data.drive import CAMERAS
from bev_perception.ros.tools.peer import stamped_transform

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(tmp_path_factory, small_drive, untrained):
    """One node for all faults that a running node meets."""
    domain = new_domain()
    node = NodeProcess(
        "perception_node",
        domain,
        tmp_path_factory.mktemp("faults") / "node.log",
        PARAMETERS | {"checkpoint": untrained},
    )
    peer = Peer(domain, small_drive)
    try:
        node.wait_log("is ready")
        peer.connect()
        yield node, peer
        assert node.interrupt() == 0
    finally:
        node.kill()
        peer.close()


def recovers(node, peer) -> None:
    """The next good set is detected in, with all cameras."""
    stamp = peer.send_set()
    message = peer.wait_detection(stamp)
    assert len(message.detections) == 7
    peer.wait_diagnostics(lambda v: v and not any(key.startswith("missing ") for key in v))
    assert node.alive()


def only(camera, change):
    """Tamper with the messages of one camera."""
    return lambda c, message: change(message) if c == camera else message


def with_data(data):
    return lambda message: CompressedImage(header=message.header, format="jpeg", data=data)


def wait_counted(peer, key, text, before=0):
    return peer.wait_diagnostics(lambda v: int(v.get(key, 0)) > before and any(text in value for value in v.values()))


def count(peer, key) -> int:
    return int(peer.values().get(key, 0))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "truncated"),
        (lambda jpeg: jpeg[:200] + bytes(len(jpeg) - 200), "JPEG"),  # zeros behind the header
        (lambda jpeg: b"no picture at all", "neither"),
        (lambda jpeg: b"", "no data"),
    ],
    ids=["truncated", "zeroed", "text", "empty"],
)
def test_corrupt_jpeg_costs_that_view(running, data, cause):
    node, peer = running
    recovers(node, peer)
    before = count(peer, "dropped: missing view")
    stamp = peer.send_set(image=only("cam_back", with_data(data(bytes(peer.contents["cam_back"].data)))))
    peer.wait_detection(stamp)
    values = peer.wait_diagnostics(lambda v: "missing cam_back" in v)
    assert cause in values["missing cam_back"]
    wait_counted(peer, "dropped: missing view", "cam_back", before)
    node.wait_log("missing view: cam_back")
    recovers(node, peer)


def test_wrong_size_names_both_sizes(running):
    node, peer = running
    recovers(node, peer)

    def half(message):
        message.width, message.height = 200, 112
        return message

    stamp = peer.send_set(info=only("cam_front_left", half))
    peer.wait_detection(stamp)
    values = peer.wait_diagnostics(lambda v: "missing cam_front_left" in v)
    assert "400x225" in values["missing cam_front_left"] and "200x112" in values["missing cam_front_left"]
    recovers(node, peer)


def test_missing_camera_degrades_and_comes_back(running):
    node, peer = running
    recovers(node, peer)
    stamps = [peer.send_set(order=[c for c in CAMERAS if c != "cam_back_right"]) for _ in range(4)]
    wait_until(lambda: set(stamps) & set(peer.stamps()), 20, "a degraded detection")
    values = peer.wait_diagnostics(lambda v: "missing cam_back_right" in v)
    assert values["missing cam_back_right"] == "no image arrived in time"
    assert any("degraded: without cam_back_right" in d.status[0].message for d in peer.diagnostics)
    peer.send_set()
    peer.send_set()
    recovers(node, peer)


def test_late_tf_costs_the_sets_it_is_late_for(running):
    node, peer = running
    recovers(node, peer)
    before = count(peer, "dropped: no pose")
    sent = []
    for _ in range(30):  # 2.5 s of header time; every pose comes 1 s late
        stamp = peer.send_set(tf=False)
        sent.append(stamp)
        peer.pose(stamp - SECOND)
        time.sleep(0.02)
    peer.wait_diagnostics(lambda v: int(v.get("dropped: no pose", 0)) > before)
    assert not set(sent[:20]) & set(peer.stamps())
    node.wait_log("no pose: tf odom -> base_link: no pose yet")
    peer.now += 300 * MS
    peer.send_set()
    recovers(node, peer)


def test_absent_tf_is_waited_for_and_named(running):
    node, peer = running
    recovers(node, peer)
    before = count(peer, "dropped: no pose")
    peer.send_set(tf=False)
    peer.wait_diagnostics(lambda v: "no pose yet" in v.get("waiting for", ""))
    peer.wait_diagnostics(lambda v: "no pose yet" in v["message"])
    for _ in range(5):
        peer.send_set(tf=False)
    wait_counted(peer, "dropped: no pose", "odom -> base_link", before)
    peer.now += 300 * MS
    recovers(node, peer)


def test_shuffled_stamps_give_ordered_detections(running):
    node, peer = running
    recovers(node, peer)
    base, before = peer.now, count(peer, "dropped: late image")
    for k, order in ((2, CAMERAS[::-1]), (1, CAMERAS), (4, CAMERAS[3:] + CAMERAS[:3]), (3, CAMERAS[::-1])):
        peer.send_set(base + k * 83 * MS, order=order)
        time.sleep(0.1)  # so that the sets arrive in this order
    peer.wait_detection(base + 4 * 83 * MS)
    peer.now = base + 4 * 83 * MS
    wait_counted(peer, "dropped: late image", "", before)
    node.wait_log("its set has gone on without it")
    stamps = [s for s in peer.stamps() if s > base]
    assert stamps == sorted(stamps)
    recovers(node, peer)


def test_duplicates_are_detected_in_once(running):
    node, peer = running
    recovers(node, peer)
    before = count(peer, "dropped: duplicate stamp")
    stamp = peer.send_set()
    peer.send_set(stamp)
    peer.wait_detection(stamp)
    wait_counted(peer, "dropped: duplicate stamp", "twice", before + 4)
    recovers(node, peer)
    assert peer.stamps().count(stamp) == 1


def test_time_ten_seconds_back_wipes_the_memory(running):
    node, peer = running
    recovers(node, peer)
    peer.now -= 10 * SECOND
    stamp = peer.send_set()
    peer.wait_detection(stamp)
    wait_counted(peer, "reset: time ran backwards", "by 9.9")
    node.wait_log("memory wiped: time ran backwards")
    recovers(node, peer)
    peer.now += 20 * SECOND  # past all earlier stamps again


def test_a_gap_of_three_seconds_wipes_the_memory(running):
    node, peer = running
    recovers(node, peer)
    before = count(peer, "reset: gap")
    peer.now += 3 * SECOND
    stamp = peer.send_set()
    peer.wait_detection(stamp)
    wait_counted(peer, "reset: gap", "3.083 s without a frame", before)
    node.wait_log("memory wiped: gap")
    recovers(node, peer)


def test_nan_in_k_costs_that_view(running):
    node, peer = running
    recovers(node, peer)

    def nan(message):
        message.k[0] = float("nan")
        return message

    stamp = peer.send_set(info=only("cam_front", nan))
    peer.wait_detection(stamp)
    values = peer.wait_diagnostics(lambda v: "missing cam_front" in v)
    assert "NaN" in values["missing cam_front"]
    recovers(node, peer)


def test_nan_in_tf_is_refused(running):
    node, peer = running
    recovers(node, peer)
    bad = stamped_transform("odom", "base_link", peer.now + 40 * MS, np.eye(4))
    bad.transform.translation.x = float("nan")
    peer.tf.publish(TFMessage(transforms=[bad]))
    wait_counted(peer, "dropped: bad tf", "not finite")
    recovers(node, peer)


@pytest.mark.slow
def test_messages_that_are_cut_cost_themselves_alone(running):
    """On every topic: cut at any place, empty, and of other bytes."""
    node, peer = running
    recovers(node, peer)
    messages = {
        peer.tf: TFMessage(transforms=[stamped_transform("odom", "base_link", peer.now + 40 * MS, np.eye(4))] * 3),
        peer.tf_static: TFMessage(transforms=[stamped_transform("base_link", "cam_front", 0, np.eye(4))]),
        peer.images["cam_front"]: peer.image("cam_front", peer.now + 40 * MS),
        peer.infos["cam_front"]: peer.info("cam_front", peer.now + 40 * MS),
    }
    for publisher, message in messages.items():
        whole = serialize_message(message)
        for part in (0, 1, 4, 7, len(whole) // 2, len(whole) - 5):
            publisher.publish(whole[:part])
        publisher.publish(bytes(range(256)))
        stamps = []

        def detects(stamps=stamps):  # under load images are lost, and a later set is detected in
            stamps.append(peer.send_set())
            time.sleep(1.0)
            return set(stamps) & set(peer.stamps())

        wait_until(detects, 40, f"detections after cut messages on {publisher.topic_name}")
    assert node.alive()


def test_parameter_out_of_range_is_refused(running):
    node, peer = running
    recovers(node, peer)
    for value in (1.5, float("nan")):
        before = count(peer, "dropped: parameter refused")
        answer = peer.set_parameter("score_threshold", value)
        assert not answer.successful and "score_threshold" in answer.reason
        wait_counted(peer, "dropped: parameter refused", "score_threshold", before)
    answer = peer.set_parameter("variant", "r50_nuimg_704x256")
    assert not answer.successful and "clean it up first" in answer.reason
    node.wait_log("parameter refused")
    recovers(node, peer)
    assert peer.set_parameter("max_detections", 3).successful
    stamp = peer.send_set()
    assert len(peer.wait_detection(stamp).detections) == 3
    assert peer.set_parameter("max_detections", 7).successful


def test_missing_camera_info_costs_that_view(running):
    node, peer = running
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert peer.transition(transition), node.text()
    peer.wait_matched()
    skip_info = only("cam_back", lambda message: None)
    stamps = []

    def told():  # under load images are lost too, and a later set tells the reason that lasts
        stamps.append(peer.send_set(info=skip_info))
        time.sleep(0.2)
        return peer.values().get("missing cam_back") == "no camera_info has arrived"

    wait_until(told, 20, lambda: f"the reason in the diagnostics; they say {peer.values()}")
    assert set(stamps) & set(peer.stamps()), "a degraded detection"
    for _ in range(3):
        peer.send_set()
    recovers(node, peer)


def test_unknown_encoding_lists_what_works(start):
    node, peer = start(cameras=("cam_front",), raw=True)

    def raw(encoding):
        def change(camera, message):
            return Image(
                header=message.header, encoding=encoding, width=400, height=225, step=1200, data=bytes(400 * 225 * 3)
            )

        return change

    peer.wait_detection(peer.send_set(image=raw("rgb8")))
    peer.send_set(image=raw("32FC3"))
    values = peer.wait_diagnostics(lambda v: "32FC3" in v.get("last drop", ""))
    assert "rgb8" in values["last drop"] and int(values["dropped: no usable view"]) == 1
    node.wait_log("32FC3")
    peer.wait_detection(peer.send_set(image=raw("bgr8")))


@pytest.fixture(scope="module")
def bad_checkpoints(tmp_path_factory, untrained):
    folder = tmp_path_factory.mktemp("bad")
    truncated = folder / "truncated.safetensors"
    truncated.write_bytes(untrained.read_bytes()[:5000])
    tensors = load_file(untrained)
    tensors["pts_bbox_head.init_query_bbox.weight"] = np.zeros((900, 10), np.float32)
    other = folder / "other.safetensors"
    save_file(tensors, other)
    huge = folder / "huge_header.safetensors"
    huge.write_bytes(struct.pack("<Q", 2**62) + json.dumps({}).encode())
    return {"missing": folder / "nowhere.safetensors", "truncated": truncated, "other": other, "huge": huge}


def test_wrong_checkpoint_and_variant_are_named_and_can_be_mended(start, bad_checkpoints, untrained):
    node, peer = start(wait=None, checkpoint=bad_checkpoints["missing"])
    node.wait_log("cannot configure")
    peer.wait_diagnostics(lambda v: "nowhere.safetensors" in v.get("message", "") and v["level"] == "2")
    for kind, text in (
        ("truncated", "truncated.safetensors"),
        ("huge", "huge_header.safetensors"),
        ("other", "init_query_bbox.weight"),
    ):
        assert peer.set_parameter("checkpoint", str(bad_checkpoints[kind])).successful
        assert not peer.transition("configure")
        peer.wait_diagnostics(lambda v, text=text: text in v.get("message", ""))
    assert peer.set_parameter("checkpoint", str(untrained)).successful
    assert peer.set_parameter("variant", "sparsebev_tinny").successful
    assert not peer.transition("configure")
    peer.wait_diagnostics(lambda v: "did you mean 'sparsebev_tiny'" in v.get("message", ""))
    assert node.alive() and peer.state() == "unconfigured"
    assert peer.set_parameter("variant", "sparsebev_tiny").successful
    assert peer.transition("configure") and peer.transition("activate")
    peer.connect()
    recovers(node, peer)


def test_an_invalid_parameter_at_the_start_keeps_the_node_unconfigured(start, untrained):
    node, peer = start(wait=None, score_threshold=7.0)
    node.wait_log("cannot configure")
    peer.wait_diagnostics(lambda v: "score_threshold" in v.get("message", ""))
    assert peer.set_parameter("score_threshold", 0.0).successful
    assert peer.transition("configure") and peer.transition("activate")
    peer.connect()
    recovers(node, peer)
