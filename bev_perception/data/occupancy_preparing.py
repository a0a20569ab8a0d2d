"""Make occupancy labels for a whole data set: scenes in parallel, resumable."""

from __future__ import annotations

import multiprocessing
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.folders import FolderError, one_writer
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import labels_path, write_labels
from bev_perception.data.occupancy_making import PlacedBox, gather, make_labels
from bev_perception.data.records import Records, open_records
from bev_perception.data.scene_scans import UNLABELLED, Scan, point_labels, read_scan, read_scans
from bev_perception.data.table_rows import write_json
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw
from bev_perception.strict import UserError, parse_json

#: how labels of these settings are made; raise it with every change of that
FORMAT = 1
#: file in the folder of labels that says what they were made with
SETTINGS = "made_with.json"
#: us; a box is carried on for so long before its first and after its last key frame
CARRIED_ON = 300_000


@dataclass(frozen=True)
class PreparedOccupancy:
    """What was made.

    written: number of key frames
    kept: number of those that were there already
    without_scan: number of those whose scan is not on this disk
    sweeps: number of scans that were read
    """

    written: int
    kept: int
    without_scan: int
    sweeps: int


def prepare_occupancy(
    root: Path, version: str, out: Path, semantics: str, scenes: Sequence[str] = (), workers: int = 1
) -> PreparedOccupancy:
    """Write out/<scene>/<token>/labels.npz for all key frames of scenes; complete files are kept.

    root: the dataroot
    version: of its tables
    out: folder of the labels
    semantics: see scene_scans.point_labels
    scenes: names of the only scenes; empty: all
    workers: number of processes

    Raises UserError, naming cause and remedy, for data that cannot be used, and if `out` has labels made otherwise.
    """
    records = open_records(root, version)
    if scenes:
        records = records.of_scenes(scenes)
    point_labels(root, version, semantics)  # its errors before the work
    with one_writer(out, "*/*/labels.*.part.npz"):
        _claim(out, semantics)
        scans = read_scans(root, version)
        names = list(dict.fromkeys(records.scenes))
        tasks = [(root, version, out, semantics, name, scans[name]) for name in names]
        written = kept = sweeps = 0
        with tqdm(total=len(records), desc="occupancy labels", unit="key frame") as bar:
            for name, new, old, read in _run(tasks, workers):
                written, kept, sweeps = written + new, kept + old, sweeps + read
                bar.update(records.scenes.count(name))
    if not written + kept:
        raise NuScenesError(f"no lidar scan of the scenes is under {root}; unpack the blobs of LIDAR_TOP")
    return PreparedOccupancy(written, kept, len(records) - written - kept, sweeps)


def _claim(out: Path, semantics: str) -> None:
    """Record how labels are made; raise FolderError if those in the folder were made in another way."""
    wanted = {"format": FORMAT, "semantics": semantics}
    file = out / SETTINGS
    if file.exists():
        if parse_json(file.read_bytes()) != wanted:
            raise FolderError(f"{out} holds labels made with other settings ({file}); choose another --out")
    elif any(out.glob("*/*/labels.npz")):
        raise FolderError(f"{out} holds labels that were not made by this command; choose another --out")
    else:
        write_json(file, wanted)


Task = tuple[Path, str, Path, str, str, list[Scan]]


def _run(tasks: Sequence[Task], workers: int) -> Iterator[tuple[str, int, int, int]]:
    if workers == 1 or len(tasks) == 1:
        yield from map(_prepare_scene, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), context) as pool:
        try:
            for future in as_completed([pool.submit(_prepare_scene, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that makes labels was ended from outside, as the system does when memory is short; give the "
                "same command again, which goes on with what is left, or fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_scene(task: Task) -> tuple[str, int, int, int]:
    """Make the labels of a scene; return its name, and the numbers of labels written and kept and of scans read."""
    root, version, out, semantics, name, scans = task
    records = open_records(root, version).of_scenes([name])
    paths = [labels_path(out, name, token, "") for token in records.tokens]
    kept = sum(map(_is_complete, paths))
    todo = [i for i, path in enumerate(paths) if records.has_lidar(i) and not _is_complete(path)]
    if not todo:
        return name, 0, kept, 0
    labels, boxes = point_labels(root, version, semantics), _Boxes(records)
    read = 0

    def gathered() -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray, list[PlacedBox]]]:
        nonlocal read
        for scan in scans:
            points = read_scan(root, scan)
            if points is not None and len(points):
                read += 1
                yield points, labels(scan, len(points)), scan.lidar2global, scan.origin, boxes.at(scan.stamp)

    scene = gather(gathered())
    if not read:
        return name, 0, kept, 0
    for i in todo:
        ego2global = records.ego2global(i)
        cameras = [
            (
                image.calibration.intrinsics,
                invert_transform(ego2global) @ image.sensor2global,
                (image.calibration.width, image.calibration.height),
            )
            for image in records.images(records.cameras(i))
        ]
        made = make_labels(scene, ego2global, boxes.of_key_frame(i), cameras)
        write_labels(paths[i], made)
    return name, len(todo), kept, read


def _is_complete(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return "instances.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


class _Boxes:
    """The boxes of a scene at any time, between key frames by interpolation."""

    def __init__(self, records: Records) -> None:
        self._stamps: list[int] = records.stamps
        self._keys: list[dict[int, PlacedBox]] = []
        numbers: dict[int, int] = {}
        for i in range(len(records)):
            found, annotated = {}, records.annotations(i)
            lidar2global = records.lidar2global(i)
            for box, name, instance in zip(
                annotated.boxes, annotated.names.tolist(), annotated.instances.tolist(), strict=True
            ):
                number = numbers.setdefault(instance, len(numbers) + 1)
                label = OCC3D_CLASSES.index(name) if name in OCC3D_CLASSES else UNLABELLED
                placed = lidar2global @ make_transform(rotation_from_yaw(box[6]), box[:3])
                found[number] = PlacedBox(number, label, placed, box[3:6])
            self._keys.append(found)

    def of_key_frame(self, i: int) -> list[PlacedBox]:
        return list(self._keys[i].values())

    def at(self, stamp: int) -> list[PlacedBox]:
        after = int(np.searchsorted(self._stamps, stamp))
        if after < len(self._stamps) and self._stamps[after] == stamp:
            return self.of_key_frame(after)
        before = after - 1
        found = []
        ends = {k: self._keys[k] if 0 <= k < len(self._keys) else {} for k in (before, after)}
        for number in ends[before].keys() | ends[after].keys():
            a, b = ends[before].get(number), ends[after].get(number)
            if a is not None and b is not None:
                weight = (stamp - self._stamps[before]) / (self._stamps[after] - self._stamps[before])
                found.append(_between(a, b, weight))
            else:
                only, k = (a, before) if a is not None else (b, after)
                if only is not None and abs(stamp - self._stamps[k]) <= CARRIED_ON:
                    found.append(only)
        return found


def _between(a: PlacedBox, b: PlacedBox, weight: float) -> PlacedBox:
    yaws = [np.arctan2(box.box2global[1, 0], box.box2global[0, 0]) for box in (a, b)]
    turn = (yaws[1] - yaws[0] + np.pi) % (2 * np.pi) - np.pi
    center = (1 - weight) * a.box2global[:3, 3] + weight * b.box2global[:3, 3]
    return PlacedBox(a.instance, a.label, make_transform(rotation_from_yaw(yaws[0] + weight * turn), center), a.size)
