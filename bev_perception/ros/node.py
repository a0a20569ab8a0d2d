"""The lifecycle node: collects images and tf into frames, runs the model on them, and publishes the results.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from bev_perception.config import ConfigError
from bev_perception.data.messages import calibration, camera_image, transform
from bev_perception.health import Health
from bev_perception.pipeline.loading import give_back_device_memory, load_pipeline
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.results.costmap import CostmapSettings
from bev_perception.ros import messages
from bev_perception.ros.fault_log import FaultLog
from bev_perception.ros.outputs import Outputs
from bev_perception.ros.parameters import (
    LIVE_PARAMETERS,
    PARAMETERS,
    costmap_settings,
    declare_parameters,
    not_finite,
    pipeline_settings,
    synchronizer_settings,
    variants,
)
from bev_perception.ros.worker import Worker
from bev_perception.sensing.synchronizer import Synchronizer
from bev_perception.sensing.transforms import open_transforms
from bev_perception.strict import UserError
from bev_perception.types import Frame, Result

IMAGE_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
TF_QOS = QoSProfile(depth=100)
TF_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
#: s without a result until /diagnostics warns
IDLE = 2.0
#: s of work on one frame until /diagnostics warns
STUCK = 30.0
#: number of failed frames in a row until /diagnostics reports an error
FAILED_ROW = 3
#: image_transport -> message type, end of the topic
IMAGE_TYPES = {"raw": (Image, "image"), "compressed": (CompressedImage, "image/compressed")}


class PerceptionNode(LifecycleNode):
    """Subscribes to N cameras and tf, and publishes boxes, occupancy, or both.

    configure loads the model and warms it up, activate subscribes to the images, deactivate keeps the weights, cleanup
    frees them. Errors are counted, logged and shown in /diagnostics; they do not end the node.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Declare the parameters, see ros/parameters.py, and start the diagnostics.

        kwargs: passed on to rclpy's LifecycleNode.
        """
        super().__init__("bev_perception", **kwargs)
        self._health = Health()
        self._pipeline: Pipeline | None = None
        self._worker: Worker | None = None
        self._synchronizer: Synchronizer | None = None
        self._transforms = open_transforms()
        self._tf_subscriptions: list[Any] = []
        self._info_subscriptions: list[Any] = []
        self._image_subscriptions: list[Any] = []
        self._outputs: Outputs | None = None
        self._missing: dict[str, str] = {}
        self._failure = ""
        self._lifecycle = "unconfigured"
        self._faults = FaultLog(self.get_logger().error)
        self._parameter_errors = declare_parameters(self)
        for error in self._parameter_errors.values():
            self.get_logger().error(f"{error}; the node will not configure until it is set to a valid value")
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._breakdown = self.create_guard_condition(self._on_breakdown)
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(self._get("diagnostics_period"), self._report, clock=self._steady_clock)

    def survive(self, error: Exception) -> None:
        """Log and count an unexpected error of a callback."""
        self._health.drop("callback error", f"{type(error).__name__}: {error}")
        self._faults.record(error)

    def close(self) -> None:
        """Stop the worker and free the model; allowed in every state."""
        self._stop_worker()
        self._free()

    def autostart(self) -> None:
        """Configure and, if that works, activate."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # ------------------------------------------------------------------ lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, warm it up, and subscribe to tf and camera_info."""
        return self._transition("configure", self._configure, "inactive", undo=self._free)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and start the worker."""
        return self._transition("activate", lambda: self._activate(state), "active", undo=self._stop_worker)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop receiving images; weights and memory are kept. After a breakdown of the worker, return ERROR."""
        breakdown = self._worker.breakdown if self._worker is not None else ""
        outcome = self._transition("deactivate", lambda: self._deactivate(state), "inactive")
        if not breakdown:
            return outcome
        self._failure = f"gave up after {breakdown}; configure the node again, or restart it if the error stays"
        self.get_logger().error(self._failure)
        return TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        return self._transition("clean up", self._clean_up, "unconfigured")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything."""
        return self._transition("shut down", self.close, "finalized")

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything. The node is unconfigured afterwards and can be configured again."""
        self._lifecycle = "unconfigured"
        try:
            self._stop_worker()
            self._clean_up()
        except Exception as error:  # as when the GPU is lost; any other return value would finalize the node
            self._faults.record(error)
        return TransitionCallbackReturn.SUCCESS

    def _transition(
        self, what: str, work: Callable[[], None], goal: str, undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Run a transition, and report in the log and in /diagnostics why it failed.

        what: the transition's name in the error message.
        work: the transition itself.
        goal: the state that it leads to.
        undo: frees what a failed `work` left behind; without it, the failure is an ERROR, and rclpy calls on_error.
        """
        try:
            work()
        except Exception as error:  # rclpy would discard it without a word
            self._failure = f"cannot {what}: {error}"
            self.get_logger().error(self._failure)
            if not isinstance(error, (UserError, OSError)):  # their text names the cause; no traceback is needed
                self.get_logger().error("".join(traceback.format_exception(error)))
            if undo is None:
                return TransitionCallbackReturn.ERROR
            undo()
            return TransitionCallbackReturn.FAILURE
        self._failure, self._lifecycle = "", goal
        return TransitionCallbackReturn.SUCCESS

    def _activate(self, state: LifecycleState) -> None:
        assert self._pipeline is not None and self._synchronizer is not None
        self._synchronizer.clear()
        self._health.forget_failures()
        super().on_activate(state)  # the publishers
        self._worker = Worker(
            self._pipeline, self._health, self._publish, self.get_logger().error, self._breakdown.trigger
        )
        kind, suffix = IMAGE_TYPES[self._get("image_transport")]
        for camera in self._synchronizer.settings.cameras:
            topic = f"~/input/{camera}/{suffix}"
            self._image_subscriptions.append(self._subscribe(kind, topic, partial(self._on_image, camera), IMAGE_QOS))

    def _deactivate(self, state: LifecycleState) -> None:
        self._stop_worker()
        super().on_deactivate(state)  # the publishers

    def _clean_up(self) -> None:
        self._free()
        give_back_device_memory()

    def _on_breakdown(self) -> None:
        """Deactivate the node because its worker broke down; on_deactivate then returns ERROR."""
        if self._worker is not None and self._worker.breakdown:
            self.trigger_deactivate()

    def _configure(self) -> None:
        if self._parameter_errors:
            raise ConfigError("; ".join(self._parameter_errors.values()))
        transport = self._get("image_transport")
        if transport not in IMAGE_TYPES:
            raise ConfigError(f"image_transport is {transport!r}; it must be one of {', '.join(IMAGE_TYPES)}")
        settings = synchronizer_settings(self)
        first, *second = variants(self)
        self._pipeline = load_pipeline(
            *first, self._get("device"), pipeline_settings(self), self._health, second=second[0] if second else None
        )
        self._pipeline.warm_up(len(settings.cameras))
        self._timer.timer_period_ns = round(self._get("diagnostics_period") * 1e9)
        self._transforms = open_transforms()
        self._synchronizer = Synchronizer(settings, self._transforms, self._health)
        self._outputs = Outputs(self, [v.config for v in self._pipeline.variants], costmap_settings(self))
        self._subscribe_standing(settings.cameras)
        trained = "" if self._pipeline.trained else ", UNTRAINED weights"
        if len(self._pipeline.encoders) > 1:
            self.get_logger().info("the variants' encoders differ, so that every image is encoded twice")
        self.get_logger().info(f"{self._pipeline.name} is ready on {self._pipeline.device}{trained}")

    def _subscribe_standing(self, cameras: tuple[str, ...]) -> None:
        """Subscribe to tf and camera_info, which are received in the state inactive, too."""
        self._tf_subscriptions = [
            self._subscribe(TFMessage, "/tf", partial(self._on_tf, False), TF_QOS),
            self._subscribe(TFMessage, "/tf_static", partial(self._on_tf, True), TF_STATIC_QOS),
        ]
        self._info_subscriptions = [
            self._subscribe(
                CameraInfo, f"~/input/{camera}/camera_info", partial(self._on_camera_info, camera), IMAGE_QOS
            )
            for camera in cameras
        ]

    def _subscribe(self, kind: Any, topic: str, callback: Any, qos: QoSProfile) -> Any:
        """Subscribe with a QoS that the parameters qos_overrides.<topic>.subscription.* can override."""
        overridable = QoSOverridingOptions.with_default_policies()
        return self.create_subscription(kind, topic, callback, qos, qos_overriding_options=overridable)

    def _stop_worker(self) -> None:
        while self._image_subscriptions:
            self.destroy_subscription(self._image_subscriptions.pop())
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()
        self._missing = {}

    def _free(self) -> None:
        for subscriptions in (self._tf_subscriptions, self._info_subscriptions):
            while subscriptions:
                self.destroy_subscription(subscriptions.pop())
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        self._synchronizer = None
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()

    # ------------------------------------------------------------------ inputs

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        try:
            image = camera_image(camera, message)
        except ValueError as error:
            self._health.drop("bad image", str(error))
            return
        assert self._synchronizer is not None
        self._synchronizer.add(image)
        self._pass_on()

    def _on_camera_info(self, camera: str, message: CameraInfo) -> None:
        assert self._synchronizer is not None
        try:
            self._synchronizer.set_calibration(camera, calibration(message))
        except ValueError as error:
            self._synchronizer.set_calibration(camera, str(error))
        self._pass_on()

    def _on_tf(self, static: bool, message: TFMessage) -> None:
        self._add_transforms(static, message)
        self._pass_on()

    def _add_transforms(self, static: bool, message: TFMessage) -> None:
        for stamped in message.transforms:
            try:
                parent, child, stamp, child2parent = transform(stamped)
                if static:
                    self._transforms.set_static(parent, child, child2parent)
                else:
                    self._transforms.add(parent, child, stamp, child2parent)
            except ValueError as error:
                self._health.drop("bad tf", str(error))

    def _pass_on(self) -> None:
        """Give the frames that are complete to the worker."""
        if self._worker is None or self._synchronizer is None:
            return
        self._catch_up_with_tf()
        for frame in self._synchronizer.poll():
            self._worker.put(frame)

    def _catch_up_with_tf(self) -> None:
        """Take the tf messages that have arrived, at most as many as the queue holds.

        The executor takes one message per topic in turn. After a stall, the single topic /tf would fall behind the many
        image topics, and frames would be dropped for poses that have already arrived.
        """
        for subscription in self._tf_subscriptions:
            for _ in range(TF_QOS.depth):  # a publisher may be faster than this loop
                taken = subscription.handle.take_message(TFMessage, False)
                if taken is None:
                    break
                self._add_transforms(subscription is self._tf_subscriptions[1], taken[0])

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None or self._synchronizer is None:
            response.success, response.message = False, "the node is not configured; there is no memory to wipe"
            return response
        self._synchronizer.clear()
        self._pipeline.reset("service ~/reset")
        response.success, response.message = True, "the memory is wiped before the next frame"
        return response

    # ------------------------------------------------------------------ parameters

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set parameters as rclpy does, and count those that are refused."""
        result = super().set_parameters_atomically(parameter_list)
        if not result.successful:
            self._health.drop("parameter refused", result.reason)
        return result

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        known = {spec.name for spec in PARAMETERS}
        for parameter in parameters:
            if not_finite(parameter):
                return SetParametersResult(successful=False, reason=f"{parameter.name} is {parameter.value}, no number")
            if parameter.name in known - LIVE_PARAMETERS and self._pipeline is not None:
                return SetParametersResult(
                    successful=False,
                    reason=f"{parameter.name} is read when the node is configured; deactivate and clean it up first",
                )
        if any(parameter.name.startswith("costmap_") for parameter in parameters):
            try:
                self._check_costmap(costmap_settings(self, parameters))
            except ValueError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_costmap(self, settings: CostmapSettings) -> None:
        """Raise ValueError for settings that the loaded variant does not support."""
        if self._outputs is not None:
            self._outputs.check(settings)

    def _apply_parameters(self, parameters: list[Parameter]) -> None:
        for parameter in parameters:
            self._parameter_errors.pop(parameter.name, None)
        if self._pipeline is not None:
            self._pipeline.settings = pipeline_settings(self)
        if self._outputs is not None:
            self._outputs.costmap = costmap_settings(self)

    def _get(self, name: str) -> Any:
        return self.get_parameter(name).value

    # ------------------------------------------------------------------ outputs

    def _publish(self, result: Result, frame: Frame) -> None:
        """Publish one result; called in the worker's thread."""
        if not self.context.ok():
            return  # the context was shut down while the model worked on this frame
        self._missing = result.missing
        assert self._outputs is not None
        self._outputs.publish(result, frame, self._get("base_frame"), self._get("fixed_frame"))

    def _report(self) -> None:
        """Log the news since the last report, and publish the diagnostics."""
        news = self._health.drain_news()
        for item in news:
            self.get_logger().warning(item)
        level, message = self._judge(bool(news))
        status = messages.diagnostic_status(
            level, f"{self.get_fully_qualified_name()}: perception", message, self._figures()
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _judge(self, news: bool) -> tuple[bytes, str]:
        """Return the level and the message of the diagnostics.

        news: whether anything was dropped or reset since the last report.
        """
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure
        if self._lifecycle != "active":
            return DiagnosticStatus.OK, self._lifecycle
        snapshot = self._health.snapshot()
        if snapshot.failures >= FAILED_ROW:
            return DiagnosticStatus.ERROR, f"{snapshot.failures} frames in a row failed: {snapshot.failure}"
        working_for = self._worker.working_for if self._worker is not None else 0.0
        if working_for > STUCK:
            return DiagnosticStatus.WARN, f"no results: the model has been at work on one frame for {working_for:.0f} s"
        busy = self._worker is not None and self._worker.busy
        waiting = self._synchronizer.waiting_for if self._synchronizer is not None else ""
        if not busy and snapshot.idle > max(IDLE, 2 * self._get("diagnostics_period")):
            return DiagnosticStatus.WARN, f"no results: {waiting or 'no complete set of images arrives'}"
        if self._missing:
            return DiagnosticStatus.WARN, f"degraded: without {', '.join(sorted(self._missing))}"
        if news:
            return DiagnosticStatus.WARN, "running, with losses"
        return DiagnosticStatus.OK, "running"

    def _figures(self) -> dict[str, str]:
        """Return the key-value pairs of the diagnostics."""
        snapshot = self._health.snapshot()
        figures = {
            "state": self._lifecycle,
            "variant": self._get("variant") if self._pipeline is None else self._pipeline.name,
            "frames": str(snapshot.frames),
            "rate [Hz]": f"{snapshot.rate:.2f}",
            "last drop": snapshot.last_drop,
            "last reset": snapshot.last_reset,
            "waiting for": self._synchronizer.waiting_for if self._synchronizer is not None else "",
            "process memory [MB]": f"{_resident_megabytes():.0f}",
        }
        if self._pipeline is not None:
            figures["device"] = str(self._pipeline.device)
            figures["weights"] = "trained" if self._pipeline.trained else "UNTRAINED"
            figures["memory frames"] = str(self._pipeline.memory_frames)
            figures["memory [MB]"] = f"{self._pipeline.memory_bytes / 1e6:.1f}"
        for stage, (p50, p95) in snapshot.timings.items():
            figures[f"{stage} p50 [ms]"] = f"{p50 * 1e3:.1f}"
            figures[f"{stage} p95 [ms]"] = f"{p95 * 1e3:.1f}"
        figures |= {f"missing {camera}": reason for camera, reason in self._missing.items()}
        figures |= {f"dropped: {cause}": str(count) for cause, count in snapshot.drops.items()}
        figures |= {f"reset: {cause}": str(count) for cause, count in snapshot.resets.items()}
        return figures


def _resident_megabytes() -> float:
    """Return the process' resident memory in MB, or NaN if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.nan
    return pages * 4096 / 1e6
