"""Preparation of the ROS executables, before imports that take seconds."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time

from bev_perception.allocation import keep_memory_together
from bev_perception.ros.endings import end_by, leave, leave_on_signal, raise_exit

#: s from SIGINT or SIGTERM to the end of the process at the latest; on a loaded machine, the system takes some of 2 s
END_LIMIT = 1.0


def prepare_process() -> None:
    """Handle SIGINT and SIGTERM, set up memory allocation and logging, and make the ROS messages importable.

    Either signal ends the process with status 0: by SystemExit while messages are compiled, so that nothing half made
    is left, and at once after that, while the caller imports what takes seconds.
    """
    end_by(raise_exit)
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
    end_by(leave_on_signal)


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
    leave()
