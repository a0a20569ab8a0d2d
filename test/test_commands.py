"""Commands in sentences are those that exist where the sentence is printed."""

import sys
from pathlib import Path

import pytest

from bev_perception import commands


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Sources a workspace in which only the player is built."""
    (tmp_path / "lib" / "bev_perception").mkdir(parents=True)
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    monkeypatch.setattr(commands.shutil, "which", lambda name: None)
    return tmp_path / "lib" / "bev_perception"


def test_a_source_tree_has_neither(workspace):
    assert commands.command("run --bag X") == f"{Path(sys.executable).name} -m bev_perception.cli run --bag X"


def test_an_executable_of_a_workspace(workspace):
    (workspace / "bev_perception").touch()
    assert commands.command("run") == "ros2 run bev_perception bev_perception run"
    assert commands.ros_command("bag_player", "play") == "ros2 run bev_perception bev_perception play"
    (workspace / "bag_player").touch()
    assert commands.ros_command("bag_player", "play") == "ros2 run bev_perception bag_player"


def test_a_program_of_pip(workspace, monkeypatch):
    monkeypatch.setattr(commands.shutil, "which", lambda name: f"/usr/bin/{name}")
    (workspace / "bev_perception").touch()
    assert commands.command("run") == "bev_perception run"
