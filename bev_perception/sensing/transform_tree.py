"""The tree of coordinate frames that tf describes: static links, moving links, look-ups through both."""

from __future__ import annotations

import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.sensing.poses import PoseBuffer


class NoTransformError(LookupError):
    """Two frames are not connected (yet)."""


class TransformTree:
    """Frames and the links between them; each child has one parent.

    At most LINKS_KEPT moving links are kept, each with a PoseBuffer; beyond that the one that has been silent for
    longest is forgotten (some trackers publish every object they ever saw on /tf).
    """

    LINKS_KEPT = 300

    def __init__(self) -> None:
        """Start with no links."""
        self._static: dict[str, tuple[str, np.ndarray]] = {}
        self._moving: dict[str, tuple[str, PoseBuffer]] = {}

    def set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None:
        """Set a link that never moves; replaces what was known of `child`."""
        self._moving.pop(child, None)
        self._static[child] = (parent, child2parent)

    def add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None:
        """Add the pose [4, 4] of a moving link at `stamp` (ns)."""
        self._static.pop(child, None)
        known = self._moving.get(child)
        if known is None or known[0] != parent:
            known = (parent, PoseBuffer())
        # the links stand in the order of their last news, so the first is the one silent for longest
        self._moving.pop(child, None)
        self._moving[child] = known
        if len(self._moving) > self.LINKS_KEPT:
            self._moving.pop(next(iter(self._moving)))
        known[1].add(stamp, child2parent)

    def lookup(self, source: str, target: str, stamp: int) -> np.ndarray:
        """Return source2target [4, 4] at `stamp`.

        Raises NoTransformError when the frames are not connected, PoseNotYetError and PoseTooOldError as PoseBuffer
        does.
        """
        up = self._chain(source)
        down = self._chain(target)
        common = next((frame for frame in up if frame in down), None)
        if common is None:
            known = sorted(set(self._static) | set(self._moving))
            raise NoTransformError(
                f"tf does not connect {source!r} to {target!r}; "
                + (f"known child frames: {', '.join(known)}" if known else "no tf has arrived")
            )
        return invert_transform(self._to_ancestor(target, common, stamp)) @ self._to_ancestor(source, common, stamp)

    def _chain(self, frame: str) -> list[str]:
        chain = [frame]
        while (link := self._static.get(chain[-1]) or self._moving.get(chain[-1])) is not None:
            if link[0] in chain:
                raise NoTransformError(f"tf has a loop: {' -> '.join([*chain, link[0]])}")
            chain.append(link[0])
        return chain

    def _to_ancestor(self, frame: str, ancestor: str, stamp: int) -> np.ndarray:
        transform = np.eye(4)
        while frame != ancestor:
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
