"""The node's parameters: names, defaults, descriptions and ranges, in one table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from bev_perception.commands import command
from bev_perception.config import ConfigError
from bev_perception.data.drive import CAMERAS
from bev_perception.families.variants import TINY_DETECTOR
from bev_perception.pipeline.pipeline import PipelineSettings
from bev_perception.results.costmap import OUTPUT_LIFETIME, CostmapSettings
from bev_perception.ros.camera_topics import check_camera_names
from bev_perception.sensing.poses import MAX_TF_TIMEOUT
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings, camera_frames


class ParameterSpec(NamedTuple):
    """A parameter of the node.

    name: as in ROS 2.
    default: its value unless it is set; gives the type, too.
    description: for `ros2 param describe`.
    bounds: lowest and highest value of a number.
    live: whether it may be set while the node is configured.
    """

    name: str
    default: Any
    description: str
    bounds: tuple[float, float] | None = None
    live: bool = False


_SYNC = SynchronizerSettings(CAMERAS)
_PIPELINE = PipelineSettings()
_COSTMAP = CostmapSettings()

PARAMETERS = (
    ParameterSpec("variant", TINY_DETECTOR, "Name of a variant in config/models, or a path to a YAML of your own."),
    ParameterSpec(
        "checkpoint", "", "Path of the variant's weights (.safetensors or .pth); empty for those that are shipped."
    ),
    ParameterSpec(
        "occupancy_variant", "", "Name or path of a variant that gives occupancy, to run beside one that detects."
    ),
    ParameterSpec("occupancy_checkpoint", "", "Path of its weights; empty for those that are shipped."),
    ParameterSpec("device", "auto", "auto (the first GPU, else the CPU), cpu, or cuda:N."),
    ParameterSpec(
        "precision",
        _PIPELINE.precision,
        "Of backbone and neck: fp32, bf16 or fp16, on NVIDIA GPUs from Ampere on also tf32.",
    ),
    ParameterSpec(
        "engine",
        _PIPELINE.engine,
        "Computes backbone and neck: eager, compile, onnxruntime, openvino or tensorrt; built when first configured.",
    ),
    ParameterSpec(
        "image_fit",
        _PIPELINE.image_fit,
        "How pictures unlike those of the training become inputs: as_trained, horizon or virtual.",
    ),
    ParameterSpec("autostart", True, "Configure and activate at once; false leaves it to a lifecycle manager."),
    ParameterSpec("cameras", list(CAMERAS), "Camera names; each has ~/input/<camera>/image and camera_info."),
    ParameterSpec("anchor_camera", "", "Camera whose stamp a set takes; empty is the first of cameras."),
    ParameterSpec("image_transport", "raw", "raw (sensor_msgs/Image) or compressed (sensor_msgs/CompressedImage)."),
    ParameterSpec("base_frame", _SYNC.base_frame, "tf frame of the vehicle; results are published in it."),
    ParameterSpec(
        "camera_frames",
        [""],
        "CAMERA:=FRAME for each camera whose images name another tf frame than their optical frame.",
    ),
    ParameterSpec(
        "rectified",
        [""],
        "Cameras whose images are rectified, or * for all: R and P of camera_info count, not K and D.",
    ),
    ParameterSpec("base_height", _SYNC.base_height, "m; how high base_frame is above the ground.", (-10.0, 10.0)),
    ParameterSpec("fixed_frame", _SYNC.fixed_frame, "tf frame that does not move with the vehicle (odometry)."),
    ParameterSpec(
        "max_stamp_difference",
        _SYNC.max_stamp_difference,
        "s; how far from the anchor's stamp an image of the same set may lie.",
        (0.0, 10.0),
    ),
    ParameterSpec(
        "camera_timeout", _SYNC.camera_timeout, "s of header time that a set waits for a missing camera.", (0.0, 1.0)
    ),
    ParameterSpec(
        "tf_timeout",
        _SYNC.tf_timeout,
        "s of header time that a set waits for its tf and camera_info.",
        (0.0, MAX_TF_TIMEOUT),
    ),
    ParameterSpec("score_threshold", 0.3, "Boxes below this score are not published.", (0.0, 1.0), live=True),
    ParameterSpec("max_detections", 300, "At most so many boxes are published.", (1, 10000), live=True),
    ParameterSpec(
        "memory_interval",
        _PIPELINE.memory_interval,
        "s between remembered frames; shorter follows the trained spacing more closely and takes more memory.",
        (0.05, 10.0),
    ),
    ParameterSpec(
        "tracker",
        _PIPELINE.tracker,
        "Where track ids come from if the variant gives none: greedy (nearest centres), or none.",
    ),
    ParameterSpec(
        "nms",
        _PIPELINE.nms,
        "How further boxes of one object are dropped: auto (as the variant says), distance, rotated_iou, or none.",
    ),
    ParameterSpec(
        "costmap_min_height",
        _COSTMAP.min_height,
        "m above base_frame; what is lower is no obstacle in the costmap.",
        (-10.0, 10.0),
        live=True,
    ),
    ParameterSpec(
        "costmap_max_height",
        _COSTMAP.max_height,
        "m above base_frame; what is higher is no obstacle in the costmap.",
        (-10.0, 10.0),
        live=True,
    ),
    ParameterSpec(
        "costmap_free_classes",
        list(_COSTMAP.free_classes),
        "Classes that are ground, however high; all others are obstacles in the costmap.",
        live=True,
    ),
    ParameterSpec(
        "output_lifetime",
        OUTPUT_LIFETIME,
        "s; a result that no other follows is withdrawn after this time: markers vanish, the costmap becomes unknown.",
        (0.1, 60.0),
    ),
    ParameterSpec(
        "viewer", "", "window shows the results live in rerun; a path ending in .rrd writes them; empty: none."
    ),
    ParameterSpec("diagnostics_period", 1.0, "s of wall clock between two /diagnostics messages.", (0.05, 60.0)),
)


def _descriptor(spec: ParameterSpec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description)
    if spec.bounds is not None and isinstance(spec.default, int):
        descriptor.integer_range = [IntegerRange(from_value=int(spec.bounds[0]), to_value=int(spec.bounds[1]))]
    elif spec.bounds is not None:
        descriptor.floating_point_range = [FloatingPointRange(from_value=spec.bounds[0], to_value=spec.bounds[1])]
    return descriptor


def declare_parameters(node: Node) -> dict[str, str]:
    """Declare all parameters; return name -> error of those whose given value cannot be taken.

    Such a parameter holds its default, and stands in the result until it is set to something valid, so that the
    node can refuse to run with a value nobody asked for, and yet lives to be told a better one.
    """
    errors: dict[str, str] = {}
    for name, value in _given(node).items():
        node._parameter_overrides[name] = as_declared(Parameter(name, value=value))
    for spec in PARAMETERS:
        descriptor = _descriptor(spec)
        try:
            node.declare_parameter(spec.name, spec.default, descriptor)
        except (InvalidParameterValueException, InvalidParameterTypeException) as error:
            node.declare_parameter(spec.name, spec.default, descriptor, ignore_override=True)
            errors[spec.name] = f"parameter {spec.name}: {error}"
    return errors


def _given(node: Node) -> dict[str, Any]:
    """Return name -> value of the parameters that were given at the start, except those of rclpy itself."""
    own = ("qos_overrides.", "use_sim_time", "start_type_description_service")
    return {name: p.value for name, p in node._parameter_overrides.items() if not name.startswith(own)}


def unknown_parameters(node: Node) -> list[str]:
    """Return a sentence for each parameter that was given at the start and that the node does not have."""
    known = [spec.name for spec in PARAMETERS]
    sentences = []
    for name in sorted(set(_given(node)) - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        sentences.append(f"there is no parameter {name}; {hint}")
    return sentences


def as_declared(parameter: Parameter) -> Parameter:
    """Return a parameter with a whole number turned into a double where the node has a double."""
    doubles = (spec.name for spec in PARAMETERS if isinstance(spec.default, float))
    if parameter.type_ == Parameter.Type.INTEGER and parameter.name in doubles:
        return Parameter(parameter.name, value=float(parameter.value))
    return parameter


def refusal(parameter: Parameter, unconfigured: bool) -> str:
    """Return why a parameter may not be set; empty if it may.

    unconfigured: whether that is the node's state, in which all may be set.
    """
    if isinstance(parameter.value, float) and not math.isfinite(parameter.value):  # ranges let it pass
        return f"{parameter.name} is {parameter.value}, no number"
    if not unconfigured and any(spec.name == parameter.name and not spec.live for spec in PARAMETERS):
        return f"{parameter.name} is read when the node is configured; deactivate and clean it up first"
    return ""


def synchronizer_settings(node: Node) -> SynchronizerSettings:
    """Read the parameters of the synchronizer; raises UserError for combinations that make no sense."""
    get = _getter(node)
    check_camera_names(get("cameras"))
    return SynchronizerSettings(
        cameras=tuple(get("cameras")),
        anchor=get("anchor_camera"),
        max_stamp_difference=get("max_stamp_difference"),
        camera_timeout=get("camera_timeout"),
        tf_timeout=get("tf_timeout"),
        base_frame=get("base_frame"),
        fixed_frame=get("fixed_frame"),
        base_height=get("base_height"),
        camera_frames=camera_frames(filter(None, get("camera_frames"))),
        rectified=tuple(filter(None, get("rectified"))),
    )


def pipeline_settings(node: Node) -> PipelineSettings:
    """Read the parameters of the pipeline."""
    get = _getter(node)
    return PipelineSettings(
        score_threshold=get("score_threshold"),
        max_detections=get("max_detections"),
        memory_interval=get("memory_interval"),
        tracker=get("tracker"),
        nms=get("nms"),
        precision=get("precision"),
        engine=get("engine"),
        image_fit=get("image_fit"),
    )


def variants(node: Node) -> list[tuple[str, Path | None]]:
    """Return what is to run, one or two: (variant, checkpoint or None); raises ConfigError where a variant is missing.

    A checkpoint of None stands for the weights that are shipped.
    """
    get = _getter(node)
    given: list[tuple[str, Path | None]] = []
    for prefix in ("", "occupancy_"):
        variant, checkpoint = get(f"{prefix}variant"), get(f"{prefix}checkpoint")
        if checkpoint and not variant:
            raise ConfigError(f"{prefix}checkpoint is {checkpoint}; name its variant in '{prefix}variant' as well")
        if variant:
            given.append((variant, Path(checkpoint) if checkpoint else None))
    if not given:
        raise ConfigError(
            f"no variant is set; name one in the parameter 'variant' (`{command('variants')}` lists them)"
        )
    return given


def costmap_settings(node: Node, changes: Sequence[Parameter] = ()) -> CostmapSettings:
    """Read the parameters of the costmap, as they would be with `changes`; raises UserError."""
    new = {parameter.name: parameter.value for parameter in changes}
    get = _getter(node)

    def value(name: str) -> Any:
        return new.get(name, get(name))

    return CostmapSettings(
        min_height=value("costmap_min_height"),
        max_height=value("costmap_max_height"),
        free_classes=tuple(value("costmap_free_classes")),
    )


def _getter(node: Node) -> Any:
    return lambda name: node.get_parameter(name).value
