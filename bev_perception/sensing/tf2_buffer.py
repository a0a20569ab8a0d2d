"""tf2's own BufferCore behind the interface of this package, live and offline alike: it needs no node."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from bev_perception.geometry import quaternion_from_rotation, transform_from_quaternion
from bev_perception.sensing.poses import HORIZON, PoseBuffer, PoseNotYetError, PoseTooOldError
from bev_perception.sensing.transforms import Transforms, not_connected


class Tf2Transforms(Transforms):
    """Transforms held by tf2_py.BufferCore.

    A BufferCore cannot forget, so it is made anew, with the static links, where time jumps back, where a frame that
    moved becomes static, and where it holds too many frames. It follows no jump by itself: after a stamp from the
    future it ignores all others.

    FRAMES_KEPT: moving frames; some trackers publish one for every object that they ever saw.
    """

    FRAMES_KEPT = 20_000

    def __init__(self) -> None:
        """Start with no links; ImportError without tf2_py."""
        super().__init__()
        self._tf2 = importlib.import_module("tf2_py")
        self._message = importlib.import_module("geometry_msgs.msg").TransformStamped
        self._static: dict[str, tuple[str, np.ndarray]] = {}
        self._moving: dict[str, tuple[str, int]] = {}  # child -> parent and newest stamp
        self._refused: dict[str, list[tuple[str, int, np.ndarray]]] = {}  # too old for tf2, since the last newer one
        self._core = self._new_core()

    @property
    def static_links(self) -> Mapping[str, tuple[str, np.ndarray]]:
        """As Transforms has it."""
        return self._static

    def lookup(self, source: str, target: str, stamp: int) -> np.ndarray:
        """Return source2target [4, 4] at `stamp` (ns); raises as Transforms.lookup says."""
        if source == target:
            return np.eye(4)
        try:
            found = self._core.lookup_transform_core(target, source, SimpleNamespace(nanoseconds=stamp)).transform
        except self._tf2.ExtrapolationException as error:
            raise self._late_or_old(source, target, stamp)(f"tf {target} -> {source}: {error}") from error
        except self._tf2.TransformException as error:
            links = {**dict(sorted(self._static.items())), **dict(sorted(self._moving.items()))}
            parents = {child: parent for child, (parent, _) in links.items()}
            raise not_connected(source, target, parents, f"tf2 says: {error}") from error
        q, t = found.rotation, found.translation
        return transform_from_quaternion(q.w, q.x, q.y, q.z, (t.x, t.y, t.z))

    def forget_after(self, stamp: int) -> None:
        """Forget all poses: tf2 does the same when its clock jumps back."""
        held, self._refused = self._refused, {}
        self._restart()
        for child, poses in held.items():
            self._add_all(child, poses)

    def _late_or_old(self, source: str, target: str, stamp: int) -> Callable[[str], LookupError]:
        """Return the kind of error for a look-up that tf2 would have to extrapolate."""
        try:
            newest = self._core.get_latest_common_time(target, source).nanoseconds
        except self._tf2.TransformException:
            return PoseNotYetError
        return PoseNotYetError if stamp > newest or self._refused else PoseTooOldError

    def _set_static(self, parent: str, child: str, child2parent: np.ndarray) -> None:
        self._static[child] = (parent, child2parent)
        if self._moving.pop(child, None) is not None:
            self._restart()
        self._core.set_transform_static(self._stamped(parent, child, 0, child2parent), "")

    def _is_static(self, child: str) -> bool:
        return child in self._static

    def _parent(self, child: str) -> str | None:
        known = self._static.get(child) or self._moving.get(child)
        return None if known is None else known[0]

    def _add(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> None:
        if len(self._moving) >= self.FRAMES_KEPT and child not in self._moving:
            self._restart()
        _, newest = self._moving.get(child, (parent, stamp))
        if stamp >= newest - HORIZON:
            self._refused.pop(child, None)
            self._moving[child] = (parent, max(stamp, newest))
            self._core.set_transform(self._stamped(parent, child, stamp, child2parent), "")
            return
        held = self._refused.setdefault(child, [])
        held.append((parent, stamp, child2parent))
        if len(held) >= PoseBuffer.JUMP_PROOF:
            self._restart()
            self._add_all(child, held)

    def _add_all(self, child: str, poses: list[tuple[str, int, np.ndarray]]) -> None:
        for parent, stamp, child2parent in poses:
            self._add(parent, child, stamp, child2parent)

    def _restart(self) -> None:
        """Go on with a new BufferCore that knows the static links only."""
        self._moving.clear()
        self._refused.clear()
        self._core = self._new_core()
        for child, (parent, child2parent) in self._static.items():
            self._core.set_transform_static(self._stamped(parent, child, 0, child2parent), "")

    def _new_core(self) -> Any:
        return self._tf2.BufferCore(SimpleNamespace(nanoseconds=HORIZON))

    def _stamped(self, parent: str, child: str, stamp: int, child2parent: np.ndarray) -> Any:
        message = self._message()
        message.header.frame_id, message.child_frame_id = parent, child
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        rotation, translation = message.transform.rotation, message.transform.translation
        rotation.w, rotation.x, rotation.y, rotation.z = map(float, quaternion_from_rotation(child2parent[:3, :3]))
        translation.x, translation.y, translation.z = map(float, child2parent[:3, 3])
        return message
