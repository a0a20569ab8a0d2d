"""The order in which a training sees its samples: shuffled, or as a family wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Draw:
    """A sample to read, and what its random numbers follow from.

    index: of the sample.
    seed: of its random numbers.
    augmentation: seed of how its images and its world are changed, equal for all frames of a sequence that are changed
        alike; None: this follows from `seed`, too.
    """

    index: int
    seed: tuple[int, ...]
    augmentation: tuple[int, ...] | None = None


class Order(Protocol):
    """The samples of every step. It follows from the seed alone, so that a training can be resumed at any step."""

    def __len__(self) -> int:
        """Return the number of steps per epoch."""

    def epoch(self, epoch: int) -> Sequence[Sequence[Draw]]:
        """Return the samples of each step of an epoch: [steps][slots]."""


class Shuffled:
    """All samples in random order; the first ones are repeated to fill the last step."""

    def __init__(self, samples: int, slots: int, seed: int) -> None:
        """Set the sizes.

        samples: number of samples.
        slots: samples of a step, of all processes together.
        seed: of the order, and of the samples' random numbers.
        """
        self._samples, self._slots, self._seed = samples, slots, seed

    def __len__(self) -> int:
        """Return the number of steps per epoch."""
        return -(-self._samples // self._slots)

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """Return the samples of each step of an epoch: [steps][slots]."""
        order = np.random.default_rng([self._seed, epoch]).permutation(self._samples)
        rows = np.resize(order, (len(self), self._slots)).tolist()
        return [[Draw(index, (self._seed, epoch, index)) for index in row] for row in rows]
