"""The moving average of the weights."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bev_perception.config import AveragingConfig
from bev_perception.training.averaging import WeightAverage
from bev_perception.training.state import WEIGHTS
from bev_perception.training.train import train

from .kit import MadeUpData, settings, small_config


def test_the_average_follows_slowly_and_takes_integers_over():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, AveragingConfig(decay=0.9, warmup=10.0, start=5))
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    average.update(1)
    kept = 0.9 * (1 - math.exp(-0.6))
    assert average.state["weight"].tolist() == pytest.approx([kept + 3 * (1 - kept)] * 2)
    assert average.state["num_batches_tracked"] == 7
    average.update(2)
    kept_next = 0.9 * (1 - math.exp(-0.7))
    expected = kept_next * (kept + 3 * (1 - kept)) + 3 * (1 - kept_next)
    assert average.state["weight"].tolist() == pytest.approx([expected] * 2)


@pytest.mark.slow
def test_a_training_gives_the_average_and_resumes_it_exactly(tmp_path):
    config = small_config(epochs=2, averaging=AveragingConfig(0.5, 1.0))
    train(config, MadeUpData(4), settings(tmp_path / "whole"))
    train(dataclasses.replace(config), MadeUpData(4), settings(tmp_path / "last"))
    average, plain = load_file(tmp_path / "whole" / WEIGHTS), small_config(epochs=2)
    train(plain, MadeUpData(4), settings(tmp_path / "plain"))
    last = load_file(tmp_path / "plain" / WEIGHTS)
    name = "pts_bbox_head.init_query_bbox.weight"
    assert not torch.equal(average[name], last[name])
    torch.testing.assert_close(average[name], last[name], atol=1e-2, rtol=0)
    assert all(torch.equal(a, load_file(tmp_path / "last" / WEIGHTS)[n]) for n, a in average.items())
