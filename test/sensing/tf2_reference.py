"""tf2's rules told a second time, as plainly as possible, and a stand-in for the module tf2_py that follows them.

The rules are those of BufferCore and TimeCache: all poses of the last 10 s, sorted; no extrapolation; between two
poses with different parents the earlier one; a look-up goes up from the source as far as there are poses, then from
the target.
"""

from types import SimpleNamespace

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from bev_perception.geometry import make_transform

CACHE = 10 * 10**9


class TransformException(Exception):
    pass


class LookupException(TransformException):
    pass


class ConnectivityException(TransformException):
    pass


class ExtrapolationException(TransformException):
    pass


class Reference:
    """Frames with all their poses, searched from end to end."""

    def __init__(self):
        self.static, self.moving = {}, {}

    def set_static(self, parent, child, pose):
        self.static[child] = (parent, pose)
        self.moving.pop(child, None)

    def add(self, parent, child, stamp, pose):
        poses = self.moving.setdefault(child, [])
        newest = max((s for s, *_ in poses), default=stamp)
        if stamp < newest - CACHE:
            return
        poses.append((stamp, len(poses), parent, pose))
        poses.sort(key=lambda p: p[:2])
        newest = max(newest, stamp)
        self.moving[child] = [p for p in poses if p[0] >= newest - CACHE]

    def link(self, frame, stamp):
        """(parent, pose), None without a parent; ExtrapolationException."""
        if frame in self.static:
            return self.static[frame]
        if frame not in self.moving:
            return None
        poses = self.moving[frame]
        before = [p for p in poses if p[0] <= stamp]
        after = [p for p in poses if p[0] > stamp]
        if not before:
            raise ExtrapolationException("into the past")
        if stamp == poses[0][0] and after:
            return poses[0][2:]
        if before[-1][0] == stamp or (after and after[0][2] != before[-1][2]):
            return before[-1][2:]
        if not after:
            raise ExtrapolationException("into the future")
        (a, _, parent, one), (b, _, _, two) = before[-1], after[0]
        weight = (stamp - a) / (b - a)
        if not np.array_equal(one[:3, :3], two[:3, :3]):
            rotation = Slerp([0, 1], Rotation.from_matrix([one[:3, :3], two[:3, :3]]))(weight).as_matrix()
        else:
            rotation = one[:3, :3]
        return parent, make_transform(rotation, (1 - weight) * one[:3, 3] + weight * two[:3, 3])

    def way(self, frame, goals, stamp):
        """From a frame up: [(frame, frame2this)], and why it ends, if a pose is lacking."""
        way = [(frame, np.eye(4))]
        while way[-1][0] not in goals:
            try:
                link = self.link(way[-1][0], stamp)
            except ExtrapolationException as error:
                return way, error
            if link is None:
                break
            if link[0] in [frame for frame, _ in way]:
                raise LookupException("a loop")  # tf2 gives up after 1000 links
            way.append((link[0], link[1] @ way[-1][1]))
        return way, None

    def lookup(self, source, target, stamp):
        up, lacking = self.way(source, {target}, stamp)
        top, source2top = up[-1]
        if top == target:
            return source2top
        down, lacking_there = self.way(target, {source, top}, stamp)
        end, target2end = down[-1]
        if lacking_there is not None:
            raise lacking_there
        if end == source:
            return np.linalg.inv(target2end)
        if end != top:
            raise lacking or ConnectivityException("two trees")
        return np.linalg.inv(target2end) @ source2top


class BufferCore:
    """The part of tf2_py.BufferCore that this package uses."""

    def __init__(self, cache):
        assert cache.nanoseconds == CACHE
        self.reference = Reference()

    @staticmethod
    def _parts(message):
        stamp, t, q = message.header.stamp, message.transform.translation, message.transform.rotation
        pose = make_transform(Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), [t.x, t.y, t.z])
        return message.header.frame_id, message.child_frame_id, stamp.sec * 10**9 + stamp.nanosec, pose

    def set_transform(self, message, authority):
        self.reference.add(*self._parts(message))

    def set_transform_static(self, message, authority):
        parent, child, _, pose = self._parts(message)
        assert child not in self.reference.moving, "older versions of tf2 take it for one more pose"
        self.reference.set_static(parent, child, pose)

    def lookup_transform_core(self, target, source, time):
        found = self.reference.lookup(source, target, time.nanoseconds)
        x, y, z, w = Rotation.from_matrix(found[:3, :3]).as_quat()
        translation = SimpleNamespace(**dict(zip("xyz", found[:3, 3].tolist(), strict=True)))
        return SimpleNamespace(
            transform=SimpleNamespace(rotation=SimpleNamespace(x=x, y=y, z=z, w=w), translation=translation)
        )

    def get_latest_common_time(self, target, source):
        stamps = {p[0] for poses in self.reference.moving.values() for p in poses}
        for stamp in sorted(stamps, reverse=True):
            try:
                self.reference.lookup(source, target, stamp)
            except TransformException:
                continue
            return SimpleNamespace(nanoseconds=stamp)
        raise TransformException("never")
