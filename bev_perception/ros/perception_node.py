"""Entry point of the ROS executable `perception_node`: detects objects and occupancy in camera images."""

from __future__ import annotations

from bev_perception.ros.entry import prepare_process


def main(args: list[str] | None = None) -> int:
    """Run the perception node until SIGINT or SIGTERM; return the exit status."""
    prepare_process()
    from bev_perception.ros.spin import run_node

    return run_node(args)


if __name__ == "__main__":
    raise SystemExit(main())
