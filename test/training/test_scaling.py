"""Steps that fp16 skips."""

import dataclasses
import json

import numpy as np
import pytest

from bev_perception.training.state import TrainingError
from bev_perception.training.train import TrainResult, train

from .kit import MadeUpData, settings, small_config


class BrokenData(MadeUpData):
    """Every so many samples one gives losses that are not finite."""

    def __init__(self, every, **kwargs):
        super().__init__(**kwargs)
        self.every = every

    def sample(self, index, rng, augmentation=None):
        sample = super().sample(index, rng)
        bad = np.nan if index % self.every == 0 else 1.0
        return dataclasses.replace(sample, time_differences=sample.time_differences * bad)


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_fp16_ends_where_every_step_would_be_skipped(tmp_path):
    with pytest.raises(TrainingError, match="overflow fp16: 10 steps in a row were skipped.* bf16 or fp32, or .* lr"):
        train(small_config(batch=1, epochs=2), BrokenData(every=1), settings(tmp_path, precision="fp16"))
    last = lines(tmp_path)[-1]
    assert (last["step"], last["skipped"], last["grad_norm"]) == (9, 9, None)


@pytest.mark.slow
def test_steps_that_fp16_skips_now_and_then_are_counted(tmp_path):
    result = train(
        small_config(batch=1, epochs=1),
        BrokenData(every=3, samples=6),
        settings(tmp_path, precision="fp16", log_every=3),
    )
    assert result == TrainResult(6, True)
    assert lines(tmp_path)[-1]["skipped"] == 2
    train(small_config(batch=1, epochs=1), MadeUpData(1), settings(tmp_path / "fp32"))
    assert "skipped" not in lines(tmp_path / "fp32")[0]
