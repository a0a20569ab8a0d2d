"""Frames in the order of scenes, for training with memory: every sample of a batch goes on with its own sequence.

Scenes are cut into sequences. Each slot of the batch reads an endless stream of whole sequences, which is a function of
the seed alone: it can be read from any step on, in any process.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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


def split_scenes(scenes: Sequence[Hashable], parts: int) -> list[np.ndarray]:
    """Cut every scene into `parts` sequences of consecutive frames, the last of which may be shorter.

    scenes: scene of each frame, in order of time.

    Returns the frames [n] of each sequence; scenes follow each other as they begin. Short scenes give fewer sequences.
    """
    frames: dict[Hashable, list[int]] = {}
    for i, scene in enumerate(scenes):
        frames.setdefault(scene, []).append(i)
    sequences = []
    for of_scene in frames.values():
        length = -(-len(of_scene) // parts)
        sequences += [np.array(of_scene[start : start + length]) for start in range(0, len(of_scene), length)]
    return sequences


class SequenceStreams:
    """The endless streams of all slots: each reads every `slots`-th of the sequences, shuffled pass by pass."""

    def __init__(
        self, sequences: Sequence[np.ndarray], slots: int, seed: int, skip: float = 0.0, reverse: float = 0.0
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
        visit = int(np.searchsorted(starts, step, side="right")) - 1
        return Turn(self._frames(slot, visit)[step - starts[visit]], visit)

    def _frames(self, slot: int, visit: int) -> list[int]:
        """Return the frames that a slot reads in a visit."""
        if self._last.get(slot, (-1,))[0] != visit:
            rng = np.random.default_rng([self._seed, slot, visit])
            sequence = self._sequences[self._taken(slot + visit * self._slots)].tolist()
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


def shard_scenes(scenes: Sequence[Hashable], ranks: int) -> list[np.ndarray]:
    """Share out whole scenes for an evaluation by several processes; return the frames [n] of each.

    scenes: scene of each frame; the frames of a scene follow each other.

    A process gets the scenes that begin in its equal share of the frames; the last one also those beyond all shares.
    """
    names = np.unique(np.array(scenes, dtype=np.str_), return_inverse=True)[1]
    first = np.flatnonzero(np.diff(names, prepend=-1))
    start = np.repeat(first, np.diff(first, append=len(names)))  # [frames], where the frame's scene begins
    rank = np.minimum(start // max(1, len(names) // ranks), ranks - 1)
    return [np.flatnonzero(rank == r) for r in range(ranks)]
