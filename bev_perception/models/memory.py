"""Rolling temporal memory: what a model remembers of past frames; immutable, with entries selected by time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch


class Entry(Protocol):
    """What a model remembers of one frame: pyramid levels, a BEV map, or instances."""

    @property
    def stamp(self) -> int:
        """Stamp of the frame (ns)."""

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """The tensors that the entry keeps on the device."""


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class FrameFeatures:
    """The feature pyramid of one frame, as the query decoders remember it.

    levels: one tensor [N, h, w, C] per pyramid level, channels last, on the device; zeros for a missing camera
    global2image: [N, 4, 4] float64, global frame to depth-scaled pixels
    present: [N] bool, False for a missing camera
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
    """Entries of past frames, newest first, and the state that is carried from frame to frame.

    Immutable: `after` returns a new memory that shares the tensors. So the model proposes what to remember, and the
    pipeline decides whether to keep it.

    count: number of past frames that the model uses
    interval: s between these frames, as in training
    capacity: maximum number of entries
    missing: what replaces a frame that the memory does not reach: the "oldest" entry, or the "current" frame
    shortest: s; younger entries are only selected if there are no older ones
    entries: of past frames, newest first
    carried: state that is kept from frame to frame, whether a frame is remembered or not; None for most families
    thin: returns what is kept of entries, newest first, once one has been added: a family may need parts of the newest
        ones only; None: everything
    """

    count: int
    interval: float
    capacity: int
    missing: str = "oldest"
    shortest: float = 0.0
    entries: tuple[E, ...] = ()
    carried: Any = None
    thin: Callable[[tuple[E, ...]], tuple[E, ...]] | None = None

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def history(self, stamp: int) -> list[E | None]:
        """Return `count` entries, the k-th being the one nearest to `stamp` - k * `interval`.

        stamp: of the current frame, ns

        None in the list stands for the current frame. At any camera rate the model thus sees frames at the interval
        that it was trained with.
        """
        if not self.entries:
            return [None] * self.count
        oldest = self.entries[-1].stamp
        old_enough = [e for e in self.entries if stamp - e.stamp >= self.shortest * 1e9] or self.entries
        found: list[E | None] = []
        for k in range(1, self.count + 1):
            wanted = stamp - round(k * self.interval * 1e9)
            lost = self.missing == "current" and wanted < oldest - self.interval / 2 * 1e9
            found.append(None if lost else min(old_enough, key=lambda entry: abs(entry.stamp - wanted)))
        return found

    def after(self, entry: E, carried: Any, due: bool) -> Memory[E]:
        """Return the memory after a frame.

        entry: what to remember of the frame
        carried: state for the next frame; always kept
        due: whether to keep the entry
        """
        kept = (entry, *self.entries)[: self.capacity] if due else self.entries
        return replace(self, entries=self.thin(kept) if self.thin and due else kept, carried=carried)

    def with_capacity(self, capacity: int) -> Memory[E]:
        """Return the memory with room for `capacity` entries; the oldest ones beyond that are dropped."""
        return replace(self, capacity=capacity, entries=self.entries[:capacity])

    def wiped(self) -> Memory[E]:
        """Return the memory without entries; `carried` stays, so that no track id is assigned twice."""
        return replace(self, entries=())


def device_bytes(memories: Iterable[Memory]) -> int:
    """Return the bytes that memories occupy on the device; shared tensors count once."""
    tensors = {t.data_ptr(): t for memory in memories for entry in memory.entries for t in entry.tensors}
    return sum(t.element_size() * t.nelement() for t in tensors.values())
