"""Pipes, devices and directories in the place of files are refused at once: reading them might never end."""

import os
from pathlib import Path

import pytest
import torch

from bev_perception.cli.options import _lines
from bev_perception.data.anchors import read_anchors
from bev_perception.data.arrays import names_of, read_arrays
from bev_perception.data.folders import sha256_of
from bev_perception.data.nuscenes import known_splits
from bev_perception.data.occupancy_labels import read_labels
from bev_perception.data.rosbag import BagReader
from bev_perception.evaluation.comparison import compare_benchmarks
from bev_perception.evaluation.lost_cameras import read_study
from bev_perception.evaluation.submissions import read_submission, task_of
from bev_perception.families.variants import load_variant
from bev_perception.models.checkpoints import load_checkpoint, load_fitting, load_pretrained
from bev_perception.pipeline.offline import read_results
from bev_perception.ros.launching import file_parameters
from bev_perception.strict import NotAFileError, UserError, check_regular, open_regular
from bev_perception.visualization.curves import draw_curves

READERS = {
    "variant.yaml": load_variant,
    "parameters.yaml": lambda path: file_parameters(path, "/node"),
    "weights.pth": lambda path: load_checkpoint(torch.nn.Linear(1, 1), path),
    "weights.safetensors": lambda path: load_checkpoint(torch.nn.Linear(1, 1), path),
    "related.pth": lambda path: load_fitting(torch.nn.Linear(1, 1), path),
    "pretrained.pth": lambda path: load_pretrained(torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)}), path, "a"),
    "labels.npz": read_labels,
    "arrays.npz": read_arrays,
    "names.npz": names_of,
    "anchors.npy": lambda path: read_anchors(path, 1),
    "submission.json": lambda path: read_submission(path, "detection"),
    "task.json": task_of,
    "study.json": read_study,
    "timings.json": lambda path: compare_benchmarks(path, path),
    "log.jsonl": lambda path: draw_curves([path], path.parent),
    "results.jsonl": read_results,
    "remaps.txt": _lines,
    "drive.mcap": BagReader,
    "drive.db3": BagReader,
    "drive.bag": BagReader,
    "hashed": sha256_of,
}


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a directory"])
@pytest.mark.parametrize("name", READERS)
@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UserError) as refused:
        READERS[name](path)
    if not (kind == "a directory" and READERS[name] is BagReader):  # which may be a bag
        assert f"{path} is {kind}" in str(refused.value)


@pytest.mark.parametrize("name", ["metadata.yaml", "drive.mcap", "drive.bag", "notes.txt"])
@pytest.mark.timeout(20)
def test_a_bag_with_a_pipe_in_it_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a named pipe"):
        BagReader(tmp_path)


def test_splits_that_are_a_pipe_are_passed_over(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    os.mkfifo(tmp_path / "v1.0-mini" / "splits.json")
    assert "mini_val" in known_splits(tmp_path, "v1.0-mini")


def test_links_to_files_and_missing_files_are_what_they_were(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"x"
    check_regular(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with pytest.raises(NotAFileError, match="is a device"):
        check_regular(Path("/dev/null"))
