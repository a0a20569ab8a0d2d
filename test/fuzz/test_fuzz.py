"""A short run of `make fuzz`, and that it notices what it is there for."""

import subprocess

import pytest
from fuzz import KINDS, fuzz


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_read_or_refused(kind):
    outcomes, faults = fuzz(kind, 60)
    assert faults == []
    assert outcomes["read"] + outcomes["refused"] == 60


def test_a_death_and_an_error_are_noticed(monkeypatch):
    outputs = iter([("try 0\nread\ntry 1\nerror KeyError: 'a'\ntry 2\n", -11), ("try 3\nrefused\nmemory 5000\n", 0)])

    def run(command, **_):
        stdout, status = next(outputs)
        return subprocess.CompletedProcess(command, status, stdout, "")

    monkeypatch.setattr(subprocess, "run", run)
    outcomes, faults = fuzz("png", 4)
    assert (outcomes["read"], outcomes["refused"], outcomes["error"], outcomes["deaths"]) == (1, 1, 1, 1)
    assert [fault.split()[:2] for fault in faults[:2]] == [["png", "1:"], ["png", "2"]]
    assert "KeyError" in faults[0] and "status -11" in faults[1] and "5000 MB" in faults[2]
