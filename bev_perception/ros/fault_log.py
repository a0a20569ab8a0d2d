"""Logging of unexpected errors at a bounded rate."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable

#: s between two log lines about the same kind of error
REPEAT_PERIOD = 10.0


class FaultLog:
    """Logs unexpected errors without flooding the log; safe to use from several threads.

    The first error of a kind is logged with its traceback. Later ones are counted, and logged as one line every
    REPEAT_PERIOD seconds at most. A kind is the error's type and the line that raised it.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        """Start with no error seen.

        log: called with each text to log.
        """
        self._log = log
        self._lock = threading.Lock()
        self._kinds: dict[tuple[type, str, int], tuple[float, int]] = {}  # kind -> (last logged at, count since then)

    def record(self, error: Exception) -> None:
        """Log or count one error."""
        kind, now = _kind(error), time.monotonic()
        with self._lock:
            first = kind not in self._kinds
            logged, count = self._kinds.get(kind, (-math.inf, 0))
            due = now - logged >= REPEAT_PERIOD
            self._kinds[kind] = (now, 0) if due else (logged, count + 1)
        if first:
            self._log("".join(traceback.format_exception(error)))
        elif due:
            self._log(f"{type(error).__name__}: {error} ({count + 1} times since it was last logged)")


def _kind(error: Exception) -> tuple[type, str, int]:
    """Return the error's type, and the file and line number that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error), "", 0
    return type(error), trace.tb_frame.f_code.co_filename, trace.tb_lineno
