"""Play a bag with camera images, camera_info and tf to the perception node, and show the results in RViz.

The arguments of perception.launch.py are accepted too, except `namespace`: the topics in the bag are those of a node
without a namespace. ROS time comes from the bag (/clock). All ends when the bag ends or cannot be played.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bev_perception.ros.launching import number, truth

ARGUMENTS = [
    DeclareLaunchArgument("bag", description="Directory of the bag."),
    DeclareLaunchArgument("rate", default_value="1.0", description="Speed of the replay; 1.0 is as recorded."),
    DeclareLaunchArgument("loop", default_value="false", description="Start again at the bag's end: true or false."),
    DeclareLaunchArgument(
        "rviz", default_value="auto", description="Start RViz too: true, false, or auto (where it is installed)."
    ),
]


def play(context: LaunchContext) -> list[Node]:
    """Return the bag player, once the arguments are known."""
    argument = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    parameters = {
        "bag": argument["bag"],
        "rate": float(number("rate", argument["rate"])),
        "loop": truth("loop", argument["loop"]),
        # Subscribers of the images do not show that the node is ready: RViz subscribes long before the node has loaded
        # its weights. The node advertises these topics once it has: one of them or both, depending on its variants.
        "wait_for_publisher": "/bev_perception/detections /bev_perception/occupancy",
        "wait_for_subscribers": 120.0,
    }
    return [
        Node(
            package="bev_perception",
            executable="bag_player",
            parameters=[parameters],
            output="screen",
            on_exit=Shutdown(),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Start the node and the bag player; the player waits until the node is ready."""
    perception = IncludeLaunchDescription(
        str(Path(__file__).with_name("perception.launch.py")), launch_arguments={"use_sim_time": "true"}.items()
    )
    return LaunchDescription([*ARGUMENTS, perception, OpaqueFunction(function=play)])
