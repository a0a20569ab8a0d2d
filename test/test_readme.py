"""What README and the pages beside it print is run as printed; what is not run here says why."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from results.test_occupancy_codec import message_of

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.families.variants import list_variants, load_variant
from bev_perception.pipeline.offline import read_results
from bev_perception.types import OCC3D_GRID, Occupancy

ROOT = Path(__file__).resolve().parents[1]
DOCS = (
    "evaluation",
    "models",
    "nav2",
    "nuscenes",
    "offline",
    "performance",
    "ros",
    "training",
    "troubleshooting",
    "viewer",
)
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in DOCS))
OFFLINE, IN_PYTHON = "bev_perception variants", "from bev_perception.data.drive"
READ_RESULTS = "from pathlib import Path"
SUBSCRIBER = "from bev_perception.results.occupancy_codec"
#: how the blocks that are run here begin
OWN_VARIANT = "name: mine"
VIEWER = "bev_perception view"
RUN = (VIEWER, OFFLINE, IN_PYTHON, READ_RESULTS, SUBSCRIBER, OWN_VARIANT)
#: how the others begin -> why they are not
NOT_RUN = {
    "make demo": "makes the virtual environment; test/ros/tools/test_demo.py runs the demo",
    "cd ~/ws/src": "needs a ROS 2 distribution with rosdep and colcon",
    "ros2 launch": "needs a ROS 2 distribution; test/test_launch_files.py",
    "bev_perception node": "needs rclpy and goes on for ever; test/ros runs the node",
    "bev_perception play": "needs rclpy and goes on for ever; test/ros/test_bag_player.py runs the player",
    "bev_perception synth": "compiles for minutes; test/synth",
    "bev_perception eval-demo": "makes drives for minutes; test/evaluation/test_regression.py",
    "bev_perception train": "needs nuScenes, and days",
    "bev_perception prepare anchors": "needs nuScenes; test/data/test_anchors.py",
    "bev_perception eval --variant": "needs nuScenes; test/evaluation/test_evaluate.py",
    "bev_perception eval --bag": "needs a bag of nuScenes; test/evaluation/test_replay.py",
    "bev_perception check": "needs a bag of a rig; test/rig/test_calibration.py",
    "bev_perception bench": "takes minutes; test/evaluation/test_timing.py",
    "bev_perception show": "needs nuScenes; test/visualization/test_show.py",
}


def blocks():
    """Return the fenced and the indented blocks of all pages, in their order."""
    return [text for page in PAGES for text in blocks_of(page)]


def blocks_of(page):
    found, fenced = [[]], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
            found.append([])
        elif fenced or line.startswith("    "):
            found[-1].append(line if fenced else line[4:])
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) + "\n" for lines in found if lines]


def block(start):
    (found,) = [text for text in blocks() if text.startswith(start)]
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """What stands for /tmp in the pages."""
    return tmp_path_factory.mktemp("readme")


def in_directory(text, directory):
    assert "/tmp/" in text
    return text.replace("/tmp/", f"{directory}/")


def test_every_block_is_run_or_says_why_not():
    starts = [*RUN, *NOT_RUN]
    for text in blocks():
        assert sum(text.startswith(start) for start in starts) == 1, f"neither run nor excused, or both: {text}"
    gone = [start for start in starts if not any(text.startswith(start) for text in blocks())]
    assert not gone, f"no page has such blocks any more: {gone}"


def test_commands_and_options_exist():
    """Of the commands that are not run, too."""
    lines = [line for text in blocks() for line in text.splitlines()]
    commands = [line.split(" -m bev_perception.cli ")[-1] for line in lines if " -m bev_perception.cli " in line]
    commands += [line.removeprefix("bev_perception ") for line in lines if line.startswith("bev_perception ")]
    text = "\n".join(page.read_text() for page in PAGES)
    commands += re.findall(r"`bev_perception ([a-z-]+(?: [a-z]+)? --[^`]+)`", text)  # such as in tables
    assert len(commands) > 10
    for command in commands:
        try:
            cli.make_parser().parse_args(shlex.split(command))
        except SystemExit:
            pytest.fail(f"the command line does not take: {command}")


def test_offline(directory):
    program = directory / "bin" / "bev_perception"  # as an installation makes it
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bev_perception.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = ["bash", "-euc", in_directory(block(OFFLINE), directory)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(name in done.stdout for name in list_variants())
    results = read_results(directory / "boxes.jsonl")
    assert results.end["frames"] == len(list(results.frames())) == 18


def test_viewer(directory):
    """After test_offline, which leaves the weights and the bag."""
    pytest.importorskip("rerun")
    for line in in_directory(block(VIEWER), directory).splitlines():
        assert cli.main(shlex.split(line.removeprefix("bev_perception "))) == 0
    assert (directory / "drive.rrd").stat().st_size > 100_000 and (directory / "boxes.rrd").exists()


def test_in_python(directory, capsys):
    """After test_offline, which leaves the weights and the bag."""
    exec(compile(in_directory(block(IN_PYTHON), directory), "page", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 18


def test_results_are_read(directory, capsys):
    """After test_offline, which leaves the results."""
    exec(compile(in_directory(block(READ_RESULTS), directory), "page", "exec"), {})
    first, *frames = capsys.readouterr().out.splitlines()
    assert first.startswith("{'sparsebev_tiny': ") and first.endswith(" complete") and len(frames) == 18


def test_subscriber_to_occupancy(capsys):
    semantics = np.full(OCC3D_GRID.shape, len(OCC3D_CLASSES) - 1, np.uint8)
    semantics[100, 100, 2:5] = OCC3D_CLASSES.index("car")
    semantics[:, :, 0] = OCC3D_CLASSES.index("driveable_surface")
    names = {}
    exec(compile(block(SUBSCRIBER), "page", "exec"), names)
    names["on_occupancy"](message_of(Occupancy(semantics, OCC3D_CLASSES)))
    assert capsys.readouterr().out == "40003 voxels are occupied, 3 by cars\n"


def test_a_variant_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(block(OWN_VARIANT))
    mine, tiny = load_variant(path), load_variant("sparsebev_tiny", ["head.decode.max_num=100"])
    assert mine.head == tiny.head and mine.frames == tiny.frames


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """To files, and to headings of pages."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        headings = (
            [re.sub(r"[^a-z0-9 -]", "", h.lower()) for h in re.findall(r"(?m)^#+ (.*)$", file.read_text())]
            if heading
            else []
        )
        assert not heading or heading in [text.replace(" ", "-") for text in headings], target
