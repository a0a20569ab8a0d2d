"""Let Nav2's lifecycle manager configure and activate the perception node: an example, to copy into your own bringup.

The arguments of perception.launch.py are accepted too, except `autostart`, which is the manager's here. It is a manager
of its own: the node keeps no bond, so the manager waits for none (bond_timeout 0), and Nav2's own manager keeps those
of its servers. The node answers while it loads its weights; until then its state is `configuring`.
"""

from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from bev_perception.ros.launching import truth
from bev_perception.strict import UserError

ARGUMENTS = [
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and of its manager."),
    DeclareLaunchArgument("use_sim_time", default_value="", description="Take the time from /clock: true or false."),
]


def manage(context: LaunchContext) -> list[Node]:
    """Return the manager, once the arguments are known."""
    argument = {a.name: LaunchConfiguration(a.name).perform(context) for a in ARGUMENTS}
    try:
        get_package_prefix("nav2_lifecycle_manager")
    except PackageNotFoundError as error:
        raise UserError(
            "nav2_lifecycle_manager is not installed; install ros-$ROS_DISTRO-nav2-lifecycle-manager, or use "
            "perception.launch.py, where the node activates itself"
        ) from error
    parameters = {
        "node_names": ["bev_perception"],
        "autostart": True,
        "bond_timeout": 0.0,  # no bond
        "service_timeout": 120.0,  # s that loading and warming up may take, where the manager limits it
    }
    if argument["use_sim_time"]:
        parameters["use_sim_time"] = truth("use_sim_time", argument["use_sim_time"])
    return [
        Node(
            package="nav2_lifecycle_manager",
            executable="lifecycle_manager",
            name="lifecycle_manager_perception",
            namespace=argument["namespace"],
            parameters=[parameters],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Start the node, which waits, and the manager."""
    perception = IncludeLaunchDescription(
        str(Path(__file__).with_name("perception.launch.py")), launch_arguments={"autostart": "false"}.items()
    )
    return LaunchDescription([*ARGUMENTS, perception, OpaqueFunction(function=manage)])
