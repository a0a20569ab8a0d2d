"""Trainings that end in every way, each in a process forked from this one, which has trained before.

Reads lines "OUT CASE WORKERS" and answers each with "begun PID", and "ended STATUS" once it has ended.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from bev_perception.data.nuscenes import NuScenesError
from bev_perception.strict import UserError
from bev_perception.training import train as loop
from training.kit import MadeUpData, settings, small_config

EPOCH = 3  # steps and samples


class EndingData(MadeUpData):
    """Fails, stays or dies from the n-th sample on that any process reads, and leaves a file then."""

    def __init__(self, marker, case):
        super().__init__(samples=EPOCH)
        self.marker, self.read = marker, multiprocessing.Value("i", 0)
        self.what, _, number = case.partition("@")
        self.number = int(number or 10**9)

    def sample(self, index, rng, augmentation=None):
        with self.read:
            self.read.value += 1
            reached = self.read.value >= self.number
        if reached:
            self.marker.touch()
            if self.what == "fail":
                raise NuScenesError("the picture is gone; complete the data set")
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super().sample(index, rng)


def fail(*_):
    raise OSError("the disk is full")


def run(out, case, workers):
    if case == "save":  # between two epochs
        loop.save_state = fail
    if case.startswith("busy"):  # in the first step, while readers are at work
        loop.Progress.step = fail

    def validate(weights):
        (out / "marker").touch()
        time.sleep(600)

    how = settings(out, workers=workers, val_every=1)
    try:
        data = EndingData(out / "marker", case)
        result = loop.train(small_config(batch=1), data, how, validate if case == "validate" else None)
    except (UserError, OSError) as error:  # as the command line does
        print(f"bev_perception: {error}", file=sys.stderr)
        return 1
    print(result, file=sys.stderr)
    return 0


def serve():
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "warm", "whole", 0)  # imports what is imported late, which takes longest
    for line in sys.stdin:
        out, case, workers = line.split()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(os.open(f"{out}.err", os.O_WRONLY | os.O_CREAT), 2)
            faulthandler.register(signal.SIGUSR1)  # says where the processes of one that does not end are
            sys.exit(run(Path(out), case, int(workers)))
        print("begun", pid, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
