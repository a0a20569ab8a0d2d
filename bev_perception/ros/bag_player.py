"""Entry point of the ROS executable `bag_player`: plays a rosbag2 bag, also where `ros2 bag play` is not installed."""

from __future__ import annotations

from bev_perception.ros.endings import end_by, leave_on_signal


def main(args: list[str] | None = None) -> int:
    """Play the bag of the parameter `bag` until its end, SIGINT or SIGTERM; return the exit status."""
    end_by(leave_on_signal)
    from bev_perception.ros.entry import prepare_process

    prepare_process()
    from bev_perception.ros.player import run_player

    return run_player(args)


if __name__ == "__main__":
    raise SystemExit(main())
