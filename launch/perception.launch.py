"""Start the perception node, and RViz on request.

An empty argument leaves the value of params_file in force. camera_namespace and image_topic connect the node to the
topics of a camera driver: with `camera_namespace:=/sensing image_topic:=image_raw` it subscribes to
/sensing/cam_front/image_raw (or, with image_transport:=compressed, /sensing/cam_front/image_raw/compressed) and
/sensing/cam_front/camera_info.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

CONFIG = Path(__file__).parents[1] / "config"
NODE = "bev_perception"
OUTPUTS = ("detections", "objects", "markers", "occupancy", "occupancy_points", "costmap", "obstacles")
#: launch arguments that set the node's parameter of the same name: texts, numbers and truths
TEXTS = (
    "variant",
    "checkpoint",
    "occupancy_variant",
    "occupancy_checkpoint",
    "image_transport",
    "device",
    "precision",
    "base_frame",
    "fixed_frame",
)
NUMBERS = ("score_threshold", "max_detections", "tf_timeout")
TRUTHS = ("autostart", "use_sim_time")

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
    DeclareLaunchArgument("autostart", default_value="", description="Configure and activate at once: true or false."),
    DeclareLaunchArgument("base_frame", default_value="", description="tf frame of the vehicle."),
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
    DeclareLaunchArgument("use_sim_time", default_value="", description="Take the time from /clock: true or false."),
]


def start(context: LaunchContext) -> list[Node]:
    """Return the nodes to start, once the arguments are known."""
    argument = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    given = parameters(argument)
    settings = sections(Path(argument["params_file"]))
    use_sim_time = {"use_sim_time": given["use_sim_time"]} if "use_sim_time" in given else {}
    inputs = {}
    if argument["camera_namespace"]:
        cameras = given.get("cameras") or cameras_of(settings, argument["params_file"])
        inputs = input_topics(
            cameras, argument["camera_namespace"], argument["image_topic"], argument["camera_info_topic"]
        )
    remappings = [(f"~/{name}", topic) for name, topic in inputs.items()]
    for topic in ("tf", "tf_static"):
        if argument[f"{topic}_topic"]:
            remappings.append((f"/{topic}", argument[f"{topic}_topic"]))
    level = argument["log_level"]
    nodes = [
        Node(
            package="bev_perception",
            executable="perception_node",
            name=NODE,
            namespace=argument["namespace"],
            parameters=[argument["params_file"], given],
            remappings=remappings,
            **({"ros_arguments": ["--log-level", level]} if level else {}),
            output="screen",
        )
    ]
    if wants_rviz(argument["rviz"]):
        nodes.append(rviz(inputs, argument["namespace"], use_sim_time))
    return nodes


def parameters(argument: dict[str, str]) -> dict[str, Any]:
    """Return the node's parameters that are given as arguments.

    Raises ValueError for a text where a number, a truth or a list is meant.
    """
    given: dict[str, Any] = {name: argument[name] for name in TEXTS if argument[name]}
    for name in NUMBERS:
        if argument[name]:
            given[name] = yaml.safe_load(argument[name])
            if isinstance(given[name], bool) or not isinstance(given[name], (int, float)):
                raise ValueError(f"{name}:={argument[name]} is no number")
    for name in TRUTHS:
        if argument[name]:
            given[name] = truth(name, argument[name])
    if argument["cameras"]:
        given["cameras"] = yaml.safe_load(argument["cameras"])
        if not isinstance(given["cameras"], list):
            raise ValueError(f"cameras:={argument['cameras']} is no list; write cameras:='[front, back]'")
    return given


def truth(name: str, text: str) -> bool:
    """Return what a launch argument says: true, True, 1, yes and on, or the opposites."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError(f"{name}:={text}; write true or false")
    return words[text.lower()]


def wants_rviz(text: str) -> bool:
    """Return whether to start RViz; says so where `auto` does without it because it is not installed."""
    if text.lower() != "auto":
        return truth("rviz", text)
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        print("rviz2 is not installed and is not started; install ros-$ROS_DISTRO-rviz2 to see the results in it")
        return False
    return True


def sections(params_file: Path) -> list[dict[str, Any]]:
    """Return the parameters of every node in a parameter file, which may be nested by namespaces.

    Raises ValueError for a file that is missing or that sets no parameters.
    """
    if not params_file.is_file():
        raise ValueError(f"params_file {params_file} does not exist; give the path of a YAML file of parameters")
    try:
        found = list(_sections(yaml.safe_load(params_file.read_text())))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"params_file {params_file} is no YAML: {error}") from error
    if not found:
        raise ValueError(
            f"params_file {params_file} sets no parameters; write them below a node's name, or /**, and ros__parameters"
        )
    return found


def _sections(values: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(values, dict):
        return
    for name, below in values.items():
        if name == "ros__parameters" and isinstance(below, dict):
            yield below
        else:
            yield from _sections(below)


def cameras_of(settings: list[dict[str, Any]], params_file: str) -> list[str]:
    """Return the camera names in a parameter file.

    Raises ValueError if the file sets none.
    """
    for section in settings:
        if "cameras" in section:
            return section["cameras"]
    raise ValueError(f"{params_file} sets no cameras; add them to it, or give them as cameras:='[front, back]'")


def input_topics(
    cameras: list[str], camera_namespace: str, image_topic: str, camera_info_topic: str = ""
) -> dict[str, str]:
    """Return the driver's topic for each private input topic of the node."""
    topics = {}
    info = camera_info_topic or "/".join([*image_topic.split("/")[:-1], "camera_info"])
    for camera in cameras:
        source = f"{camera_namespace.rstrip('/')}/{camera}"
        topics[f"input/{camera}/image"] = f"{source}/{image_topic}"
        topics[f"input/{camera}/image/compressed"] = f"{source}/{image_topic}/compressed"
        topics[f"input/{camera}/camera_info"] = f"{source}/{info}"
    return topics


def rviz(inputs: dict[str, str], namespace: str, use_sim_time: dict[str, bool]) -> Node:
    """Return RViz, with the topics of its configuration remapped from a node without namespace to this one's."""
    home = "/" + "/".join(part for part in (namespace.strip("/"), NODE) if part)
    topics = {name: f"{home}/{name}" for name in OUTPUTS} | inputs
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(CONFIG / "perception.rviz")],
        parameters=[use_sim_time],
        remappings=[(f"/{NODE}/{name}", topic) for name, topic in topics.items() if topic != f"/{NODE}/{name}"],
    )


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then start the nodes."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=start)])
