"""Write a Drive as a rosbag2 bag, and read any bag as the events that the pipeline takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from tqdm import tqdm

from bev_perception.data import messages
from bev_perception.data.bag_opening import BagError, foreign, in_order_of_time, messages_of, open_reader, serialization
from bev_perception.data.drive import CAMERAS, CameraRig, Drive, DriveImage, DrivePose
from bev_perception.data.folders import whole_folder
from bev_perception.geometry import quaternion_from_rotation
from bev_perception.rig.description import CameraInfo
from bev_perception.types import BASE_FRAME, FIXED_FRAME, Calibration, CameraImage

INPUT_PREFIX = "/bev_perception/input"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
TF_MESSAGE = "tf2_msgs/msg/TFMessage"

_TYPES = get_typestore(Stores.ROS2_JAZZY)
_FOREVER = QosTime(9223372036, 854775807)  # what rosbag2 writes for an infinite deadline


def image_topic(camera: str, prefix: str = INPUT_PREFIX) -> str:
    """Return the topic of the raw images of a camera; compressed ones are on the same with /compressed."""
    return f"{prefix}/{camera}/image"


def camera_info_topic(camera: str, prefix: str = INPUT_PREFIX) -> str:
    """Return the topic of the camera_info of a camera."""
    return f"{prefix}/{camera}/camera_info"


def _qos(depth: int, durability: QosDurability = QosDurability.VOLATILE) -> Qos:
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE,
        durability,
        _FOREVER,
        _FOREVER,
        QosLiveliness.AUTOMATIC,
        _FOREVER,
        False,
    )


# ---- writing ----


def write_bag(drive: Drive, path: str | Path, progress: bool = True) -> None:
    """Write a drive as a rosbag2 mcap bag with the topics of the node; the log time of a message is its header stamp.

    drive: what to write
    path: directory of the bag, which must not exist yet; it appears when it is complete
    progress: whether to show a progress bar

    Raises BagError if the path exists or the events are not in order of time, FolderError if it cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise BagError(f"{path} exists already and is not overwritten; choose another path or remove it")
    with (
        whole_folder(path) as partial,
        Writer(partial, version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP) as writer,
    ):
        _write_events(drive, _BagWriter(writer, drive.cameras), progress)


def _write_events(drive: Drive, bag: _BagWriter, progress: bool) -> None:
    stamp = None
    for event in tqdm(drive, total=len(drive), desc=f"write {drive.name}", unit="msg", disable=not progress):
        if stamp is None:
            bag.write_static(event.stamp)
        elif event.stamp < stamp:
            raise BagError(f"{drive.name}: an event of {event.stamp} ns comes after one of {stamp} ns; sort the events")
        stamp = event.stamp
        if isinstance(event, DriveImage):
            bag.write_image(event)
        else:
            bag.write_pose(event)
    if stamp is None:
        raise BagError(f"{drive.name} has no events; there is nothing to write")


class _BagWriter:
    """Writes the events of a drive as serialized messages to an open bag."""

    def __init__(self, writer: Writer, cameras: Iterable[CameraRig]) -> None:
        self.writer = writer
        self.cameras = {camera.name: camera for camera in cameras}
        self.tf = self._connection("/tf", TF_MESSAGE, _qos(100))
        self.tf_static = self._connection("/tf_static", TF_MESSAGE, _qos(1, QosDurability.TRANSIENT_LOCAL))
        self.images = {
            name: self._connection(f"{image_topic(name)}/compressed", COMPRESSED_IMAGE, _qos(5))
            for name in self.cameras
        }
        self.infos = {name: self._connection(camera_info_topic(name), CAMERA_INFO, _qos(5)) for name in self.cameras}

    def write_static(self, stamp: int) -> None:
        transforms = [_transform(stamp, BASE_FRAME, name, c.sensor2ego) for name, c in self.cameras.items()]
        self._write(self.tf_static, stamp, _message(TF_MESSAGE, transforms=transforms))

    def write_pose(self, pose: DrivePose) -> None:
        transform = _transform(pose.stamp, FIXED_FRAME, BASE_FRAME, pose.ego2global)
        self._write(self.tf, pose.stamp, _message(TF_MESSAGE, transforms=[transform]))

    def write_image(self, image: DriveImage) -> None:
        header = _header(image.stamp, image.camera)
        info = _camera_info(header, self.cameras[image.camera].calibration)
        self._write(self.infos[image.camera], image.stamp, info)
        data = np.frombuffer(image.jpeg, np.uint8)
        compressed = _message(COMPRESSED_IMAGE, header=header, format="jpeg", data=data)
        self._write(self.images[image.camera], image.stamp, compressed)

    def _connection(self, topic: str, type_name: str, qos: Qos) -> Connection:
        return self.writer.add_connection(topic, type_name, typestore=_TYPES, offered_qos_profiles=[qos])

    def _write(self, connection: Connection, stamp: int, message: Any) -> None:
        self.writer.write(connection, stamp, _TYPES.serialize_cdr(message, connection.msgtype))


