"""The tree of coordinate frames that tf describes, for machines without tf2: static links, moving links, look-ups.

The rules are tf2's, see tf2's BufferCore: a frame's parent may change from pose to pose, and the newest holds from its
stamp on; a look-up needs only the links between its two frames; what has no pose at the stamp ends the way up there.
So a stray message that makes a loop, or a second parent, disturbs the stamps around it and no others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.sensing.poses import PoseBuffer
from bev_perception.sensing.transforms import NoTransformError, Transforms, not_connected, some_of


class TransformTree(Transforms):
    """Frames and the links between them, in pure Python.

    Everything is bounded, because some trackers publish a frame for every object that they ever saw. Beyond a limit,
    the link that has been silent for longest is forgotten, but none that a look-up has used.

    LINKS_KEPT: moving links, each with a PoseBuffer.
    POSES_KEPT: poses of all moving links together.
    STATIC_LINKS_KEPT: static links.
    NEEDED_KEPT: frames known to be used by look-ups; the one whose use is longest ago is forgotten.
    """

    LINKS_KEPT = 3_000
    POSES_KEPT = 100_000
    STATIC_LINKS_KEPT = 100_000
    NEEDED_KEPT = 300

    def __init__(self) -> None:
        """Start with no links."""
        super().__init__()
        # both stand in the order of their last news, so the first is the one that has been silent for longest
        self._static: dict[str, tuple[str, np.ndarray]] = {}
        self._moving: dict[str, PoseBuffer] = {}
        self._count = 0  # poses of all moving links
        self._needed: dict[str, None] = {}  # frames that look-ups have met, in the order of their last use

    def _set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None:
        self._forget(child)
        self._static.pop(child, None)
        if len(self._static) >= self.STATIC_LINKS_KEPT:
            del self._static[self._silent(self._static)]
        self._static[child] = (parent, child2parent)

    def _is_static(self, child: str) -> bool:
        return child in self._static

    def _parent(self, child: str) -> str | None:
        if child in self._static:
            return self._static[child][0]
        return self._moving[child].parent if child in self._moving else None

    def _add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None:
        history = self._moving.pop(child, None)
        if history is None:
            history = PoseBuffer()
        self._count -= len(history)
        history.add(stamp, parent, child2parent)
        self._count += len(history)
        while len(self._moving) >= self.LINKS_KEPT or (self._count > self.POSES_KEPT and self._has_strangers()):
            self._forget(self._silent(self._moving))
        self._moving[child] = history

    def forget_after(self, stamp: int) -> None:
        """Forget the poses that are newer than `stamp` (ns): time has jumped back."""
        for history in self._moving.values():
            history.forget_after(stamp)
        self._count = sum(map(len, self._moving.values()))

    @property
    def static_links(self) -> Mapping[str, tuple[str, np.ndarray]]:
        """As Transforms has it."""
        return self._static

    def lookup(self, source: str, target: str, stamp: int) -> np.ndarray:
        """Return source2target [4, 4] at `stamp` (ns).

        Raises NoTransformError when the frames are not connected, PoseNotYetError and PoseTooOldError as PoseBuffer
        does.
        """
        top, source2top, lacking = self._climb(source, target, stamp, None)
        if top == target:
            return source2top
        end, target2top, lacking_target = self._climb(target, source, stamp, top)
        if lacking_target is not None:
            raise lacking_target
        if end == source:
            return invert_transform(target2top)
        if end != top:
            raise lacking or not_connected(source, target, self._parents())
        return invert_transform(target2top) @ source2top

    def _climb(self, frame: str, goal: str, stamp: int, top: str | None) -> tuple[str, np.ndarray, LookupError | None]:
        """Go from a frame to its ancestors, as far as there are poses at `stamp`, or to `goal` or `top`.

        Returns where the way ends, frame2end [4, 4], and why it goes no further where a pose is lacking.
        """
        transform = np.eye(4)
        passed = {frame: None}
        while frame not in (goal, top):
            self._need(frame)
            try:
                link = self._link(frame, stamp)
            except LookupError as error:
                return frame, transform, error
            if link is None:
                break
            frame, child2parent = link
            if frame in passed:
                raise NoTransformError(
                    f"tf has a loop: {some_of([*passed, frame], ' -> ')}; each frame needs one parent"
                )
            passed[frame] = None
            transform = child2parent @ transform
        return frame, transform, None

    def _link(self, frame: str, stamp: int) -> tuple[str, np.ndarray] | None:
        """Return a frame's parent and frame2parent [4, 4] at `stamp`; None for a frame without a parent."""
        if frame in self._static:
            return self._static[frame]
        history = self._moving.get(frame)
        if history is None:
            return None
        try:
            return history.lookup(stamp)
        except LookupError as error:
            raise type(error)(f"tf {history.parent} -> {frame}: {error}") from error

    def _parents(self) -> dict[str, str]:
        static = {child: parent for child, (parent, _) in sorted(self._static.items())}
        return static | {child: h.parent for child, h in sorted(self._moving.items()) if h.parent}

    def _need(self, frame: str) -> None:
        self._needed.pop(frame, None)
        self._needed[frame] = None
        if len(self._needed) > self.NEEDED_KEPT:
            del self._needed[next(iter(self._needed))]

    def _has_strangers(self) -> bool:
        return any(child not in self._needed for child in self._moving)

    def _silent(self, links: dict[str, tuple[str, np.ndarray]] | dict[str, PoseBuffer]) -> str:
        """Return the child of the link that has been silent for longest of those that no look-up has used."""
        return next((child for child in links if child not in self._needed), next(iter(links)))

    def _forget(self, child: str) -> None:
        history = self._moving.pop(child, None)
        self._count -= 0 if history is None else len(history)
