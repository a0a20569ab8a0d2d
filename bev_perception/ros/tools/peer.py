"""Peers of the perception node: one receives its results, the other also publishes images like a set of cameras.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray

from bev_perception.data.drive import CAMERAS, CameraRig
from bev_perception.data.messages import stamp_ns
from bev_perception.geometry import quaternion_from_rotation
from bev_perception.msg import Object3DArray, SemanticOccupancy
from bev_perception.ros.messages import header
from bev_perception.ros.tools.process import dds_environment, wait_until
from bev_perception.types import BASE_FRAME, FIXED_FRAME

NODE = "/bev_perception"
MS = 1_000_000
#: ms after cam_front at which nuScenes' cameras fire (Caesar et al., CVPR 2020), rounded
FIRING_OFFSETS = dict(zip(CAMERAS, (0, 8, -8, 25, 35, 16), strict=True))
SECOND = 1000 * MS


class Listener:
    """A ROS node in this process that records what the perception node publishes, with times of arrival.

    answers: topic whose message counts as the answer to a set of images: "detections", or "occupancy", which is
        subscribed to only in this case
    arrivals: stamp (ns) -> time.perf_counter() when the answer with that stamp arrived
    """

    def __init__(self, domain: int, name: str = "listener", answers: str = "detections") -> None:
        """Join a DDS domain and start receiving in a thread.

        domain: number of the DDS domain
        name: of the ROS node
        answers: see the class
        """
        self.answers = answers
        os.environ.update({k: v for k, v in dds_environment(domain).items() if k.endswith("PROFILES_FILE")})
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node(name, context=self.context)
        self.detections: list[Detection3DArray] = []
        self.objects: list[Object3DArray] = []
        self.occupancies: list[SemanticOccupancy] = []
        self.diagnostics: list[DiagnosticArray] = []
        self.arrivals: dict[int, float] = {}
        for topic, kind, kept in (
            ("detections", Detection3DArray, self.detections),
            ("occupancy", SemanticOccupancy, self.occupancies),
        ):
            if topic in ("detections", answers):
                record = partial(self._record, topic, kept)
                self.node.create_subscription(kind, f"{NODE}/{topic}", record, 50)
        self.node.create_subscription(Object3DArray, f"{NODE}/objects", self.objects.append, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 50)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the DDS domain and stop the thread."""
        rclpy.shutdown(context=self.context)
        self._thread.join()
        self.node.destroy_node()

    def stamps(self) -> list[int]:
        """Return the stamps (ns) of all detections in the order of their arrival."""
        return [stamp_ns(message.header.stamp) for message in list(self.detections)]

    def wait_detection(self, stamp: int, timeout: float = 20.0) -> Detection3DArray:
        """Wait for the detections with this stamp (ns) and return them.

        Raises TimeoutError after `timeout` s.
        """
        wait_until(
            lambda: stamp in self.arrivals, timeout, lambda: f"detections at {stamp}; the last: {self.stamps()[-5:]}"
        )
        return self.detections[self.stamps().index(stamp)]

    def wait_occupancy(self, stamp: int, timeout: float = 20.0) -> SemanticOccupancy:
        """Wait for the occupancy with this stamp (ns) and return it; only if `answers` is "occupancy".

        Raises TimeoutError after `timeout` s.
        """
        wait_until(lambda: stamp in self.arrivals, timeout, f"occupancy at {stamp}")
        return next(message for message in self.occupancies if stamp_ns(message.header.stamp) == stamp)

    def values(self) -> dict[str, str]:
        """Return the values, "message" and "level" of the newest diagnostics; {} if none have arrived."""
        if not self.diagnostics:
            return {}
        status = self.diagnostics[-1].status[0]
        return {"message": status.message, "level": str(status.level[0])} | {v.key: v.value for v in status.values}

    def wait_diagnostics(self, condition: Callable[[dict[str, str]], object], timeout: float = 20.0) -> dict[str, str]:
        """Wait until the values of the diagnostics satisfy `condition`, and return them.

        Raises TimeoutError after `timeout` s.
        """
        wait_until(lambda: condition(self.values()), timeout, lambda: f"diagnostics; they say {self.values()}")
        return self.values()

    def _record(self, topic: str, kept: list[Any], message: Any) -> None:
        kept.append(message)
        if topic == self.answers:
            self.arrivals[stamp_ns(message.header.stamp)] = time.perf_counter()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return


