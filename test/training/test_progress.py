import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bev_perception.training.progress import Progress
from bev_perception.training.train import train

from .kit import MadeUpData, settings, small_config


def report(out, done, steps, total=8, every=2):
    with Progress(out, done, total, every, silent=False) as progress:
        for step in range(done, done + steps):
            progress.step(0, 1e-3 / (step + 1), {"loss": 10.0 - step, "grad_norm": 0.5})


def curves(out):
    """Return name -> [(step, value)] as TensorBoard shows them."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_averages_of_the_log(tmp_path):
    report(tmp_path, done=0, steps=4)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 10.0), (2, 9.0), (4, 7.5)]
    shown = curves(tmp_path)
    assert set(shown) == {"lr", "loss", "grad_norm"}
    for name, points in shown.items():
        assert points == [(line["step"], pytest.approx(line[name])) for line in lines(tmp_path)]


def test_what_is_not_finite_is_null(tmp_path):
    with Progress(tmp_path, 0, 3, 1, silent=False) as progress:
        for loss in (float("nan"), float("inf"), 2.0):
            progress.step(0, 1e-3, {"loss": loss, "grad_norm": -loss})
    assert "NaN" not in (tmp_path / "log.jsonl").read_text() and "Infinity" not in (tmp_path / "log.jsonl").read_text()
    assert [(line["loss"], line["grad_norm"]) for line in lines(tmp_path)] == [(None, None), (None, None), (2.0, -2.0)]


def test_a_resumed_run_takes_the_place_of_steps_done_in_vain(tmp_path):
    report(tmp_path, done=0, steps=6)
    report(tmp_path, done=2, steps=6, total=8)  # the state was saved after step 2
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3, 4, 6, 8]


def test_training_goes_on_without_tensorboard_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    report(tmp_path, done=0, steps=4)
    said = [record.getMessage() for record in caplog.records if "tensorboard" in record.getMessage()]
    assert len(said) == 1 and "pip install bev_perception[train]" in said[0]
    assert len(lines(tmp_path)) == 3 and not (tmp_path / "tensorboard").exists()


def test_only_one_of_several_processes_writes(tmp_path):
    with Progress(tmp_path, 0, 2, 1, silent=True) as progress:
        progress.step(0, 1e-3, {"loss": 1.0, "grad_norm": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_training_leaves_its_curves(tmp_path):
    train(small_config(epochs=1), MadeUpData(2), settings(tmp_path))
    shown = curves(tmp_path)
    (line,) = lines(tmp_path)
    assert set(shown) == set(line) - {"step", "epoch"} and "loss_bbox" in shown
    assert shown["loss"] == [(1, pytest.approx(line["loss"]))]
