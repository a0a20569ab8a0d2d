"""Single images in, sets of simultaneous views with their poses out.

Time is what the image headers say, never the wall clock: the same messages in the same order give the same frames,
live or from a bag. "Now" is the newest image stamp seen, so a time-out is reached as soon as the other cameras
have gone on for that long.
"""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from dataclasses import dataclass

import numpy as np

from bev_perception.health import Health
from bev_perception.sensing.poses import PoseNotYetError
from bev_perception.sensing.transform_tree import NoTransformError, TransformTree
from bev_perception.types import BASE_FRAME, FIXED_FRAME, Calibration, CameraImage, Frame, View

#: an image this much (ns) before or after the others is from another time: a bag that loops, a gap, a wrong clock
JUMP = 1_000_000_000
#: images kept a camera while they wait for the others, and sets kept while they wait for poses: beyond that the oldest
#: goes on without what it waits for
IMAGES_KEPT = 24
SETS_KEPT = 32


@dataclass(frozen=True)
class SynchronizerSettings:
    """How images are grouped into sets; times in seconds of header time.

    cameras: names, in the order the frames list them.  anchor: the camera whose image starts a set and gives it its
    stamp ("" is the first); while it is silent the first camera that is not takes its place.
    max_stamp_difference: to the anchor's stamp; also at most half the anchor's period.
    camera_timeout: how long a set waits for a camera before it goes on without it.
    tf_timeout: how long a complete set waits for its camera_info and tf.
    base_frame, fixed_frame: tf frames of the vehicle and of the world it moves in.
    """

    cameras: tuple[str, ...]
    anchor: str = ""
    max_stamp_difference: float = 0.05
    camera_timeout: float = 0.1
    tf_timeout: float = 0.2
    base_frame: str = BASE_FRAME
    fixed_frame: str = FIXED_FRAME

    def __post_init__(self) -> None:
        """Check the camera names."""
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"cameras must name at least one camera, each once; got {list(self.cameras)}")
        if self.anchor and self.anchor not in self.cameras:
            raise ValueError(f"anchor_camera {self.anchor!r} is none of the cameras {list(self.cameras)}")


@dataclass
class _ImageSet:
    """Images that belong together, waiting for calibration and poses."""

    stamp: int
    images: dict[str, CameraImage]
    missing: dict[str, str]


