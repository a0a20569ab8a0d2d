"""The bag player as a process of its own, heard over real DDS."""

import contextlib
import os
import threading
import time
from collections import Counter

import pytest
import rclpy
from kit import new_domain
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import SetBool

from bev_perception.data.messages import stamp_ns
from bev_perception.data.rosbag import BagReader, BagTopic, ImageEvent, image_topic, write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools.process import NodeProcess, dds_environment, wait_until

ensure_interfaces()
from tf2_msgs.msg import TFMessage  # noqa: E402
from vision_msgs.msg import Detection3DArray  # noqa: E402

from bev_perception.ros.player import _qos  # noqa: E402

SECONDS = 2.0


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "drive"
    write_bag(synthetic_drive(SECONDS, image_size=(160, 90)), path, progress=False)
    return path


class Listener:
    """Hears the images, /tf, /tf_static and /clock, and answers in lockstep."""

    def __init__(self, domain: int, cameras):
        os.environ |= {k: v for k, v in dds_environment(domain).items() if "PROFILES" in k}
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node("listener", context=self.context)
        self.images = []  # (camera, message, wall clock)
        self.clock, self.tf, self.tf_static = [], [], []
        for camera in cameras:
            self.node.create_subscription(
                CompressedImage,
                f"{image_topic(camera)}/compressed",
                lambda m, c=camera: self.images.append((c, m, time.monotonic())),
                100,
            )
        self.node.create_subscription(Clock, "/clock", lambda m: self.clock.append(stamp_ns(m.clock)), 1000)
        self.node.create_subscription(TFMessage, "/tf", self.tf.append, 1000)
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.node.create_subscription(TFMessage, "/tf_static", self.tf_static.append, latched)
        self.answers = self.node.create_publisher(Detection3DArray, "/bev_perception/detections", 10)
        self.pause_client = self.node.create_client(SetBool, "/bag_player/pause")
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin, args=(executor,), daemon=True)
        self.thread.start()

    def _spin(self, executor):
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    def pause(self, on: bool):
        assert self.pause_client.wait_for_service(20.0)
        future = self.pause_client.call_async(SetBool.Request(data=on))
        wait_until(future.done, 20.0, "the answer of ~/pause")
        assert future.result().success

    def stamps(self):
        return [stamp_ns(m.header.stamp) for _, m, _ in list(self.images)]

    def close(self):
        rclpy.shutdown(context=self.context)
        self.thread.join()


@pytest.fixture
def play(tmp_path, bag):
    opened = []

    def begin(path=bag, listen=True, **parameters):
        domain = new_domain()
        listener = None
        if listen:
            cameras = [rig.name for rig in synthetic_drive(0.1).cameras]
            listener = Listener(domain, cameras)
            opened.append(listener.close)
        player = NodeProcess("bag_player", domain, tmp_path / "player.log", {"bag": path, **parameters})
        opened.append(player.kill)
        return player, listener

    yield begin
    for close in reversed(opened):
        close()


def recorded_images(bag):
    return [event.image for event in BagReader(bag).events() if isinstance(event, ImageEvent)]


def test_everything_arrives_at_twice_the_speed(play, bag):
    player, listener = play(rate=2.0)
    assert player.process.wait(60) == 0, player.text()
    recorded = recorded_images(bag)
    wait_until(
        lambda: len(listener.images) >= len(recorded), 5.0, f"{len(recorded)} images, {len(listener.images)} came"
    )
    assert [image.stamp for image in recorded] == sorted(listener.stamps())
    sent = {(image.camera, image.stamp): bytes(image.data) for image in recorded}
    for camera, message, _ in listener.images:
        assert bytes(message.data) == sent[camera, stamp_ns(message.header.stamp)]
    assert len(listener.tf) == len(recorded)
    assert [len(m.transforms) for m in listener.tf_static] == [6]

    walls = [wall for _, _, wall in listener.images]
    play_seconds = (recorded[-1].stamp - recorded[0].stamp) / 1e9
    assert walls[-1] - walls[0] == pytest.approx(play_seconds / 2, rel=0.2)
    assert listener.clock == sorted(listener.clock)
    assert set(listener.stamps()) <= set(listener.clock)
    assert len(listener.clock) > 80 * play_seconds


