"""Unexpected errors in the log: enough to find the cause, and never a flood."""

from bev_perception.ros import fault_log
from bev_perception.ros.fault_log import FaultLog


def error(kind=RuntimeError, text="lost"):
    try:
        raise kind(text)
    except kind as caught:
        return caught


def test_a_flood_is_one_traceback(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(fault_log.time, "monotonic", lambda: now[0])
    lines = []
    log = FaultLog(lines.append)
    for k in range(1000):
        log.record(error(text=f"lost {k}"))  # texts that differ are no other kind
    assert len(lines) == 1 and "Traceback" in lines[0] and "lost 0" in lines[0]
    for _ in range(1000):
        now[0] += 10
        log.record(error())
    assert len(lines) == 1
    now[0] += fault_log.QUIET
    log.record(error(text="lost again"))
    assert len(lines) == 2 and "Traceback" in lines[1] and "lost again" in lines[1]


def test_two_kinds_that_take_turns_are_no_flood():
    lines = []
    log = FaultLog(lines.append)
    for _ in range(100):
        log.record(error(RuntimeError))
        log.record(error(KeyError))
    assert len(lines) == 2 and "KeyError" in lines[1]


def test_the_same_type_from_another_line_is_another_kind():
    lines = []
    log = FaultLog(lines.append)
    log.record(error())
    try:
        raise RuntimeError("elsewhere")
    except RuntimeError as caught:
        log.record(caught)
    assert len(lines) == 2
