"""Frames in the order of scenes, for training with memory: every sample of a batch goes on with its own sequence.

Scenes are cut into sequences. Each slot of the batch reads an endless stream of whole sequences, which is a function of
the seed alone: it can be read from any step on, in any process.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Turn:
    """What a slot of the batch reads in a step.

    frame: index of the key frame.
    visit: number of sequences that the slot has read before this one; augmentation that holds for a whole sequence
        follows from it.
    """

    frame: int
    visit: int


def split_scenes(scenes: Sequence[Sequence[int]], parts: int) -> list[list[int]]:
    """Cut every scene into `parts` sequences of equal length, the last of which may be shorter.

    scenes: frames of each scene, in order of time.

    Scenes with fewer frames than that give fewer sequences.
    """
    sequences = []
    for frames in scenes:
        length = -(-len(frames) // parts)
        sequences += [list(frames[start : start + length]) for start in range(0, len(frames), length)]
    return sequences


class SequenceStreams:
    """The endless streams of all slots: each reads every `slots`-th of the sequences, shuffled pass by pass."""

    def __init__(
        self, sequences: Sequence[Sequence[int]], slots: int, seed: int, skip: float = 0.0, reverse: float = 0.0
    ) -> None:
        """Prepare the streams.

        sequences: frames of each sequence, in order of time, see split_scenes.
        slots: samples of a step, of all processes together; with a batch of b, process r has the slots from r * b on.
        seed: what the streams follow from.
        skip: probability that the next frame is left out; the first and the last of a sequence never are.
        reverse: probability that a sequence is read backwards.
        """
        self._sequences, self._slots, self._seed = sequences, slots, seed
        self._skip, self._reverse = skip, reverse
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []  # sequences in the order in which the slots take turns with them
        self._starts: list[list[int]] = [[0] for _ in range(slots)]  # step at which each visit of a slot begins
        self._last: dict[int, tuple[int, list[int]]] = {}  # per slot the latest visit and its frames

    def at(self, slot: int, step: int) -> Turn:
        """Return what a slot reads in a step, counted from 0."""
        starts = self._starts[slot]
        while starts[-1] <= step:
            starts.append(starts[-1] + len(self._frames(slot, len(starts) - 1)))
        visit = bisect.bisect_right(starts, step) - 1
        return Turn(self._frames(slot, visit)[step - starts[visit]], visit)

    def _frames(self, slot: int, visit: int) -> list[int]:
        """Return the frames that a slot reads in a visit."""
        if self._last.get(slot, (-1,))[0] != visit:
            rng = np.random.default_rng((self._seed, slot, visit))
            sequence = list(self._sequences[self._taken(slot + visit * self._slots)])
            if rng.random() < self._reverse:
                sequence.reverse()
            self._last[slot] = visit, skip_frames(sequence, rng.random(len(sequence)) < self._skip)
        return self._last[slot][1]

    def _taken(self, place: int) -> int:
        """Return the sequence at a place of the shuffled ones."""
        while len(self._order) <= place:
            self._order += torch.randperm(len(self._sequences), generator=self._generator).tolist()
        return self._order[place]


def skip_frames(frames: Sequence[int], skipped: Sequence[bool] | np.ndarray) -> list[int]:
    """Return the frames that are read: after each one, the next is left out where `skipped`, unless it is the last."""
    read, place = [], 0
    while place < len(frames):
        read.append(frames[place])
        place += 2 if skipped[place] and place + 2 < len(frames) else 1
    return read


def shard_scenes(scenes: Sequence[Sequence[int]], shards: int) -> list[list[int]]:
    """Share out whole scenes for an evaluation by several processes; return the frames of each.

    scenes: frames of each scene, in order of time.

    A process gets the scenes that begin in its equal share of all frames; the last one also those beyond all shares.
    """
    starts = np.cumsum([0, *map(len, scenes[:-1])])
    share = max(1, sum(map(len, scenes)) // shards)
    owners = np.minimum(starts // share, shards - 1)
    return [
        [i for scene, owner in zip(scenes, owners, strict=True) if owner == k for i in scene] for k in range(shards)
    ]
