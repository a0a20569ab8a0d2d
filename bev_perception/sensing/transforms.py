"""What holds the transforms of tf: tf2's own BufferCore where it is installed, else the tree of this package."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from bev_perception.strict import UserError

#: frames that a message names at most
FRAMES_NAMED = 10


class NoTransformError(LookupError):
    """Two frames are not connected (yet)."""


class Transforms(ABC):
    """The links between frames, as they come on /tf and /tf_static, and look-ups through them.

    A link that has come on /tf_static stays static: one message on /tf would otherwise leave it with a pose at a single
    stamp, and /tf_static, which is sent once, would not mend it.

    disputed: child -> sentence about its parents, of links whose parent has changed since the last `take_disputes`.
    """

    def __init__(self) -> None:
        """Start with no links."""
        self.disputed: dict[str, str] = {}

    def set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None:
        """Set a link that never moves; replaces what was known of `child`.

        Raises UserError for a frame of its own parent, or without a name.
        """
        _check(parent, child)
        self._note_parent(parent, child)
        self._set_static(parent, child, child2parent)

    def add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None:
        """Add the pose [4, 4] of a moving link at `stamp` (ns).

        Raises UserError for a frame of its own parent, or without a name.
        """
        _check(parent, child)
        self._note_parent(parent, child)
        if self._is_static(child):
            self._set_static(parent, child, child2parent)
        else:
            self._add(parent, child, stamp, child2parent)

    def take_disputes(self) -> dict[str, str]:
        """Return child -> sentence about its parents, of links whose parent has changed since the last call."""
        disputed, self.disputed = self.disputed, {}
        return disputed

    @property
    @abstractmethod
    def static_links(self) -> Mapping[str, tuple[str, np.ndarray]]:
        """Child -> parent and child2parent [4, 4] of the links that never move."""

    @abstractmethod
    def lookup(self, source: str, target: str, stamp: int) -> np.ndarray:
        """Return source2target [4, 4] at `stamp` (ns).

        Raises NoTransformError when the frames are not connected, PoseNotYetError when the pose may still come, and
        PoseTooOldError when it is older than what is remembered.
        """

    @abstractmethod
    def forget_after(self, stamp: int) -> None:
        """Forget the poses that are newer than `stamp` (ns): time has jumped back."""

    @abstractmethod
    def _set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None: ...

    @abstractmethod
    def _add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None: ...

    @abstractmethod
    def _is_static(self, child: str) -> bool: ...

    @abstractmethod
    def _parent(self, child: str) -> str | None:
        """Return the parent that the newest message gave a frame, or None."""

    def _note_parent(self, parent: str, child: str) -> None:
        before = self._parent(child)
        if before not in (None, parent) and len(self.disputed) < 10:
            self.disputed[child] = (
                f"tf gives {child} the parent {parent} and, before, {before}; the newest is followed. Two nodes "
                "publish this frame, unless its parent was changed on purpose"
            )


def not_connected(source: str, target: str, parents: Mapping[str, str], reason: str = "") -> NoTransformError:
    """Return the error for frames that are not connected, which names frames that are known.

    parents: child -> parent of all links, those that help most first
    reason: what else is to be said
    """
    tops = sorted(set(parents.values()).difference(parents))
    known = (
        f"known child frames: {some_of(list(parents), ', ')}; frames without a parent: {some_of(tops, ', ')}"
        if parents
        else "no tf has arrived"
    )
    return NoTransformError("; ".join(filter(None, [f"tf does not connect {source!r} to {target!r}", reason, known])))


def some_of(frames: Sequence[str], separator: str) -> str:
    """Return the first frames' names, and how many more there are."""
    more = len(frames) - FRAMES_NAMED
    return separator.join(frames[:FRAMES_NAMED]) + (f" and {more} more" if more > 0 else "")


def open_transforms() -> Transforms:
    """Return an empty Transforms: tf2's where its Python module is installed, which needs no node."""
    if importlib.util.find_spec("tf2_py") is not None:
        from bev_perception.sensing.tf2_buffer import Tf2Transforms

        return Tf2Transforms()
    from bev_perception.sensing.transform_tree import TransformTree

    return TransformTree()


def _check(parent: str, child: str) -> None:
    if not parent or not child:
        raise UserError(f"tf {parent!r} -> {child!r}: a frame has no name; correct the node that publishes it")
    if parent == child:
        raise UserError(f"tf {parent} -> {child}: a frame cannot be its own parent; correct the node that publishes it")
