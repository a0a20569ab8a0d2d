"""Preparation of the ROS executables, before imports that take seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from bev_perception.allocation import keep_memory_together

#: s from SIGINT or SIGTERM to the end of the process at the latest; with the wait for results to be withdrawn below 2 s
END_LIMIT = 1.7


def prepare_process() -> None:
    """Handle SIGINT and SIGTERM, set up memory allocation and logging, and make the ROS messages importable.

    Either signal ends the process with status 0 by SystemExit. KeyboardInterrupt would not do: if it passes through an
    exec() of a string, as in torch's imports, Python kills itself with SIGINT at exit even though it was caught.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    end_in_time()
    keep_memory_together()
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


def end_in_time(limit: float = END_LIMIT) -> None:
    """From SIGINT or SIGTERM on, end the process with status 0 after `limit` s if it has not ended by then.

    Python runs signal handlers between two steps of the main thread. That may be seconds away: while a model is loaded
    or computes, or while a frame in progress is waited for. So a thread waits for the byte that the C handler writes.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_end, args=(reading, writing, limit), name="end in time", daemon=True).start()


def _wait_for_end(reading: socket.socket, writing: socket.socket, limit: float) -> None:
    while not {signal.SIGINT, signal.SIGTERM} & set(reading.recv(64)):
        continue
    time.sleep(limit)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)
