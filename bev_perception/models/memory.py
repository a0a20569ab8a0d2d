"""Rolling temporal memory: what a model remembers of past frames, immutable, chosen by time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch


class Entry(Protocol):
    """What a model remembers of one frame: pyramid levels, a BEV map, or instances."""

    @property
    def stamp(self) -> int:
        """Stamp of the frame, ns."""

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """The tensors that the entry keeps on the device."""


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class FrameFeatures:
    """The pyramid of one frame, as the query decoders remember it.

    levels: one tensor a pyramid level, channels last, [N, h, w, C], on the device; zeros where a camera was missing
    global2image: [N, 4, 4] float64, global frame to depth-scaled pixels
    present: [N] bool
    stamps: [N] int64, ns, of each camera
    stamp: ns, of the frame
    """

    levels: tuple[torch.Tensor, ...]
    global2image: np.ndarray
    present: np.ndarray
    stamps: np.ndarray
    stamp: int

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """The levels."""
        return self.levels


@dataclass(frozen=True)
class Memory(Generic[E]):
    """Entries of past frames, newest first, and what is carried from frame to frame.

    Immutable: `after` returns a new memory that shares the tensors. So a model can hand out what it would remember,
    and the pipeline keeps it or not.

    count: past frames that the model looks at
    interval: s between them, as the model was trained
    capacity: the most entries kept
    missing: what stands for a frame that is not there: the "oldest" entry, or the "current" frame
    entries: of past frames, newest first
    carried: kept from frame to frame, whether the frame is remembered or not; None for most families
    """

    count: int
    interval: float
    capacity: int
    missing: str = "oldest"
    entries: tuple[E, ...] = ()
    carried: Any = None

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def history(self, stamp: int) -> list[E | None]:
        """Return `count` entries, the k-th being the nearest to `stamp` - k * `interval`; None is the current frame.

        So the model sees the spacing that it was trained with at any camera rate.
        """
        if not self.entries:
            return [None] * self.count
        oldest = self.entries[-1].stamp
        found: list[E | None] = []
        for k in range(1, self.count + 1):
            wanted = stamp - round(k * self.interval * 1e9)
            lost = self.missing == "current" and wanted < oldest - self.interval / 2 * 1e9
            found.append(None if lost else min(self.entries, key=lambda entry: abs(entry.stamp - wanted)))
        return found

    def after(self, entry: E, carried: Any, due: bool) -> Memory[E]:
        """Return the memory after a frame.

        entry: what to remember of the frame; kept only if `due`
        carried: kept always
        """
        kept = (entry, *self.entries)[: self.capacity] if due else self.entries
        return replace(self, entries=kept, carried=carried)

    def with_capacity(self, capacity: int) -> Memory[E]:
        """Return the memory with room for `capacity` entries; the oldest ones give way."""
        return replace(self, capacity=capacity, entries=self.entries[:capacity])

    def wiped(self) -> Memory[E]:
        """Return the memory without entries; what is carried stays, so that no track id is given twice."""
        return replace(self, entries=())


def device_bytes(memories: Iterable[Memory]) -> int:
    """Return the bytes that memories take on the device; tensors that they share count once."""
    tensors = {t.data_ptr(): t for memory in memories for entry in memory.entries for t in entry.tensors}
    return sum(t.element_size() * t.nelement() for t in tensors.values())
