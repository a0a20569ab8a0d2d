"""What SIGINT and SIGTERM do to the ROS executables; imports next to nothing, so that it is in force early."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn


def end_by(handler: Callable[..., Any]) -> None:
    """Call `handler` on SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def raise_exit(*_: Any) -> None:
    """End the process with status 0 by SystemExit; a signal handler. A second signal changes nothing then.

    KeyboardInterrupt would not do: if it passes through an exec() of a string, Python kills itself with SIGINT at exit
    even though it was caught.
    """
    end_by(lambda *_: None)
    raise SystemExit(0)


def run_and_leave(run: Callable[[], int]) -> NoReturn:
    """Call `run` and end the process with the status that it returns, at once, as leave does, however `run` ends.

    SystemExit gives its status; any other exception is printed with its traceback and gives 1.
    """
    status = 1
    try:
        status = run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # the process ends here; Python would take seconds to be taken down, or crash meanwhile
        traceback.print_exc()
    leave(status)


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
