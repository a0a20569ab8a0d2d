"""What ends the making of scenes is one sentence."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from bev_perception.synth import generate as module
from bev_perception.synth.settings import SynthError, SynthSettings


class Killed:
    """A pool whose processes the system has ended, as it does when memory is short."""

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, *arguments):
        future = Future()
        future.set_exception(BrokenProcessPool("A process in the process pool was terminated abruptly"))
        return future


def test_a_process_that_is_ended_from_outside_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    with pytest.raises(SynthError, match="ended from outside.*the same command again"):
        module.generate(tmp_path, SynthSettings(seconds=1.0), scenes=2, workers=2)
