"""Preparation of the ROS executables, before imports that take seconds."""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import threading
import time

from bev_perception.ros.endings import end_by, leave, leave_on_signal, raise_exit

#: s from SIGINT or SIGTERM to the end of the process at the latest; on a loaded machine, the system takes some of 2 s
END_LIMIT = 1.2

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def prepare_process() -> None:
    """Handle SIGINT and SIGTERM, set up memory allocation and logging, and make the ROS messages importable.

    Either signal ends the process with status 0: by SystemExit while messages are compiled, so that nothing half made
    is left, and at once after that, while the caller imports what takes seconds.
    """
    end_by(raise_exit)
    end_in_time()
    _keep_memory_together()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    from bev_perception.ros.interfaces import ensure_interfaces
    from bev_perception.ros.rosidl_build import InterfaceBuildError

    try:
        ensure_interfaces()
    except InterfaceBuildError as error:
        logging.getLogger("bev_perception").error("%s", error)
        raise SystemExit(1) from error
    end_by(leave_on_signal)


def _keep_memory_together() -> None:
    """Make glibc's malloc serve all threads from one heap, large buffers included.

    By default, each thread has its own heap. Large buffers that live for seconds (the remembered features) between
    others that live for milliseconds fragment these heaps, so that the process grows for thousands of frames. Using
    mmap for each large buffer would prevent that as well, but makes every frame clearly slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


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
