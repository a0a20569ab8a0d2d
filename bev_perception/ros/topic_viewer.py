"""The live viewer of a running node: images, tf and results as it and the cameras publish them.

It is a process of its own and subscribes as anybody does, so that it takes nothing from the node but bandwidth.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bev_perception.data.drive import CAMERAS
from bev_perception.ros.endings import end_by
from bev_perception.ros.entry import prepare_process
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.types import Boxes3D, Frame, Occupancy, Result
from bev_perception.visualization.viewer import Viewer, open_viewer

LOG = logging.getLogger(__name__)
#: number of frames that wait for their results
KEPT = 30
#: s between two checks whether to stop
SPIN_TIMEOUT = 0.1


def view_topics(
    node: str, cameras: Sequence[str] | None, prefix: str | None, base: str, fixed: str, save: Path | None
) -> int:
    """Show what a running node sees and finds until SIGINT or SIGTERM; return the exit status.

    node: full name of the node, whose topics are shown
    cameras: their names; None takes nuScenes'
    prefix: of the cameras' topics; None takes the node's input
    base: tf frame of the vehicle
    fixed: tf frame of the world
    save: file to write (.rrd) instead of opening a window
    """
    prepare_process()
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    stopping = threading.Event()
    end_by(lambda *_: stopping.set())
    settings = SynchronizerSettings(tuple(cameras or CAMERAS), base_frame=base, fixed_frame=fixed)
    viewer = open_viewer(save)
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    ros = rclpy.create_node("bev_perception_viewer")
    joined = JoinedTopics(ros, node, prefix or f"{node}/input", settings, viewer)
    executor = SingleThreadedExecutor()
    executor.add_node(ros)
    try:
        while not stopping.is_set():
            executor.spin_once(timeout_sec=SPIN_TIMEOUT)
    finally:
        viewer.close()
        with suppress(Exception):  # the context may be gone
            ros.destroy_node()
        rclpy.try_shutdown()
    print(f"showed {joined.shown} frames" + (f"; wrote {save}, look at it with `rerun {save}`" if save else ""))
    return 0


class JoinedTopics:
    """Joins images and tf to frames as the node does, and shows each with the results of its stamp.

    shown: number of frames that were shown
    """

    def __init__(self, ros: Any, node: str, prefix: str, settings: SynchronizerSettings, viewer: Viewer) -> None:
        """Subscribe to everything.

        ros: rclpy node to subscribe with
        node: full name of the perception node
        prefix: of the cameras' topics
        settings: cameras and tf frames
        viewer: shows the frames
        """
        from diagnostic_msgs.msg import DiagnosticArray
        from sensor_msgs.msg import CameraInfo, CompressedImage, Image
        from tf2_msgs.msg import TFMessage

        from bev_perception.health import Health
        from bev_perception.msg import Object3DArray, SemanticOccupancy
        from bev_perception.ros.qos import IMAGE_QOS, LATCHED_QOS, TF_QOS, TF_STATIC_QOS, subscribe_beside
        from bev_perception.sensing.synchronizer import Synchronizer
        from bev_perception.sensing.transforms import open_transforms

        self.shown = 0
        self._ros, self._node, self._viewer = ros, node, viewer
        self._transforms = open_transforms()
        self._synchronizer = Synchronizer(settings, self._transforms, Health())
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._results: dict[int, dict[str, Any]] = {}
        self._timings: dict[str, float] = {}
        self._topics = {"objects": Object3DArray, "occupancy": SemanticOccupancy}
        listen = partial(subscribe_beside, ros)
        for camera in settings.cameras:
            image, info = partial(self._on_image, camera), partial(self._on_info, camera)
            listen(Image, f"{prefix}/{camera}/image", image, IMAGE_QOS)
            listen(CompressedImage, f"{prefix}/{camera}/image/compressed", image, IMAGE_QOS)
            listen(CameraInfo, f"{prefix}/{camera}/camera_info", info, IMAGE_QOS)
            listen(CameraInfo, f"{prefix}/{camera}/camera_info", info, LATCHED_QOS)
        listen(TFMessage, "/tf", partial(self._on_tf, False), TF_QOS)
        for qos in (TF_STATIC_QOS, TF_QOS):
            listen(TFMessage, "/tf_static", partial(self._on_tf, True), qos)
        for name, kind in self._topics.items():
            ros.create_subscription(kind, f"{node}/{name}", partial(self._on_result, name), 5)
        ros.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 5)

    def _on_image(self, camera: str, message: Any) -> None:
        from bev_perception.data.messages import camera_image

        with _bad_message_logged(camera):
            self._synchronizer.add(camera_image(camera, message))
            self._poll()

    def _on_info(self, camera: str, message: Any) -> None:
        from bev_perception.data.messages import calibration

        with _bad_message_logged(camera):
            self._synchronizer.set_calibration(camera, calibration(message))

    def _on_tf(self, static: bool, message: Any) -> None:
        from bev_perception.data.messages import transform

        for stamped in message.transforms:
            with _bad_message_logged("tf"):
                parent, child, stamp, child2parent = transform(stamped)
                if static:
                    self._transforms.set_static(parent, child, child2parent)
                else:
                    self._transforms.add(parent, child, stamp, child2parent)
        self._poll()

    def _on_result(self, name: str, message: Any) -> None:
        from bev_perception.data.messages import stamp_ns
        from bev_perception.results.occupancy_codec import decode
        from bev_perception.ros.messages import boxes_of

        with _bad_message_logged(name):
            found: Boxes3D | Occupancy = boxes_of(message) if name == "objects" else decode(message)
            self._results.setdefault(stamp_ns(message.header.stamp), {})[name] = found
            while len(self._results) > KEPT:
                self._results.pop(next(iter(self._results)))
            self._show_complete()

    def _on_diagnostics(self, message: Any) -> None:
        ending = " p50 [ms]"
        for status in message.status:
            if status.name == f"{self._node}: perception":
                values = {value.key: value.value for value in status.values if value.key.endswith(ending)}
                self._timings = {key.removesuffix(ending): float(ms) / 1000 for key, ms in values.items()}

    def _poll(self) -> None:
        for frame in self._synchronizer.poll():
            self._frames[frame.stamp] = frame
            if len(self._frames) > KEPT:
                self._frames.popitem(last=False)
        self._show_complete()

    def _show_complete(self) -> None:
        """Show the newest frame for which all results are there that the node publishes; drop it and those before."""
        wanted = {name for name in self._topics if self._ros.count_publishers(f"{self._node}/{name}")}
        complete = [stamp for stamp in self._frames if wanted <= self._results.get(stamp, {}).keys()]
        if not complete:
            return
        stamp = max(complete)
        frame, found = self._frames[stamp], self._results.get(stamp, {})
        result = None
        if found:
            boxes, occupancy = found.get("objects"), found.get("occupancy")
            result = Result(stamp, boxes, occupancy, frame.missing, None, self._timings, 0)
        self._viewer.show(frame, result)
        self.shown += 1
        for old in [s for s in self._frames if s <= stamp]:
            del self._frames[old]
        for old in [s for s in self._results if s <= stamp]:
            del self._results[old]


@contextmanager
def _bad_message_logged(about: str) -> Iterator[None]:
    """Log a message that cannot be read, and go on."""
    try:
        yield
    except ValueError as error:
        LOG.warning("%s: %s", about, error)
