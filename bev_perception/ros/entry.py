"""What the ROS executables do before their imports, which take seconds."""

from __future__ import annotations

import ctypes
import logging
import signal
from typing import Any

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def prepare_process() -> None:
    """Have SIGINT and SIGTERM end the process cleanly from now on, and make the ROS messages importable.

    A KeyboardInterrupt would not do: where it passes an exec() of a string, as in torch's imports, Python kills itself
    at the end although it was caught.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    _keep_memory_together()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    from bev_perception.ros.interfaces import ensure_interfaces
    from bev_perception.ros.rosidl_build import InterfaceBuildError

    try:
        ensure_interfaces()
    except InterfaceBuildError as error:
        logging.getLogger("bev_perception").error("%s", error)
        raise SystemExit(1) from error


def _keep_memory_together() -> None:
    """Have glibc serve all threads from one heap, large buffers too.

    By default every thread has heaps of its own, and buffers of megabytes that live for seconds (the remembered
    features) between others that live for milliseconds break them up: the process grows for thousands of frames.
    Mapping each large buffer apart would cure that as well, but made every frame clearly slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; elsewhere there is nothing to set
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


def _end(*_: Any) -> None:
    raise SystemExit(0)
