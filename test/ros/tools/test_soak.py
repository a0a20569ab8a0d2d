"""What the soak makes of its samples, and a short one."""

import csv

import numpy as np
import pytest

from bev_perception.ros.tools.soak import LIMIT, Sample, Soak, draw, run_soak
from bev_perception.strict import UserError


def samples(slope, noise=0.0, threads=lambda k: 20, files=lambda k: 30):
    """Of 1,000 results, whose memory grows by `slope` MB."""
    rest = np.random.default_rng(0).normal(0, noise, 100)
    return [Sample(10 * k, 5.0 * k, 600 + slope * k / 100 + rest[k], threads(k), files(k)) for k in range(100)]


@pytest.mark.parametrize("slope", [-3.0, 0.0, 1.5, 2.5, 40.0])
def test_growth_is_told(slope):
    soak = Soak(1000, 0, samples(slope))
    assert soak.growth[0] == pytest.approx(slope) and soak.growth[1] < 1e-9
    assert bool(soak.faults) == (slope >= LIMIT)


def test_noise_is_no_growth_and_its_error_is_told():
    slopes = Soak(1000, 0, samples(0.5, noise=2.0)).growth
    assert abs(slopes[0] - 0.5) < 3 * slopes[1] and 0.4 < slopes[1] < 1.0  # 2 / sqrt(100 / 12)


@pytest.mark.parametrize("name", ["threads", "files"])
def test_what_grows_late_is_named(name):
    flat, late = (lambda k: 20 + k % 3), (lambda k: 20 + (k > 90) * 5)
    assert not Soak(1000, 0, samples(0, **{name: flat})).faults
    (fault,) = Soak(1000, 0, samples(0, **{name: late})).faults
    assert fault.startswith(name) and "22" not in fault and "25 in the second" in fault


def test_a_run_without_samples_is_no_success():
    soak = Soak(1000, 10, ended="the node is gone")
    assert "the node is gone" in soak.faults and "0 of 1000 results" in soak.text()
    assert "NOT AS IT SHOULD BE: the node is gone" in soak.text()


def test_curves_are_drawn(tmp_path):
    draw(samples(1.0, 1.0), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_results_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 3"):
        run_soak(tmp_path, 2, 0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak(tmp_path):
    soak = run_soak(tmp_path, 6, 2, report=lambda line: None)
    assert not soak.ended and soak.samples[-1].results == 6
    assert min(soak.messages.values()) >= 6 and len(soak.messages) == 7
    with (tmp_path / "soak.csv").open() as file:
        assert [int(row["results"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "soak.png").exists() and "6 of 6 results" in (tmp_path / "soak.txt").read_text()
