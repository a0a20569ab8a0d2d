"""Scores between epochs, and the weights that are kept."""

import json

import pytest
import torch
from safetensors.torch import load_file

from bev_perception import cli
from bev_perception.training.state import WEIGHTS, TrainingError
from bev_perception.training.train import train
from bev_perception.training.validation import BEST, SCORES, Validation

from .kit import MadeUpData, settings, small_config


def rows(out):
    return [json.loads(line) for line in (out / SCORES).read_text().splitlines()]


def test_the_best_weights_are_kept_beside_the_last(tmp_path):
    """Also by a training that was resumed, which has the scores of before."""
    seen = []

    def validate(path):
        seen.append(load_file(path))
        return {"mAP": 0.1 * len(seen), "NDS": (0.2, 0.4, 0.3)[len(seen) - 1]}

    config = small_config(epochs=5)
    train(config, MadeUpData(4), settings(tmp_path, val_every=2), validate)
    assert [(row["epoch"], row["step"], row["NDS"]) for row in rows(tmp_path)] == [
        (2, 4, 0.2),
        (4, 8, 0.4),
        (5, 10, 0.3),
    ]
    best, last = load_file(tmp_path / BEST), load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(best[key], seen[1][key]) for key in best)
    assert all(torch.equal(last[key], seen[2][key]) for key in last) and any(
        not torch.equal(best[k], last[k]) for k in best
    )


def test_scores_of_before_count_in_a_training_that_is_resumed(tmp_path):
    given = iter((0.5, 0.9, 0.6, 0.1))

    def validate(path):
        return {"NDS": next(given)}

    for step, (weights, resume) in enumerate([(b"first", False), (b"best", True), (b"worse", True)], 1):
        (tmp_path / WEIGHTS).write_bytes(weights)
        Validation(validate, tmp_path, 1, resume).after(step, 9, 10 * step)
    assert (tmp_path / BEST).read_bytes() == b"best" and [row["NDS"] for row in rows(tmp_path)] == [0.5, 0.9, 0.6]
    Validation(validate, tmp_path, 1, resume=True).after(3, 9, 30)  # it has its scores
    assert len(rows(tmp_path)) == 3
    (tmp_path / WEIGHTS).write_bytes(b"of another training")
    Validation(validate, tmp_path, 1).after(1, 9, 10)
    assert (tmp_path / BEST).read_bytes() == b"of another training" and [row["NDS"] for row in rows(tmp_path)] == [0.1]


def test_a_validation_that_was_ended_is_made_up_for(tmp_path):
    def ended(path):
        raise KeyboardInterrupt

    config, data = small_config(epochs=2), MadeUpData(4)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, settings(tmp_path, val_every=2), ended)
    result = train(config, data, settings(tmp_path, val_every=2, resume=True), lambda path: {"NDS": 0.5})
    assert result.finished and [row["epoch"] for row in rows(tmp_path)] == [2] and (tmp_path / BEST).exists()


def test_what_cannot_be_validated_is_named(tmp_path):
    with pytest.raises(TrainingError, match="every 0 epochs"):
        Validation(lambda path: {}, tmp_path, every=0)
    for damaged in ("no json", '{"NDS": 0.5}'):
        (tmp_path / SCORES).write_text(damaged)
        with pytest.raises(TrainingError, match=r"val\.jsonl is damaged"):
            Validation(lambda path: {"NDS": 1.0}, tmp_path, every=1, resume=True)
    Validation(lambda path: {}, tmp_path, every=1).after(1, 1, 1)  # another process scores
    assert not (tmp_path / BEST).exists()


@pytest.mark.slow
def test_train_validates_on_the_data_sets_validation_split(synthetic_nuscenes, tmp_path):
    """By the command line: the detector's scores in val.jsonl, the results beside the training."""
    pytest.importorskip("nuscenes")
    changes = ["training.epochs=1", "training.batch=5", "training.resize=[0.1, 0.12]", "head.num_query=25"]
    changes += [
        "image.height=64",
        "image.width=160",
        "frames.past=0",
        "head.num_layers=1",
        "head.decode.score_threshold=0",
        "head.proposals.queries=0",
    ]
    options = [f"--set={change}" for change in changes]
    options += ["--device=cpu", "--precision=fp32", "--workers=0", "--split=mini_val", "--val-every=1"]
    out = tmp_path / "out"
    assert (
        cli.main(["train", "--variant", "sparsebev_tiny", f"--data={synthetic_nuscenes}", f"--out={out}", *options])
        == 0
    )
    (row,) = rows(out)
    assert row["step"] == 2 and 0 <= row["NDS"] <= 100 and row["mAP"] is not None
    assert (out / BEST).read_bytes() == (out / WEIGHTS).read_bytes() and (out / "val" / "results_nusc.json").is_file()
