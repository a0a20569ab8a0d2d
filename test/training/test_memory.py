"""Steps that remember, and orders of a family's own."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from bev_perception.families.catalog import FAMILIES
from bev_perception.families.sparsebev.step import DetectionStep
from bev_perception.supervision.order import Draw
from bev_perception.supervision.parts import TrainedPart
from bev_perception.training import train as loop
from bev_perception.training.processes import Processes
from bev_perception.training.state import STATE, WEIGHTS, TrainingError

from .kit import MadeUpData, settings, small_config


class RememberingStep(DetectionStep):
    """Its losses grow with what it has seen before."""

    def forward(self, batch, memory):
        losses, _ = super().forward(batch, None)
        seen = torch.zeros(len(batch.stamps)) if memory is None else memory["seen"]
        count = 0 if memory is None else memory["count"]
        grown = {name: loss * (1 + seen.mean()) for name, loss in losses.items()}
        return grown, {"seen": 0.5 * seen + batch.stamps * 1e-10, "count": count + 1}


class Streams:
    """Each slot reads the samples one after the other; sequences of three are augmented alike."""

    def __init__(self, config, data, slots, seed):
        self.samples, self.slots, self.seed = [i for run in data.sequences() for i in run], slots, seed

    def __len__(self):
        return len(self.samples) // self.slots

    def epoch(self, epoch):
        first = epoch * len(self)
        return [[self.draw(slot, first + step) for slot in range(self.slots)] for step in range(len(self))]

    def draw(self, slot, step):
        index = self.samples[(step + 2 * slot) % len(self.samples)]
        return Draw(index, (self.seed, slot, step), (self.seed, slot, step // 3))


@pytest.fixture(autouse=True)
def remembering(monkeypatch):
    family = dataclasses.replace(
        FAMILIES["sparsebev"], steps=lambda config: {"all": TrainedPart(RememberingStep)}, order=Streams
    )
    monkeypatch.setattr(loop, "family_of", lambda config: family)


class Interrupted(MadeUpData):
    """Fails at a sample, and notes with what augmentation the others were asked for."""

    def __init__(self, fails_at=None):
        super().__init__(6)
        self.asked, self.fails_at = [], fails_at

    def sample(self, index, rng, augmentation=None):
        if len(self.asked) == self.fails_at:
            raise OSError("the disk is gone")
        self.asked.append((index, float(augmentation.uniform())))
        return super().sample(index, rng)


def test_memory_and_order_go_on_exactly(tmp_path):
    config = small_config(epochs=3)  # of 3 steps
    whole, first, second = Interrupted(), Interrupted(fails_at=14), Interrupted()
    loop.train(config, whole, settings(tmp_path / "whole"))
    with pytest.raises(OSError, match="the disk is gone"):
        loop.train(config, first, settings(tmp_path / "cut", save_every=4))
    state = torch.load(tmp_path / "cut" / STATE, weights_only=True)
    assert state["step"] == 6 and state["memories"][0]["count"] == 6
    loop.train(config, second, settings(tmp_path / "cut", resume=True))
    assert whole.asked[12:] == second.asked
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


class Overflowing(RememberingStep):
    """Its fourth step is not finite, nor is what it remembers."""

    def forward(self, batch, memory):
        losses, remembered = super().forward(batch, memory)
        bad = torch.tensor(float("nan") if (memory or {}).get("count") == 3 else 1.0)
        return {k: v * bad for k, v in losses.items()}, {**remembered, "seen": remembered["seen"] * bad}


@pytest.mark.slow
def test_a_step_that_fp16_skips_is_not_remembered(tmp_path, monkeypatch):
    family = dataclasses.replace(
        FAMILIES["sparsebev"], steps=lambda config: {"all": TrainedPart(Overflowing)}, order=Streams
    )
    monkeypatch.setattr(loop, "family_of", lambda config: family)
    loop.train(small_config(epochs=2), MadeUpData(6), settings(tmp_path, precision="fp16"))
    (memory,) = torch.load(tmp_path / STATE, weights_only=True)["memories"]
    assert memory["count"] == 2 and memory["seen"].isfinite().all()


def test_frames_of_a_sequence_are_augmented_alike(tmp_path):
    data = Interrupted()
    loop.train(small_config(epochs=2), data, settings(tmp_path))
    drawn = [value for _, value in data.asked[::2]]  # of the first slot
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3] == drawn[4] == drawn[5]


def test_memories_of_other_processes_are_refused():
    alone = Processes(0, 1, torch.device("cpu"))
    assert alone.own([None, None]) is None
    assert alone.own([{"bank": torch.ones(1)}])["bank"].tolist() == [1]
    with pytest.raises(TrainingError, match="in each of 2 processes; resume it with as many"):
        alone.own([{"bank": torch.ones(1)}, None])
