"""The node that plays a rosbag2 bag, in real time or in lockstep with the node that processes it.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import importlib
import logging
import struct
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosbags.interfaces import QosDurability, QosReliability
from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from bev_perception.commands import ros_command
from bev_perception.data.bag_opening import BagError
from bev_perception.data.messages import stamp_ns
from bev_perception.data.rosbag import COMPRESSED_IMAGE, IMAGE, BagReader, BagTopic
from bev_perception.ros.endings import end_by, raise_exit
from bev_perception.strict import UserError

#: ns of play time between two messages on /clock
CLOCK_PERIOD = 10_000_000
#: least bytes of a serialized message, the CDR header, and of an image, which begins with a stamp and a frame
MIN_MESSAGE, MIN_IMAGE = 4, 16
#: s between two checks whether to stop or pause
MAX_SLEEP = 0.05
#: s between two checks of a condition that is waited for
POLL = 0.002
#: s between two messages on /clock while play time stands still
HOLD_CLOCK_PERIOD = 0.1
#: s after which the player says what it waits for
PATIENCE = 5.0
#: s to wait after all subscribers are matched here; until they have matched this side, too, they lose messages
SETTLE = 0.5
#: s that a reliable subscriber has to acknowledge the last messages
DRAIN = 2.0


@dataclass(frozen=True)
class PlayerSettings:
    """The parameters of the node; the descriptions are in `_DESCRIPTIONS`."""

    bag: str = ""
    rate: float = 1.0
    loop: bool = False
    start_paused: bool = False
    clock: bool = True
    lockstep: bool = False
    lockstep_topic: str = "/bev_perception/detections"
    lockstep_type: str = "vision_msgs/msg/Detection3DArray"
    lockstep_timeout: float = 30.0
    wait_for_subscribers: float = 10.0
    wait_for_publisher: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.bag:
            raise UserError(
                f"the parameter bag is empty; name one: {ros_command('bag_player', 'play')} --ros-args -p bag:=PATH"
            )
        if not self.rate > 0:
            raise UserError(f"rate is {self.rate}; it must be positive (start_paused begins with a stop)")
        if self.lockstep_timeout <= 0 or self.wait_for_subscribers < 0:
            raise UserError("lockstep_timeout must be positive and wait_for_subscribers not negative")


_DESCRIPTIONS = {
    "bag": "directory or file of a rosbag2 bag (mcap or sqlite3)",
    "rate": "speed; 1.0 is real time. In lockstep the upper limit",
    "loop": "start again at the end; stamps then jump back",
    "start_paused": "wait for `false` on the service ~/pause",
    "clock": "publish /clock, from the messages' log times",
    "lockstep": "send one set of images, then wait for a message on lockstep_topic; /clock stands still meanwhile",
    "lockstep_topic": "topic that answers each set of images",
    "lockstep_type": "its type, which begins with a header, such as bev_perception/msg/SemanticOccupancy",
    "lockstep_timeout": "s of wall clock to wait for an answer before the next set goes out all the same",
    "wait_for_subscribers": "s to wait at the start until every image topic has a subscriber",
    "wait_for_publisher": "wait as long for somebody to publish this topic, or one of several with spaces between; "
    "in lockstep lockstep_topic, unless given",
}


class BagPlayer(Node):
    """Publishes the serialized messages of a bag with their recorded QoS, in the order and at the pace of log times.

    play() runs in the main thread; the callbacks (pause, answers in lockstep) run in the executor's thread.
    """

    def __init__(self) -> None:
        """Read the parameters and open the bag; raises UserError for either."""
        super().__init__("bag_player")
        self._settings = self._read_parameters()
        self._bag = BagReader(Path(self._settings.bag))
        self._publishers_by_topic = self._advertise()
        self._images = [
            topic.name
            for topic in self._bag.topics
            if topic.name in self._publishers_by_topic and topic.type_name in (IMAGE, COMPRESSED_IMAGE)
        ]
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if self._settings.clock else None
        self._clock_sent = -1
        self._origin = (0, time.monotonic())  # a point of play time (ns) and the wall clock that belongs to it
        self._paused = self._settings.start_paused
        self._answers: list[int] = []  # header stamps (ns) of the answers since the set in flight began
        self._slowest_answer: float | None = None  # s
        self._stopping = False
        self.create_service(SetBool, "~/pause", self._on_pause)
        if self._settings.lockstep:
            self.create_subscription(self._answer_class(), self._settings.lockstep_topic, self._on_answer, 10)

    def stop(self) -> None:
        """Make play() return soon; may be called in a signal handler."""
        self._stopping = True

    def play(self) -> None:
        """Play the bag once or in a loop, until its end or until stop() is called."""
        count = sum(topic.count for topic in self._bag.topics)
        self.get_logger().info(f"plays {self._bag.path}: {count} messages")
        for hint in self._bag.hints():
            self.get_logger().warning(hint)
        self._wait_for_subscribers()
        while not self._stopping:
            self._play_once()
            if not self._settings.loop:
                break
        if not self._stopping:
            deadline = time.monotonic() + DRAIN
            for publisher in self._publishers_by_topic.values():
                publisher.wait_for_all_acked(Duration(seconds=max(0.0, deadline - time.monotonic())))

    def _play_once(self) -> None:
        """Send all messages; raises BagError if there is none that can be sent."""
        sent: dict[str, int] = {}  # in lockstep: image topics of the set that is going out -> header stamp
        first, short, skipped = True, 0, 0
        for message in self._bag.raw_messages():
            topic = message.topic.name
            if topic not in self._publishers_by_topic:
                skipped += 1
                continue
            if len(message.data) < (MIN_IMAGE if topic in self._images else MIN_MESSAGE):
                short += 1
                continue
            if topic in sent:
                self._await_answer(sent.values())
                sent.clear()
            if first:
                first, self._origin = False, (message.stamp, time.monotonic())
            self._wait_until(message.stamp)
            if self._stopping:
                return
            self._publish_clock(message.stamp)
            if self._settings.lockstep and topic in self._images:
                if not sent:
                    self._answers.clear()
                sent[topic] = _header_stamp(message.data)
            self._publishers_by_topic[topic].publish(message.data)
        if sent:
            self._await_answer(sent.values())
        if first and not self._stopping:
            raise BagError(
                f"nothing of {self._bag.path} can be played: {short} of its messages are cut off, {skipped} are of "
                "topics that are not played; is it the right bag, and whole?"
            )
        if short:
            self.get_logger().warning(f"{short} messages of {self._bag.path} are cut off and were passed over")

    # ------------------------------------------------------------------ waiting

    def _wait_for_subscribers(self) -> None:
        wanted = self._settings.wait_for_publisher or (self._settings.lockstep and self._settings.lockstep_topic)

        def matched() -> bool:
            heard = all(self._publishers_by_topic[name].get_subscription_count() for name in self._images)
            return heard and (not wanted or any(self.count_publishers(topic) for topic in wanted.split()))

        limit = self._settings.wait_for_subscribers
        met = self._hold(matched, min(PATIENCE, limit))
        if not met and limit > PATIENCE and not self._stopping:
            self.get_logger().warning(self._what_is_missing(wanted or ""))
            met = self._hold(matched, limit - PATIENCE)
        if not met and not self._stopping:
            answerer = f", or nobody publishes {wanted}," if wanted else ""
            self.get_logger().warning(
                f"not every image topic has a subscriber{answerer} after {self._settings.wait_for_subscribers} s; "
                "playing all the same"
            )
        self._hold(lambda: False, SETTLE)

    def _what_is_missing(self, wanted: str) -> str:
        """Return what is waited for, and which images are subscribed to instead."""
        lonely = [name for name in self._images if not self._publishers_by_topic[name].get_subscription_count()]
        sentences = []
        if lonely:
            kinds = {IMAGE, COMPRESSED_IMAGE}
            topics = [name for name, types in self.get_topic_names_and_types() if kinds & set(types)]
            heard = [name for name in sorted(topics) if name not in self._images and self.count_subscribers(name)]
            others = f"others subscribe to {', '.join(heard[:6])}" if heard else "nobody subscribes to any other images"
            sentences.append(
                f"nobody subscribes to {', '.join(lonely[:6])}; {others}. Other names are reached by remaps, "
                "as -r BAG_TOPIC:=TOPIC; one that wants the other of raw and compressed, by its image_transport"
            )
        if wanted and not any(self.count_publishers(topic) for topic in wanted.split()):
            sentences.append(f"nobody publishes {wanted} yet; is the node active?")
        return "still waiting: " + "; ".join(sentences or ["for the last subscriber"])

    def _await_answer(self, stamps: Collection[int]) -> None:
        """Wait for the answer to a set of images: a message whose stamp lies between theirs.

        stamps: header stamps of the images, ns.
        """
        first, last = min(stamps), max(stamps)
        timeout = self._settings.lockstep_timeout
        if self._slowest_answer is not None:  # do not wait for the whole time-out each time a set is not answered
            timeout = min(timeout, 2.0 + 5 * self._slowest_answer)
        begin = time.monotonic()
        if self._hold(lambda: any(first <= answer <= last for answer in list(self._answers)), timeout):
            self._slowest_answer = max(self._slowest_answer or 0.0, time.monotonic() - begin)
        elif not self._stopping:
            self.get_logger().warning(
                f"no message on {self._settings.lockstep_topic} answers the images of {first} to {last} ns within "
                f"{timeout:.1f} s; sending the next ones all the same"
            )

    def _hold(self, condition: Callable[[], bool], timeout: float = float("inf")) -> bool:
        """Stop the play time until `condition` holds; return whether it does.

        condition: checked every POLL seconds.
        timeout: s of wall clock.
        """
        reached = self._now()
        begin = shown = time.monotonic()
        while not (met := condition()) and not self._stopping and time.monotonic() - begin < timeout:
            if time.monotonic() - shown > HOLD_CLOCK_PERIOD and self._clock_sent >= 0:
                self._send_clock(self._clock_sent)
                shown = time.monotonic()
            time.sleep(POLL)
        self._origin = (reached, time.monotonic())
        return met

    def _now(self) -> int:
        """Return the play time, ns."""
        stamp, wall = self._origin
        return stamp + int((time.monotonic() - wall) * self._settings.rate * 1e9)

    def _wait_until(self, stamp: int) -> None:
        """Wait until the play time reaches `stamp` (ns), while /clock is published."""
        while not self._stopping:
            if self._paused:
                self._hold(lambda: not self._paused)
                continue
            now = self._now()
            if now >= stamp:
                return
            self._publish_clock(now, CLOCK_PERIOD)
            time.sleep(min(min(stamp - now, CLOCK_PERIOD) / 1e9 / self._settings.rate, MAX_SLEEP))

    # ------------------------------------------------------------------ ROS

    def _read_parameters(self) -> PlayerSettings:
        defaults = vars(PlayerSettings(bag="-")) | {"bag": ""}
        values = {}
        for name, value in defaults.items():
            descriptor = ParameterDescriptor(description=_DESCRIPTIONS[name], read_only=True)
            try:
                values[name] = self.declare_parameter(name, value, descriptor).value
            except InvalidParameterTypeException as error:
                raise UserError(f"parameter {name}: {error}; its default is {value!r}") from error
        return PlayerSettings(**values)

    def _answer_class(self) -> Any:
        name = self._settings.lockstep_type
        try:
            return _message_class(name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"lockstep_type {name!r} is no message's, such as pkg/msg/Name: {error}") from error

    def _advertise(self) -> dict[str, Publisher]:
        publishers: dict[str, Publisher] = {}
        skipped = set()
        for topic in self._bag.topics:
            ours = self._settings.clock and topic.name == "/clock"
            recorded_answers = self._settings.lockstep and topic.name == self._settings.lockstep_topic
            if not topic.count or ours or recorded_answers:
                continue
            try:
                publishers[topic.name] = self.create_publisher(_message_class(topic.type_name), topic.name, _qos(topic))
            except (ImportError, AttributeError, ValueError) as error:
                skipped.add(f"{topic.name} [{topic.type_name}]: {error}")
        for reason in sorted(skipped):
            self.get_logger().warning(f"not played: {reason}")
        return publishers

    def _on_pause(self, request: Any, response: Any) -> Any:
        self._paused = request.data
        response.success, response.message = True, "paused" if request.data else "playing"
        return response

    def _on_answer(self, message: Any) -> None:
        self._answers.append(stamp_ns(message.header.stamp))

    def _publish_clock(self, stamp: int, at_least: int = 1) -> None:
        """Publish /clock if it has advanced by `at_least` ns or gone back.

        stamp: play time, ns.
        """
        if not 0 <= stamp - self._clock_sent < at_least:
            self._send_clock(stamp)

    def _send_clock(self, stamp: int) -> None:
        self._clock_sent = stamp
        if self._clock_publisher is not None:
            sec, nanosec = divmod(stamp, 1_000_000_000)
            self._clock_publisher.publish(Clock(clock=Time(sec=sec, nanosec=nanosec)))


def _header_stamp(serialized: bytes) -> int:
    """Return the stamp (ns) of a serialized message that starts with a std_msgs/Header, as images do."""
    order = "<" if serialized[1] & 1 else ">"  # the second byte of the CDR header gives the byte order
    sec, nanosec = struct.unpack_from(f"{order}iI", serialized, 4)
    return sec * 1_000_000_000 + nanosec


def _message_class(type_name: str) -> Any:
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def _qos(topic: BagTopic) -> QoSProfile:
    """Return the recorded QoS; if publishers differed, reliable, which is compatible with most subscribers.

    /tf_static is transient local and reliable whatever is recorded: converted bags have no QoS, and whoever subscribes
    to it, as tf2 does, does not hear a volatile publisher.
    """
    static = topic.name.rsplit("/", 1)[-1] == "tf_static"
    if not topic.qos and not static:
        return QoSProfile(depth=10)
    best_effort = not static and all(q.reliability == QosReliability.BEST_EFFORT for q in topic.qos)
    latched = static or all(q.durability == QosDurability.TRANSIENT_LOCAL for q in topic.qos)
    depth = max(1, *(q.depth for q in topic.qos), 1)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        # one publisher replaces all that were recorded; a late subscriber must get the latched messages of each
        depth=max(depth, topic.count) if latched else depth,
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def run_player(args: list[str] | None = None) -> int:
    """Play a bag until its end, SIGINT or SIGTERM; return the exit status, 1 if the bag cannot be played."""
    end_by(raise_exit)
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _play()
    finally:
        rclpy.try_shutdown()


def _play() -> int:
    try:
        player = BagPlayer()
    except UserError as error:
        logging.getLogger("bag_player").error("%s", error)
        return 1
    end_by(lambda *_: player.stop())
    executor = SingleThreadedExecutor()
    executor.add_node(player)
    spinner = threading.Thread(target=_spin, args=(executor,))
    spinner.start()
    try:
        player.play()
        return 0
    except BagError as error:
        player.get_logger().error(str(error))
        return 1
    finally:
        executor.shutdown()
        spinner.join()
        player.destroy_node()


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
