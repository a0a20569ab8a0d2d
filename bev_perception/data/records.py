"""The key frames of nuScenes (Caesar et al., CVPR 2020) with their sweeps and boxes, read from an index of its tables.

The index is built once and cached in a file beside the tables.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bev_perception.data.arrays import ArraysError, read_arrays
from bev_perception.data.caches import VARIABLE, CacheError, cache_root, is_own_file, private_directory
from bev_perception.data.indexing import TABLES, Index, build_index
from bev_perception.data.nuscenes import NuScenesError, known_splits
from bev_perception.files import whole_file
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.strict import open_regular, parse_json, read_regular
from bev_perception.types import Calibration

LOG = logging.getLogger(__name__)

#: format of the cached index; increase it with every change of its contents
FORMAT = 4
#: the most bytes of an index; that of nuScenes' 34,149 key frames has 0.3 GB
MAX_INDEX = 1 << 32
#: float32 values of a lidar point: x, y, z, intensity, ring
LIDAR_VALUES = 5


@dataclass(frozen=True)
class CameraRecord:
    """One image.

    camera: name
    path: relative to the dataroot
    stamp: us
    calibration: intrinsics
    sensor2ego: [4, 4], optical frame to base_link
    ego2global: [4, 4], base_link to the global frame, at the image's stamp
    """

    camera: str
    path: str
    stamp: int
    calibration: Calibration
    sensor2ego: np.ndarray
    ego2global: np.ndarray

    @property
    def sensor2global(self) -> np.ndarray:
        """[4, 4], optical frame to the global frame, with the ego pose at the image's stamp."""
        return self.ego2global @ self.sensor2ego


@dataclass(frozen=True)
class Annotations:
    """The annotated boxes of a key frame, in its lidar frame.

    boxes: [n, 7], x, y, z of the centre, length, width, height (m), yaw (rad, counter-clockwise from +x)
    velocities: [n, 2], m/s, NaN if unknown
    names: [n], detection classes, or the category of nuScenes where it belongs to no detection class
    lidar_points: [n], number of lidar points in the box
    radar_points: [n], number of radar points in the box
    instances: [n], number of the object, the same in all key frames of its scene
    """

    boxes: np.ndarray
    velocities: np.ndarray
    names: np.ndarray
    lidar_points: np.ndarray
    radar_points: np.ndarray
    instances: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """[n] bool, whether the object has any lidar or radar point."""
        return self.lidar_points + self.radar_points > 0


class Records:
    """The key frames of some scenes, in order of time; made by open_records and open_split.

    camera_names: of the N cameras, in the order of every image set
    tokens: sample token of each key frame
    scenes: scene name of each key frame
    stamps: stamp of each key frame, us
    """

    def __init__(self, root: Path, index: Index, rows: np.ndarray) -> None:
        """Select rows of an index.

        root: the dataroot
        index: all key frames of a version
        rows: [n] int, ascending
        """
        self.root = root
        self._index = index
        self._rows = rows
        self.camera_names: tuple[str, ...] = tuple(index.camera_names.tolist())
        self.tokens: list[str] = index.tokens[rows].tolist()
        self.scenes: list[str] = index.scenes[rows].tolist()
        self.stamps: list[int] = index.stamps[rows].tolist()

    def __len__(self) -> int:
        """Return the number of key frames."""
        return len(self._rows)

    def of_scenes(self, names: Iterable[str]) -> Records:
        """Return the key frames of these scenes only; raise NuScenesError for an unknown scene."""
        wanted, known = set(names), sorted(set(self.scenes))
        unknown = sorted(wanted - set(known))
        if unknown:
            shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise NuScenesError(f"no scene {', '.join(unknown)} here; there are {shown}")
        return Records(self.root, self._index, self._rows[np.isin(self.scenes, sorted(wanted))])

    def lidar2ego(self, i: int) -> np.ndarray:
        """Return [4, 4] of key frame i."""
        return self._index.lidar2ego[self._rows[i]]

    def ego2global(self, i: int) -> np.ndarray:
        """Return [4, 4] of key frame i, at the lidar's stamp."""
        return self._index.ego2global[self._rows[i]]

    def lidar2global(self, i: int) -> np.ndarray:
        """Return [4, 4] of key frame i."""
        return self.ego2global(i) @ self.lidar2ego(i)

    def cameras(self, i: int) -> np.ndarray:
        """Return the image set [N] of key frame i."""
        return self._index.cameras[self._rows[i]]

    def sweeps(self, i: int) -> np.ndarray:
        """Return the image sets [5, N] before key frame i, newest first; [0, N] if it is the first of its scene."""
        sweeps = self._index.sweeps[self._rows[i]]
        return sweeps if sweeps[0, 0] >= 0 else sweeps[:0]

    def annotations(self, i: int) -> Annotations:
        """Return the boxes of key frame i."""
        index, row = self._index, self._rows[i]
        at = slice(index.box_start[row], index.box_start[row + 1])
        columns = (index.boxes, index.velocities, index.names, index.lidar_points, index.radar_points, index.instances)
        return Annotations(*(column[at] for column in columns))

    def lidar_points(self, i: int) -> np.ndarray:
        """Return the lidar points [n, 3] float32 of key frame i, in its lidar frame, m.

        Raises NuScenesError for a file that is missing or damaged.
        """
        path = self.root / self._index.lidar_path[self._rows[i]].decode()
        try:
            values = np.fromfile(path, np.float32)
        except OSError as error:
            raise NuScenesError(
                f"the lidar points {path} cannot be read ({error}); is the archive complete?"
            ) from error
        if values.size % LIDAR_VALUES or not np.isfinite(values).all():
            raise NuScenesError(f"{path} is damaged: it must hold {LIDAR_VALUES} float32 a point; unpack it again")
        return values.reshape(-1, LIDAR_VALUES)[:, :3]

    def has_lidar(self, i: int) -> bool:
        """Return whether the lidar points of key frame i are on this disk."""
        return (self.root / self._index.lidar_path[self._rows[i]].decode()).is_file()

    def paths(self, image_set: np.ndarray) -> list[str]:
        """Return the file paths of an image set, relative to the dataroot."""
        return [path.decode() for path in self._index.image_path[image_set].tolist()]

    def image_stamps(self, image_set: np.ndarray) -> list[int]:
        """Return the stamps of an image set, us."""
        return self._index.image_stamp[image_set].tolist()

    def images(self, image_set: np.ndarray) -> list[CameraRecord]:
        """Return the images of an image set, one a camera."""
        index = self._index
        found = []
        for camera, image, path in zip(self.camera_names, image_set, self.paths(image_set), strict=True):
            mounted = index.image_calibration[image]
            width, height = index.image_size[image].tolist()
            pose = index.image_pose[image]
            found.append(
                CameraRecord(
                    camera=camera,
                    path=path,
                    stamp=int(index.image_stamp[image]),
                    calibration=Calibration(
                        index.intrinsics[mounted],
                        width,
                        height,
                        str(index.lens_models[mounted]),
                        tuple(index.distortions[mounted].tolist()) if index.lens_models[mounted] else (),
                    ),
                    sensor2ego=index.sensor2ego[mounted],
                    ego2global=make_transform(rotation_from_quaternion(*pose[:4]), pose[4:]),
                )
            )
        return found

    def missing_files(self, image_sets: Iterable[np.ndarray]) -> list[str]:
        """Return the files of image sets that are missing under the dataroot."""
        images = np.unique(np.concatenate([np.ravel(image_set) for image_set in image_sets]))
        return [path for path in self.paths(images) if not (self.root / path).is_file()]


