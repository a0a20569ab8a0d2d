"""Counts of results, drops and resets with their causes, and timings, for logs and diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class HealthSnapshot:
    """A consistent copy of a Health.

    frames: number of results.
    rate: results per second of wall clock over the last RATE_WINDOW seconds.
    idle: seconds since the last result, or since the start.
    drops: cause -> number of drops.
    resets: cause -> number of resets of the memory.
    last_drop: cause and message of the newest drop, or "".
    last_reset: cause and message of the newest reset, or "".
    failures: number of frames in a row that failed, up to now.
    failure: cause and message of the newest of them, or "".
    timings: stage -> (p50, p95) in seconds over the newest frames.
    """

    frames: int
    rate: float
    idle: float
    drops: dict[str, int]
    resets: dict[str, int]
    last_drop: str
    last_reset: str
    failures: int
    failure: str
    timings: dict[str, tuple[float, float]]


class Health:
    """Counters shared by the synchronizer, the pipeline and the node; safe to use from several threads."""

    WINDOW = 200  # frames that percentiles look back on
    RATE_WINDOW = 10.0  # s

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._lock = threading.Lock()
        self._drops: Counter[str] = Counter()
        self._resets: Counter[str] = Counter()
        self._last_drop = ""
        self._last_reset = ""
        self._failures, self._failure = 0, ""
        self._timings: dict[str, deque[float]] = {}
        self._finished: deque[float] = deque(maxlen=1000)
        self._started = time.monotonic()
        self._frames = 0
        self._new_drops: dict[str, tuple[int, str]] = {}
        self._new_resets: dict[str, tuple[int, str]] = {}

    def drop(self, cause: str, message: str) -> None:
        """Count something that was lost.

        cause: short and fixed; drops are counted by it.
        message: the details.
        """
        with self._lock:
            self._count_drop(cause, message)

    def fail(self, cause: str, message: str, in_a_row: int = 1) -> None:
        """Count a frame that gave no result because of an error. It is counted as a drop, too.

        cause: short and fixed; drops are counted by it.
        message: the details.
        in_a_row: frames that have failed in a row, this one included, if the caller knows of more.
        """
        with self._lock:
            self._count_drop(cause, message)
            self._failures, self._failure = max(self._failures + 1, in_a_row), self._last_drop

    def forget_failures(self) -> None:
        """Start counting failures in a row from zero, as when the node is activated again."""
        with self._lock:
            self._failures, self._failure = 0, ""

    def _count_drop(self, cause: str, message: str) -> None:
        self._drops[cause] += 1
        self._last_drop = f"{cause}: {message}"
        _add_news(self._new_drops, cause, message)

    def reset(self, cause: str, message: str) -> None:
        """Count a reset of the memory.

        cause: short and fixed; resets are counted by it.
        message: the details.
        """
        with self._lock:
            self._resets[cause] += 1
            self._last_reset = f"{cause}: {message}"
            _add_news(self._new_resets, cause, message)

    def time(self, stage: str, seconds: float) -> None:
        """Record how long a stage took for one frame."""
        with self._lock:
            self._timings.setdefault(stage, deque(maxlen=self.WINDOW)).append(seconds)

    def frame_done(self) -> None:
        """Count one result, which ends a row of failures."""
        with self._lock:
            self._frames += 1
            self._failures, self._failure = 0, ""
            self._finished.append(time.monotonic())

    def drain_news(self) -> list[str]:
        """Return the lines to log since the last call: one per cause of drops or resets, with the newest message."""
        with self._lock:
            news = _lines(self._new_drops) + [f"memory wiped: {line}" for line in _lines(self._new_resets)]
            self._new_drops.clear()
            self._new_resets.clear()
        return news

    def snapshot(self) -> HealthSnapshot:
        """Return a consistent copy."""
        with self._lock:
            now = time.monotonic()
            last = self._finished[-1] if self._finished else self._started
            recent = sum(now - done <= self.RATE_WINDOW for done in self._finished)
            timings = {stage: np.percentile(list(t), (50, 95)) for stage, t in self._timings.items()}
            return HealthSnapshot(
                frames=self._frames,
                rate=recent / max(1.0, min(self.RATE_WINDOW, now - self._started)),
                idle=now - last,
                drops=dict(self._drops),
                resets=dict(self._resets),
                last_drop=self._last_drop,
                last_reset=self._last_reset,
                failures=self._failures,
                failure=self._failure,
                timings={stage: (float(p[0]), float(p[1])) for stage, p in timings.items()},
            )


def _add_news(news: dict[str, tuple[int, str]], cause: str, message: str) -> None:
    news[cause] = (news.get(cause, (0, ""))[0] + 1, message)


def _lines(news: dict[str, tuple[int, str]]) -> list[str]:
    return [
        f"{cause}: {message}" + (f" ({count} times)" if count > 1 else "") for cause, (count, message) in news.items()
    ]


class Stopwatch:
    """Times the stages of one frame."""

    def __init__(self) -> None:
        """Start with no stage."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
