"""What SIGINT and SIGTERM do to the ROS executables; imports next to nothing, so that it is in force early."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn


def end_by(handler: Callable[..., Any]) -> None:
    """Call `handler` on SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def raise_exit(*_: Any) -> None:
    """End the process with status 0 by SystemExit; a signal handler.

    KeyboardInterrupt would not do: if it passes through an exec() of a string, Python kills itself with SIGINT at exit
    even though it was caught.
    """
    raise SystemExit(0)


def leave(status: int = 0) -> NoReturn:
    """End the process at once, without taking Python down: with torch and rclpy loaded, that takes long."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a reader that is gone must not keep the process
            continue
    os._exit(status)


def leave_on_signal(*_: Any) -> NoReturn:
    """End the process with status 0 at once; a signal handler.

    Nothing is raised: in a callback, such as those of the import system, that would be printed and lost.
    """
    leave()
