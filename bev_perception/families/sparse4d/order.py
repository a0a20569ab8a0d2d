"""The order of training: sequences for the variants whose instances go on from frame to frame."""

from __future__ import annotations

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.data.sequences import SequenceStreams, split_scenes
from bev_perception.supervision.order import Draw, Order, Shuffled
from bev_perception.supervision.samples import TrainingData

#: what random numbers follow from, besides seed, slot and step or visit
_SAMPLE, _SEQUENCE = 1, 2


class Sequences:
    """Every slot of the batch goes on with its own sequence, also from epoch to epoch.

    A sequence's images and world are changed alike in all its frames. An epoch is as many steps as it takes to read as
    many frames as there are.
    """

    def __init__(self, streams: SequenceStreams, samples: int, slots: int, seed: int) -> None:
        """Take the streams of the slots.

        samples: number of key frames.
        slots: samples of a step, of all processes together.
        seed: of the samples' random numbers.
        """
        self._streams, self._steps, self._slots, self._seed = streams, max(1, samples // slots), slots, seed

    def __len__(self) -> int:
        """Return the number of steps per epoch."""
        return self._steps

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """Return the samples of each step of an epoch: [steps][slots]."""
        first = epoch * self._steps
        return [[self._draw(slot, step) for slot in range(self._slots)] for step in range(first, first + self._steps)]

    def _draw(self, slot: int, step: int) -> Draw:
        turn = self._streams.at(slot, step)
        sample, sequence = (_SAMPLE, self._seed, slot, step), (_SEQUENCE, self._seed, slot, turn.visit)
        return Draw(turn.frame, sample, augmentation=sequence)


def order_of(config: VariantConfig, data: TrainingData, slots: int, seed: int) -> Order:
    """Return the order of a variant's training; see Family.order."""
    if config.training is None:
        raise ConfigError(f"{config.name} says nothing of its training; add the entry 'training' to its file")
    settings = config.training.family.sequences
    if not settings.parts:
        return Shuffled(len(data), slots, seed)
    sequences = split_scenes(data.sequences(), settings.parts)
    streams = SequenceStreams(sequences, slots, seed, settings.skip, settings.reverse)
    return Sequences(streams, len(data), slots, seed)
