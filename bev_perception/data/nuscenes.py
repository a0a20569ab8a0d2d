"""A scene of nuScenes (Caesar et al., CVPR 2020) as a Drive, read through the official devkit."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.data.drive import CAMERAS, CameraRig, Drive, DriveEvent, DriveImage, DrivePose
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.strict import UserError, inside, parse_json, read_regular
from bev_perception.types import Calibration

LOG = logging.getLogger(__name__)

TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
#: version -> its splits for training and for validation
SPLITS = {
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
    "v1.0-synth": {"train": "synth_train", "val": "synth_val"},
    "v1.0-own": {"train": "own_train", "val": "own_val"},
}


class NuScenesError(UserError):
    """A nuScenes data set that cannot be read; the message names cause and remedy."""


def open_scene(root: str | Path, version: str, scene_name: str) -> Drive:
    """Return a scene as a Drive: images of all cameras (key frames and sweeps), and the ego poses of all sensors.

    Images that are not on this disk are left out, and their number is logged.

    root: the dataroot, which is the directory with samples/ and `version`/
    version: of the tables, such as "v1.0-mini"
    scene_name: such as "scene-0103"

    Raises NuScenesError if the devkit, tables, the scene or all of its images are missing.
    """
    root = Path(root)
    tables = open_devkit(root, version)
    records = _records(tables, _scene(tables, scene_name))
    # in synthetic data sets without sweeps, several rows name the file of a key frame: each file counts once
    files_once = {record["filename"]: record for record in reversed(records)}
    images = [record for record in files_once.values() if record["sensor_modality"] == "camera"]
    present = [record for record in images if inside(root, record["filename"]).is_file()]
    if not present:
        raise NuScenesError(
            f"none of the {len(images)} images of {scene_name} exists under {root}; "
            "download the blobs of this scene too, not only the metadata"
        )
    if len(present) < len(images):
        LOG.warning("%s: %d of %d images are not under %s", scene_name, len(images) - len(present), len(images), root)
    files: dict[int, list[Any]] = {}
    for record in present:
        files.setdefault(_stamp(record), []).append(record)
    poses = {_stamp(record): record for record in records if min(files) <= _stamp(record) <= max(files)}

    def events() -> Iterator[DriveEvent]:
        for stamp in sorted(poses):
            yield DrivePose(stamp, _pose(tables.get("ego_pose", poses[stamp]["ego_pose_token"])))
            for record in files.get(stamp, []):
                yield DriveImage(record["channel"].lower(), stamp, read_regular(inside(root, record["filename"])))

    return Drive(scene_name, _rig(tables, present), len(poses) + len(present), events)


def open_devkit(root: Path, version: str) -> Any:
    """Return the devkit's NuScenes object of a dataroot; raise NuScenesError if it cannot be loaded."""
    missing = [table for table in TABLES if not (root / version / f"{table}.json").is_file()]
    if missing:
        raise NuScenesError(
            f"{root / version} lacks the tables {', '.join(missing)}; root must be the directory that holds samples/ "
            f"and {version}/, unpacked from the archive of that version"
        )
    try:
        from nuscenes.nuscenes import NuScenes
    except ImportError as error:
        raise NuScenesError(
            f"nuscenes-devkit cannot be imported ({error}); pip install bev_perception[nuscenes]"
        ) from error
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:  # whatever the devkit meets in damaged tables
        raise NuScenesError(
            f"nuscenes-devkit cannot load {version} from {root}: {error}; unpack the archive again"
        ) from error


def official_splits() -> dict[str, list[str]]:
    """Return the scene names of every official split, and of "trainval", which is train and val."""
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise NuScenesError(
            f"nuscenes-devkit cannot be imported ({error}); pip install bev_perception[nuscenes]"
        ) from error
    splits: dict[str, list[str]] = create_splits_scenes()
    return {**splits, "trainval": splits["train"] + splits["val"]}


def known_splits(root: Path, version: str) -> dict[str, list[str]]:
    """Return the scene names of the official splits and of those that splits.json beside the tables defines.

    As in nuscenes-devkit, splits.json cannot redefine an official split.

    Raises NuScenesError for a splits.json that does not hold a list of scene names for each split.
    """
    file = Path(root) / version / "splits.json"
    own: Any = {}
    if file.is_file():
        try:
            own = parse_json(read_regular(file))
        except ValueError as error:
            raise NuScenesError(f"{file} is no JSON ({error}); write it anew or remove it") from error
    if not isinstance(own, dict) or not all(isinstance(names, list) for names in own.values()):
        raise NuScenesError(f"{file} must hold a list of scenes' names for each split; write it anew or remove it")
    return {**own, **official_splits()}


def only_version(root: str | Path) -> str:
    """Return the version of the tables in a dataroot; raise NuScenesError if it holds none, or several."""
    found = sorted(table.parent.name for table in Path(root).glob("v*/scene.json"))
    if not found:
        raise NuScenesError(
            f"{root} holds no tables, such as v1.0-trainval/scene.json; root must be the directory that holds samples/ "
            "and the folder of the tables"
        )
    if len(found) > 1:
        raise NuScenesError(f"{root} holds the tables {' and '.join(found)}; say which with --version")
    return found[0]


def default_split(version: str, purpose: str) -> str:
    """Return the split of a version for the purpose "train" or "val"; raise NuScenesError for an unknown version."""
    if version not in SPLITS:
        raise NuScenesError(f"which split of {version} is meant is not known; say it with --split")
    return SPLITS[version][purpose]


def _scene(tables: Any, name: str) -> Any:
    known = {scene["name"]: scene for scene in tables.scene}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise NuScenesError(f"unknown scene {name!r}; {hint}known: {', '.join(sorted(known))}")
    return known[name]


def _records(tables: Any, scene: Any) -> list[Any]:
    """Return the rows of sample_data of a scene, of all sensors."""
    samples, token = set(), scene["first_sample_token"]
    while token:
        if token in samples:
            raise NuScenesError(
                f"the key frames of {scene['name']} go in a circle: {token} comes after itself; "
                "unpack the archive again"
            )
        samples.add(token)
        token = tables.get("sample", token)["next"]
    return [record for record in tables.sample_data if record["sample_token"] in samples]


def _stamp(record: Any) -> int:
    """Return the time of a record in ns; nuScenes uses microseconds."""
    return int(record["timestamp"]) * 1000


def _pose(record: Any) -> np.ndarray:
    return make_transform(rotation_from_quaternion(*record["rotation"]), np.array(record["translation"]))


def _rig(tables: Any, images: list[Any]) -> tuple[CameraRig, ...]:
    """Return the cameras that have images, those of nuScenes first; images of nuScenes have no distortion."""
    first = {record["channel"].lower(): record for record in reversed(images)}
    cameras = []
    for name in dict.fromkeys((*CAMERAS, *sorted(first))):
        if name in first:
            mounted = tables.get("calibrated_sensor", first[name]["calibrated_sensor_token"])
            size = first[name]["width"], first[name]["height"]
            lens = mounted.get("camera_distortion") or {"model": "", "coefficients": ()}
            distortion = tuple(lens["coefficients"])
            calibration = Calibration(np.array(mounted["camera_intrinsic"]), *size, lens["model"], distortion)
            cameras.append(CameraRig(name, calibration, _pose(mounted)))
    return tuple(cameras)
