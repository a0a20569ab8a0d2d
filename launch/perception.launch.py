"""Start the perception node, and RViz on request.

An empty argument leaves the value of params_file in force. camera_namespace and image_topic connect the node to the
topics of a camera driver: with `camera_namespace:=/sensing image_topic:=image_raw` it subscribes to
/sensing/cam_front/image_raw (or, with image_transport:=compressed, /sensing/cam_front/image_raw/compressed) and
/sensing/cam_front/camera_info.
"""

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

CONFIG = Path(__file__).parents[1] / "config"
NODE = "bev_perception"
OUTPUTS = ("detections", "objects", "markers", "occupancy", "occupancy_points", "costmap", "obstacles")
#: launch arguments that set the node's parameter of the same name
GIVEN = ("variant", "checkpoint", "occupancy_variant", "occupancy_checkpoint", "image_transport")

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
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
    DeclareLaunchArgument(
        "params_file", default_value=str(CONFIG / "perception.param.yaml"), description="The node's parameters."
    ),
    DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"], description="Start RViz too."),
    DeclareLaunchArgument(
        "use_sim_time", default_value="", choices=["true", "false", ""], description="Take the time from /clock."
    ),
]


def start(context: LaunchContext) -> list[Node]:
    """Return the nodes to start, once the arguments are known."""
    argument = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    use_sim_time = {"use_sim_time": argument["use_sim_time"] == "true"} if argument["use_sim_time"] else {}
    given = {name: argument[name] for name in GIVEN if argument[name]}
    if argument["cameras"]:
        given["cameras"] = yaml.safe_load(argument["cameras"])
    inputs = {}
    if argument["camera_namespace"]:
        cameras = given.get("cameras") or cameras_of(Path(argument["params_file"]))
        inputs = input_topics(cameras, argument["camera_namespace"], argument["image_topic"])
    nodes = [
        Node(
            package="bev_perception",
            executable="perception_node",
            name=NODE,
            namespace=argument["namespace"],
            parameters=[argument["params_file"], given | use_sim_time],
            remappings=[(f"~/{name}", topic) for name, topic in inputs.items()],
            output="screen",
        )
    ]
    if argument["rviz"] == "true":
        nodes.append(rviz(inputs, argument["namespace"], use_sim_time))
    return nodes


def cameras_of(params_file: Path) -> list[str]:
    """Return the camera names in a parameter file.

    Raises ValueError if the file sets none.
    """
    for section in yaml.safe_load(params_file.read_text()).values():
        if "cameras" in section.get("ros__parameters", {}):
            return section["ros__parameters"]["cameras"]
    raise ValueError(f"{params_file} sets no cameras; add them to it, or give them as cameras:='[front, back]'")


def input_topics(cameras: list[str], camera_namespace: str, image_topic: str) -> dict[str, str]:
    """Return the driver's topic for each private input topic of the node."""
    topics = {}
    for camera in cameras:
        source = f"{camera_namespace.rstrip('/')}/{camera}"
        topics[f"input/{camera}/image"] = f"{source}/{image_topic}"
        topics[f"input/{camera}/image/compressed"] = f"{source}/{image_topic}/compressed"
        topics[f"input/{camera}/camera_info"] = f"{source}/camera_info"
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
