"""Inference in a separate thread, which always takes the newest frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bev_perception.health import Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.ros.fault_log import FaultLog
from bev_perception.types import Frame, FrameError, Result

#: number of unexpected errors in a row that make a breakdown
BREAKDOWN = 10


class Worker:
    """Runs the pipeline on the newest frame in a thread; callers never wait for the model.

    Every error costs one frame. After BREAKDOWN errors in a row other than FrameError, no more results are expected.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        health: Health,
        publish: Callable[[Result, Frame], None],
        log: Callable[[str], None],
        on_breakdown: Callable[[], None],
    ) -> None:
        """Start the thread. It also calls the callbacks.

        pipeline: turns a frame into a result.
        health: counts dropped and failed frames, and records timings.
        publish: called with each result and the frame that it was made from.
        log: called with the text of unexpected errors, at a bounded rate.
        on_breakdown: called when `breakdown` is set.
        """
        self._pipeline = pipeline
        self._health = health
        self._publish = publish
        self._faults = FaultLog(log)
        self._on_breakdown = on_breakdown
        self._errors, self._breakdown = 0, ""
        self._slot: tuple[Frame, float] | None = None
        self._working_since: float | None = None  # of time.perf_counter()
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Hand over a frame; it replaces one that is still waiting, which is dropped and counted."""
        with self._changed:
            if self._slot is not None:
                self._health.drop("model busy", "the model is slower than the cameras; the older set gave way")
            self._slot = (frame, time.perf_counter())
            self._changed.notify()

    @property
    def busy(self) -> bool:
        """Whether a frame is waiting or being processed."""
        with self._changed:
            return self._working_since is not None or self._slot is not None

    @property
    def working_for(self) -> float:
        """Seconds since the frame in progress was started; 0 if there is none."""
        since = self._working_since
        return 0.0 if since is None else time.perf_counter() - since

    @property
    def breakdown(self) -> str:
        """Why no more results are expected; empty while they are."""
        return self._breakdown

    def stop(self, patience: float | None = None) -> bool:
        """Finish the frame in progress and end the thread; a waiting frame is dropped and counted.

        patience: s to wait for the thread; None: until it has ended.

        Return whether it has ended.
        """
        with self._changed:
            self._stopping = True
            if self._slot is not None:
                self._health.drop("stopped", "a set was waiting when the node was deactivated")
            self._changed.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _take(self) -> tuple[Frame, float] | None:
        with self._changed:
            self._working_since = None
            self._changed.wait_for(lambda: self._stopping or self._slot is not None)
            taken, self._slot = self._slot, None
            if self._stopping:
                return None
            self._working_since = time.perf_counter()
            return taken

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            frame, arrived = taken
            started = time.perf_counter()
            try:
                result = self._pipeline.step(frame)
            except FrameError:
                continue  # counted by the pipeline; the next frame may be fine
            except Exception as error:  # for example a GPU out of memory; it must not end the node
                self._fail("model error", error)
                continue
            stepped = time.perf_counter()
            try:
                self._publish(result, frame)
            except Exception as error:  # likewise
                self._fail("publish error", error)
                continue
            self._errors, self._breakdown = 0, ""
            self._health.time("queue", started - arrived)
            self._health.time("publish", time.perf_counter() - stepped)
            self._health.time("total", time.perf_counter() - arrived)

    def _fail(self, cause: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._errors += 1
        self._health.fail(cause, text, self._errors)  # a result that cannot be published has ended the pipeline's row
        self._faults.record(error)
        if self._errors >= BREAKDOWN:
            self._breakdown = f"{self._errors} unexpected errors in a row, the last one: {cause}: {text}"
        if self._errors == BREAKDOWN:
            self._on_breakdown()