def test_a_loop_jumps_back_and_is_interrupted(play, bag):
    player, listener = play(rate=4.0, loop=True)
    count = len(recorded_images(bag))
    wait_until(lambda: len(listener.images) > 2 * count, 60.0, "the third round")
    assert player.interrupt() == 0, player.text()
    rounds = Counter(listener.stamps())
    assert rounds[min(rounds)] >= 2
    back = [b for a, b in zip(listener.clock, listener.clock[1:], strict=False) if b < a]
    assert back == [min(rounds)] * len(back)
    assert back


def test_pause(play):
    player, listener = play(start_paused=True)
    wait_until(listener.pause_client.service_is_ready, 60.0, "the player")
    time.sleep(0.5)
    assert not listener.images
    listener.pause(False)
    wait_until(lambda: len(listener.images) >= 12, 20.0, "images")
    listener.pause(True)
    time.sleep(0.3)
    held, newest = len(listener.images), max(listener.stamps())
    time.sleep(0.5)
    assert len(listener.images) == held
    assert listener.clock[-1] == listener.clock[-2]  # a node that starts now learns the time too
    listener.pause(False)
    wait_until(lambda: len(listener.images) > held, 20.0, "images again")
    # the wall clock's half second is no part of the drive
    assert min(s for s in listener.stamps() if s > newest) - newest < 100_000_000
    listener.pause(True)
    assert player.interrupt() == 0, player.text()


def test_lockstep_waits_for_every_answer(play, bag):
    player, listener = play(rate=50.0, lockstep=True)
    sets = len(recorded_images(bag)) // 6
    for number in range(1, sets + 1):
        wait_until(lambda n=number: len(listener.images) == 6 * n, 60.0, f"set {number}")
        if number < 4:
            time.sleep(0.2)
            assert len(listener.images) == 6 * number
            assert len({camera for camera, _, _ in listener.images[-6:]}) == 6
        assert player.process.poll() is None
        if number == 2:  # an answer to something else is none
            listener.answers.publish(Detection3DArray())
            time.sleep(0.3)
            assert len(listener.images) == 6 * number
        answer = Detection3DArray()
        answer.header.stamp = listener.images[-3][1].header.stamp
        listener.answers.publish(answer)
    assert player.process.wait(60) == 0, player.text()
    assert "no message" not in player.text()


def test_lockstep_goes_on_without_an_answer(play, bag):
    player, listener = play(rate=50.0, lockstep=True, lockstep_timeout=0.1)
    assert player.process.wait(60) == 0, player.text()
    wait_until(lambda: len(listener.images) == len(recorded_images(bag)), 5.0, "all images")
    assert "no message on /bev_perception/detections answers the images of" in player.text()


@pytest.mark.parametrize(("topics", "found"), [("/odd /bev_perception/detections", True), ("/odd /even", False)])
def test_one_of_several_publishers_is_waited_for(play, topics, found):
    player, _ = play(rate=50.0, wait_for_publisher=topics, wait_for_subscribers=20.0 if found else 3.0)
    assert player.process.wait(60) == 0, player.text()
    assert (f"nobody publishes {topics}, after" not in player.text()) == found


def test_nobody_listens(play):
    player, _ = play(listen=False, rate=50.0, wait_for_subscribers=0.2)
    assert player.process.wait(60) == 0
    assert "not every image topic has a subscriber" in player.text()


@pytest.mark.parametrize("parameters", [{}, {"start_paused": True}, {"lockstep": True, "wait_for_subscribers": 0.0}])
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_interrupted_at_any_moment(play, parameters, delay):
    player, _ = play(listen=False, loop=True, **parameters)
    player.wait_log("plays")
    time.sleep(delay)
    assert player.interrupt(5.0) == 0, player.text()
    assert "Traceback" not in player.text()


@pytest.mark.parametrize("delay", [1.2])
def test_interrupted_while_it_starts(play, delay):
    player, _ = play(listen=False, loop=True)
    time.sleep(delay)
    assert player.interrupt(10.0) == 0, player.text()


