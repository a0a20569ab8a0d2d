"""Write recordings of one's own, with boxes, as a dataroot in the format of nuScenes (Caesar et al., CVPR 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bev_perception.classes import attribute_of
from bev_perception.config import ReferenceFrameConfig
from bev_perception.data.folders import whole_folder
from bev_perception.data.indexing import CLASS_OF, LIDAR, LIDAR_ORIGIN
from bev_perception.data.nuscenes import SPLITS, TABLES
from bev_perception.data.own_boxes import BoxesError, OwnBox, OwnBoxes
from bev_perception.data.own_recording import OwnImage, OwnKeyFrame, OwnRecording, OwnScan, OwnScene, read_scenes
from bev_perception.data.table_rows import Row, linked, pose_row, token_of, write_json
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.strict import UserError
from bev_perception.types import Calibration

VERSION = "v1.0-own"
#: of a box in a recording without lidar: scores and trainings leave out boxes without points
POINTS_WITHOUT_LIDAR = 1
#: s; over a longer time no speed is computed, as in the devkit
_LONGEST = 1.5


@dataclass(frozen=True)
class OwnDataset:
    """What was written.

    scenes: name -> number of key frames
    boxes: class -> number of boxes
    remarks: sentences for the user
    """

    scenes: Mapping[str, int]
    boxes: Mapping[str, int]
    remarks: Sequence[str]


def reference_frame(base_height: float) -> np.ndarray:
    """Return reference2ego [4, 4]: nuScenes' lidar frame, which variants are trained in, mounted at its height.

    base_height: m, of base_link above the ground
    """
    nominal = ReferenceFrameConfig()
    return make_transform(rotation_from_yaw(nominal.yaw), np.array(nominal.translation) - (0.0, 0.0, base_height))


def write_own_dataset(
    out: Path,
    recordings: Sequence[OwnRecording],
    boxes: OwnBoxes,
    classes: Mapping[str, str | None],
    base_height: float = 0.0,
    val_every: int = 5,
    told: Callable[[str], None] = lambda line: None,
) -> OwnDataset:
    """Write the data set; the folder `out` appears when it is complete.

    recordings: in the order of the scenes
    boxes: of all recordings
    classes: class of `boxes` -> class of the data set, None for those that are left out
    base_height: m, of base_link above the ground
    val_every: each such scene, from the first one on, belongs to the validation split; a lone scene is in both splits
    told: called with a line about each recording that is done

    Raises UserError, naming cause and remedy, for an `out` that exists and for what the readers cannot use.
    """
    if out.exists():
        raise UserError(f"{out} exists already and is not overwritten; choose another directory or remove it")
    names = [recording.name for recording in recordings]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"two bags are called {twice[0]}; scenes get the names of bags: rename one")
    _check_stamps_have_bags(recordings, boxes)
    reference2ego = reference_frame(base_height)
    with whole_folder(out) as root:
        root.mkdir()
        tables = _Tables(recordings[0].settings.cameras, reference2ego, classes)
        remarks: list[str] = []
        scenes: dict[str, int] = {}
        for recording in recordings:
            found, said = read_scenes(recording, boxes, root, reference2ego)
            remarks += said
            for scene in found:
                tables.add(scene, with_lidar=bool(recording.lidar))
                scenes[scene.name] = len(scene.key_frames)
            told(f"{recording.name}: {sum(len(scene.key_frames) for scene in found)} key frames")
        if not tables.counts:
            raise BoxesError(f"no box of {boxes.path} lies at a key frame and has a class that is kept; check the map")
        tables.write(root)
        (root / "maps").mkdir()
        cv2.imwrite(str(root / "maps" / "none.png"), np.zeros((8, 8), np.uint8))
        write_json(root / VERSION / "splits.json", _splits(list(scenes), val_every))
    return OwnDataset(scenes, dict(sorted(tables.counts.items())), remarks)


def _check_stamps_have_bags(recordings: Sequence[OwnRecording], boxes: OwnBoxes) -> None:
    """Raise BoxesError for names of bags in the boxes that are not given."""
    named = {bag for bags in boxes.bags.values() for bag in bags}
    if unknown := sorted(named - {recording.name for recording in recordings}):
        given = ", ".join(recording.name for recording in recordings)
        raise BoxesError(f"{boxes.path} names the bag {unknown[0]}, which is not given; given are {given}")


def _splits(scenes: Sequence[str], val_every: int) -> dict[str, list[str]]:
    train, val = SPLITS[VERSION]["train"], SPLITS[VERSION]["val"]
    if len(scenes) == 1:
        return {train: list(scenes), val: list(scenes), "own_all": list(scenes)}
    held = scenes[::val_every]
    return {
        train: [name for name in scenes if name not in held] or list(held),
        val: list(held),
        "own_all": list(scenes),
    }


class _Tables:
    """Collects the rows of all scenes."""

    def __init__(self, cameras: Sequence[str], reference2ego: np.ndarray, classes: Mapping[str, str | None]) -> None:
        self._reference2ego, self._classes = reference2ego, classes
        self.counts: Counter[str] = Counter()
        self._rows: dict[str, list[Row]] = {name: [] for name in TABLES}
        self._once: set[str] = set()
        channels = {**{camera.upper(): "camera" for camera in cameras}, LIDAR: "lidar", LIDAR_ORIGIN: "lidar"}
        if len(channels) < len(cameras) + 2:
            raise UserError(f"cameras {', '.join(cameras)}: names must differ in more than case, and from {LIDAR}")
        for channel, modality in channels.items():
            self._rows["sensor"].append(
                {"token": token_of("sensor", channel), "channel": channel, "modality": modality}
            )
        for level, text in (("unknown", "not annotated"),):
            self._rows["visibility"].append({"token": level, "level": level, "description": text})
        category_of = {name: category for category, name in reversed(CLASS_OF.items())}
        self._category = {name: category_of.get(name, name) for name in classes.values() if name is not None}
        for category in sorted(set(self._category.values())):
            self._rows["category"].append(
                {"token": token_of("category", category), "name": category, "description": ""}
            )

    def add(self, scene: OwnScene, with_lidar: bool) -> None:
        name, keys = scene.name, scene.key_frames
        samples = [
            {"token": token_of(name, "sample", k), "timestamp": key.stamp // 1000, "scene_token": token_of(name)}
            for k, key in enumerate(keys)
        ]
        self._rows["sample"] += linked(samples)
        self._rows["scene"].append(
            {
                "token": token_of(name),
                "log_token": token_of("log", name),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": name,
                "description": "",
            }
        )
        self._rows["log"].append(
            {"token": token_of("log", name), "logfile": name, "vehicle": "", "date_captured": "", "location": name}
        )
        self._add_images(name, keys)
        self._add_scans(name, keys)
        self._add_boxes(name, keys, with_lidar)

    def _add_images(self, name: str, keys: Sequence[OwnKeyFrame]) -> None:
        for camera in keys[0].images:
            rows = []
            for k, key in enumerate(keys):
                rows += [self._image(name, camera, k, sweep[camera], j) for j, sweep in enumerate(key.image_sweeps)]
                rows.append(self._image(name, camera, k, key.images[camera], -1))
            self._rows["sample_data"] += linked(rows)

    def _image(self, name: str, camera: str, key: int, image: OwnImage, place: int) -> Row:
        """Return the row of an image; place: among the sweeps before its key frame, -1 for the key frame's own."""
        channel = camera.upper()
        k = image.calibration
        return {
            **self._data(name, channel, key, image.stamp, image.ego2global, place),
            "calibrated_sensor_token": self._calibrated(channel, image.sensor2ego, k),
            "fileformat": "jpg",
            "width": k.width,
            "height": k.height,
            "filename": image.path,
        }

    def _data(self, name: str, channel: str, key: int, stamp: int, ego2global: np.ndarray, place: int) -> Row:
        token, pose = token_of(name, channel, key, place), token_of("pose", name, channel, stamp)
        if pose not in self._once:
            self._once.add(pose)
            self._rows["ego_pose"].append({"token": pose, "timestamp": stamp // 1000, **pose_row(ego2global)})
        return {
            "token": token,
            "sample_token": token_of(name, "sample", key),
            "ego_pose_token": pose,
            "timestamp": stamp // 1000,
            "is_key_frame": place < 0,
        }

    def _calibrated(self, channel: str, sensor2ego: np.ndarray, calibration: Calibration | None) -> str:
        matrix = [] if calibration is None else calibration.intrinsics.tolist()
        token = token_of("calibration", channel, sensor2ego.tobytes().hex(), matrix)
        if token not in self._once:
            self._once.add(token)
            self._rows["calibrated_sensor"].append(
                {
                    "token": token,
                    "sensor_token": token_of("sensor", channel),
                    **pose_row(sensor2ego),
                    "camera_intrinsic": matrix,
                }
            )
        return token

    def _add_scans(self, name: str, keys: Sequence[OwnKeyFrame]) -> None:
        rows = []
        for k, key in enumerate(keys):
            rows += [self._scan(name, k, scan, place) for place, scan in enumerate(key.scan_sweeps)]
            rows.append(self._scan(name, k, key.scan, -1))
        self._rows["sample_data"] += linked(rows)

    def _scan(self, name: str, key: int, scan: OwnScan, place: int) -> Row:
        origin2ego = make_transform(self._reference2ego[:3, :3], scan.origin.round(3))
        return {
            **self._data(name, LIDAR, key, scan.stamp, scan.ego2global, place),
            "calibrated_sensor_token": self._calibrated(LIDAR, self._reference2ego, None),
            "origin_token": self._calibrated(LIDAR_ORIGIN, origin2ego, None),
            "fileformat": "pcd",
            "width": 0,
            "height": 0,
            "filename": scan.path,
        }

    def _add_boxes(self, scene: str, keys: Sequence[OwnKeyFrame], with_lidar: bool) -> None:
        tracks: dict[tuple[str, str], list[tuple[int, OwnBox, np.ndarray]]] = {}
        for k, key in enumerate(keys):
            for box, frame2global in key.boxes:
                name = self._classes[box.name]
                if name is not None:
                    turned = make_transform(rotation_from_yaw(box.yaw), box.center)
                    tracks.setdefault((name, box.track), []).append((k, box, frame2global @ turned))
        for (name, track), boxes in tracks.items():
            instance = token_of(scene, "instance", name, track)
            speeds = _velocities([(keys[k].stamp, pose) for k, _, pose in boxes])
            rows: list[dict[str, Any]] = []
            for (k, box, pose), speed in zip(boxes, speeds, strict=True):
                given = {}
                if box.velocity is not None:
                    level = np.array([np.cos(box.yaw), np.sin(box.yaw)]), np.array([-np.sin(box.yaw), np.cos(box.yaw)])
                    speed = pose[:2, 0] * (level[0] @ box.velocity) + pose[:2, 1] * (level[1] @ box.velocity)
                    given = {"velocity": speed.tolist()}
                attribute = "" if speed is None else attribute_of(name, float(np.hypot(*speed)))
                points = _points_inside(keys[k].scan, pose, box.size) if with_lidar else POINTS_WITHOUT_LIDAR
                rows.append(
                    {
                        "token": token_of(scene, "annotation", name, track, k),
                        "sample_token": token_of(scene, "sample", k),
                        "instance_token": instance,
                        "visibility_token": "unknown",
                        "attribute_tokens": self._attribute(attribute),
                        "size": box.size[[1, 0, 2]].tolist(),
                        **pose_row(pose),
                        "num_lidar_pts": points,
                        "num_radar_pts": 0,
                        **given,
                    }
                )
            self.counts[name] += len(rows)
            self._rows["sample_annotation"] += linked(rows)
            self._rows["instance"].append(
                {
                    "token": instance,
                    "category_token": token_of("category", self._category[name]),
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
            )

    def _attribute(self, name: str) -> list[str]:
        token = token_of("attribute", name)
        if name and token not in self._once:
            self._once.add(token)
            self._rows["attribute"].append({"token": token, "name": name, "description": ""})
        return [token] if name else []

    def write(self, root: Path) -> None:
        self._rows["map"].append(
            {
                "token": token_of("map"),
                "category": "semantic_prior",
                "filename": "maps/none.png",
                "log_tokens": [log["token"] for log in self._rows["log"]],
            }
        )
        (root / VERSION).mkdir()
        for name, rows in self._rows.items():
            write_json(root / VERSION / f"{name}.json", rows)


def _velocities(track: Sequence[tuple[int, np.ndarray]]) -> list[np.ndarray | None]:
    """Return the velocity [2] (m/s) of a track's poses by their neighbours, None where it has none near enough."""
    found: list[np.ndarray | None] = []
    for k in range(len(track)):
        (start, a), (end, b) = track[max(0, k - 1)], track[min(len(track) - 1, k + 1)]
        seconds = (end - start) * 1e-9
        sides = (k > 0) + (k < len(track) - 1)
        found.append((b[:2, 3] - a[:2, 3]) / seconds if sides and seconds <= _LONGEST * sides else None)
    return found


def _points_inside(scan: OwnScan, box2global: np.ndarray, size: np.ndarray) -> int:
    inside = np.abs(transform_points(invert_transform(box2global) @ scan.ego2global, scan.points)) <= size / 2
    return int(inside.all(axis=1).sum())
