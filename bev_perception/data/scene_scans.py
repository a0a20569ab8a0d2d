"""The lidar scans of scenes, key frames and sweeps, with their poses and the labels of their points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.indexing import CLASS_OF, LIDAR
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.records import LIDAR_VALUES
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.strict import ConfigError, inside, parse_json, read_yaml

#: label of a point whose class is not known
UNLABELLED = 255
#: what points of nuScenes-lidarseg are in Occ3D, beside the objects of the detection task; the others are unlabelled
_LIDARSEG = {
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.other": "others",
    "static.vegetation": "vegetation",
    "animal": "others",
}


@dataclass(frozen=True)
class Scan:
    """A lidar scan.

    token: of its row in the tables
    path: relative to the dataroot
    stamp: us
    lidar2global: [4, 4], of its points
    origin: [3], m, of its rays in the frame of its points
    """

    token: str
    path: str
    stamp: int
    lidar2global: np.ndarray
    origin: np.ndarray


def read_scans(root: Path, version: str) -> dict[str, list[Scan]]:
    """Return scene -> its scans in order of time.  Raises NuScenesError for tables that do not fit together."""
    tables = {
        name: _table(root / version / f"{name}.json")
        for name in ("sensor", "calibrated_sensor", "ego_pose", "sample", "scene", "sample_data")
    }
    try:
        sensors = {row["token"]: row["channel"] for row in tables["sensor"]}
        mounts = {row["token"]: row for row in tables["calibrated_sensor"]}
        poses = {row["token"]: row for row in tables["ego_pose"]}
        names = {row["token"]: row["name"] for row in tables["scene"]}
        scene_of = {row["token"]: names[row["scene_token"]] for row in tables["sample"]}
        scans: dict[str, list[Scan]] = {name: [] for name in names.values()}
        for row in tables["sample_data"]:
            mount = mounts[row["calibrated_sensor_token"]]
            if sensors[mount["sensor_token"]] != LIDAR:
                continue
            inside(Path(), row["filename"])
            lidar2ego = _transform(mount)
            origin2ego = _transform(mounts[row["origin_token"]]) if "origin_token" in row else lidar2ego
            scans[scene_of[row["sample_token"]]].append(
                Scan(
                    row["token"],
                    row["filename"],
                    int(row["timestamp"]),
                    _transform(poses[row["ego_pose_token"]]) @ lidar2ego,
                    (np.linalg.inv(lidar2ego) @ origin2ego)[:3, 3],
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise NuScenesError(
            f"the tables of {version} do not fit together ({type(error).__name__}: {error}); unpack the archive again"
        ) from error
    return {scene: sorted(found, key=lambda scan: scan.stamp) for scene, found in scans.items()}


def read_scan(root: Path, scan: Scan) -> np.ndarray | None:
    """Return the points [n, 3] float32 of a scan; None if its file is missing, as sweeps of a part of a data set are.

    Raises NuScenesError for a damaged file.
    """
    path = root / scan.path
    if not path.is_file():
        return None
    values = np.fromfile(path, np.float32)
    if values.size % LIDAR_VALUES or not np.isfinite(values).all():
        raise NuScenesError(f"{path} is damaged: it must hold {LIDAR_VALUES} float32 a point; unpack it again")
    return values.reshape(-1, LIDAR_VALUES)[:, :3]


#: returns the labels [n] uint8 of a scan's n points, indices into OCC3D_CLASSES or UNLABELLED; None if it has none
PointLabels = Callable[[Scan, int], np.ndarray | None]


def no_labels(scan: Scan, count: int) -> np.ndarray | None:
    """Say of no point what it is."""
    return None


def point_labels(root: Path, version: str, semantics: str) -> PointLabels:
    """Return how points are labelled.

    semantics: "boxes": not at all; "lidarseg": by the table of nuScenes-lidarseg; else a YAML file of
        `labels: FOLDER/{name}.bin`, files of one uint8 a point, {name} being the scan's file name without its endings,
        and `classes: {NUMBER: class of Occ3D or null}`

    Raises NuScenesError or ConfigError, naming cause and remedy, if there are no such labels.
    """
    if semantics == "boxes":
        return no_labels
    if semantics == "lidarseg":
        file = root / version / "lidarseg.json"
        if not file.is_file():
            raise NuScenesError(f"{file} is missing; unpack nuScenes-lidarseg there, or use --semantics boxes")
        files = {row["sample_data_token"]: row["filename"] for row in _table(file)}
        classes = {
            int(row["index"]): CLASS_OF.get(row["name"]) or _LIDARSEG.get(row["name"])
            for row in _table(root / version / "category.json")
            if "index" in row
        }
        return _Labels(root, lambda scan: files.get(scan.token), classes)
    values = read_yaml(semantics)
    pattern, named = values.get("labels"), values.get("classes")
    if not isinstance(pattern, str) or "{name}" not in pattern or not isinstance(named, dict) or len(values) > 2:
        raise ConfigError(f"{semantics}: it must hold `labels: FOLDER/{{name}}.bin` and `classes: {{0: car, ...}}`")
    for number, name in named.items():
        if not isinstance(number, int) or not 0 <= number < UNLABELLED or name not in (None, *OCC3D_CLASSES[:-1]):
            known = ", ".join(OCC3D_CLASSES[:-1])
            raise ConfigError(f"{semantics}: class {number!r} is {name!r}; numbers are 0 to 254, names {known}")
    return _Labels(root, lambda scan: pattern.replace("{name}", Path(scan.path).name.split(".")[0]), named)


class _Labels:
    def __init__(self, root: Path, path: Callable[[Scan], str | None], classes: Mapping[int, str | None]) -> None:
        self._root, self._path = root, path
        self._table = np.full(256, UNLABELLED, np.uint8)
        for number, name in classes.items():
            if name is not None:
                self._table[number] = OCC3D_CLASSES.index(name)

    def __call__(self, scan: Scan, count: int) -> np.ndarray | None:
        path = self._path(scan)
        if path is None or not (self._root / path).is_file():
            return None
        numbers = np.fromfile(self._root / path, np.uint8)
        if len(numbers) != count:
            raise NuScenesError(f"{self._root / path} has {len(numbers)} labels for {count} points; unpack it again")
        return self._table[numbers]


def _table(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NuScenesError(f"{path} cannot be read ({error}); unpack the archive again") from error
    return rows


def _transform(row: Mapping[str, Any]) -> np.ndarray:
    return make_transform(rotation_from_quaternion(*row["rotation"]), np.array(row["translation"]))
