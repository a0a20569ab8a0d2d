"""The tree of coordinate frames that tf describes: static links, moving links, look-ups through both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.sensing.poses import PoseBuffer

#: frames that an error names; a tracker may have hundreds in tf
FRAMES_NAMED = 10


class NoTransformError(LookupError):
    """Two frames are not connected (yet)."""


class TransformTree:
    """Frames and the links between them; each child has one parent.

    Both kinds of links are bounded, because some trackers publish a frame for every object that they ever saw. Beyond
    the limit, the link that has been silent for longest is forgotten, but one that a look-up has used only after all
    the others.

    LINKS_KEPT: moving links, each with a PoseBuffer.
    STATIC_LINKS_KEPT: static links.
    """

    LINKS_KEPT = 300
    STATIC_LINKS_KEPT = 3000

    def __init__(self) -> None:
        """Start with no links."""
        # both stand in the order of their last news, so the first is the one that has been silent for longest
        self._static: dict[str, tuple[str, np.ndarray]] = {}
        self._moving: dict[str, tuple[str, PoseBuffer]] = {}
        self._needed: set[str] = set()  # children of links that a look-up has used

    def set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None:
        """Set a link that never moves; replaces what was known of `child`."""
        self._moving.pop(child, None)
        self._static.pop(child, None)
        self._make_room(self._static, self.STATIC_LINKS_KEPT)
        self._static[child] = (parent, child2parent)

    def add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None:
        """Add the pose [4, 4] of a moving link at `stamp` (ns)."""
        self._static.pop(child, None)
        known = self._moving.pop(child, None)
        if known is None or known[0] != parent:
            known = (parent, PoseBuffer())
        known[1].add(stamp, child2parent)
        self._make_room(self._moving, self.LINKS_KEPT)
        self._moving[child] = known

    def lookup(self, source: str, target: str, stamp: int) -> np.ndarray:
        """Return source2target [4, 4] at `stamp` (ns).

        Raises NoTransformError when the frames are not connected, PoseNotYetError and PoseTooOldError as PoseBuffer
        does.
        """
        up = self._chain(source)
        down = self._chain(target)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            known = [*sorted(self._static), *sorted(self._moving)]  # cameras are mounted: static frames help most
            raise NoTransformError(
                f"tf does not connect {source!r} to {target!r}; "
                + (f"known child frames: {_some(known, ', ')}" if known else "no tf has arrived")
            )
        return invert_transform(self._to_ancestor(target, common, stamp)) @ self._to_ancestor(source, common, stamp)

    def _make_room(self, links: dict[str, Any], kept: int) -> None:
        """Forget a link if one more would be too many."""
        if len(links) >= kept:
            child = next((child for child in links if child not in self._needed), next(iter(links)))
            del links[child]
            self._needed.discard(child)

    def _chain(self, frame: str) -> dict[str, None]:
        """Return the frame and its ancestors in ascending order; a dict, because long chains are searched."""
        chain = {frame: None}
        while (link := self._static.get(frame) or self._moving.get(frame)) is not None:
            frame = link[0]
            if frame in chain:
                raise NoTransformError(f"tf has a loop: {_some([*chain, frame], ' -> ')}; each frame needs one parent")
            chain[frame] = None
        return chain

    def _to_ancestor(self, frame: str, ancestor: str, stamp: int) -> np.ndarray:
        transform = np.eye(4)
        while frame != ancestor:
            self._needed.add(frame)
            if frame in self._static:
                parent, link = self._static[frame]
            else:
                parent, history = self._moving[frame]
                try:
                    link = history.lookup(stamp)
                except LookupError as error:
                    raise type(error)(f"tf {parent} -> {frame}: {error}") from error
            transform = link @ transform
            frame = parent
        return transform


def _some(frames: Sequence[str], separator: str) -> str:
    """Return the first frames' names, and how many more there are."""
    more = len(frames) - FRAMES_NAMED
    return separator.join(frames[:FRAMES_NAMED]) + (f" and {more} more" if more > 0 else "")
