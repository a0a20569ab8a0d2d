"""Entry point of the ROS executable `bag_player`: plays a rosbag2 bag, also where `ros2 bag play` is not installed."""

from __future__ import annotations

from typing import NoReturn

from bev_perception.ros.endings import end_by, leave_on_signal, run_and_leave


def main(args: list[str] | None = None) -> NoReturn:
    """Play the bag of the parameter `bag` until its end, SIGINT or SIGTERM, and end the process with its status."""
    end_by(leave_on_signal)
    from bev_perception.ros.entry import prepare_process

    prepare_process()
    from bev_perception.ros.player import run_player

    run_and_leave(lambda: run_player(args))


if __name__ == "__main__":
    main()
