import queue

import pytest
import torch

from bev_perception.evaluation import gpu_check

CPU = torch.device("cpu")


def told(section):
    """What a section tells, up to the end of it, by item."""
    items = queue.Queue()
    gpu_check._run_section(section, "cpu", True, items)
    found = []
    while (item := items.get_nowait()) is not None:
        found.append(item)
    return dict(found)


def test_ops_are_compared_with_their_references_and_a_wrong_one_is_found(monkeypatch):
    assert [result["ok"] for result in told("ops").values()] == [True, True]
    right = gpu_check.sample_features
    monkeypatch.setattr(gpu_check, "sample_features", lambda *a: 1.1 * right(*a))
    found = told("ops")
    assert not found["sampling"]["ok"] and found["deformable aggregation"]["ok"]


def test_an_item_that_fails_does_not_stop_the_others(monkeypatch):
    def items(device, quick):
        yield "bad", lambda: 1 / 0
        yield "good", lambda: {"ok": True}

    monkeypatch.setitem(gpu_check._SECTIONS, "limits", items)
    found = told("limits")
    assert not found["bad"]["ok"] and "ZeroDivisionError" in found["bad"]["error"] and found["good"]["ok"]


def test_the_report_shows_each_item(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "_in_a_process", lambda name, *_: {f"{name} item": gpu_check._error("a | b")})
    text = gpu_check.gpu_report(tmp_path / "new" / "gpu.json", CPU, quick=True)
    assert "| ops item | NO | error a / b |" in text and (tmp_path / "new" / "gpu.md").read_text() == text
    assert (tmp_path / "new" / "gpu.json").exists()


@pytest.mark.slow
def test_a_section_in_a_process_and_one_that_takes_too_long():
    found = gpu_check._in_a_process("ops", CPU, True, 300.0)
    assert found["sampling"]["ok"]
    assert "not done within the time" in gpu_check._in_a_process("families", CPU, True, 0.1)["(rest)"]["error"]
