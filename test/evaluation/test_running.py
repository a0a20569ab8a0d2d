"""Processes that run an evaluation together."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bev_perception.evaluation.running import joined_processes

ROOT = Path(__file__).resolve().parents[2]
IMPATIENT = timedelta(seconds=2)


def validates_within_a_training():
    """As in a training whose own group waits for a short time only: the first process scores for longer than that."""
    dist.init_process_group("gloo", timeout=IMPATIENT)
    with joined_processes() as processes:
        assert processes.first_before_others(lambda: time.sleep(4 if processes.rank == 0 else 0)) is None
        parts = processes.gather(processes.rank)
        assert parts == ([0, 1] if processes.rank == 0 else [])
        if processes.rank == 0:
            time.sleep(4)
        processes.wait()
    assert dist.is_initialized()
    steps = torch.ones(1)
    dist.all_reduce(steps)  # the training goes on
    assert steps.item() == 2
    dist.destroy_process_group()


def evaluates_by_itself():
    with joined_processes() as processes:
        assert processes.gather("part") == (["part"] * 2 if processes.rank == 0 else [])
    assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("what", [validates_within_a_training, evaluates_by_itself])
def test_two_processes_wait_for_the_first_one(tmp_path, what):
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": "2"}
    own = {**os.environ, **where, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, __file__, what.__name__], env={**own, "RANK": str(rank)}) for rank in (0, 1)
    ]
    assert [process.wait(100) for process in processes] == [0, 0]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