def open_records(root: Path, version: str, cache: Path | None = None) -> Records:
    """Return all key frames of a version of nuScenes.

    The first call reads and indexes the tables, and caches the index.

    root: the dataroot
    version: such as "v1.0-trainval"
    cache: directory for the index; None: $BEV_PERCEPTION_CACHE if it is set, else the directory of the tables, or the
        user's cache directory if that is not writable

    Raises NuScenesError for missing or damaged tables.
    """
    directory = Path(root) / version
    missing = [name for name in TABLES if not (directory / f"{name}.json").is_file()]
    if missing:
        raise NuScenesError(
            f"{directory} lacks the tables {', '.join(missing)}; root must be the directory that holds samples/ "
            f"and {version}/, unpacked from the archive of that version"
        )
    if cache is None and os.environ.get(VARIABLE):
        cache = cache_root()
    index = _cached_index(directory, [cache] if cache else [directory, cache_root()])
    return Records(Path(root), index, np.arange(len(index.tokens)))


def open_split(root: Path, version: str, split: str, cache: Path | None = None) -> Records:
    """Return the key frames of a split.

    Scenes of the split that are not in the tables are left out, so that a part of the data set can be used.

    root: the dataroot
    version: such as "v1.0-trainval"
    split: train, val, trainval (both), test, mini_train, mini_val, or one of splits.json beside the tables
    cache: as in open_records

    Raises NuScenesError as open_records does, and for a split without any scene in the tables.
    """
    splits = known_splits(root, version)
    if split not in splits:
        raise NuScenesError(f"unknown split {split!r}; known: {', '.join(sorted(splits))}")
    everything = open_records(root, version, cache)
    scenes = set(splits[split]) & set(everything.scenes)
    if not scenes:
        raise NuScenesError(f"{version} holds no scene of the split {split!r}; choose a split of that version")
    return everything.of_scenes(scenes)


def _cached_index(directory: Path, places: list[Path]) -> Index:
    file = f"bev_perception_{_digest(directory)}.npz"
    for place in places:
        if is_own_file(place / file):
            try:
                return Index(**read_arrays(place / file, limit=MAX_INDEX))
            except (ArraysError, OSError, TypeError) as error:
                LOG.warning("%s is damaged (%s); it is made again", place / file, error)
        elif (place / file).exists():
            LOG.warning("%s is not used, as others than you could have written it", place / file)
    index = build_index(_read_tables(directory))
    for place in places:
        try:
            if place != directory:
                private_directory(place)
            _write_index(index, place / file)
            break
        except (OSError, CacheError) as error:
            LOG.warning("the index of %s cannot be kept in %s: %s", directory.name, place, error)
    return index


def _digest(directory: Path) -> str:
    digest = hashlib.blake2b(str(FORMAT).encode(), digest_size=12)
    for name in TABLES:
        with open_regular(directory / f"{name}.json") as table:
            while chunk := table.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _write_index(index: Index, path: Path) -> None:
    """Write to a temporary name, then rename: several processes may do so at once; readers see complete files only."""
    with whole_file(path) as partial:
        np.savez_compressed(partial, **vars(index))
        partial.chmod(0o600)


def _read_tables(directory: Path) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for name in tqdm(TABLES, desc=f"reading {directory.name}", unit="table"):
        try:
            tables[name] = parse_json(read_regular(directory / f"{name}.json"))
        except ValueError as error:
            raise NuScenesError(f"{directory / name}.json is damaged ({error}); unpack the archive again") from error
    return tables