def test_a_type_nobody_knows_is_left_out(play, tmp_path):
    types = get_typestore(Stores.ROS2_JAZZY)
    string = types.types["std_msgs/msg/String"](data="hello")
    with Writer(tmp_path / "odd", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        known = writer.add_connection("/known", "std_msgs/msg/String", typestore=types)
        odd = writer.add_connection("/odd", "no_such_msgs/msg/Odd", msgdef="string data", rihs01="RIHS01_00")
        data = types.serialize_cdr(string, "std_msgs/msg/String")
        for stamp in range(3):
            writer.write(known, 10**9 + stamp, data)
            writer.write(odd, 10**9 + stamp, data)
    player, _ = play(tmp_path / "odd", listen=False)
    assert player.process.wait(60) == 0
    assert player.text().count("no_such_msgs/msg/Odd") == 1


@pytest.mark.parametrize(("lockstep", "whole"), [(True, True), (False, True), (False, False)])
def test_messages_that_are_cut_off_are_counted_and_passed_over(play, tmp_path, lockstep, whole):
    types = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "short", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        image = writer.add_connection("/image", "sensor_msgs/msg/CompressedImage", typestore=types)
        text = writer.add_connection("/text", "std_msgs/msg/String", typestore=types)
        for stamp, data in enumerate((b"", b"\0\1\0\0", b"\0\1\0\0\1\0\0\0")):
            writer.write(image, 10**9 + stamp, data)
            writer.write(text, 10**9 + stamp, data[:3])
        if whole:
            data = types.serialize_cdr(types.types["std_msgs/msg/String"](data="hello"), "std_msgs/msg/String")
            writer.write(text, 2 * 10**9, data)
    player, _ = play(tmp_path / "short", listen=False, lockstep=lockstep, wait_for_subscribers=0.0)
    assert player.process.wait(60) == (0 if whole else 1)
    if whole:
        assert "6 messages of" in player.text() and "are cut off and were passed over" in player.text()
    else:
        assert "can be played: 6 of its messages are cut off, 0 are of topics that are not played" in player.text()
    assert "Traceback" not in player.text()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"path": "nowhere"}, "nowhere does not exist"),
        ({"path": "''"}, "the parameter bag is empty"),
        ({"rate": 0.0}, "it must be positive"),
        ({"rate": "fast"}, "parameter rate"),
        ({"lockstep": True, "lockstep_type": "no_such_msgs/msg/Odd"}, "lockstep_type 'no_such_msgs/msg/Odd'"),
        ({"lockstep": True, "lockstep_type": "Detections"}, "lockstep_type 'Detections'"),
    ],
)
def test_what_cannot_be_played(play, parameters, reason):
    player, _ = play(listen=False, **parameters)
    assert player.process.wait(60) == 1
    assert reason in player.text()
    assert "Traceback" not in player.text()


def test_tf_static_is_latched_whatever_was_recorded():
    for name in ("/tf_static", "/robot1/tf_static"):
        profile = _qos(BagTopic(name, "tf2_msgs/msg/TFMessage", (), 3))
        assert profile.durability == DurabilityPolicy.TRANSIENT_LOCAL and profile.depth == 3
        assert profile.reliability == ReliabilityPolicy.RELIABLE
    assert _qos(BagTopic("/tf", "tf2_msgs/msg/TFMessage", (), 3)).durability == DurabilityPolicy.VOLATILE


def test_after_five_seconds_the_player_says_what_it_waits_for(play):
    player, _ = play(listen=False, rate=50.0, wait_for_subscribers=6.0, wait_for_publisher="/bev_perception/detections")
    assert player.process.wait(60) == 0, player.text()
    assert "nobody subscribes to /bev_perception/input/" in player.text()
    assert "nobody publishes /bev_perception/detections yet" in player.text()


def test_images_without_a_header_are_passed_over_in_lockstep(play, tmp_path):
    types = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / "short", version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/image", "sensor_msgs/msg/Image", typestore=types)
        for k, data in enumerate((b"", b"\0", b"\0\1\0\0\1\0")):
            writer.write(connection, k, data)
    player, _ = play(tmp_path / "short", listen=False, lockstep=True, wait_for_subscribers=0.1)
    assert player.process.wait(60) == 1, player.text()
    assert "can be played: 3 of its messages are cut off" in player.text()
    assert "Traceback" not in player.text()
    assert "this bag has no /tf_static" in player.text()
