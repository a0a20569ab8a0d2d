"""Tracebacks of unexpected errors, each kind once."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable

#: s that a kind of error must stay away to be logged again
QUIET = 60.0


class FaultLog:
    """Logs unexpected errors without flooding the log; safe to use from several threads.

    The first error of a kind is logged with its traceback. Those that follow are not: whoever records them counts them
    in Health, too, which says how often they come and when they are over. A kind is the error's type and the line that
    raised it.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        """Start with no error seen.

        log: called with each text to log.
        """
        self._log = log
        self._lock = threading.Lock()
        self._last: dict[tuple[type, str, int], float] = {}  # kind -> when it came last

    def record(self, error: Exception) -> None:
        """Log an error unless its kind has come within QUIET seconds."""
        kind, now = _kind(error), time.monotonic()
        with self._lock:
            before, self._last[kind] = self._last.get(kind, -math.inf), now
        if now - before >= QUIET:
            self._log("".join(traceback.format_exception(error)))


def _kind(error: Exception) -> tuple[type, str, int]:
    """Return the error's type, and the file and line number that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error), "", 0
    return type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno
