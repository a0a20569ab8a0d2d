"""Counts of results, drops and resets with their causes, and timings, for logs and diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

#: states of a camera
OK, LATE, SILENT, NO_CALIBRATION, REFUSED, CLOCK_OFF = (
    "ok",
    "late",
    "silent",
    "no calibration",
    "refused",
    "clock off",
)
#: s of wall clock without an image until a camera is silent
SILENCE = 2.0
#: s that a condition must stay away to be over
OVER = 5.0
#: s after which a lasting condition, or one that comes back, is logged again with its count
REMINDER = 60.0


class CameraState(NamedTuple):
    """How a camera does.

    state: one of OK, LATE, SILENT, NO_CALIBRATION, REFUSED and CLOCK_OFF.
    reason: a sentence; empty if it is OK.
    """

    state: str
    reason: str = ""


@dataclass(frozen=True)
class HealthSnapshot:
    """A consistent copy of a Health.

    frames: number of results.
    rate: results per second of wall clock over the last RATE_WINDOW seconds.
    idle: seconds since the last result, or since the start.
    drops: cause -> number of drops.
    resets: cause -> number of resets of the memory.
    notices: cause -> number of things that cost nothing yet.
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
    notices: dict[str, int]
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
        self._notices: Counter[str] = Counter()
        self._conditions: dict[tuple[str, str], _Condition] = {}
        self._came: dict[str, float] = {}  # camera -> time of its last image
        self._judged: dict[str, dict[str, CameraState]] = {}  # camera -> by whom -> state

    def drop(self, cause: str, message: str, about: str = "") -> None:
        """Count something that was lost.

        cause: short and fixed; drops are counted by it.
        message: the details.
        about: what it happens to, such as a camera; the log tells the conditions of each apart.
        """
        with self._lock:
            self._count_drop(cause, message, about)

    def notice(self, cause: str, message: str, about: str = "") -> None:
        """Count and log something that costs nothing yet; the arguments are those of drop()."""
        with self._lock:
            self._notices[cause] += 1
            self._note(cause, message, about)

    def image_came(self, camera: str) -> None:
        """Note that a camera has sent something."""
        with self._lock:
            self._came[camera] = time.monotonic()

    def judge(self, camera: str, by: str, state: str, reason: str = "") -> None:
        """Note the state of a camera.

        by: whose judgement it replaces.
        state: see CameraState.
        reason: see CameraState.
        """
        with self._lock:
            self._judged.setdefault(camera, {})[by] = CameraState(state, reason)

    def camera_state(self, camera: str) -> CameraState:
        """Return the state of a camera; where there are several judgements, the first that is not OK."""
        with self._lock:
            quiet = time.monotonic() - self._came.get(camera, self._started)
            if camera not in self._came:
                return CameraState(SILENT, "no image has come")
            if quiet > SILENCE:
                return CameraState(SILENT, f"no image for {quiet:.1f} s")
            states = self._judged.get(camera, {}).values()
            return next((state for state in states if state.state != OK), CameraState(OK))

    def forget_cameras(self) -> None:
        """Forget the states of all cameras, as when the node is activated again."""
        with self._lock:
            self._came.clear()
            self._judged.clear()

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

    def _count_drop(self, cause: str, message: str, about: str = "") -> None:
        self._drops[cause] += 1
        self._last_drop = f"{cause}: {message}"
        self._note(cause, message, about)

    def _note(self, cause: str, message: str, about: str = "") -> None:
        condition = self._conditions.setdefault((cause, about), _Condition(time.monotonic()))
        condition.message, condition.last = message, time.monotonic()
        condition.count += 1

    def reset(self, cause: str, message: str) -> None:
        """Count a reset of the memory.

        cause: short and fixed; resets are counted by it.
        message: the details.
        """
        with self._lock:
            self._resets[cause] += 1
            self._last_reset = f"{cause}: {message}"
            self._note(f"memory wiped: {cause}", message)

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
        """Return the lines to log: one where a condition begins, one where it ends, and now and then one between.

        A condition is a cause of drops, notices or resets, and what it happens to.
        """
        now, news = time.monotonic(), []
        with self._lock:
            for (cause, about), condition in list(self._conditions.items()):
                news += condition.news(cause, about, now)
                if condition.is_past(now):
                    del self._conditions[cause, about]
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
                notices=dict(self._notices),
                last_drop=self._last_drop,
                last_reset=self._last_reset,
                failures=self._failures,
                failure=self._failure,
                timings={stage: (float(p[0]), float(p[1])) for stage, p in timings.items()},
            )


class _Condition:
    """Something that happens again and again, from its first time until it has stayed away for OVER seconds.

    If it comes back within REMINDER seconds of its last line, it wavers: it is the same condition and has a line every
    REMINDER seconds at most, also for its end.
    """

    def __init__(self, now: float) -> None:
        self.began = self.last = now
        self.message = ""
        self.count = 0
        self._logged: tuple[float, int] | None = None  # when, and the count then
        self._over = self._wavers = self._reminded = False

    def news(self, cause: str, about: str, now: float) -> list[str]:
        """Return what is to be logged of it now: nothing, or a line."""
        quiet = now - self.last >= OVER
        if self._logged is None:
            line = f"{cause}: {self.message}" + (f" ({self.count} times)" if self.count > 1 else "")
            self._logged = (now, self.count)
            return [line]
        when, count = self._logged
        if self._over:
            self._over, self._wavers = self.count == count, self.count > count
        if self._over or (self._wavers and now - when < REMINDER):
            return []
        if quiet:
            self._over = True
            if self.count == count and not self._reminded:
                return []  # its one line has told all
            whose = f" ({about})" if about else ""
            line = f"{cause}{whose}: over after {self.last - self.began:.1f} s, {self.count} times"
        elif self.count > count and now - when >= REMINDER:
            self._reminded = True
            line = f"{cause}: {self.message} ({self.count} times in {now - self.began:.0f} s)"
        else:
            return []
        self._logged = (now, self.count)
        return [line]

    def is_past(self, now: float) -> bool:
        """Return whether it is over for so long that it would have a new line if it came back."""
        return self._over and self._logged is not None and now - self._logged[0] >= REMINDER


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
