import itertools
import threading

import pytest

from bev_perception.health import OVER, Health, Stopwatch


def test_counts_causes_and_percentiles():
    health = Health()
    health.drop("late image", "cam_back: too late")
    health.drop("late image", "cam_front: too late")
    health.reset("gap", "3 s")
    for ms in range(1, 101):
        health.time("model", ms / 1000)
    health.frame_done()
    snapshot = health.snapshot()
    assert snapshot.drops == {"late image": 2} and snapshot.resets == {"gap": 1}
    assert snapshot.last_drop == "late image: cam_front: too late" and snapshot.last_reset == "gap: 3 s"
    assert abs(snapshot.timings["model"][0] - 0.0505) < 1e-6 and abs(snapshot.timings["model"][1] - 0.09505) < 1e-6
    assert snapshot.frames == 1 and snapshot.rate == 1 and 0 <= snapshot.idle < 1
    assert health.drain_news() == ["late image: cam_front: too late (2 times)", "memory wiped: gap: 3 s"]
    assert health.drain_news() == []


def test_rate_and_bounds_under_a_flood_from_two_threads():
    health = Health()

    def flood():
        for _ in range(2000):
            health.drop("flood", "x")
            health.time("model", 0.1)
            health.frame_done()

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert health.snapshot().drops["flood"] == 4000
    assert health.snapshot().frames == 4000 and health.snapshot().rate > 0
    assert health.drain_news() == ["flood: x (4000 times)"]
    assert len(health._timings["model"]) == Health.WINDOW


def test_stopwatch():
    watch = Stopwatch()
    with watch.stage("a"):
        pass
    assert 0 <= watch.seconds["a"] < 1


def test_failures_count_in_a_row_until_the_next_result():
    health = Health()
    health.drop("model busy", "no failure of a frame")
    assert health.snapshot().failures == 0
    for k in range(3):
        health.fail("model error", f"attempt {k}")
    snapshot = health.snapshot()
    assert (snapshot.failures, snapshot.failure) == (3, "model error: attempt 2")
    assert snapshot.drops == {"model busy": 1, "model error": 3}
    health.frame_done()
    assert (health.snapshot().failures, health.snapshot().failure) == (0, "")


def test_failures_that_are_past_can_be_forgotten():
    health = Health()
    health.fail("model error", "out of memory")
    health.forget_failures()
    snapshot = health.snapshot()
    assert (snapshot.failures, snapshot.failure, snapshot.drops) == (0, "", {"model error": 1})


def test_resets_of_one_cause_are_one_line_of_news():
    health = Health()
    for _ in range(100):
        health.reset("pose jump", "9 m")
    health.reset("gap", "3 s")
    assert health.drain_news() == ["memory wiped: pose jump: 9 m (100 times)", "memory wiped: gap: 3 s"]
    assert health.drain_news() == []


def test_a_row_may_be_longer_than_the_results_tell():
    """A result that cannot be published has ended the pipeline's row, and yet nothing came out."""
    health = Health()
    for k in range(1, 4):
        health.frame_done()
        health.fail("publish error", "no", in_a_row=k)
    assert health.snapshot().failures == 3


def test_a_condition_is_one_line_when_it_begins_and_one_when_it_is_over(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bev_perception.health.time.monotonic", lambda: now[0])
    health, lines = Health(), []
    for _ in range(40):
        health.drop("missing view", "cam_back: no image arrived in time", "cam_back")
        lines += health.drain_news()
        now[0] += 1
    assert lines == ["missing view: cam_back: no image arrived in time"]
    health.drop("missing view", "cam_front: truncated", "cam_front")
    assert health.drain_news() == ["missing view: cam_front: truncated"]
    now[0] += OVER
    assert health.drain_news() == ["missing view (cam_back): over after 39.0 s, 40 times"]
    now[0] += 100
    assert health.drain_news() == [] and not health._conditions
    for _ in range(70):
        health.reset("gap", "3 s")
        lines += health.drain_news()
        now[0] += 1
    assert lines[1:] == ["memory wiped: gap: 3 s", "memory wiped: gap: 3 s (61 times in 60 s)"]


def lines_of(monkeypatch, seconds, happens):
    """The lines, with their seconds, of a condition that happens in the seconds that `happens` tells."""
    now = [0.0]
    monkeypatch.setattr("bev_perception.health.time.monotonic", lambda: now[0])
    health, lines = Health(), []
    for second in range(seconds):
        now[0] = second
        if happens(second):
            health.drop("late image", "cam_back: too late", "cam_back")
        lines += [(second, line) for line in health.drain_news()]
    return lines


@pytest.mark.parametrize("gap", [1, 4, 6, 20, 59])
def test_what_never_ends_is_a_line_a_minute(monkeypatch, gap):
    """Also if it stays away for so long each time that it seems to be over."""
    lines = lines_of(monkeypatch, 3600, lambda second: second % gap == 0)
    assert 30 <= len(lines) <= 61
    assert all(second - before >= 59 for (before, _), (second, _) in itertools.pairwise(lines[1:]))
    assert lines[-1][1].endswith(" s)") and " times in " in lines[-1][1]


@pytest.mark.parametrize("lasts", [20, 61, 200])
def test_the_end_is_told_however_long_it_lasted(monkeypatch, lasts):
    lines = lines_of(monkeypatch, 400, lambda second: second < lasts)
    assert lines[0] == (0, "late image: cam_back: too late")
    end = f"late image (cam_back): over after {lasts - 1:.1f} s, {lasts} times"
    assert lines[-1] == (lasts - 1 + OVER, end) and len(lines) == 2 + (lasts - 1) // 60


def test_notices_are_no_drops():
    health = Health()
    health.notice("tf is late", "by 0.4 s")
    assert health.snapshot().drops == {} and health.snapshot().notices == {"tf is late": 1}
    assert health.drain_news() == ["tf is late: by 0.4 s"]


def test_a_camera_that_stops_sending_is_silent(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bev_perception.health.time.monotonic", lambda: now[0])
    health = Health()
    assert health.camera_state("cam") == ("silent", "no image has come")
    health.image_came("cam")
    assert health.camera_state("cam") == ("ok", "")
    health.judge("cam", "sets", "late", "no image arrived in time")
    health.judge("cam", "model", "ok")
    assert health.camera_state("cam").state == "late"
    now[0] += 3
    assert health.camera_state("cam") == ("silent", "no image for 3.0 s")
