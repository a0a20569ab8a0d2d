"""The worker: what a frame that fails costs, and what is said of it."""

import threading
import time

import pytest

from bev_perception.health import Health
from bev_perception.ros.worker import BREAKDOWN, Worker
from bev_perception.types import FrameError

pytestmark = pytest.mark.timeout(30)


class Planted:
    """A pipeline that does what each frame is: an exception is raised, an event awaited, all else is the result."""

    def __init__(self, health):
        self.health = health

    def step(self, frame):
        if isinstance(frame, FrameError):
            self.health.fail("not finite", str(frame))
        if isinstance(frame, Exception):
            raise frame
        if isinstance(frame, threading.Event):
            frame.wait(10)
        self.health.frame_done()
        return frame


class Bench:
    """A worker on a planted pipeline, and what comes out of it."""

    def __init__(self):
        self.health, self.published, self.logged, self.breakdowns = Health(), [], [], []
        self.worker = Worker(
            Planted(self.health), self.health, self.publish, self.logged.append, lambda: self.breakdowns.append(1)
        )

    def publish(self, result, frame):
        if result == "unpublishable":
            raise OSError("no room")
        self.published.append(result)

    def feed(self, *frames):
        for frame in frames:
            self.worker.put(frame)
            while self.worker.busy:
                time.sleep(0.001)


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.worker.stop()


def test_a_frame_error_costs_the_frame_and_is_counted_once(bench):
    bench.feed("a", FrameError("NaN"), "b")
    assert bench.published == ["a", "b"]
    assert bench.health.snapshot().drops == {"not finite": 1}
    assert not bench.logged


def test_any_other_error_is_a_model_error_with_one_traceback(bench):
    bench.feed(RuntimeError("out of memory"), RuntimeError("out of memory"))
    snapshot = bench.health.snapshot()
    assert snapshot.drops == {"model error": 2} and snapshot.failures == 2
    assert snapshot.failure == "model error: RuntimeError: out of memory"
    assert len(bench.logged) == 1 and "Traceback" in bench.logged[0] and "out of memory" in bench.logged[0]
    bench.feed(ValueError("another"))
    assert len(bench.logged) == 2 and "another" in bench.logged[1]
    bench.feed("a")
    assert bench.published == ["a"] and bench.health.snapshot().failures == 0


def test_what_cannot_be_published_is_no_error_of_the_model(bench):
    bench.feed("unpublishable", "a")
    assert bench.health.snapshot().drops == {"publish error": 1}
    assert bench.published == ["a"]


def test_ten_unexpected_errors_in_a_row_are_a_breakdown(bench):
    bench.feed(*[RuntimeError("lost")] * (BREAKDOWN - 1))
    assert not bench.breakdowns and not bench.worker.breakdown
    bench.feed(FrameError("says nothing of the device"))
    bench.feed(RuntimeError("lost for good"))
    assert bench.breakdowns == [1]
    assert "10 unexpected errors in a row" in bench.worker.breakdown and "lost for good" in bench.worker.breakdown


def test_one_success_ends_the_row(bench):
    bench.feed(*[RuntimeError("lost")] * (BREAKDOWN - 1), "a", RuntimeError("lost"))
    assert not bench.breakdowns and not bench.worker.breakdown


def test_frame_errors_are_no_breakdown(bench):
    bench.feed(*[FrameError("NaN")] * (BREAKDOWN + 1))
    assert not bench.breakdowns and bench.health.snapshot().failures == BREAKDOWN + 1


def test_results_that_never_can_be_published_are_a_breakdown(bench):
    bench.feed(*["unpublishable"] * BREAKDOWN)
    assert bench.breakdowns == [1] and "no room" in bench.worker.breakdown


def test_it_tells_for_how_long_it_has_been_working(bench):
    assert bench.worker.working_for == 0
    release = threading.Event()
    bench.worker.put(release)
    time.sleep(0.2)
    assert 0.1 < bench.worker.working_for < 5
    release.set()
    bench.feed("a")
    assert bench.worker.working_for == 0