class Synchronizer:
    """Groups images of N cameras into Frames; bounded, and counts in `health` what it drops."""

    def __init__(self, settings: SynchronizerSettings, transforms: TransformTree, health: Health) -> None:
        """Start empty; `transforms` is filled by the caller."""
        self.settings = settings
        self.transforms = transforms
        self.health = health
        self._calibrations: dict[str, Calibration | str] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all images; calibrations stay."""
        self._images: dict[str, deque[CameraImage]] = {c: deque() for c in self.settings.cameras}
        self._newest: dict[str, int] = {}
        self._second_newest: dict[str, int] = {}
        self._intervals: deque[int] = deque(maxlen=7)
        self._suspects: list[CameraImage] = []
        self._suspects_in_a_row = 0
        self._pending: deque[_ImageSet] = deque()
        self._first: int | None = None
        self._clock = 0
        self._last_set: int | None = None
        self._given_up: set[tuple[str, str]] = set()
        self.waiting_for = ""

    def set_calibration(self, camera: str, calibration: Calibration | str) -> None:
        """Set a camera's calibration, or say in a sentence why the one that arrived cannot be used."""
        self._calibrations[camera] = calibration

    def add(self, image: CameraImage) -> None:
        """Take an image of one of the cameras."""
        if self._first is not None and abs(image.stamp - self._clock) > JUMP:
            self._suspect(image)
            return
        self._dismiss([suspect for suspect in self._suspects if suspect.camera == image.camera])
        self._suspects_in_a_row = 0
        self._insert(image)

    def poll(self) -> list[Frame]:
        """Return the frames that have become complete, oldest first; call it after images, calibrations or tf came."""
        self._collect_sets()
        frames: list[Frame] = []
        self.waiting_for = ""
        while self._pending:
            done, frame = self._join(self._pending[0])
            if not done:
                break
            self._pending.popleft()
            if frame is not None:
                frames.append(frame)
        return frames

    def _suspect(self, image: CameraImage) -> None:
        """Keep an image from another time until most cameras, or the only one that still sends, have gone there.

        So one stray message or one wrong clock is left out, and a jump of them all is followed within a set.
        """
        self._suspects.append(image)
        self._suspects_in_a_row += 1
        agreeing = [suspect for suspect in self._suspects if abs(suspect.stamp - image.stamp) <= JUMP]
        cameras = {suspect.camera for suspect in agreeing}
        heard = {suspect.camera for suspect in self._suspects} | set(self._newest)
        back = image.stamp < self._clock
        # of a single camera, a step back must come twice: a stray old stamp is likelier than a bag that loops
        followed = 2 * len(cameras) > len(heard) and (len(heard) > 1 or not back or len(agreeing) > 1)
        enough = max(4, 2 * len(self.settings.cameras))
        if not followed and self._suspects_in_a_row < enough:
            if len(self._suspects) >= enough:
                self._dismiss(self._suspects[:1])
            return
        self._dismiss([suspect for suspect in self._suspects if suspect not in agreeing])
        if back:
            by = (self._clock - image.stamp) / 1e9
            self.health.drop("time ran backwards", f"by {by:.3f} s; images that were waiting are dropped")
            self.clear()
        self._suspects, self._suspects_in_a_row = [], 0
        for earlier in agreeing:
            self._insert(earlier)

    def _dismiss(self, suspects: list[CameraImage]) -> None:
        for suspect in suspects:
            ahead = (suspect.stamp - self._clock) / 1e9
            self.health.drop("stamp out of line", f"{suspect.camera} is {ahead:+.3f} s from the other cameras")
            self._suspects.remove(suspect)

    def _insert(self, image: CameraImage) -> None:
        buffer = self._images[image.camera]
        stamps = [kept.stamp for kept in buffer]
        at = bisect.bisect_left(stamps, image.stamp)
        if image.stamp == self._newest.get(image.camera) or (at < len(stamps) and stamps[at] == image.stamp):
            self.health.drop("duplicate stamp", f"{image.camera} sent {image.stamp} ns twice")
            return
        if self._last_set is not None and image.stamp <= self._last_set - self._window():
            self.health.drop("late image", f"{image.camera}: its set has gone on without it")
            return
        if image.camera == self._anchor() and at == len(stamps) and image.camera in self._newest:
            self._intervals.append(image.stamp - self._newest[image.camera])
        buffer.insert(at, image)
        if len(buffer) > IMAGES_KEPT:
            buffer.popleft()
            self.health.drop("unmatched image", f"{image.camera}: no image of the anchor camera came near it")
        if image.stamp > self._newest.get(image.camera, -1):
            if image.camera in self._newest:
                self._second_newest[image.camera] = self._newest[image.camera]
            self._newest[image.camera] = image.stamp
        self._first = image.stamp if self._first is None else min(self._first, image.stamp)
        self._clock = max(self._clock, image.stamp)

    def _anchor(self) -> str:
        """Return the camera that starts sets: the configured one, or the first alive one while that is silent."""
        order = [self.settings.anchor or self.settings.cameras[0], *self.settings.cameras]
        return next((camera for camera in order if not self._is_lost(camera)), order[0])

    def _is_lost(self, camera: str) -> bool:
        """Whether another camera has sent two images, after the time-out, since this one's newest.

        One is not enough: at a low rate, or after a gap, some camera is always the first to come.
        """
        if self._first is None:
            return False
        silent_since = self._newest.get(camera, self._first)
        return any(stamp > silent_since + self._patience() for stamp in self._second_newest.values())

    def _patience(self) -> int:
        return round((self.settings.max_stamp_difference + self.settings.camera_timeout) * 1e9)

    def _window(self) -> int:
        """Return how far (ns) from the anchor an image may lie: no further than half-way to the next anchor."""
        window = round(self.settings.max_stamp_difference * 1e9)
        if self._intervals:
            window = min(window, int(statistics.median(self._intervals)) // 2)
        return window

    def _collect_sets(self) -> None:
        """Move every set that is complete, or has waited long enough, to the pending ones."""
        while True:
            anchor = self._anchor()
            window = self._window()
            if self._last_set is not None:  # an image this near belongs to the set that has gone
                self._discard_until(anchor, self._last_set + window)
            if not self._images[anchor]:
                return
            stamp = self._images[anchor][0].stamp
            images = {c: image for c in self.settings.cameras if (image := self._nearest(c, stamp, window)) is not None}
            absent = [c for c in self.settings.cameras if c not in images]
            full = len(self._images[anchor]) == IMAGES_KEPT
            waiting = not full and self._clock <= stamp + self._patience()
            if waiting and any(not self._is_lost(camera) for camera in absent):
                return
            self._last_set = stamp
            for camera, image in images.items():
                self._discard_until(camera, image.stamp - 1)
                self._images[camera].popleft()
            missing = dict.fromkeys(absent, "no image arrived in time")
            self._pending.append(_ImageSet(stamp, images, missing))

    def _nearest(self, camera: str, stamp: int, window: int) -> CameraImage | None:
        images = self._images[camera]
        best = min(images, key=lambda image: abs(image.stamp - stamp), default=None)
        return best if best is not None and abs(best.stamp - stamp) <= window else None

    def _discard_until(self, camera: str, stamp: int) -> None:
        images = self._images[camera]
        while images and images[0].stamp <= stamp:
            images.popleft()
            self.health.drop("unmatched image", f"{camera}: no image of the anchor camera is near it")

    def _join(self, image_set: _ImageSet) -> tuple[bool, Frame | None]:
        """Add calibrations and poses; return (whether the set is done with, its frame unless it had to be dropped)."""
        expired = self._clock > image_set.stamp + round(self.settings.tf_timeout * 1e9)
        expired = expired or len(self._pending) > SETS_KEPT
        missing = dict(image_set.missing)
        views: list[View | None] = []
        for camera in self.settings.cameras:
            image = image_set.images.get(camera)
            view = self._view(image) if image is not None else None
            if isinstance(view, _Unready):
                if view.may_come and not expired and (camera, view.reason) not in self._given_up:
                    self.waiting_for = f"{camera}: {view.reason}"
                    return False, None
                if view.lasting:
                    self._given_up.add((camera, view.reason))
                missing[camera] = view.reason
                view = None
            views.append(view)
        ego2global = self._ego_pose(image_set.stamp)
        if isinstance(ego2global, _Unready):
            if ego2global.may_come and not expired:
                self.waiting_for = ego2global.reason
                return False, None
            self.health.drop("no pose", ego2global.reason)
            return True, None
        if not any(views):
            self.health.drop("no usable view", "; ".join(f"{c}: {reason}" for c, reason in missing.items()))
            return True, None
        return True, Frame(image_set.stamp, self.settings.cameras, tuple(views), ego2global, missing)

    def _view(self, image: CameraImage) -> View | _Unready:
        calibration = self._calibrations.get(image.camera)
        if calibration is None:
            return _Unready("no camera_info has arrived", may_come=True, lasting=True)
        if isinstance(calibration, str):
            return _Unready(calibration, may_come=False)
        sensor2ego = self._lookup(image.frame_id, self.settings.base_frame, image.stamp)
        if isinstance(sensor2ego, _Unready):
            return sensor2ego
        ego2global = self._ego_pose(image.stamp)
        if isinstance(ego2global, _Unready):
            return ego2global
        return View(image, calibration, sensor2ego, ego2global)

    def _ego_pose(self, stamp: int) -> np.ndarray | _Unready:
        return self._lookup(self.settings.base_frame, self.settings.fixed_frame, stamp)

    def _lookup(self, source: str, target: str, stamp: int) -> np.ndarray | _Unready:
        try:
            return self.transforms.lookup(source, target, stamp)
        except NoTransformError as error:
            return _Unready(str(error), may_come=True, lasting=True)
        except PoseNotYetError as error:
            return _Unready(str(error), may_come=True)
        except LookupError as error:
            return _Unready(str(error), may_come=False)


@dataclass(frozen=True)
class _Unready:
    """Why something is not there.  may_come: waiting can help.  lasting: it may, but it is worth one wait, not many."""

    reason: str
    may_come: bool
    lasting: bool = False
