"""The lifecycle node: collects images and tf into frames, runs the model on them, and publishes the results.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from bev_perception.config import ConfigError
from bev_perception.data.messages import calibration, camera_image, transform
from bev_perception.health import OK, REFUSED, Health
from bev_perception.pipeline.loading import give_back_device_memory, load_pipeline
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.results.costmap import CostmapSettings
from bev_perception.ros import messages
from bev_perception.ros.camera_topics import check_apart
from bev_perception.ros.diagnostics import camera_statuses, figures
from bev_perception.ros.fault_log import FaultLog
from bev_perception.ros.graph_advice import COMPRESSED_IMAGE, IMAGE
from bev_perception.ros.lifecycle import answer_while, impossible
from bev_perception.ros.lookout import PATIENCE, Lookout, notice_doubles
from bev_perception.ros.outputs import Outputs
from bev_perception.ros.parameters import (
    as_declared,
    costmap_settings,
    declare_parameters,
    pipeline_settings,
    refusal,
    synchronizer_settings,
    unknown_parameters,
    variants,
)
from bev_perception.ros.qos import IMAGE_QOS, LATCHED_QOS, TF_QOS, TF_STATIC_QOS, subscribe, subscribe_beside
from bev_perception.ros.rig_watch import RigWatch
from bev_perception.ros.worker import Worker
from bev_perception.sensing.synchronizer import Synchronizer
from bev_perception.sensing.transforms import open_transforms
from bev_perception.strict import UserError
from bev_perception.types import Frame, Result
from bev_perception.visualization.viewer import viewer_of

#: s without a result until /diagnostics warns
IDLE = 2.0
#: s of work on one frame until /diagnostics warns
STUCK = 30.0
#: number of failed frames in a row until /diagnostics reports an error
FAILED_ROW = 3
#: s between two checks whether the last result has grown too old
AGEING_PERIOD = 0.2
#: image_transport -> message type, its name, end of the topic
IMAGE_TYPES = {
    "raw": (Image, IMAGE, "image"),
    "compressed": (CompressedImage, COMPRESSED_IMAGE, "image/compressed"),
}


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
        self._tf_subscriptions: list[Any] = []  # the first is that of /tf, the others are of /tf_static
        self._info_subscriptions: list[Any] = []
        self._image_subscriptions: list[Any] = []
        self._lookout: Lookout | None = None
        self._looked = time.monotonic()
        self._losses = 0  # drops and resets up to the last report
        self._outputs: Outputs | None = None
        self._rig_watch = RigWatch(self._health, "")
        self._missing: dict[str, str] = {}
        self._failure = ""
        self._lifecycle = "unconfigured"
        self._faults = FaultLog(self.get_logger().error)
        self._parameter_errors = declare_parameters(self)
        for error in self._parameter_errors.values():
            self.get_logger().error(f"{error}; the node will not configure until it is set to a valid value")
        for sentence in unknown_parameters(self):
            self.get_logger().warning(sentence)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._breakdown = self.create_guard_condition(self._on_breakdown)
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(self._get("diagnostics_period"), self._report, clock=self._steady_clock)
        self._ageing = self.create_timer(AGEING_PERIOD, self._age, clock=self._steady_clock)

    def survive(self, error: Exception) -> None:
        """Log and count an unexpected error of a callback."""
        self._health.drop("callback error", f"{type(error).__name__}: {error}")
        self._faults.record(error)

    def close(self, patience: float | None = None) -> None:
        """Withdraw the results, stop the worker and free the model; allowed in every state.

        patience: s to wait for the frame in progress, without which nothing is freed; None: until it is done.
        """
        if self._outputs is not None and self.context.ok():  # if it was shut down from outside, nothing can be sent
            self._outputs.bid_farewell()
        if self._stop_worker(patience):
            self._free()

    def autostart(self) -> None:
        """Configure and, if that works, activate."""
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # ------------------------------------------------------------------ lifecycle

    def _LifecycleNodeMixin__on_change_state(self, request: Any, response: Any) -> Any:
        """Answer ~/change_state also where the state has no such transition; rclpy would leave it unanswered."""
        if reason := impossible(self, request):
            self._health.notice("impossible transition", reason, about=self._state_machine.current_state[1])
            response.success = False
            return response
        return super()._LifecycleNodeMixin__on_change_state(request, response)  # type: ignore[misc]

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
        self, what: str, work: Callable[[], None], goal: str, undo: Callable[[], object] | None = None
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
        self._subscribe_images(self._synchronizer.settings.cameras)

    def _subscribe_images(self, cameras: tuple[str, ...]) -> None:
        kind, type_name, suffix = IMAGE_TYPES[self._get("image_transport")]
        watched = {}
        for camera in cameras:
            topic = f"~/input/{camera}/{suffix}"
            self._image_subscriptions.append(subscribe(self, kind, topic, partial(self._on_image, camera), IMAGE_QOS))
            watched[camera] = (self._image_subscriptions[-1], type_name, topic)
        self._health.forget_cameras()
        self._lookout, self._looked = Lookout(self, self._health, watched), time.monotonic()

    def _deactivate(self, state: LifecycleState) -> None:
        self._stop_worker()
        if self._outputs is not None:
            self._outputs.withdraw()  # before the publishers fall silent
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
        suffix = IMAGE_TYPES[transport][2]
        check_apart({c: self.resolve_topic_name(f"~/input/{c}/{suffix}") for c in settings.cameras})
        load = partial(self._load, variants(self), self._get("device"), pipeline_settings(self), len(settings.cameras))
        self._pipeline = answer_while(self, load, self.survive)
        self._pipeline.settings = pipeline_settings(self)  # they may have been set meanwhile
        self._timer.timer_period_ns = round(self._get("diagnostics_period") * 1e9)
        self._transforms = open_transforms()
        self._synchronizer = Synchronizer(settings, self._transforms, self._health)
        self._rig_watch = RigWatch(self._health, settings.base_frame)
        configs, viewer = [v.config for v in self._pipeline.variants], viewer_of(self._get("viewer"))
        self._outputs = Outputs(self, configs, costmap_settings(self), self._get("output_lifetime"), viewer)
        self._subscribe_standing(settings.cameras)
        trained = "" if self._pipeline.trained else ", UNTRAINED weights"
        if len(self._pipeline.encoders) > 1:
            self.get_logger().info("the variants' encoders differ, so that every image is encoded twice")
        self.get_logger().info(f"{self._pipeline.name} is ready on {self._pipeline.device}{trained}")

    def _load(self, run: list[Any], device: str, settings: PipelineSettings, cameras: int) -> Pipeline:
        """Return the pipeline, ready to run; called in another thread."""
        (variant, checkpoint), *second = run
        pipeline = load_pipeline(variant, checkpoint, device, settings, self._health, *second)
        try:
            pipeline.warm_up(cameras)
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    def _subscribe_standing(self, cameras: tuple[str, ...]) -> None:
        """Subscribe to tf and camera_info, which are received in the state inactive, too."""
        static = partial(self._on_tf, True)
        self._tf_subscriptions = [
            subscribe(self, TFMessage, "/tf", partial(self._on_tf, False), TF_QOS),
            subscribe(self, TFMessage, "/tf_static", static, TF_STATIC_QOS),
            subscribe_beside(self, TFMessage, "/tf_static", static, TF_QOS),
        ]
        for camera in cameras:
            topic, callback = f"~/input/{camera}/camera_info", partial(self._on_camera_info, camera)
            self._info_subscriptions += [
                subscribe(self, CameraInfo, topic, callback, IMAGE_QOS),
                subscribe_beside(self, CameraInfo, topic, callback, LATCHED_QOS),
            ]

    def _stop_worker(self, patience: float | None = None) -> bool:
        while self._image_subscriptions:
            self.destroy_subscription(self._image_subscriptions.pop())
        worker, self._worker = self._worker, None
        self._missing, self._lookout = {}, None
        return worker is None or worker.stop(patience)

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
        self._health.image_came(camera)
        try:
            image = camera_image(camera, message)
        except ValueError as error:
            self._health.drop("bad image", f"{camera}: {error}", camera)
            self._health.judge(camera, "image", REFUSED, str(error))
            return
        self._health.judge(camera, "image", OK)
        assert self._synchronizer is not None
        self._synchronizer.add(image)
        self._pass_on()

    def _on_camera_info(self, camera: str, message: CameraInfo) -> None:
        assert self._synchronizer is not None
        topic = self.resolve_topic_name(f"~/input/{camera}/{IMAGE_TYPES[self._get('image_transport')][2]}")
        try:
            self._synchronizer.set_calibration(camera, calibration(message), topic)
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
        for sentence in self._transforms.take_disputes().values():
            self._health.notice("tf changed a parent", sentence)

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
                self._add_transforms(subscription is not self._tf_subscriptions[0], taken[0])

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None or self._synchronizer is None:
            response.success, response.message = False, "the node is not configured; there is no memory to wipe"
            return response
        self._synchronizer.clear()
        self._pipeline.reset("service ~/reset")
        if self._outputs is not None:
            self._outputs.withdraw()
        response.success, response.message = True, "the memory is wiped before the next frame"
        return response

    # ------------------------------------------------------------------ parameters

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set parameters as rclpy does, whole numbers as doubles where these are meant; count those refused."""
        result = super().set_parameters_atomically([as_declared(parameter) for parameter in parameter_list])
        if not result.successful:
            self._health.drop("parameter refused", result.reason)
        return result

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        unconfigured = self._state_machine.current_state[1] == "unconfigured"
        for parameter in parameters:
            if reason := refusal(parameter, unconfigured):
                return SetParametersResult(successful=False, reason=reason)
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
        self._rig_watch.look(frame)
        for camera in frame.cameras:
            unused = camera in result.missing and camera not in frame.missing
            self._health.judge(camera, "model", *((REFUSED, result.missing[camera]) if unused else (OK,)))
        assert self._outputs is not None
        self._outputs.publish(result, frame, self._get("base_frame"), self._get("fixed_frame"))

    def _report(self) -> None:
        """Log the news since the last report, and publish the diagnostics."""
        if time.monotonic() - self._looked >= PATIENCE:
            self._look_around()
        for item in self._health.drain_news():
            self.get_logger().warning(item)
        snapshot, before = self._health.snapshot(), self._losses
        self._losses = sum(snapshot.drops.values()) + sum(snapshot.resets.values())
        level, message = self._judge(self._losses > before)
        name, active = self.get_fully_qualified_name(), self._lifecycle == "active"
        values = figures(
            self._lifecycle, self._get("variant"), self._health, self._pipeline, self._synchronizer, self._missing
        )
        values |= self._rig_watch.figures()
        statuses = [messages.diagnostic_status(level, f"{name}: perception", message, values)]
        if self._synchronizer is not None:
            advice = {} if self._lookout is None else self._lookout.advice
            cameras = self._synchronizer.settings.cameras
            statuses += camera_statuses(name, cameras, self._health, advice, "" if active else self._lifecycle)
        array = DiagnosticArray(status=statuses)
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
            return DiagnosticStatus.WARN, f"no results: {waiting or self._advice()}"
        if self._missing:
            return DiagnosticStatus.WARN, f"degraded: without {', '.join(sorted(self._missing))}"
        if self._rig_watch.warning:
            return DiagnosticStatus.WARN, self._rig_watch.warning
        if news:
            return DiagnosticStatus.WARN, "running, with losses"
        return DiagnosticStatus.OK, "running"

    def _advice(self) -> str:
        """Return why there is no set of images, as far as it is known."""
        advice = {} if self._lookout is None else self._lookout.advice
        return "; ".join(f"{c}: {text}" for c, text in advice.items()) or "no complete set of images arrives"

    def _look_around(self) -> None:
        self._looked = time.monotonic()
        if self._lookout is not None:
            self._lookout.look()
        notice_doubles(self, self._health)

    def _age(self) -> None:
        if self._outputs is not None:
            self._outputs.age()
