"""Single images in, sets of simultaneous views with their poses out.

Time is what the image headers say, never the wall clock: the same messages in the same order give the same frames,
live or from a bag. "Now" is the newest stamp that two cameras have reached, or the only one that still sends, so that
one camera whose clock runs ahead does not make the others late.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from bev_perception.health import CLOCK_OFF, LATE, NO_CALIBRATION, OK, REFUSED, Health
from bev_perception.sensing.poses import PoseNotYetError, timeout_remedy
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings, mounted
from bev_perception.sensing.transforms import NoTransformError, Transforms
from bev_perception.sensing.view_checks import JudgedViews, optical_warning, rectified_warning, shared_frame_warning
from bev_perception.strict import UserError
from bev_perception.types import Calibration, CameraImage, Frame, View

#: an image this much (ns) before or after the others is from another time: a bag that loops, a gap, a wrong clock
JUMP = 1_000_000_000
#: s; poses that come later than this are no reason to wait for them, but a gap or a jump in time
TF_LAG_TOLD = 10.0
#: images kept per camera while they wait for the other cameras; beyond that the oldest goes on without them
IMAGES_KEPT = 24
#: why an image that has no stamp is not used
UNSTAMPED = "stamps are zero: the driver must set header.stamp of its images"
#: sets kept while they wait for poses; beyond that the oldest goes on without them
SETS_KEPT = 32


def _rectified(calibration: Calibration) -> Calibration | str:
    """Return the calibration of rectified images, or a sentence that says why there is none."""
    try:
        return calibration.of_rectified()
    except UserError as error:
        return str(error)


@dataclass
class _ImageSet:
    """Images that belong together, waiting for calibrations and poses.

    stamp: ns, of the anchor's image.
    images: camera name -> image.
    missing: camera name -> why it has no image.
    """

    stamp: int
    images: dict[str, CameraImage]
    missing: dict[str, str]


#: by whom a camera is judged for diagnostics: by its clock, and by what becomes of its images
_CLOCK, _SETS = "clock", "sets"


class _Lack(Enum):
    """What a camera may lack for good; each is worth one wait, not one for every set."""

    CAMERA_INFO = "camera_info"
    EXTRINSICS = "extrinsics"
    EGO_POSE = "ego pose"


@dataclass(frozen=True)
class _Unready:
    """Why a view or a pose is not there.

    reason: a sentence that says what is missing.
    may_come: whether it may still come, so that waiting can help.
    lack: what is missing where that may be for good; None where it is only late or too old.
    state: of the camera, for diagnostics.
    """

    reason: str
    may_come: bool
    lack: _Lack | None = None
    state: str = LATE


class Synchronizer:
    """Groups images of N cameras into Frames and counts in `health` what it drops.

    Every buffer is bounded. Each image is used at most once, and frames come in the order of their stamps until time
    jumps back or `clear` is called.
    """

    def __init__(self, settings: SynchronizerSettings, transforms: Transforms, health: Health) -> None:
        """Start empty; `transforms` is filled by the caller."""
        self.settings = settings
        self.transforms = transforms
        self.health = health
        self._calibrations: dict[str, Calibration | str] = {}
        self._published: dict[str, tuple[Calibration | str, str]] = {}  # as set, with the topic of the images
        self._ending = False
        self._tf_lag = 0.0  # s; longest time after an image's stamp that its pose came, of the sets that went without
        self.clear()

    def clear(self) -> None:
        """Forget all images; calibrations stay."""
        self._images: dict[str, deque[CameraImage]] = {c: deque() for c in self.settings.cameras}  # ascending stamps
        self._newest: dict[str, int] = {}
        self._second_newest: dict[str, int] = {}
        self._last_used: dict[str, int] = {}  # camera -> stamp of its image in the last set that had one
        self._intervals: deque[int] = deque(maxlen=7)  # ns between the anchor's newest images
        self._suspects: list[CameraImage] = []
        self._suspects_in_a_row = 0
        self._pending: deque[_ImageSet] = deque()
        self._first: int | None = None
        self._last_senders: deque[str] = deque(maxlen=2)  # cameras of the last images that were their newest
        self._last_set: int | None = None
        self._given_up: set[tuple[str, _Lack]] = set()
        self._unstamped: set[str] = set()
        self._judged = JudgedViews()
        self._without_pose: int | None = None  # stamp of a set that went without a pose, until that comes
        self.waiting_for = ""

    def set_calibration(self, camera: str, calibration: Calibration | str, image_topic: str = "") -> None:
        """Set a camera's calibration, or say in a sentence why the one that arrived cannot be used.

        image_topic: of the images that it belongs to, as their publisher names it.
        """
        before, topic = self._published.get(camera, (None, ""))
        self._published[camera] = calibration, image_topic
        if isinstance(calibration, Calibration):
            known = before if camera in self._calibrations and topic == image_topic else None
            if isinstance(known, Calibration) and calibration.equals(known):
                return
            if not self.settings.is_rectified(camera):
                warning = rectified_warning(image_topic, calibration)
                if warning:
                    self.health.notice("rectified images", f"{camera}: {warning}", camera)
            else:
                calibration = _rectified(calibration)
        self._calibrations[camera] = calibration

    def add(self, image: CameraImage) -> None:
        """Take an image of one of the cameras."""
        if image.stamp == 0:
            self._unstamped.add(image.camera)
            self.health.drop("stamps are zero", f"{image.camera}: {UNSTAMPED}", image.camera)
            self.health.judge(image.camera, _CLOCK, CLOCK_OFF, UNSTAMPED)
            return
        self._unstamped.discard(image.camera)
        if self._first is not None and abs(image.stamp - self._now()) > JUMP:
            self._suspect(image)
            return
        self._dismiss([suspect for suspect in self._suspects if suspect.camera == image.camera])
        self._suspects_in_a_row = 0
        self._insert(image)

    def poll(self) -> list[Frame]:
        """Return the frames that have become complete, oldest first; call it whenever images, calibrations or tf came.

        Both loops end: each round takes an image, or a set, away.
        """
        self._collect_sets()
        self._measure_tf_lag()
        frames: list[Frame] = []
        self.waiting_for = "; ".join(f"{camera}: {UNSTAMPED}" for camera in sorted(self._unstamped))
        while self._pending:
            done, frame = self._join(self._pending[0])
            if not done:
                break
            self._pending.popleft()
            if frame is not None:
                frames.append(frame)
        return frames

    def finish(self) -> list[Frame]:
        """Return the frames of the sets that still wait at the end of a recording, and count what is left over."""
        self._ending = True
        frames = self.poll()
        self._ending = False
        self._dismiss(list(self._suspects))
        for camera, images in self._images.items():
            for _ in images:
                self.health.drop("unmatched image", f"{camera}: the recording ends before the set is complete", camera)
            images.clear()
        return frames

    def _suspect(self, image: CameraImage) -> None:
        """Keep an image from another time aside until most cameras, or the only one that still sends, are there too.

        So one stray message or one wrong clock is left out, and a jump of all cameras is followed within one set.
        """
        self._suspects.append(image)
        self._suspects_in_a_row += 1
        agreeing = [suspect for suspect in self._suspects if abs(suspect.stamp - image.stamp) <= JUMP]
        cameras = {suspect.camera for suspect in agreeing}
        heard = {suspect.camera for suspect in self._suspects} | {c for c in self._newest if not self._is_lost(c)}
        now = self._now()
        back = image.stamp < now
        # a single camera's step back must come twice: a stray old stamp is likelier than a bag that loops
        followed = 2 * len(cameras) > len(heard) and (len(heard) > 1 or not back or len(agreeing) > 1)
        enough = max(4, 2 * len(self.settings.cameras))
        if not followed and self._suspects_in_a_row < enough:
            if len(self._suspects) >= enough:
                self._dismiss(self._suspects[:1])
            return
        self._dismiss([suspect for suspect in self._suspects if suspect not in agreeing])
        if back:
            by = (now - image.stamp) / 1e9
            self.health.drop("time ran backwards", f"by {by:.3f} s; images that were waiting are dropped")
            self.transforms.forget_after(image.stamp + JUMP)
            self.clear()
        self._suspects, self._suspects_in_a_row = [], 0
        for earlier in agreeing:
            self._insert(earlier)
        if not followed and cameras & set(self._newest):
            # only these cameras still send, so the others no longer say what time it is
            for silent in set(self._newest) - cameras:
                self._newest.pop(silent)
                self._second_newest.pop(silent, None)

    def _dismiss(self, suspects: list[CameraImage]) -> None:
        for suspect in suspects:
            ahead = (suspect.stamp - self._now()) / 1e9
            reason = f"{suspect.camera} is {ahead:+.3f} s from the other cameras"
            self.health.drop("stamp out of line", reason, suspect.camera)
            self.health.judge(suspect.camera, _CLOCK, CLOCK_OFF, reason)
            self._suspects.remove(suspect)

    def _insert(self, image: CameraImage) -> None:
        camera, stamp, buffer = image.camera, image.stamp, self._images[image.camera]
        newest, last_used = self._newest.get(camera), self._last_used.get(camera)
        if stamp in (newest, last_used) or any(kept.stamp == stamp for kept in buffer):
            self.health.drop("duplicate stamp", f"{camera} sent {stamp} ns twice", camera)
            return
        before_last_set = self._last_set is not None and stamp <= self._last_set - self._window()
        if before_last_set or (last_used is not None and stamp < last_used):
            self.health.drop("late image", f"{camera}: its set has gone on without it", camera)
            return
        bisect.insort(buffer, image, key=lambda kept: kept.stamp)
        if len(buffer) > IMAGES_KEPT:
            buffer.popleft()
            self.health.drop("unmatched image", f"{camera}: no image of the anchor camera came near it", camera)
        if newest is None or stamp > newest:
            self._advance(camera, newest, stamp)

    def _advance(self, camera: str, newest: int | None, stamp: int) -> None:
        """Take note of a camera's new newest stamp (ns); an image that comes late says nothing about time or rate."""
        if newest is not None:
            if camera == self._anchor():
                self._intervals.append(stamp - newest)
            self._second_newest[camera] = newest
        self._newest[camera] = stamp
        self._first = stamp if self._first is None else min(self._first, stamp)
        self._last_senders.append(camera)
        self.health.judge(camera, _CLOCK, OK)

    def _anchor(self) -> str:
        """Return the camera that starts sets: the configured one or, while that is lost, the first that is not."""
        order = [self.settings.anchor or self.settings.cameras[0], *self.settings.cameras]
        return next((camera for camera in order if not self._is_lost(camera)), order[0])

    def _is_lost(self, camera: str) -> bool:
        """Return whether others have sent two images each that are newer than this camera's newest by the time-out.

        One image is not enough: at a low rate, or after a gap, some camera is always the first to come. One other
        camera is enough only while it is the only one that sends: otherwise its clock may run ahead.
        """
        if self._first is None:
            return False
        deadline = self._newest.get(camera, self._first) + self._patience()
        gone_on = {other for other, stamp in self._second_newest.items() if stamp > deadline}
        return len(gone_on) > 1 or (len(gone_on) == 1 and gone_on == set(self._last_senders))

    def _now(self) -> int:
        """Return the second newest (ns) of the cameras that are not lost, the newest if that is the only one."""
        stamps = sorted(stamp for camera, stamp in self._newest.items() if not self._is_lost(camera))
        return stamps[-2:][0]

    def _patience(self) -> int:
        """Return how long (ns) after the anchor's stamp a set waits for cameras."""
        return round((self.settings.max_stamp_difference + self.settings.camera_timeout) * 1e9)

    def _window(self) -> int:
        """Return how far (ns) an image may lie from the anchor's: at most half-way to the anchor's next one."""
        window = round(self.settings.max_stamp_difference * 1e9)
        if self._intervals:
            window = min(window, int(statistics.median(self._intervals)) // 2)
        return window

    def _collect_sets(self) -> None:
        """Move every set that is complete, or has waited long enough, to the pending ones."""
        while (image_set := self._next_set()) is not None:
            self._pending.append(image_set)

    def _next_set(self) -> _ImageSet | None:
        """Take the images of the next set out of the buffers; None while there is no set or it has to wait."""
        anchor, window = self._anchor(), self._window()
        if self._last_set is not None:  # an image this near belongs to the set that has gone
            self._discard_until(anchor, self._last_set + window)
        if not self._images[anchor]:
            return None
        stamp = self._images[anchor][0].stamp
        nearest = {camera: self._nearest(camera, stamp, window) for camera in self.settings.cameras}
        # whatever the window is, the anchor's own image leaves its buffer with the set, so that no set comes twice
        nearest[anchor] = self._images[anchor][0]
        images = {camera: image for camera, image in nearest.items() if image is not None}
        absent = [camera for camera in nearest if camera not in images]
        if self._is_worth_waiting(anchor, absent):
            return None
        for camera, image in images.items():
            self._discard_until(camera, image.stamp - 1)
            self._images[camera].popleft()
            self._last_used[camera] = image.stamp
        self._last_set = stamp
        return _ImageSet(stamp, images, {camera: self._why_absent(camera) for camera in absent})

    def _why_absent(self, camera: str) -> str:
        return UNSTAMPED if camera in self._unstamped else "no image arrived in time"

    def _is_worth_waiting(self, anchor: str, absent: list[str]) -> bool:
        """Return whether an absent camera may still deliver, in time and before the anchor's buffer is full."""
        images = self._images[anchor]
        in_time = not self._ending and len(images) < IMAGES_KEPT and self._now() <= images[0].stamp + self._patience()
        return in_time and any(not self._is_lost(camera) for camera in absent)

    def _nearest(self, camera: str, stamp: int, window: int) -> CameraImage | None:
        images = self._images[camera]
        best = min(images, key=lambda image: abs(image.stamp - stamp), default=None)
        return best if best is not None and abs(best.stamp - stamp) <= window else None

    def _discard_until(self, camera: str, stamp: int) -> None:
        images = self._images[camera]
        while images and images[0].stamp <= stamp:
            images.popleft()
            self.health.drop("unmatched image", f"{camera}: no image of the anchor camera is near it", camera)

    def _join(self, image_set: _ImageSet) -> tuple[bool, Frame | None]:
        """Add calibrations and poses to a set.

        Returns whether the set is done with, and its frame; None where it has to wait or had to be dropped.
        """
        expired = self._now() > image_set.stamp + round(self.settings.tf_timeout * 1e9)
        expired = expired or self._ending or len(self._pending) > SETS_KEPT
        missing = dict(image_set.missing)
        views: list[View | None] = []
        for camera in self.settings.cameras:
            image = image_set.images.get(camera)
            view = self._view(image) if image is not None else None
            if isinstance(view, _Unready):
                given_up = view.lack is not None and (camera, view.lack) in self._given_up
                if view.may_come and not expired and not given_up:
                    self.waiting_for = f"{camera}: {view.reason}"
                    return False, None
                if view.lack is not None:
                    self._given_up.add((camera, view.lack))
                missing[camera] = view.reason
                self.health.judge(camera, _SETS, view.state, view.reason)
                view = None
            elif view is None:
                self.health.judge(camera, _SETS, LATE, missing[camera])
            elif view is not None:  # nothing is lacking any more; what is lost again later is worth a wait again
                self._given_up -= {(camera, lack) for lack in _Lack}
                self.health.judge(camera, _SETS, OK)
            views.append(view)
        ego2global = self._ego_pose(image_set.stamp)
        if isinstance(ego2global, _Unready):
            if ego2global.may_come and not expired:
                self.waiting_for = ego2global.reason
                return False, None
            self._drop_without_pose(image_set.stamp, ego2global)
            return True, None
        if not any(views):
            self.health.drop("no usable view", "; ".join(f"{c}: {reason}" for c, reason in missing.items()))
            return True, None
        frames = {v.image.camera: self._frame_of(v.image) for v in views if v is not None}
        if warning := shared_frame_warning(frames):
            self.health.notice("cameras share a frame", warning)
        height = self.settings.base_height
        return True, Frame(image_set.stamp, self.settings.cameras, tuple(views), ego2global, missing, None, height)

    def _drop_without_pose(self, stamp: int, pose: _Unready) -> None:
        if self._without_pose is None and pose.may_come and pose.lack is None:
            self._without_pose = stamp
        advice = f"; {self._tf_advice()}" if self._tf_lag else ""
        self.health.drop("no pose", pose.reason + advice)

    def _measure_tf_lag(self) -> None:
        """See how late the pose came that a set went without."""
        if self._without_pose is None or self._first is None:
            return
        pose = self._ego_pose(self._without_pose)
        if isinstance(pose, _Unready):
            self._without_pose = self._without_pose if pose.may_come else None
            return
        lag, self._without_pose = (self._now() - self._without_pose) / 1e9, None
        if self.settings.tf_timeout < lag < TF_LAG_TOLD:
            self._tf_lag = max(lag, self._tf_lag)
            self.health.notice("tf is late", self._tf_advice())

    def _tf_advice(self) -> str:
        needed = math.ceil(10 * self._tf_lag + 1) / 10
        return (
            f"poses come {self._tf_lag:.2f} s after the images, and tf_timeout is {self.settings.tf_timeout:g} s: "
            + timeout_remedy(needed, f"{needed:.1f} s")
        )

    def _view(self, image: CameraImage) -> View | _Unready:
        calibration = self._calibrations.get(image.camera)
        if calibration is None:
            return _Unready("no camera_info has arrived", True, _Lack.CAMERA_INFO, NO_CALIBRATION)
        if isinstance(calibration, str):
            return _Unready(calibration, may_come=False, state=REFUSED)
        frame_id = self._frame_of(image)
        sensor2ego = self._lookup(frame_id, self.settings.base_frame, image.stamp, _Lack.EXTRINSICS)
        if isinstance(sensor2ego, _Unready):
            return sensor2ego
        ego2global = self._ego_pose(image.stamp)
        if isinstance(ego2global, _Unready):
            return ego2global
        sensor2ego = mounted(calibration, sensor2ego)
        view = View(image, calibration, sensor2ego, ego2global)
        links = self.transforms.static_links
        if self._judged.is_new(view, (frame_id, len(links))) and (warning := optical_warning(view, frame_id, links)):
            self.health.notice("no optical frame", warning, image.camera)
        return view

    def _frame_of(self, image: CameraImage) -> str:
        return self.settings.camera_frames.get(image.camera, image.frame_id)

    def _ego_pose(self, stamp: int) -> np.ndarray | _Unready:
        return self._lookup(self.settings.base_frame, self.settings.fixed_frame, stamp, _Lack.EGO_POSE)

    def _lookup(self, source: str, target: str, stamp: int, lack: _Lack) -> np.ndarray | _Unready:
        """Return source2target [4, 4] at `stamp` (ns); `lack` is what is missing while tf does not connect them."""
        try:
            return self.transforms.lookup(source, target, stamp)
        except NoTransformError as error:
            return _Unready(str(error), may_come=True, lack=lack, state=NO_CALIBRATION)
        except PoseNotYetError as error:
            return _Unready(str(error), may_come=True)
        except LookupError as error:
            return _Unready(str(error), may_come=False)
