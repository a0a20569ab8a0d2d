"""The commands of docs/own-data.md, as printed, on a made-up robot with four cameras."""

import json
import shlex
from pathlib import Path

import pytest
from own_robot import write_robot

from bev_perception import cli
from bev_perception.data.own_boxes import read_classes, read_own_boxes
from bev_perception.pipeline.offline import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own-data.md").read_text()
#: trials need no more; where a command is run otherwise than printed
SHORTER = {
    "train": "--epochs 1 --batch 3 --workers 0 --device cpu --precision fp32",
    "eval": "--device cpu --split own_val",
}


def fenced(language):
    return [part.partition("```")[0] for part in PAGE.split(f"```{language}\n")[1:]]


def test_the_example_is_a_file_of_boxes_and_its_classes(tmp_path):
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith('    {"stamp"')]
    (tmp_path / "boxes.jsonl").write_text("\n".join(lines))
    boxes = read_own_boxes(tmp_path / "boxes.jsonl")
    assert [len(found) for found in boxes.of_stamps.values()] == [1, 0]
    (tmp_path / "classes.yaml").write_text(fenced("yaml")[0])
    assert read_classes(tmp_path / "classes.yaml")["pallet"] is None
    assert {json.loads(line)["class"] for line in lines} == {"forklift", None}


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch):
    write_robot(tmp_path, 3.0)
    (tmp_path / "mine.yaml").write_text(fenced("yaml")[1])
    monkeypatch.chdir(tmp_path)
    for line in fenced("sh")[0].strip().splitlines():
        program, command, *rest = shlex.split(line.replace("config/weights", str(ROOT / "config" / "weights")))
        assert program == "bev_perception"
        code = cli.main([command, *rest, *shlex.split(SHORTER.get(command, ""))])
        assert code == 0 or command == "eval"  # after two steps there may be no box to score
    assert len(list((tmp_path / "output" / "truth").iterdir())) == 6
    assert (tmp_path / "output" / "eval" / "results_nusc.json").is_file()
    assert read_results(tmp_path / "output" / "boxes.jsonl").end["frames"] == 12
