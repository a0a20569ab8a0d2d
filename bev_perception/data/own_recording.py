"""One recording of one's own as scenes: which moments become key frames, and the images, points and poses of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from bev_perception.data.indexing import LIDAR, SWEEPS
from bev_perception.data.own_boxes import BoxesError, OwnBox, OwnBoxes
from bev_perception.data.point_clouds import POINT_CLOUD, header_stamp, read_points
from bev_perception.data.rig_recording import History
from bev_perception.data.rosbag import BagError, BagReader, TransformEvent
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.lens import undistortion_map
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.types import Calibration, Frame, View

#: ns; annotated stamps closer to the last key frame are no key frames: nuScenes has two a second
KEY_GAP = 450_000_000
#: ns; after a longer time without a key frame another scene begins, as memories are wiped then
SCENE_GAP = 2_000_000_000
#: ns; a key frame's images and scan are the nearest, and no farther from the boxes' stamp
NEAREST = 100_000_000
JPEG_QUALITY = 95


@dataclass(frozen=True)
class OwnRecording:
    """A bag to read.

    name: of its scenes
    bag: with its cameras and remaps
    frames: returns the frames of the bag, from its beginning, whenever it is called
    settings: names of the frames of vehicle and world
    lidar: topic of the lidar's PointCloud2; "" without a lidar
    """

    name: str
    bag: BagReader
    frames: Callable[[], Iterator[Frame]]
    settings: SynchronizerSettings
    lidar: str = ""


@dataclass(frozen=True)
class OwnImage:
    """An image in the data set.

    path: relative to the dataroot
    stamp: ns
    calibration: of the image as it is stored, without distortion
    sensor2ego: [4, 4]
    ego2global: [4, 4], at its stamp
    """

    path: str
    stamp: int
    calibration: Calibration
    sensor2ego: np.ndarray
    ego2global: np.ndarray


@dataclass(frozen=True)
class OwnScan:
    """A lidar scan in the data set; or only a pose, where there is no lidar.

    path: relative to the dataroot
    stamp: ns
    ego2global: [4, 4]
    origin: [3], m, of its rays in base_link
    points: [n, 3] float32, m in base_link at `stamp`
    """

    path: str
    stamp: int
    ego2global: np.ndarray
    origin: np.ndarray
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))


@dataclass(frozen=True)
class OwnKeyFrame:
    """A key frame.

    stamp: ns, of the boxes
    images: camera -> image
    image_sweeps: images between the key frame before and this one, oldest first; none in the first of a scene
    scan: at `stamp`
    scan_sweeps: scans between the key frame before and this one
    boxes: [n], each with frame2global [4, 4]
    """

    stamp: int
    images: Mapping[str, OwnImage]
    image_sweeps: Sequence[Mapping[str, OwnImage]]
    scan: OwnScan
    scan_sweeps: Sequence[OwnScan]
    boxes: Sequence[tuple[OwnBox, np.ndarray]]


@dataclass(frozen=True)
class OwnScene:
    """Consecutive key frames of a recording."""

    name: str
    key_frames: Sequence[OwnKeyFrame]


def read_scenes(
    recording: OwnRecording, boxes: OwnBoxes, root: Path, reference2ego: np.ndarray
) -> tuple[list[OwnScene], list[str]]:
    """Write the images and scans of a recording's key frames and sweeps; return its scenes and remarks for the user.

    root: the dataroot to write to
    reference2ego: [4, 4], of the frame that points are stored in

    Raises BoxesError or BagError, naming cause and remedy, for a recording that gives no key frame.
    """
    remarks: list[str] = []
    annotated = boxes.stamps_of(recording.name)
    sets = _complete_sets(recording, remarks)
    keys = _choose_keys(sets, annotated, recording, boxes, remarks)
    scenes = _split(list(keys))
    slots = {(a, b): _between(sets, keys[a], keys[b]) for scene in scenes for a, b in pairwise(scene)}
    shots = _write_images(recording, root, set(keys.values()), {s for chosen in slots.values() for s in chosen})
    scans = _Scans(recording, root, reference2ego)
    kept = [[key for key in scene if keys[key] in shots] for scene in scenes]
    chosen_scans = scans.choose([scene for scene in kept if scene])
    poses = _Poses(recording, boxes, [key for scene in kept for key in scene], [s for _, s in chosen_scans])
    written = scans.write(chosen_scans, poses)
    lost: list[str] = []
    found: list[OwnScene] = []
    for scene in kept:
        frames: list[OwnKeyFrame] = []
        for key in scene:
            placed = poses.placed(key, boxes.of_stamps[key])
            if isinstance(placed, str):
                lost.append(placed)
                continue
            before = frames[-1].stamp if frames else None
            chosen = [] if before is None else slots.get((before, key)) or _between(sets, keys[before], keys[key])
            sweeps = [shots.get(stamp, shots[keys[key]]) for stamp in chosen]
            frames.append(
                OwnKeyFrame(
                    key,
                    shots[keys[key]],
                    sweeps,
                    written.get((LIDAR, key)) or scans.none(key, poses),
                    []
                    if before is None
                    else [s for (of, _), s in written.items() if of != LIDAR and before < s.stamp < key],
                    placed,
                )
            )
        if frames:
            name = recording.name if not found else f"{recording.name}-{len(found) + 1}"
            found.append(OwnScene(name, frames))
    damaged = sum(map(len, scenes)) - sum(map(len, kept))
    if damaged:
        remarks.append(f"{recording.name}: {damaged} key frames have a damaged image and are left out")
    if lost:
        remarks.append(f"{recording.name}: {len(lost)} key frames are left out, the first because {lost[0]}")
    if not found:
        raise BoxesError(f"{recording.name} gives no key frame: {'; '.join(lost[:1] or remarks[-1:])}")
    return found, remarks


def _complete_sets(recording: OwnRecording, remarks: list[str]) -> np.ndarray:
    """Return the stamps [n] (ns) of the frames with all cameras."""
    stamps, lacking = [], dict[str, str]()
    for frame in recording.frames():
        if all(view is not None for view in frame.views):
            stamps.append(frame.stamp)
        else:
            lacking.update({camera: why for camera, why in frame.missing.items() if camera not in lacking})
    if not stamps:
        why = "; ".join(f"{camera}: {reason}" for camera, reason in lacking.items()) or "no set of images was formed"
        raise BagError(f"{recording.bag.path}: no moment has an image of every camera ({why}); `check --bag` says more")
    if lacking:
        named = ", ".join(sorted(lacking))
        remarks.append(f"{recording.name}: moments without an image of {named} are left out")
    return np.unique(np.array(stamps, np.int64))


def _choose_keys(
    sets: np.ndarray, annotated: Sequence[int], recording: OwnRecording, boxes: OwnBoxes, remarks: list[str]
) -> dict[int, int]:
    """Return annotated stamp -> stamp of its images for the key frames, in order of time."""
    inside = [s for s in annotated if sets[0] - NEAREST <= s <= sets[-1] + NEAREST]
    if not inside:
        given = f"from {annotated[0]} to {annotated[-1]} ns" if annotated else "none that names this bag"
        raise BoxesError(
            f"{boxes.path} has no box of {recording.name}, whose images go from {sets[0]} to {sets[-1]} ns; the file's "
            f"stamps: {given}. Stamps must be those of the bag's headers"
        )
    keys: dict[int, int] = {}
    far = 0
    for stamp in inside:
        if keys and stamp - next(reversed(keys)) < KEY_GAP:
            continue
        nearest = int(sets[np.argmin(np.abs(sets - stamp))])
        if abs(nearest - stamp) > NEAREST:
            far += 1
            continue
        keys[stamp] = nearest
    if far:
        remarks.append(f"{recording.name}: {far} annotated stamps have no images of all cameras within 0.1 s")
    if not keys:
        raise BoxesError(f"no stamp of {boxes.path} has images of all cameras of {recording.name} within 0.1 s")
    return keys


def _split(keys: Sequence[int]) -> list[list[int]]:
    scenes = [[keys[0]]]
    for before, key in pairwise(keys):
        if key - before > SCENE_GAP:
            scenes.append([])
        scenes[-1].append(key)
    return scenes


def _between(stamps: np.ndarray, before: int, after: int) -> list[int]:
    """Return the stamps nearest to SWEEPS evenly spaced times between two; they repeat where there are fewer."""
    wanted = before + (after - before) * np.arange(1, SWEEPS + 1) / (SWEEPS + 1)
    return [int(stamps[np.argmin(np.abs(stamps - time))]) for time in wanted]


def _write_images(
    recording: OwnRecording, root: Path, keys: set[int], sweeps: set[int]
) -> dict[int, dict[str, OwnImage]]:
    """Write the chosen sets; return stamp -> camera -> image of those whose images are all undamaged."""
    written: dict[int, dict[str, OwnImage]] = {}
    maps: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] = {}
    for frame in recording.frames():
        if frame.stamp not in keys | sweeps or frame.stamp in written or None in frame.views:
            continue
        views = {c: v for c, v in zip(frame.cameras, frame.views, strict=True) if v is not None}
        try:
            jpegs = {camera: _jpeg(view, maps) for camera, view in views.items()}
        except ImageError:
            continue
        kind = "samples" if frame.stamp in keys else "sweeps"
        images = {}
        for camera, view in views.items():
            folder = f"{kind}/{camera.upper()}"
            path = f"{folder}/{recording.name}__{camera.upper()}__{view.image.stamp // 1000}.jpg"
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(jpegs[camera])
            k = view.calibration
            ideal = Calibration(k.intrinsics, k.width, k.height)
            images[camera] = OwnImage(path, view.image.stamp, ideal, view.sensor2ego, view.ego2global)
        written[frame.stamp] = images
    return written


def _jpeg(view: View, maps: dict[tuple[str, bytes], tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Return the image without distortion as JPEG: the bytes as they came where that is possible."""
    k = view.calibration
    bgr = decode_image(view.image, (k.width, k.height))
    data = bytes(view.image.data)
    if not k.distortion and data[:2] == b"\xff\xd8" and not view.image.mosaic:
        return data
    if k.distortion:
        key = (view.image.camera, k.intrinsics.tobytes() + repr(k.distortion).encode())
        if key not in maps:
            maps[key] = undistortion_map(
                k.intrinsics, k.distortion_model, k.distortion, (k.height, k.width), np.eye(3), (k.width, k.height)
            )
        bgr = cv2.remap(bgr, *maps[key], cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


class _Poses:
    """The poses that key frames, boxes and scans need, looked up in one walk through the recording's tf."""

    def __init__(self, recording: OwnRecording, boxes: OwnBoxes, keys: Sequence[int], scans: Sequence[int]) -> None:
        self._base, self._fixed = recording.settings.base_frame, recording.settings.fixed_frame
        wanted = {(stamp, self._base) for stamp in (*keys, *scans)}
        wanted |= {(key, box.frame) for key in keys for box in boxes.of_stamps[key]}
        transforms = [(log, e) for log, e in recording.bag.logged_events() if isinstance(e, TransformEvent)]
        self.history = History(transforms)
        self._found: dict[tuple[int, str], np.ndarray | None] = {}
        for stamp, frame in sorted(wanted):
            here = np.eye(4) if frame == self._fixed else self.history.at(frame, self._fixed, stamp)
            self._found[stamp, frame] = here
        self._transforms = transforms

    def ego2global(self, stamp: int) -> np.ndarray | None:
        return self._found.get((stamp, self._base))

    def sensor2ego(self, frames: Mapping[int, str]) -> dict[int, np.ndarray | None]:
        """Return stamp -> [4, 4] of a sensor's frame, given for each stamp."""
        history = History(self._transforms)
        return {stamp: history.at(frames[stamp], self._base, stamp) for stamp in sorted(frames)}

    def placed(self, key: int, boxes: Sequence[OwnBox]) -> list[tuple[OwnBox, np.ndarray]] | str:
        """Return the boxes of a key frame with their frame2global, or why that is impossible."""
        if self.ego2global(key) is None:
            return f"tf has no pose of {self._base} in {self._fixed} at {key} ns"
        placed = []
        for box in boxes:
            frame2global = self._found[key, box.frame]
            if frame2global is None:
                return f"tf does not connect {box.frame}, the frame of a box, with {self._fixed} at {key} ns"
            placed.append((box, frame2global))
        return placed


class _Scans:
    """The lidar scans of a recording, if it has any."""

    def __init__(self, recording: OwnRecording, root: Path, reference2ego: np.ndarray) -> None:
        self._recording, self._root, self._reference2ego = recording, root, reference2ego
        self._stamps = np.zeros(0, np.int64)
        if recording.lidar:
            topics = {t.name: t.type_name for t in recording.bag.topics if t.count}
            if topics.get(recording.lidar) != POINT_CLOUD:
                clouds = ", ".join(name for name, kind in topics.items() if kind == POINT_CLOUD) or "none"
                raise BagError(
                    f"{recording.bag.path} has no points on {recording.lidar}; topics of {POINT_CLOUD} in it: {clouds}"
                )
            messages = recording.bag.raw_messages([recording.lidar])
            self._stamps = np.unique(np.array([header_stamp(m) for m in messages], np.int64))

    def choose(self, scenes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Return (key frame or -1 for a sweep, stamp of the scan), each scan once."""
        if not len(self._stamps):
            return []
        nearest = {key: int(self._stamps[np.argmin(np.abs(self._stamps - key))]) for scene in scenes for key in scene}
        chosen = [(key, stamp) for key, stamp in nearest.items() if abs(key - stamp) <= NEAREST]
        taken = {stamp for _, stamp in chosen}
        for scene in scenes:
            for before, after in pairwise(scene):
                for stamp in _between(self._stamps, before, after):
                    if stamp not in taken:
                        taken.add(stamp)
                        chosen.append((-1, stamp))
        return chosen

    def write(self, chosen: Sequence[tuple[int, int]], poses: _Poses) -> dict[tuple[str, int], OwnScan]:
        """Write the chosen scans; return (LIDAR, key frame) or ("", stamp) -> scan, where its pose is known."""
        if not chosen:
            return {}
        key_of = {stamp: key for key, stamp in chosen}
        clouds: dict[int, tuple[str, np.ndarray]] = {}
        for message in self._recording.bag.raw_messages([self._recording.lidar]):
            stamp = header_stamp(message)
            if stamp in key_of and stamp not in clouds:
                clouds[stamp] = read_points(message)
        mounts = poses.sensor2ego({stamp: frame for stamp, (frame, _) in clouds.items()})
        written = {}
        for stamp, (frame, cloud) in clouds.items():
            sensor2ego, ego2global = mounts[stamp], poses.ego2global(stamp)
            if sensor2ego is None:
                raise BagError(
                    f"tf does not connect {frame}, the frame of {self._recording.lidar}, with "
                    f"{self._recording.settings.base_frame}; record /tf_static, or leave --lidar out"
                )
            key = key_of[stamp]
            at = stamp if key < 0 else key
            there = poses.ego2global(at)
            if ego2global is None or there is None:
                continue
            scan2ego = (
                invert_transform(there) @ ego2global @ sensor2ego
            )  # where the vehicle is at the key frame's stamp
            points = transform_points(scan2ego, cloud[:, :3].astype(np.float64))
            written[(LIDAR, key) if key >= 0 else ("", stamp)] = self._write(
                at, "sweeps" if key < 0 else "samples", points, cloud[:, 3], there, scan2ego[:3, 3]
            )
        return written

    def none(self, key: int, poses: _Poses) -> OwnScan:
        """Return a scan without points at a key frame."""
        there = poses.ego2global(key)
        assert there is not None, "key frames without a pose are left out before"
        return self._write(key, "samples", np.zeros((0, 3)), np.zeros(0), there, self._reference2ego[:3, 3])

    def _write(
        self,
        stamp: int,
        kind: str,
        points: np.ndarray,
        intensity: np.ndarray,
        ego2global: np.ndarray,
        origin: np.ndarray,
    ) -> OwnScan:
        path = f"{kind}/{LIDAR}/{self._recording.name}__{LIDAR}__{stamp // 1000}.pcd.bin"
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        stored = transform_points(invert_transform(self._reference2ego), points)
        table = np.concatenate([stored, intensity[:, None], np.zeros((len(points), 1))], axis=1)
        table.astype(np.float32).tofile(self._root / path)
        return OwnScan(path, stamp, ego2global, origin, points.astype(np.float32))
