import pytest
import torch

from bev_perception.evaluation import limits
from bev_perception.evaluation.limits import measure_limits


def test_rates_are_work_over_the_shortest_time(monkeypatch):
    """Of eight times the first, which warms up, does not count."""
    ticks = iter([0, 0.001, 0, 4, 0, 2, *[0, 8] * 5, 0, 0.001, 0, 1, 0, 0.5, *[0, 2] * 5])
    monkeypatch.setattr(limits, "_ROWS", {"cpu": 8})
    monkeypatch.setattr(limits, "_COPIED", 1000)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(ticks))
    found = measure_limits(torch.device("cpu"))
    assert found.gflops == pytest.approx(2 * 8**3 / 2 / 1e9) and found.gb_per_s == pytest.approx(2000 / 0.5 / 1e9)
    assert not list(ticks)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_this_machine_they_are_rates(monkeypatch, precision):
    monkeypatch.setattr(limits, "_ROWS", {"cpu": 64})
    found = measure_limits(torch.device("cpu"), precision)
    assert 1e-3 < found.gflops < 1e5 and 0.01 < found.gb_per_s < 1e4