def _message(type_name: str, **fields: Any) -> Any:
    return _TYPES.types[type_name](**fields)


def _header(stamp: int, frame_id: str) -> Any:
    sec, nanosec = divmod(stamp, 1_000_000_000)
    time = _message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
    return _message("std_msgs/msg/Header", stamp=time, frame_id=frame_id)


def _transform(stamp: int, parent: str, child: str, child2parent: np.ndarray) -> Any:
    w, x, y, z = map(float, quaternion_from_rotation(child2parent[:3, :3]))
    tx, ty, tz = map(float, child2parent[:3, 3])
    return _message(
        "geometry_msgs/msg/TransformStamped",
        header=_header(stamp, parent),
        child_frame_id=child,
        transform=_message(
            "geometry_msgs/msg/Transform",
            translation=_message("geometry_msgs/msg/Vector3", x=tx, y=ty, z=tz),
            rotation=_message("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )


def _camera_info(header: Any, calibration: Calibration) -> Any:
    whole = _message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return _message(
        CAMERA_INFO,
        header=header,
        width=calibration.width,
        height=calibration.height,
        distortion_model=calibration.distortion_model or "plumb_bob",
        d=np.array(calibration.distortion or (0.0,) * 5),
        k=calibration.intrinsics.ravel(),
        r=np.eye(3).ravel(),
        p=np.c_[calibration.intrinsics, np.zeros(3)].ravel(),
        binning_x=0,
        binning_y=0,
        roi=whole,
    )


# ---- reading ----


@dataclass(frozen=True)
class ImageEvent:
    """An image has arrived."""

    image: CameraImage


@dataclass(frozen=True)
class CalibrationEvent:
    """A CameraInfo has arrived.

    camera: name
    calibration: None if it is unusable
    error: why it is unusable
    image_topic: topic in the bag of the images that it belongs to
    info: its fields as they were published; None if they have not the right length
    """

    camera: str
    calibration: Calibration | None
    error: str = ""
    image_topic: str = ""
    info: CameraInfo | None = None


@dataclass(frozen=True)
class TransformEvent:
    """A transform has arrived.

    parent: tf frame
    child: tf frame
    stamp: ns
    child2parent: [4, 4]
    static: whether it came on /tf_static
    """

    parent: str
    child: str
    stamp: int
    child2parent: np.ndarray
    static: bool


@dataclass(frozen=True)
class InvalidEvent:
    """An image or transform that cannot be used has arrived.

    topic: where it came from
    error: why it cannot be used
    """

    topic: str
    error: str


BagEvent = ImageEvent | CalibrationEvent | TransformEvent | InvalidEvent


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag.

    name: such as /tf
    type_name: of its messages, such as tf2_msgs/msg/TFMessage
    qos: the profiles that its publishers offered during recording
    count: number of messages
    """

    name: str
    type_name: str
    qos: tuple[Qos, ...]
    count: int


@dataclass(frozen=True)
class RawMessage:
    """A serialized message.

    topic: where it was recorded
    stamp: log time, ns
    data: CDR bytes
    """

    topic: BagTopic
    stamp: int
    data: bytes


@dataclass(frozen=True)
class BagReader:
    """A rosbag2 bag (mcap or sqlite3). No file is kept open between calls.

    path: directory or single file of the bag
    cameras: names, as in the node's parameter of this name
    prefix: of the topics of the cameras
    remap: topic of the bag -> topic of the node, where they differ, as with `ros2 bag play --remap`
    others: directories or files of further parts of the same recording
    topics: topics of the bag, by the names in the bag
    foreign: topics that are not of ROS 2, with their kind, such as "/map [json]"; they are left out

    Raises BagError if the path is no bag, or the bag is damaged or empty.
    """

    path: Path
    cameras: tuple[str, ...] = CAMERAS
    prefix: str = INPUT_PREFIX
    remap: Mapping[str, str] = field(default_factory=dict)
    others: tuple[Path, ...] = ()
    topics: tuple[BagTopic, ...] = field(init=False)
    foreign: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read the topics."""
        object.__setattr__(self, "path", Path(self.path))
        connections: list[Connection] = []
        for path in self.parts:
            with closing(open_reader(path)) as reader:
                connections += reader.connections
        object.__setattr__(self, "topics", _topics(c for c in connections if not foreign(c)))
        strangers = {f"{c.topic} [{serialization(c)}]" for c in connections if foreign(c)}
        object.__setattr__(self, "foreign", tuple(sorted(strangers)))
        if strangers and not self.topics:
            raise BagError(
                f"{self.path} holds no topics of ROS 2, but {', '.join(self.foreign)}; convert them to ROS 2 messages "
                "first"
            )
        if not any(topic.count for topic in self.topics):
            raise BagError(f"{self.path} holds no messages; was anything published while it was recorded?")

    @property
    def parts(self) -> tuple[Path, ...]:
        """The directories or files that the recording consists of."""
        return (self.path, *map(Path, self.others))

    def hints(self) -> list[str]:
        """Return sentences about what is odd in the bag, though it can be read."""
        hints = []
        if self.foreign:
            hints.append(f"left out, as they are not of ROS 2: {', '.join(self.foreign)}")
        if not any(self._name(topic) == "/tf_static" and topic.count for topic in self.topics):
            hints.append(
                "this bag has no /tf_static: give the first file as well, if this is a later one of a split recording "
                "(`run --bag FIRST SECOND`, or both in one directory with `ros2 bag reindex`); /tf_static is sent only "
                "once, at the beginning"
            )
        return hints

    def raw_messages(self, names: Iterable[str] | None = None) -> Iterator[RawMessage]:
        """Yield every message of these topics, or of all, as it was recorded, in order of log time.

        Raises BagError at the first damaged place.
        """
        topics = {topic.name: topic for topic in self.topics}
        for connection, stamp, data in self._messages(set(topics if names is None else names)):
            yield RawMessage(topics[connection.topic], stamp, data)

    def events(self) -> Iterator[BagEvent]:
        """Return images and calibrations of the cameras and all transforms, in order of log time.

        Compressed images are preferred where a camera has both. Other topics are ignored.

        Raises BagError if no camera has images; the iterator raises it at the first damaged place.
        """
        return (event for _, event in self.logged_events())

    def logged_events(self) -> Iterator[tuple[int, BagEvent]]:
        """Return log time (ns) and event of all `events`."""
        return self._decode(self._topics_of_cameras())

    def has_images(self) -> bool:
        """Return whether any of the cameras has images in the bag."""
        try:
            return bool(self._topics_of_cameras())
        except BagError:
            return False

    def image_topics(self) -> dict[str, str]:
        """Return camera -> topic of its images in the bag; raises BagError if no camera has images."""
        kinds = {topic.name: topic.type_name for topic in self.topics}
        return {c: name for name, c in self._topics_of_cameras().items() if kinds[name] != CAMERA_INFO}

    def _decode(self, cameras: dict[str, str]) -> Iterator[tuple[int, BagEvent]]:
        images = {cameras[t.name]: t.name for t in self.topics if t.name in cameras and t.type_name != CAMERA_INFO}
        tf = {t.name for t in self.topics if self._name(t) in ("/tf", "/tf_static") and t.type_name == TF_MESSAGE}
        for connection, stamp, data in self._messages({*cameras, *tf}):
            try:
                message = _TYPES.deserialize_cdr(data, connection.msgtype)
            except Exception as error:  # whatever the decoder meets in damaged bytes
                yield stamp, InvalidEvent(connection.topic, f"the message logged at {stamp} ns is damaged: {error}")
                continue
            for event in _events(connection, cameras.get(connection.topic, ""), message, self.remap):
                if isinstance(event, CalibrationEvent):
                    event = replace(event, image_topic=images.get(event.camera, ""))
                yield stamp, event

    def _name(self, topic: BagTopic) -> str:
        return self.remap.get(topic.name, topic.name)

    def _topics_of_cameras(self) -> dict[str, str]:
        """Return the topics of images and calibrations in the bag -> camera."""
        found = {self._name(topic): topic for topic in self.topics if topic.count}
        images, infos = {}, {}
        for camera in self.cameras:
            raw = image_topic(camera, self.prefix)
            for name, type_name in ((f"{raw}/compressed", COMPRESSED_IMAGE), (raw, IMAGE)):
                if name in found and found[name].type_name == type_name:
                    images[found[name].name] = camera
                    break
            info = found.get(camera_info_topic(camera, self.prefix))
            if info is not None and info.type_name == CAMERA_INFO:
                infos[info.name] = camera
        if not images:
            raise BagError(self._no_images())
        return images | infos

    def _no_images(self) -> str:
        listing = "\n".join(f"  {t.name} [{t.type_name}] {t.count} messages" for t in self.topics)
        raw = image_topic("<camera>", self.prefix)
        return (
            f"{self.path} has no images of {', '.join(self.cameras)}: expected {raw}/compressed [{COMPRESSED_IMAGE}] "
            f"or {raw} [{IMAGE}] with {camera_info_topic('<camera>', self.prefix)}. Name your cameras and prefix, "
            f"or remap the bag's topics to these. The bag holds:\n{listing}"
        )

    def _messages(self, topics: set[str]) -> Iterator[tuple[Connection, int, bytes]]:
        return in_order_of_time(messages_of(path, topics) for path in self.parts)


def _events(connection: Connection, camera: str, message: Any, remap: Mapping[str, str]) -> Iterator[BagEvent]:
    if connection.msgtype == CAMERA_INFO:
        info = messages.camera_info(message)
        try:
            yield CalibrationEvent(camera, messages.calibration(message), info=info)
        except ValueError as error:
            yield CalibrationEvent(camera, None, str(error), info=info)
        return
    if connection.msgtype in (IMAGE, COMPRESSED_IMAGE):
        try:
            yield ImageEvent(messages.camera_image(camera, message))
        except ValueError as error:
            yield InvalidEvent(connection.topic, str(error))
        return
    static = remap.get(connection.topic, connection.topic) == "/tf_static"
    for stamped in message.transforms:
        try:
            yield TransformEvent(*messages.transform(stamped), static)
        except ValueError as error:
            yield InvalidEvent(connection.topic, str(error))


def _topics(connections: Iterable[Connection]) -> tuple[BagTopic, ...]:
    """Return the topics sorted by name; several publishers of a topic are merged."""
    topics: dict[str, BagTopic] = {}
    for connection in connections:
        name = connection.topic
        qos, count = tuple(connection.ext.offered_qos_profiles), connection.msgcount  # type: ignore[union-attr]
        if name in topics:
            qos, count = topics[name].qos + qos, topics[name].count + count
        topics[name] = BagTopic(name, connection.msgtype, qos, count)
    return tuple(topics[name] for name in sorted(topics))
