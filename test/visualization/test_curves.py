"""Logs of a training as a table and a picture."""

import csv
import json
import math

import cv2
import pytest

from bev_perception import cli
from bev_perception.visualization.curves import _scale


def write_log(path, steps, loss):
    rows = [{"step": s, "epoch": 0, "lr": 1e-3, "loss_cls": loss / 2, "loss": loss} for s in steps]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_log_becomes_a_table_and_a_picture(tmp_path):
    log = write_log(tmp_path / "log.jsonl", (50, 100, 50), 3.0)  # step 50 was done again
    assert cli.main(["show", "curves", "--log", log, "--out", str(tmp_path / "docs" / "tiny")]) == 0
    rows = list(csv.DictReader((tmp_path / "docs" / "tiny.csv").open()))
    assert [(row["step"], row["loss"], row["loss_cls"]) for row in rows] == [("50", "3", "1.5"), ("100", "3", "1.5")]
    picture = cv2.imread(str(tmp_path / "docs" / "tiny.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10


def test_a_training_in_two_parts(tmp_path):
    logs = [write_log(tmp_path / "a.jsonl", (50, 100), 3.0), write_log(tmp_path / "b.jsonl", (50,), 1.0)]
    assert cli.main(["show", "curves", "--log", *logs, "--out", str(tmp_path / "tiny.v1")]) == 0
    rows = list(csv.DictReader((tmp_path / "tiny.v1.csv").open()))
    assert [(row["step"], row["loss"]) for row in rows] == [("50", "3"), ("100", "3"), ("150", "1")]


def drawn(path):
    """Return how many pixels of the left plot are drawn in black."""
    picture = cv2.imread(str(path))
    return (picture[60:340, 80:480] < 60).all(axis=2).sum()


def test_one_row_is_drawn_too(tmp_path):
    log = write_log(tmp_path / "log.jsonl", (50,), 3.0)
    assert cli.main(["show", "curves", "--log", log, "--out", str(tmp_path / "one")]) == 0
    assert drawn(tmp_path / "one.png") > 15


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((1.0, 9.0), "linear"),
        ((1.0, 11.0), "log"),
        ((0.0, 11.0), "linear"),
        ((1.0, math.nan), "linear"),
        ((), "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_its_range_asks_for_it(values, scale):
    assert _scale(values) == scale


def test_rows_may_lack_values(tmp_path):
    """Losses that begin or end within a training; another log without a sum or learning rates."""
    rows = [{"step": 1, "loss": 2.0, "lr": 1e-3, "loss_depth": 2.0}, {"step": 2, "loss_cls": 1.0}]
    log = tmp_path / "log.jsonl"
    for kept, names in ((rows, ["step", "loss", "lr", "loss_depth", "loss_cls"]), (rows[1:], ["step", "loss_cls"])):
        log.write_text("".join(json.dumps(row) + "\n" for row in kept))
        assert cli.main(["show", "curves", "--log", str(log), "--out", str(tmp_path / "some")]) == 0
        table = list(csv.DictReader((tmp_path / "some.csv").open()))
        assert list(table[0]) == names and table[-1]["loss_cls"] == "1" and table[0].get("loss_depth", "2") == "2"
        assert cv2.imread(str(tmp_path / "some.png")).std() > 5


@pytest.mark.parametrize("bad", [0, 2])
def test_nulls_are_gaps(tmp_path, bad):
    """A loss that was not finite is logged as null, the first as well as the last."""
    rows = [{"step": s, "epoch": 0, "lr": 1e-3, "loss_cls": 1.0, "loss": 2.0} for s in range(3)]
    rows[bad] |= {"loss": None, "loss_cls": None}
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["show", "curves", "--log", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "tiny")]) == 0
    table = list(csv.DictReader((tmp_path / "tiny.csv").open()))
    assert [row["loss"] for row in table] == ["" if k == bad else "2" for k in range(3)]


@pytest.mark.parametrize("text", ["", "no json", "[1]\n", "{}\n"])
def test_what_is_no_log_is_named(tmp_path, capsys, text):
    (tmp_path / "log.jsonl").write_text(text)
    assert cli.main(["show", "curves", "--log", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "tiny")]) == 1
    assert "is no log.jsonl of a training" in capsys.readouterr().err
