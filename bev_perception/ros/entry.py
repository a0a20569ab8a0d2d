"""What the ROS executables do before their imports, which take seconds."""

from __future__ import annotations

import logging
import signal
from typing import Any


def prepare_process() -> None:
    """Have SIGINT and SIGTERM end the process cleanly from now on, and make the ROS messages importable.

    A KeyboardInterrupt would not do: where it passes an exec() of a string, as in torch's imports, Python kills itself
    at the end although it was caught.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    from bev_perception.ros.interfaces import ensure_interfaces
    from bev_perception.ros.rosidl_build import InterfaceBuildError

    try:
        ensure_interfaces()
    except InterfaceBuildError as error:
        logging.getLogger("bev_perception").error("%s", error)
        raise SystemExit(1) from error


def _end(*_: Any) -> None:
    raise SystemExit(0)
