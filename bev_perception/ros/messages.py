"""Converts boxes and diagnostics to ROS messages.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from std_msgs.msg import ColorRGBA, Header
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)
from visualization_msgs.msg import Marker, MarkerArray

from bev_perception.classes import NUSCENES_CLASSES, attribute_of, track_color
from bev_perception.geometry import rotation_from_quaternion, yaw_from_rotation
from bev_perception.msg import Object3D, Object3DArray
from bev_perception.types import NO_TRACK, Boxes3D

#: m/s; slower objects are drawn without an arrow
ARROW_SPEED = 0.5
#: m, width of the line that a track leaves
TRAIL_WIDTH = 0.15


def header(stamp: int, frame_id: str) -> Header:
    """Return a std_msgs/Header.

    stamp: ns.
    frame_id: tf frame.
    """
    return Header(stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9), frame_id=frame_id)


def _pose(center: np.ndarray, yaw: float) -> Pose:
    x, y, z = map(float, center)
    return Pose(
        position=Point(x=x, y=y, z=z),
        orientation=Quaternion(x=0.0, y=0.0, z=math.sin(yaw / 2), w=math.cos(yaw / 2)),
    )


def _vector(values: np.ndarray) -> Vector3:
    x, y, z = map(float, values)
    return Vector3(x=x, y=y, z=z)


def detections(boxes: Boxes3D, stamp: int, frame_id: str) -> Detection3DArray:
    """Return boxes as vision_msgs/Detection3DArray; sizes are length, width, height along the box's own axes.

    The id of a detection is its track id; empty for a box without a track.

    boxes: in the frame `frame_id`.
    stamp: ns.
    frame_id: tf frame.
    """
    head = header(stamp, frame_id)
    message = Detection3DArray(header=head)
    ids = _track_ids(boxes)
    for i in range(len(boxes)):
        pose = _pose(boxes.centers[i], float(boxes.yaws[i]))
        result = ObjectHypothesisWithPose(
            hypothesis=ObjectHypothesis(class_id=boxes.class_names[int(boxes.labels[i])], score=float(boxes.scores[i]))
        )
        result.pose.pose = pose
        message.detections.append(
            Detection3D(
                header=head,
                results=[result],
                bbox=BoundingBox3D(center=pose, size=_vector(boxes.sizes[i])),
                id="" if ids[i] == NO_TRACK else str(ids[i]),
            )
        )
    return message


def objects(boxes: Boxes3D, stamp: int, frame_id: str) -> Object3DArray:
    """Return boxes with velocity and attribute as bev_perception/Object3DArray.

    boxes: in the frame `frame_id`.
    stamp: ns.
    frame_id: tf frame.
    """
    message = Object3DArray(header=header(stamp, frame_id))
    ids = _track_ids(boxes)
    for i in range(len(boxes)):
        name = boxes.class_names[int(boxes.labels[i])]
        vx, vy = map(float, boxes.velocities[i])
        message.objects.append(
            Object3D(
                class_name=name,
                score=float(boxes.scores[i]),
                pose=_pose(boxes.centers[i], float(boxes.yaws[i])),
                size=_vector(boxes.sizes[i]),
                velocity=Vector3(x=vx, y=vy, z=0.0),
                track_id=ids[i],
                attribute=attribute_of(name, math.hypot(vx, vy)),
            )
        )
    return message


def boxes_of(message: Object3DArray) -> Boxes3D:
    """Return the boxes of a message of `objects`, of nuScenes' classes.

    Raises ValueError for another class.
    """
    found = message.objects
    size = lambda v: (v.x, v.y, v.z)  # noqa: E731
    quaternions = [(o.pose.orientation.w, 0.0, 0.0, o.pose.orientation.z) for o in found]
    return Boxes3D(
        centers=np.array([size(o.pose.position) for o in found]).reshape(-1, 3),
        sizes=np.array([size(o.size) for o in found]).reshape(-1, 3),
        yaws=np.array([yaw_from_rotation(rotation_from_quaternion(*q)) for q in quaternions]),
        velocities=np.array([(o.velocity.x, o.velocity.y) for o in found]).reshape(-1, 2),
        scores=np.array([o.score for o in found]),
        labels=np.array([NUSCENES_CLASSES.index(o.class_name) for o in found], np.int64),
        class_names=NUSCENES_CLASSES,
        track_ids=np.array([o.track_id for o in found], np.int64),
    )


def markers(boxes: Boxes3D, stamp: int, frame_id: str) -> list[Marker]:
    """Return boxes as cubes and velocities as arrows; a track has a colour of its own, other boxes that of their class.

    An arrow is as long as the way that the object moves in one second.

    boxes: in the frame `frame_id`.
    stamp: ns.
    frame_id: tf frame.
    """
    head = header(stamp, frame_id)
    ids = _track_ids(boxes)
    made = []
    for i in range(len(boxes)):
        label, score = int(boxes.labels[i]), float(boxes.scores[i])
        color = _class_color(label, len(boxes.class_names)) if ids[i] == NO_TRACK else _track_color(ids[i])
        color.a = 0.25 + 0.5 * score
        pose = _pose(boxes.centers[i], float(boxes.yaws[i]))
        made.append(
            Marker(
                header=head,
                ns=boxes.class_names[label],
                id=i,
                type=Marker.CUBE,
                pose=pose,
                scale=_vector(boxes.sizes[i]),
                color=color,
            )
        )
        vx, vy = map(float, boxes.velocities[i])
        if math.hypot(vx, vy) < ARROW_SPEED:
            continue
        arrow = Marker(header=head, ns="velocity", id=i, type=Marker.ARROW, color=color)
        arrow.scale = Vector3(x=0.2, y=0.4, z=0.4)
        arrow.pose.orientation.w = 1.0
        tail = pose.position
        arrow.points = [tail, Point(x=tail.x + vx, y=tail.y + vy, z=tail.z)]
        made.append(arrow)
    return made


def trail_markers(trails: Mapping[int, np.ndarray], stamp: int, fixed_frame: str) -> list[Marker]:
    """Return the ways of tracks as lines, in the colours of their boxes.

    trails: track id -> centres [k, 3] in `fixed_frame`, see Trails.lines.
    stamp: ns.
    fixed_frame: tf frame that does not move with the vehicle.
    """
    head = header(stamp, fixed_frame)
    made = []
    for i, (track, line) in enumerate(trails.items()):
        marker = Marker(header=head, ns="trail", id=i, type=Marker.LINE_STRIP, color=_track_color(track))
        marker.scale.x = TRAIL_WIDTH
        marker.pose.orientation.w = 1.0
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in line.tolist()]
        made.append(marker)
    return made


def anew(markers: list[Marker], stamp: int, frame_id: str, lifetime: float) -> MarkerArray:
    """Return markers that replace all earlier ones, whose tracks may have ended.

    stamp: ns.
    frame_id: tf frame.
    lifetime: s after which a viewer takes them away by itself, whatever becomes of this node.
    """
    seconds, nanoseconds = divmod(round(lifetime * 10**9), 10**9)
    for marker in markers:
        marker.lifetime = Duration(sec=seconds, nanosec=nanoseconds)
    return MarkerArray(markers=[Marker(header=header(stamp, frame_id), action=Marker.DELETEALL), *markers])


def _track_ids(boxes: Boxes3D) -> list[int]:
    return [NO_TRACK] * len(boxes) if boxes.track_ids is None else boxes.track_ids.tolist()


def _class_color(label: int, classes: int) -> ColorRGBA:
    hue = 2 * math.pi * label / classes
    r, g, b = (0.5 + 0.5 * math.cos(hue - k * 2 * math.pi / 3) for k in range(3))
    return ColorRGBA(r=r, g=g, b=b, a=1.0)


def _track_color(track: int) -> ColorRGBA:
    r, g, b = (value / 255 for value in track_color(track))
    return ColorRGBA(r=r, g=g, b=b, a=1.0)


def diagnostic_status(level: bytes, name: str, message: str, values: dict[str, str]) -> DiagnosticStatus:
    """Return one diagnostic_msgs/DiagnosticStatus.

    level: DiagnosticStatus.OK, WARN or ERROR.
    name: of the component.
    message: summary for people.
    values: key-value pairs.
    """
    pairs = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticStatus(level=level, name=name, message=message, hardware_id="bev_perception", values=pairs)
