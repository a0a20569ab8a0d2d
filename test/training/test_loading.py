"""Batches on their way to the device."""

import dataclasses
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from bev_perception.supervision.order import Draw
from bev_perception.training.loading import LoadedBatches, collate
from bev_perception.training.train import _StopOnSignal

from .kit import EncodableMadeUpData, MadeUpData, MadeUpOccupancy


def tensors(value):
    """All tensors in a value, by where they are."""
    if isinstance(value, torch.Tensor):
        return {"": value}
    if dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    else:
        items = list(enumerate(value)) if isinstance(value, tuple) else []
    return {f"{name}.{where}": tensor for name, item in items for where, tensor in tensors(item).items()}


FEATURES = tuple(np.zeros((2, 2, 4, 8, 3), np.float16) for _ in range(4))
DATA = {
    "boxes": MadeUpData(2),
    "occupancy": MadeUpOccupancy(2),
    "features": EncodableMadeUpData(2, features=[FEATURES, FEATURES]),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("visible", [False, True])
def test_the_loader_pins_every_tensor_of_a_batch(monkeypatch, data, visible):
    samples = [(data.sample(i, np.random.default_rng(i)), i) for i in range(2)]
    if visible and isinstance(data, MadeUpOccupancy):
        seen = samples[0][0].truth.semantics == 0
        samples = [(dataclasses.replace(s, truth=dataclasses.replace(s.truth, visible=seen)), i) for s, i in samples]
    batch = collate(samples)
    pinned = []

    def pin(tensor, *_):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = tensors(pin_memory(batch))
    assert found.keys() == tensors(batch).keys() and len(found) >= 7
    assert {id(tensor) for tensor in found.values()} == {id(tensor) for tensor in pinned}
    assert all(torch.equal(found[where], tensor) for where, tensor in tensors(batch).items())
    assert pin_memory(batch).seeds == (0, 1)


class Staying(MadeUpData):
    def sample(self, index, rng, augmentation=None):
        time.sleep(600)


def test_a_signal_while_readers_are_started_is_heard_when_all_have_started(monkeypatch):
    """And none of them hears it; an exception half way would let PyTorch wait for each of them for seconds."""
    readers, start = [], multiprocessing.process.BaseProcess.start

    def start_and_signal(process):
        start(process)
        readers.append(process)
        if len(readers) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_and_signal)
    with _StopOnSignal() as stop:
        batches = LoadedBatches(Staying(4), [[Draw(i, (0, i))] for i in range(4)], workers=4, pin_memory=False)
        assert stop.requested and len(readers) == 4
        for reader in readers:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(reader.pid, number)
        assert list(stop.interrupting(batches)) == []
        assert all(reader.is_alive() for reader in readers)
        batches.close()
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0
