"""Inference in a thread of its own, fed through a mailbox that keeps only the newest frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bev_perception.health import Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.sensing.preprocess import NoUsableViewError
from bev_perception.types import Frame, Result


class Worker:
    """Runs the pipeline on the newest frame; callers never wait for it.

    publish(result, frame) is called from the worker's thread; log(message) for errors that are no one's input.
    """

    def __init__(
        self, pipeline: Pipeline, health: Health, publish: Callable[[Result, Frame], None], log: Callable[[str], None]
    ) -> None:
        """Start the thread."""
        self._pipeline = pipeline
        self._health = health
        self._publish = publish
        self._log = log
        self._slot: tuple[Frame, float] | None = None
        self._working = False
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def put(self, frame: Frame) -> None:
        """Leave a frame for the model; one that is still waiting is dropped and counted."""
        with self._changed:
            if self._slot is not None:
                self._health.drop("model busy", "the model is slower than the cameras; the older set gave way")
            self._slot = (frame, time.perf_counter())
            self._changed.notify()

    @property
    def busy(self) -> bool:
        """Whether a frame waits or is being worked on."""
        with self._changed:
            return self._working or self._slot is not None

    def stop(self) -> None:
        """Finish the frame in progress and end the thread; one that waits is dropped and counted."""
        with self._changed:
            self._stopping = True
            if self._slot is not None:
                self._health.drop("stopped", "a set was waiting when the node was deactivated")
            self._changed.notify()
        self._thread.join()

    def _take(self) -> tuple[Frame, float] | None:
        with self._changed:
            self._working = False
            self._changed.wait_for(lambda: self._stopping or self._slot is not None)
            taken, self._slot = self._slot, None
            self._working = not self._stopping
            return None if self._stopping else taken

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            frame, arrived = taken
            started = time.perf_counter()
            try:
                result = self._pipeline.step(frame)
                stepped = time.perf_counter()
                self._publish(result, frame)
            except NoUsableViewError:
                continue  # counted by the pipeline, with the reasons
            except Exception as error:
                # One bad frame, or a GPU out of memory, must not end the node: it is counted, logged and survived.
                self._health.drop("model error", f"{type(error).__name__}: {error}")
                self._log(f"frame at {frame.stamp} ns failed: {type(error).__name__}: {error}")
                continue
            self._health.time("queue", started - arrived)
            self._health.time("publish", time.perf_counter() - stepped)
            self._health.time("total", time.perf_counter() - arrived)
