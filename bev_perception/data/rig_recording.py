"""Read from a bag what the checks of a rig need: calibrations, poses, times, and some pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from bev_perception.data.drive import CameraRig
from bev_perception.data.rosbag import BagEvent, BagReader, CalibrationEvent, ImageEvent, InvalidEvent, TransformEvent
from bev_perception.rig.description import CameraInfo, Rig, RigCamera
from bev_perception.rig.recording import Picture, PoseTrack, Recording, Times
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings, mounted
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.strict import UserError
from bev_perception.types import Calibration

#: ns of a recording that are read, from its beginning
READ = 120_000_000_000
#: sets of pictures that neighbours are compared in, and pairs of pictures of each camera that tell its motion
MOMENTS, PAIRS = 6, 16
#: ns between two pictures of a pair, at the least
_PAIR_GAP = 40_000_000
#: ns between two pictures of a moment, at the most
_MOMENT_SPREAD = 200_000_000


@dataclass
class _Messages:
    """What the bag holds beside pixels."""

    infos: dict[str, tuple[Calibration | None, str, CameraInfo | None]] = field(default_factory=dict)
    frames: dict[str, str] = field(default_factory=dict)
    images: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    transforms: list[tuple[int, TransformEvent]] = field(default_factory=list)


def read_recording(
    bag: BagReader, settings: SynchronizerSettings, base_height: float = 0.0, pictures: bool = True
) -> Recording:
    """Read the first READ of a bag twice: what is said about the cameras, then the pictures to compare.

    bag: with its cameras and remaps
    settings: frames of vehicle and world, of cameras whose headers name others, and which images are rectified
    base_height: m, of the vehicle's frame above the ground
    pictures: whether to read the second time

    Raises BagError if no camera has images, or at a damaged place.
    """
    said = _read_messages(bag)
    links = _links(said.transforms, settings.base_frame, settings.fixed_frame)
    poses = _poses(said.transforms, settings.base_frame, settings.fixed_frame)
    rig = _rig(bag, said, settings, base_height)
    images = {camera: _times(rows) for camera, rows in said.images.items()}
    recording = Recording(rig, poses, images, links)
    if not pictures:
        return recording
    return _with_pictures(bag, recording)


def rig_of(cameras: Iterable[CameraRig], base_height: float = 0.0) -> Rig:
    """Return mounted cameras as a Rig."""
    return Rig(
        tuple(RigCamera(c.name, c.name, calibration=c.calibration, sensor2ego=c.sensor2ego) for c in cameras),
        base_height,
    )


def _read_messages(bag: BagReader) -> _Messages:
    said = _Messages()
    for logged, event in _beginning(bag):
        if isinstance(event, ImageEvent):
            said.frames.setdefault(event.image.camera, event.image.frame_id)
            said.images[event.image.camera].append((event.image.stamp, logged))
        elif isinstance(event, CalibrationEvent):
            said.infos[event.camera] = (event.calibration, event.error, event.info)
        elif isinstance(event, TransformEvent):
            said.transforms.append((logged, event))
        else:
            assert isinstance(event, InvalidEvent)  # counted by `run`; the checks go on without it
    return said


def _beginning(bag: BagReader) -> Iterator[tuple[int, BagEvent]]:
    """Yield log time and event from the beginning of a bag: until READ after its first image.

    Not after its first message: converters log /tf_static at time 0.
    """
    first = None
    for logged, event in bag.logged_events():
        if first is None and isinstance(event, ImageEvent):
            first = logged
        if first is not None and logged > first + READ:
            return
        yield logged, event


def _times(rows: list[tuple[int, int]]) -> Times:
    stamps, logged = np.array(rows, np.int64).T
    return Times(stamps, logged)


def _rig(bag: BagReader, said: _Messages, settings: SynchronizerSettings, base_height: float) -> Rig:
    static = TransformTree()
    names: set[str] = set()
    for _, event in said.transforms:
        names.update((event.parent, event.child))
        _add(static, replace(event, static=True))  # moving parts as they were last
    poses = {name: pose for name in names if (pose := _lookup(static, name, settings.base_frame)) is not None}
    topics = bag.image_topics()
    cameras = []
    for name in bag.cameras:
        calibration, error, info = said.infos.get(name, (None, "", None))
        frame = settings.camera_frames.get(name, said.frames.get(name, ""))
        pose = poses.get(frame)
        if calibration is not None and settings.is_rectified(name):
            try:
                calibration = calibration.of_rectified()
                pose = None if pose is None else mounted(calibration, pose)
            except UserError as unusable:
                calibration, error = None, str(unusable)
        cameras.append(RigCamera(name, frame, topics.get(name, ""), info, calibration, error, pose))
    return Rig(tuple(cameras), base_height, settings.base_frame, poses)


def _add(tree: TransformTree, event: TransformEvent) -> None:
    """Add a transform; one without a name, or of a frame to itself, is passed over."""
    try:
        if event.static:
            tree.set_static(event.parent, event.child, event.child2parent)
        else:
            tree.add(event.parent, event.child, event.stamp, event.child2parent)
    except UserError:
        return


def _lookup(tree: TransformTree, frame: str, base_frame: str) -> np.ndarray | None:
    try:
        return tree.lookup(frame, base_frame, 0)
    except LookupError:
        return None


def _links(transforms: list[tuple[int, TransformEvent]], base_frame: str, fixed_frame: str) -> dict[str, Times]:
    """Return the moving links between the two frames with the times of their poses."""
    parents = {event.child: event.parent for _, event in transforms}
    wanted = set(_ancestors(base_frame, parents)) ^ set(_ancestors(fixed_frame, parents))
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    static = {event.child for _, event in transforms if event.static}
    for logged, event in transforms:
        if event.child in wanted and event.child not in static:
            rows[f"{event.parent} -> {event.child}"].append((event.stamp, logged))
    return {link: _times(found) for link, found in rows.items()}


def _ancestors(frame: str, parents: Mapping[str, str]) -> Iterator[str]:
    """Yield a frame and what it hangs on, without the top; a loop ends where it closes."""
    passed: set[str] = set()
    while frame in parents and frame not in passed:
        passed.add(frame)
        yield frame
        frame = parents[frame]


def _poses(transforms: list[tuple[int, TransformEvent]], base_frame: str, fixed_frame: str) -> PoseTrack:
    """Return the poses of the vehicle at the stamps of the link that moves it, whenever they came."""
    parents = {event.child: event.parent for _, event in transforms}
    moving = {event.child for _, event in transforms if not event.static}
    link = next((frame for frame in _ancestors(base_frame, parents) if frame in moving), None)
    if link is None:
        link = next((frame for frame in _ancestors(fixed_frame, parents) if frame in moving), None)
    stamps, poses = [], []
    tree = History(transforms)
    for stamp in sorted({event.stamp for _, event in transforms if event.child == link}):
        pose = tree.at(base_frame, fixed_frame, stamp)
        if pose is not None:
            stamps.append(stamp)
            poses.append(pose)
    return PoseTrack(np.array(stamps, np.int64), np.array(poses).reshape(-1, 4, 4))


class History:
    """All links of a recording, looked up in the order of stamps."""

    def __init__(self, transforms: list[tuple[int, TransformEvent]]) -> None:
        """Take the transforms of a recording, each with its log time (ns)."""
        self._tree = TransformTree()
        self._moving = sorted((e for _, e in transforms if not e.static), key=lambda e: e.stamp)
        self._next = 0
        for _, event in transforms:
            if event.static:
                _add(self._tree, event)

    def at(self, base_frame: str, fixed_frame: str, stamp: int) -> np.ndarray | None:
        """Return base2fixed [4, 4] at `stamp` (ns), which must not be before that of the last call; None without it."""
        ahead = 1_000_000_000  # ns; a slower link needs its next pose to be interpolated
        while self._next < len(self._moving) and self._moving[self._next].stamp <= stamp + ahead:
            _add(self._tree, self._moving[self._next])
            self._next += 1
        try:
            return self._tree.lookup(base_frame, fixed_frame, stamp)
        except LookupError:
            return None


# ---- pictures ----


def _with_pictures(bag: BagReader, recording: Recording) -> Recording:
    moments = _choose_moments(recording)
    pairs = {camera: _choose_pairs(times.stamps) for camera, times in recording.images.items()}
    wanted = {(camera, stamp) for moment in moments for camera, stamp in moment.items()}
    wanted |= {(camera, stamp) for camera, chosen in pairs.items() for pair in chosen for stamp in pair}
    found: dict[tuple[str, int], Picture] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for _, event in _beginning(bag):
        if not isinstance(event, ImageEvent) or (event.image.camera, event.image.stamp) not in wanted:
            continue
        image = event.image
        try:
            bgr = decode_image(image)
        except ImageError:
            continue
        sizes.setdefault(image.camera, (bgr.shape[1], bgr.shape[0]))
        gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
        found.setdefault((image.camera, image.stamp), Picture.of(image.camera, image.stamp, gray))
    usable = {key: picture for key, picture in found.items() if _fits(recording.rig, picture)}
    return replace(
        recording,
        rig=replace(
            recording.rig,
            cameras=tuple(replace(c, picture_size=sizes.get(c.name)) for c in recording.rig.cameras),
        ),
        moments=[
            {camera: usable[camera, stamp] for camera, stamp in moment.items() if (camera, stamp) in usable}
            for moment in moments
        ],
        pairs={camera: _found_pairs(usable, camera, chosen) for camera, chosen in pairs.items()},
    )


def _found_pairs(
    found: Mapping[tuple[str, int], Picture], camera: str, chosen: Iterable[tuple[int, int]]
) -> list[tuple[Picture, Picture]]:
    return [(found[camera, a], found[camera, b]) for a, b in chosen if (camera, a) in found and (camera, b) in found]


def _fits(rig: Rig, picture: Picture) -> bool:
    """Return whether a picture has the size of its calibration; another one is a finding, and comparable to nothing."""
    calibration = next((c.calibration for c in rig.cameras if c.name == picture.camera), None)
    return calibration is not None and picture.size == (calibration.width, calibration.height)


def _choose_moments(recording: Recording) -> list[dict[str, int]]:
    """Return camera -> stamp of pictures taken at nearly one time, for moments spread over the recording."""
    stamps = {camera: np.unique(times.stamps) for camera, times in recording.images.items() if times.stamps.all()}
    if not stamps:
        return []
    anchor = next(iter(stamps.values()))
    moments = []
    for at in np.unique(np.linspace(0, len(anchor) - 1, MOMENTS + 2).round().astype(int)[1:-1]):
        nearest = {c: int(s[np.argmin(np.abs(s - anchor[at]))]) for c, s in stamps.items()}
        moments.append({c: s for c, s in nearest.items() if abs(s - anchor[at]) <= _MOMENT_SPREAD})
    return moments


def _choose_pairs(stamps: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of stamps of following pictures, spread over the recording."""
    ordered = np.unique(stamps)
    starts = np.unique(np.linspace(0, max(0, len(ordered) - 2), PAIRS).round().astype(int))
    pairs = []
    for start in starts:
        later = int(np.searchsorted(ordered, ordered[start] + _PAIR_GAP, side="right"))
        if later < len(ordered):
            pairs.append((int(ordered[start]), int(ordered[later])))
    return pairs