class RigPeer(Listener):
    """A Listener that also publishes images, camera_info and tf, one set at a time, with stamps of its own.

    The stamps of the images in a set differ by FIRING_OFFSETS.

    rigs: camera -> its calibration and mounting
    contents: camera -> its image message
    now: stamp of the last set, ns
    published: time.perf_counter() when the last image was published
    """

    def __init__(
        self,
        domain: int,
        rigs: Sequence[CameraRig],
        images: Mapping[str, bytes | np.ndarray],
        answers: str = "detections",
    ) -> None:
        """Create the publishers, and publish the extrinsics on /tf_static.

        domain: number of the DDS domain
        rigs: the cameras
        images: camera -> JPEG bytes, or an [H, W, 3] uint8 BGR array for raw images
        answers: see Listener
        """
        super().__init__(domain, "rig", answers)
        self.rigs = {rig.name: rig for rig in rigs}
        self.offsets = {name: FIRING_OFFSETS.get(name, 0) for name in self.rigs}
        self.contents = {name: _image_message(name, images[name]) for name in self.rigs}
        self.now = 1_800_000_000 * SECOND
        self.published = 0.0
        self.images = {}
        self.infos = {}
        for name, message in self.contents.items():
            suffix = "image/compressed" if isinstance(message, CompressedImage) else "image"
            self.images[name] = self.node.create_publisher(type(message), f"{NODE}/input/{name}/{suffix}", 5)
            self.infos[name] = self.node.create_publisher(CameraInfo, f"{NODE}/input/{name}/camera_info", 5)
        self.tf = self.node.create_publisher(TFMessage, "/tf", 100)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.tf_static = self.node.create_publisher(TFMessage, "/tf_static", latched)
        extrinsics = [stamped_transform(BASE_FRAME, name, 0, rig.sensor2ego) for name, rig in self.rigs.items()]
        self.extrinsics = TFMessage(transforms=extrinsics)
        self.tf_static.publish(self.extrinsics)

    def wait_matched(self, timeout: float = 30.0) -> None:
        """Wait until the node has subscribed to all topics and its publisher has been discovered.

        Raises TimeoutError after `timeout` s for either.
        """
        publishers = [*self.images.values(), *self.infos.values(), self.tf, self.tf_static]
        wait_until(lambda: all(p.get_subscription_count() for p in publishers), timeout, "the node's subscriptions")
        wait_until(lambda: self.node.count_publishers(f"{NODE}/{self.answers}"), timeout, "the node's publishers")

    def connect(self, timeout: float = 60.0) -> None:
        """Send sets of images until one is answered.

        wait_matched() is not enough: this side discovers the node before the node has discovered this side, and what is
        sent in between is lost.

        Raises TimeoutError after about `timeout` s.
        """
        self.wait_matched(timeout)
        deadline = time.monotonic() + timeout
        before = len(self.arrivals)
        while len(self.arrivals) == before:
            self.send_set()
            try:
                wait_until(lambda: len(self.arrivals) > before, 2.0, self.answers)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise

    def pose(self, stamp: int) -> None:
        """Publish odom -> base_link at `stamp` (ns); the pose is constant, so a jump in time is not a pose jump."""
        self.tf.publish(TFMessage(transforms=[stamped_transform(FIXED_FRAME, BASE_FRAME, stamp, np.eye(4))]))

    def image(self, camera: str, stamp: int) -> Any:
        """Return the image message of a camera, with its stamp set to `stamp` (ns)."""
        message = self.contents[camera]
        message.header = header(stamp, camera)
        return message

    def info(self, camera: str, stamp: int) -> CameraInfo:
        """Return the CameraInfo of a camera at `stamp` (ns)."""
        calibration = self.rigs[camera].calibration
        return CameraInfo(
            header=header(stamp, camera),
            width=calibration.width,
            height=calibration.height,
            distortion_model="plumb_bob",
            d=[0.0] * 5,
            k=calibration.intrinsics.ravel().tolist(),
        )

    def send_set(
        self,
        stamp: int | None = None,
        order: Sequence[str] | None = None,
        tf: bool = True,
        image: Callable[[str, Any], Any] | None = None,
        info: Callable[[str, CameraInfo], CameraInfo | None] | None = None,
    ) -> int:
        """Send one set of images with camera_info and tf, and return its stamp (ns).

        stamp: of the anchor camera, ns; None: 83 ms after the last set
        order: cameras in the order of sending; None: by FIRING_OFFSETS
        tf: whether to send odom -> base_link for each image
        image: called with (camera, message); returns the message to send instead; None sends no image
        info: called with (camera, message); returns the message to send instead; None sends no camera_info
        """
        if stamp is None:
            self.now += 83 * MS
            stamp = self.now
        for camera in order or sorted(self.offsets, key=self.offsets.__getitem__):
            at = stamp + self.offsets[camera] * MS
            if tf:
                self.pose(at)
            info_message = self.info(camera, at)
            if info is not None:
                info_message = info(camera, info_message)
            if info_message is not None:
                self.infos[camera].publish(info_message)
            image_message = self.image(camera, at)
            if image is not None:
                image_message = image(camera, image_message)
            if image_message is not None:
                self.images[camera].publish(image_message)
                self.published = time.perf_counter()
        return stamp


def stamped_transform(parent: str, child: str, stamp: int, child2parent: np.ndarray) -> TransformStamped:
    """Return a transform as a message.

    parent: name of the parent frame
    child: name of the child frame
    stamp: ns
    child2parent: [4, 4]
    """
    message = TransformStamped(header=header(stamp, parent), child_frame_id=child)
    rotation, translation = message.transform.rotation, message.transform.translation
    rotation.w, rotation.x, rotation.y, rotation.z = map(float, quaternion_from_rotation(child2parent[:3, :3]))
    translation.x, translation.y, translation.z = map(float, child2parent[:3, 3])
    return message


def _image_message(camera: str, content: bytes | np.ndarray) -> Image | CompressedImage:
    if isinstance(content, bytes):
        return CompressedImage(format="jpeg", data=array("B", content))
    height, width = content.shape[:2]
    # rclpy keeps an array.array as it is, but copies anything else byte by byte
    data = array("B", content.tobytes())
    return Image(encoding="bgr8", height=height, width=width, step=3 * width, data=data)
