"""The commands of docs/own-rig.md, run as printed on a made-up robot with four cameras."""

import shlex
from pathlib import Path

import pytest
from own_robot import robot_drive

from bev_perception import cli
from bev_perception.data.rosbag import write_bag
from bev_perception.pipeline.offline import read_results

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-rig.md"
#: what begins like this is not run here, because
NOT_RUN = {
    "synth": "compiles for minutes; test/synth/test_own_rig.py",
    "eval": "needs a data set; test/evaluation",
}


def commands():
    lines = PAGE.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    bev_perception ")]


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("robot") / "bag"
    write_bag(robot_drive(1.0), path, progress=False)
    return path


def test_every_command_is_run_or_says_why_not():
    words = {command[0] for command in commands()}
    assert words == {"check", "run", "show", *NOT_RUN}


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if c[0] not in NOT_RUN], ids=" ".join)
def test_a_command_runs_as_printed(command, bag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cli.main([str(bag) if word == "BAG" else word for word in command])
    assert found in ((0, 1) if command[0] == "check" else (0,))  # 1: a second of driving is too short to judge motion
    if command[0] == "run":
        results = read_results(tmp_path / "output" / "boxes.jsonl")
        assert (results.header["image_fit"], results.header["base_height"]) == ("virtual", 0.3)
        assert results.header["cameras"] == ["front", "left", "rear", "right"]
