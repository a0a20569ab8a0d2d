"""Start the perception node, and RViz on request.

An empty argument leaves the value of params_file in force. camera_namespace and image_topic connect the node to the
topics of a camera driver: with `camera_namespace:=/sensing image_topic:=image_raw` it subscribes to
/sensing/cam_front/image_raw (or, with image_transport:=compressed, /sensing/cam_front/image_raw/compressed) and
/sensing/cam_front/camera_info.
"""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bev_perception.ros.launching import (
    cameras_of,
    file_parameters,
    full_name,
    given_parameters,
    input_topics,
    truth,
)
from bev_perception.ros.viewers import Viewed, write_viewers
from bev_perception.strict import UserError

CONFIG = Path(__file__).parents[1] / "config"
NODE = "bev_perception"

ARGUMENTS = [
    DeclareLaunchArgument("variant", default_value="", description="Name of a model variant in config/models."),
    DeclareLaunchArgument(
        "checkpoint", default_value="", description="Path of the variant's weights; empty: those that are shipped."
    ),
    DeclareLaunchArgument(
        "occupancy_variant",
        default_value="",
        description="Name of a variant that gives occupancy, to run beside one that detects.",
    ),
    DeclareLaunchArgument(
        "occupancy_checkpoint", default_value="", description="Path of its weights; empty: those that are shipped."
    ),
    DeclareLaunchArgument(
        "cameras", default_value="", description='Camera names as a YAML list, such as "[cam_front, cam_back]".'
    ),
    DeclareLaunchArgument("image_transport", default_value="", description="raw or compressed."),
    DeclareLaunchArgument(
        "camera_namespace",
        default_value="",
        description="Where the cameras' topics are: / for /cam_front/..., /sensing for /sensing/cam_front/...; "
        "empty leaves them at ~/input/<camera>/image and ~/input/<camera>/camera_info.",
    ),
    DeclareLaunchArgument(
        "image_topic",
        default_value="image_raw",
        description="Topic of the unrectified images, which K and D belong to, below <camera_namespace>/<camera>/.",
    ),
    DeclareLaunchArgument(
        "camera_info_topic",
        default_value="",
        description="Topic of their camera_info, below <camera_namespace>/<camera>/; empty: beside image_topic.",
    ),
    DeclareLaunchArgument("tf_topic", default_value="", description="In place of /tf, such as tf below a namespace."),
    DeclareLaunchArgument("tf_static_topic", default_value="", description="In place of /tf_static."),
    DeclareLaunchArgument("device", default_value="", description="auto, cpu, or cuda:N."),
    DeclareLaunchArgument("precision", default_value="", description="fp32, tf32, bf16 or fp16."),
    DeclareLaunchArgument(
        "engine",
        default_value="",
        description="What computes backbone and neck: eager, compile, onnxruntime, openvino or tensorrt.",
    ),
    DeclareLaunchArgument("image_fit", default_value="", description="as_trained, horizon or virtual."),
    DeclareLaunchArgument("autostart", default_value="", description="Configure and activate at once: true or false."),
    DeclareLaunchArgument("base_frame", default_value="", description="tf frame of the vehicle."),
    DeclareLaunchArgument("base_height", default_value="", description="m, of base_frame above the ground."),
    DeclareLaunchArgument("fixed_frame", default_value="", description="tf frame of the world."),
    DeclareLaunchArgument("score_threshold", default_value="", description="Boxes below it are not published."),
    DeclareLaunchArgument("max_detections", default_value="", description="At most so many boxes are published."),
    DeclareLaunchArgument("tf_timeout", default_value="", description="s that images wait for tf."),
    DeclareLaunchArgument("log_level", default_value="", description="debug, info, warn, error or fatal."),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
    DeclareLaunchArgument(
        "params_file", default_value=str(CONFIG / "perception.param.yaml"), description="The node's parameters."
    ),
    DeclareLaunchArgument(
        "rviz", default_value="false", description="Start RViz too: true, false, or auto (where it is installed)."
    ),
    DeclareLaunchArgument(
        "viewer_folder",
        default_value="",
        description="Where the files for RViz and Foxglove are written that fit these cameras, topics and frames; "
        "empty: a temporary folder, if RViz is started.",
    ),
    DeclareLaunchArgument("use_sim_time", default_value="", description="Take the time from /clock: true or false."),
]


def start(context: LaunchContext) -> list[Any]:
    """Return the nodes to start, once the arguments are known."""
    argument = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    given = given_parameters(argument)
    name = full_name(argument["namespace"], NODE)
    settings = file_parameters(Path(argument["params_file"]), name) | given
    inputs = {}
    if argument["camera_namespace"]:
        inputs = input_topics(
            cameras_of(settings, argument["params_file"]),
            argument["camera_namespace"],
            argument["image_topic"],
            argument["camera_info_topic"],
        )
    remappings = [(f"~/{private}", topic) for private, topic in inputs.items()]
    for topic in ("tf", "tf_static"):
        if argument[f"{topic}_topic"]:
            remappings.append((f"/{topic}", argument[f"{topic}_topic"]))
    level = argument["log_level"]
    node = Node(
        package="bev_perception",
        executable="perception_node",
        name=NODE,
        namespace=argument["namespace"],
        parameters=[argument["params_file"], given],
        remappings=remappings,
        **({"ros_arguments": ["--log-level", level]} if level else {}),
        output="screen",
    )
    return [node, *viewers(argument, settings, inputs, name)]


def viewers(argument: dict[str, str], settings: dict[str, Any], inputs: dict[str, str], node: str) -> list[Any]:
    """Write the files for RViz and Foxglove if they are wanted, and return RViz if it is."""
    wanted, missing = wants_rviz(argument["rviz"])
    actions: list[Any] = [LogInfo(msg=missing)] if missing else []
    if not (wanted or argument["viewer_folder"]):
        return actions
    shipped = file_parameters(CONFIG / "perception.param.yaml", f"/{NODE}")
    values = shipped | settings
    viewed = Viewed(
        cameras_of(values, argument["params_file"]), values["image_transport"], values["base_frame"], node, inputs
    )
    folder = Path(argument["viewer_folder"] or mkdtemp(prefix="bev_perception_viewers_"))
    rviz_file, foxglove_file = write_viewers(folder, viewed, CONFIG)
    actions.append(LogInfo(msg=f"a layout for Foxglove is in {foxglove_file}, a configuration of RViz in {rviz_file}"))
    if wanted:
        time = {"use_sim_time": settings["use_sim_time"]} if "use_sim_time" in settings else {}
        remappings = [(f"/{t}", argument[f"{t}_topic"]) for t in ("tf", "tf_static") if argument[f"{t}_topic"]]
        actions.append(
            Node(
                package="rviz2",
                executable="rviz2",
                arguments=["-d", str(rviz_file)],
                parameters=[time],
                remappings=remappings,
            )
        )
    return actions


def wants_rviz(text: str) -> tuple[bool, str]:
    """Return whether to start RViz, and a sentence where `auto` does without it because it is not installed.

    Raises UserError if it is wanted, but is not installed.
    """
    auto = text.strip().lower() == "auto"
    if not auto and not truth("rviz", text):
        return False, ""
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError as error:
        remedy = "install ros-$ROS_DISTRO-rviz2 to see the results in it"
        if auto:
            return False, f"rviz2 is not installed and is not started; {remedy}"
        raise UserError(f"rviz:={text}, but rviz2 is not installed; {remedy}, or leave rviz out") from error
    return True, ""


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then start the nodes."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
