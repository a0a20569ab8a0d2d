"""Boxes as messages: track ids, colours and trails."""

import dataclasses

import numpy as np
import pytest
from kit import wait_until
from rclpy.executors import SingleThreadedExecutor
from visualization_msgs.msg import Marker, MarkerArray

from bev_perception.classes import NUSCENES_CLASSES, track_color
from bev_perception.data.messages import stamp_ns
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform
from bev_perception.results.costmap import CostmapSettings
from bev_perception.ros import messages
from bev_perception.ros.outputs import Outputs
from bev_perception.tracking.trails import TRAIL
from bev_perception.types import NO_TRACK, Boxes3D, Frame, Result

SECOND = 10**9
START = 1_800_000_000 * SECOND


def boxes_at(places, ids):
    n = len(places)
    return Boxes3D(
        np.array(places, float).reshape(n, 3),
        np.ones((n, 3)),
        np.zeros(n),
        np.zeros((n, 2)),
        np.full(n, 0.5),
        np.zeros(n, np.int64),
        NUSCENES_CLASSES,
        None if ids is None else np.array(ids, np.int64),
    )


PLACES = [[5, 0, 1], [9, 0, 1]]


@pytest.mark.parametrize(
    ("ids", "numbers", "texts"),
    [
        ([2**40, 7], [2**40, 7], [str(2**40), "7"]),
        ([3, NO_TRACK], [3, -1], ["3", ""]),
        (None, [-1, -1], ["", ""]),
    ],
)
def test_ids_are_in_objects_and_detections(ids, numbers, texts):
    boxes = boxes_at(PLACES, ids)
    assert [o.track_id for o in messages.objects(boxes, START, "base_link").objects] == numbers
    assert [d.id for d in messages.detections(boxes, START, "base_link").detections] == texts


def rgb(marker):
    return tuple(round(255 * value) for value in (marker.color.r, marker.color.g, marker.color.b))


def test_a_track_has_a_colour_of_its_own_and_others_that_of_their_class():
    first, second = messages.markers(boxes_at(PLACES, [3, 4]), START, "base_link")
    assert (rgb(first), rgb(second)) == (track_color(3), track_color(4)) and rgb(first) != rgb(second)
    first, second = messages.markers(boxes_at(PLACES, [3, NO_TRACK]), START, "base_link")
    assert rgb(first) == track_color(3) and rgb(second) not in (track_color(3), track_color(-1))
    first, second = messages.markers(boxes_at(PLACES, None), START, "base_link")
    assert rgb(first) == rgb(second)


def frame_at(stamp, x):
    return Frame(stamp, (), (), make_transform(np.eye(3), np.array([x, 0.0, 0.0])))


class Listener:
    """Publishes results through Outputs, and returns the markers as a subscriber gets them."""

    def __init__(self, node):
        self.outputs = Outputs(node, [load_variant("sparsebev_tiny")], CostmapSettings())
        node.trigger_configure()
        node.trigger_activate()
        self.got = []
        node.create_subscription(MarkerArray, "~/markers", self.got.append, 5)
        self.executor = SingleThreadedExecutor(context=node.context)
        self.executor.add_node(node)
        wait_until(lambda: node.count_subscribers("/bev_perception/markers"), 10, "the subscription")

    def publish(self, stamp, boxes, x=0.0, reset=None):
        """Publish boxes of a car that stands at x; return the markers, or [] before the subscription is known."""
        self.outputs.publish(Result(stamp, boxes, None, {}, reset, {}, 0), frame_at(stamp, x), "base_link", "odom")
        self.executor.spin_once(timeout_sec=0.5)
        return self.got.pop().markers if self.got else []

    def connect(self):
        wait_until(lambda: self.publish(START - SECOND, boxes_at([], [])), 20, "markers")


def trails(markers):
    return [m for m in markers if m.type == Marker.LINE_STRIP and m.ns == "trail"]


def test_a_trail_stays_where_the_object_was(node):
    """The car drives at 1 m in 0.1 s, and so does what is ahead of it: in the fixed frame that is a line of 3 s."""
    listener = Listener(node)
    listener.connect()
    for k in range(41):
        stamp = START + k * SECOND // 10
        markers = listener.publish(stamp, boxes_at([[10, 2, 1]], [5]), x=float(k))
    assert markers[0].action == Marker.DELETEALL
    (line,) = trails(markers)
    assert line.header.frame_id == "odom" and stamp_ns(line.header.stamp) == stamp
    assert rgb(line) == track_color(5) and line.action == Marker.ADD
    found = [(p.x, p.y, p.z) for p in line.points]
    np.testing.assert_allclose(found, [(10.0 + k, 2, 1) for k in range(10, 41)])
    cubes = [m for m in markers if m.type == Marker.CUBE]
    assert len(cubes) == 1 and cubes[0].header.frame_id == "base_link"
    # the track ends: all markers are deleted with each message, and the line is not sent any more once it is old
    stamp += round(TRAIL * SECOND)
    assert trails(listener.publish(stamp - SECOND // 10, boxes_at([], []), x=40.0)) and not trails(
        listener.publish(stamp, boxes_at([], []), x=40.0)
    )


def test_a_wipe_ends_the_trails(node):
    listener = Listener(node)
    listener.connect()
    boxes = boxes_at([[10, 2, 1], [3, 1, 1]], [5, 6])
    listener.publish(START, boxes)
    assert len(trails(listener.publish(START + SECOND, boxes))) == 2
    new = dataclasses.replace(boxes, track_ids=np.array([7, 8]))
    assert not trails(listener.publish(START + 2 * SECOND, new, reset="pose jump: 30 m"))
    assert not trails(listener.publish(START + 3 * SECOND, dataclasses.replace(boxes, track_ids=None)))
