"""However a training ends, it ends soon, says why in one sentence, and leaves no process behind."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nuscenes_root import write_nuscenes

from bev_perception.training.state import STATE

ROOT = Path(__file__).resolve().parents[2]
SOON = 60.0  # s, of a busy machine; what does not end by itself takes minutes


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")])}


def living(group):
    """Return how many processes of a group have not ended."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of, _ = path.read_text().rpartition(")")[2].split(maxsplit=3)
        except OSError:  # it has ended meanwhile
            continue
        count += int(of) == group and state not in "ZX"
    return count


def wait_for(condition, seconds=SOON):
    """Return whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return true


class Training:
    """One that runs in a process group of its own."""

    def __init__(self, server, out, case, workers):
        self.server, self.out = server, out
        server.stdin.write(f"{out} {case} {workers}\n")
        self.pid = self._read("begun")
        assert self.pid > 1
        self.status = None

    def _read(self, label):
        said, number = self.server.stdout.readline().split()
        assert said == label
        return int(number)

    def at_marker(self):
        assert wait_for((self.out / "marker").exists)
        return self

    def end(self):
        """Return the exit status and what was said; in the end no process may be left."""
        ended = select.select([self.server.stdout], [], [], SOON)[0]
        alone = wait_for(lambda: not living(self.pid), 10.0)
        if not (ended and alone):
            os.killpg(self.pid, signal.SIGUSR1)
            time.sleep(1.0)
        self.kill()
        said = Path(f"{self.out}.err").read_text()
        assert ended and alone, said
        return self.status, said.splitlines()

    def kill(self):
        """Make sure that nothing is left, and that the server takes the next one."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.status = self._read("ended")


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-W", "ignore", "-m", "training.endings"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as process:
        yield process
        process.stdin.close()
        process.wait(10)


@pytest.fixture
def start(server, tmp_path):
    """Start a training in tmp_path / "out" by its case and number of workers."""
    started = []

    def start(case, workers):
        started.append(Training(server, tmp_path / "out", case, workers))
        return started[-1]

    yield start
    for training in started:
        training.kill()


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("case", "workers"),
    [("fail@1", 0), ("fail@1", 1), ("fail@1", 4), ("fail@3", 0), ("fail@3", 4)],
)
def test_a_sample_that_fails_is_one_sentence(start, case, workers):
    training = start(case, workers).at_marker()
    assert training.end() == (1, ["bev_perception: the picture is gone; complete the data set"])


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("case", "workers"), [("save", 0), ("save", 4), ("busy@3", 1), ("busy@3", 4)])
def test_an_error_beside_readers_is_one_sentence(start, case, workers):
    training = start(case, workers)
    assert training.end() == (1, ["bev_perception: the disk is full"])


@pytest.mark.timeout(150)
def test_a_reader_that_is_killed_is_one_sentence(start):
    status, (*_, said) = start("die@3", 2).at_marker().end()
    assert status == 1
    assert said.startswith("bev_perception: a process that reads ahead has ended") and "--workers" in said


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("case", "number", "to_all", "workers"),
    [
        ("stay@1", signal.SIGTERM, True, 4),
        ("stay@1", signal.SIGINT, False, 1),
        ("stay@3", signal.SIGINT, True, 4),
        ("stay@3", signal.SIGTERM, False, 1),
    ],
)
def test_a_signal_while_data_are_awaited_ends_in_order(start, tmp_path, case, number, to_all, workers):
    """In the first sample, or later: what is done by then is saved."""
    training = start(case, workers).at_marker()
    (os.killpg if to_all else os.kill)(training.pid, number)
    status, lines = training.end()
    assert len(lines) == 1, lines
    (said,) = lines
    done = torch.load(tmp_path / "out" / STATE, weights_only=True)["step"]
    assert status == 0 and f"steps={done}, finished=False" in said
    assert done <= (0 if case == "stay@1" else workers)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_a_signal_in_a_validation_ends_it_in_order(start, tmp_path, number, workers):
    """Between two epochs, or after the last: the resumed training makes up for it."""
    training = start("validate", workers).at_marker()
    os.kill(training.pid, number)
    status, said = training.end()
    done = torch.load(tmp_path / "out" / STATE, weights_only=True)["step"]
    assert status == 0 and f"steps={done}, finished=False" in said[-1]
    assert done == 3  # of one epoch


@pytest.mark.timeout(150)
def test_readers_end_with_a_trainer_that_is_killed(start):
    training = start("stay@3", 4).at_marker()
    os.kill(training.pid, signal.SIGKILL)
    assert training.end()[0] == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_command_line_ends_if_no_picture_can_be_read(tmp_path):
    dataroot = write_nuscenes(tmp_path / "root", key_frames=3)
    for picture in (dataroot / "samples").glob("*/*.jpg"):
        picture.write_bytes(b"")
    command = ["-m", "bev_perception.cli", "train", "--variant", "sparsebev_tiny", "--precision", "fp32"]
    paths = ["--data", str(dataroot), "--split", "mini_val", "--out", str(tmp_path / "out"), "--workers", "1"]
    result = subprocess.run(
        [sys.executable, *command, *paths], env=environment(), capture_output=True, text=True, timeout=90, check=False
    )
    assert result.returncode == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("bev_perception: ")]
    assert len(said) == 1 and "cannot be used" in said[0] and "Traceback" not in result.stderr
