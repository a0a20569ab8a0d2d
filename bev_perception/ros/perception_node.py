"""Entry point of the ROS executable `perception_node`: detects objects and occupancy in camera images."""

from __future__ import annotations

from typing import NoReturn

from bev_perception.ros.endings import end_by, leave_on_signal, run_and_leave


def main(args: list[str] | None = None) -> NoReturn:
    """Run the perception node until SIGINT or SIGTERM, and end the process with its status."""
    end_by(leave_on_signal)
    from bev_perception.ros.entry import prepare_process

    prepare_process()
    from bev_perception.ros.spin import run_node

    run_and_leave(lambda: run_node(args))


if __name__ == "__main__":
    main()
