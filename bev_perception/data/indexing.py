"""Convert the JSON tables of nuScenes (Caesar et al., CVPR 2020) to flat arrays: key frames, sweeps, images, boxes.

An image set is [N] indices into the table of images, one for each of the N cameras that the tables list. Frame queues
are made of image sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bev_perception.data.drive import CAMERAS
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.geometry import invert_transform, make_transform, rotation_from_quaternion, transform_points
from bev_perception.strict import inside
from bev_perception.types import DISTORTION_MODELS

LIDAR = "LIDAR_TOP"
#: in our own data sets, where the rays of LIDAR begin: its points are stored in the frame that variants are trained in
LIDAR_ORIGIN = "LIDAR_ORIGIN"
#: the tables that an index is made of
TABLES = (
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
)
#: distortion coefficients that a lens has at most
MOST_COEFFICIENTS = max(max(counts) for counts in DISTORTION_MODELS.values())
#: images between two key frames: 12 Hz against 2 Hz
SWEEPS = 5
#: s, to a neighbouring annotation; over a longer time no velocity is computed (as in nuscenes-devkit)
MAX_VELOCITY_TIME = 1.5
#: the detection task's name of nuScenes' categories; the others take no part in it
CLASS_OF = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """All S key frames of one version of nuScenes in order of time, with I images, C calibrations and A boxes.

    camera_names: [N], channels of the cameras in lower case; those of nuScenes come first, in the order of CAMERAS
    tokens: [S]
    scenes: [S], names
    stamps: [S], us
    lidar2ego: [S, 4, 4]
    ego2global: [S, 4, 4], at the lidar's stamp
    lidar_path: [S], bytes, relative to the dataroot
    cameras: [S, N], image set of the key frame
    sweeps: [S, 5, N], image sets before it, newest first; -1 in the first key frame of a scene
    image_path: [I], bytes, relative to the dataroot
    image_stamp: [I], us
    image_size: [I, 2], width and height, pixels
    image_calibration: [I], index into the calibrations
    image_pose: [I, 7], ego pose: quaternion w, x, y, z, then translation (m)
    sensor2ego: [C, 4, 4]
    intrinsics: [C, 3, 3]
    lens_models: [C], distortion models of Calibration, "" for ideal lenses, which all of nuScenes are
    distortions: [C, 14], coefficients of Calibration with zeros behind them
    box_start: [S + 1]; key frame s has the boxes from box_start[s] to box_start[s + 1]
    boxes: [A, 7], as in records.Annotations
    velocities: [A, 2], as in records.Annotations
    names: [A], as in records.Annotations
    lidar_points: [A], as in records.Annotations
    radar_points: [A], as in records.Annotations
    instances: [A], as in records.Annotations
    """

    camera_names: np.ndarray
    tokens: np.ndarray
    scenes: np.ndarray
    stamps: np.ndarray
    lidar2ego: np.ndarray
    ego2global: np.ndarray
    lidar_path: np.ndarray
    cameras: np.ndarray
    sweeps: np.ndarray
    image_path: np.ndarray
    image_stamp: np.ndarray
    image_size: np.ndarray
    image_calibration: np.ndarray
    image_pose: np.ndarray
    sensor2ego: np.ndarray
    intrinsics: np.ndarray
    lens_models: np.ndarray
    distortions: np.ndarray
    box_start: np.ndarray
    boxes: np.ndarray
    velocities: np.ndarray
    names: np.ndarray
    lidar_points: np.ndarray
    radar_points: np.ndarray
    instances: np.ndarray


def build_index(tables: dict[str, list[Row]]) -> Index:
    """Return the index of the tables.

    tables: name of each table -> its rows, as in the JSON files

    Raises NuScenesError for tables that contradict each other or hold unusable values.
    """
    try:
        return _Builder(tables).build()
    except NuScenesError:
        raise
    except (KeyError, TypeError, IndexError, ValueError) as error:  # ValueError: of numpy, or no rotation
        raise NuScenesError(
            f"the tables do not fit together ({type(error).__name__}: {error}); unpack the archive again"
        ) from error


class _Builder:
    """Looks up rows of the tables by token, and collects the images in use."""

    def __init__(self, tables: dict[str, list[Row]]) -> None:
        sensors = {row["token"]: row["channel"] for row in tables["sensor"]}
        self._cameras = _cameras(tables["sensor"])
        self._channels = {row["token"]: sensors[row["sensor_token"]] for row in tables["calibrated_sensor"]}
        self._calibrations = {row["token"]: row for row in tables["calibrated_sensor"]}
        self._poses = {row["token"]: row for row in tables["ego_pose"]}
        self._data = {row["token"]: row for row in tables["sample_data"]}
        self._scenes = {row["token"]: row["name"] for row in tables["scene"]}
        self._samples = {row["token"]: row for row in tables["sample"]}
        self._annotations = {row["token"]: row for row in tables["sample_annotation"]}
        self._boxes_of: dict[str, list[Row]] = {}
        for row in tables["sample_annotation"]:
            self._boxes_of.setdefault(row["sample_token"], []).append(row)
        categories = {row["token"]: row["name"] for row in tables["category"]}
        self._category = {row["token"]: categories[row["category_token"]] for row in tables["instance"]}
        self._instances = {row["token"]: k for k, row in enumerate(tables["instance"])}
        self._key_data: dict[str, dict[str, Row]] = {}
        for row in tables["sample_data"]:
            if row["is_key_frame"]:
                channel = self._channels[row["calibrated_sensor_token"]]
                self._key_data.setdefault(row["sample_token"], {})[channel] = row
        self._images: dict[str, int] = {}  # token of an image -> its place in the table of images

    def build(self) -> Index:
        samples = sorted(self._samples.values(), key=lambda row: row["timestamp"])
        if not samples:
            raise NuScenesError("the table of samples is empty; unpack the archive of that version again")
        _check_names([*self._samples, *self._scenes.values()])
        _check_chains(self._samples)
        columns: dict[str, list[Any]] = {
            name: [] for name in ("lidar2ego", "ego2global", "lidar_path", "cameras", "sweeps")
        }
        boxes: list[tuple[Any, ...]] = []
        box_start = [0]
        for sample in tqdm(samples, desc="indexing nuScenes", unit="sample"):
            key_data = self._key_data.get(sample["token"], {})
            lacking = [channel for channel in (LIDAR, *self._cameras) if channel not in key_data]
            if lacking:
                raise NuScenesError(f"sample {sample['token']} has no {', '.join(lacking)}; is the archive complete?")
            lidar2ego = _transform(self._calibrations[key_data[LIDAR]["calibrated_sensor_token"]])
            ego2global = _transform(self._poses[key_data[LIDAR]["ego_pose_token"]])
            cameras = [key_data[channel] for channel in self._cameras]
            columns["lidar2ego"].append(lidar2ego)
            columns["ego2global"].append(ego2global)
            columns["lidar_path"].append(_path(key_data[LIDAR]["filename"]))
            columns["cameras"].append(self._image_set(cameras))
            columns["sweeps"].append(self._sweeps(cameras, first=not sample["prev"]))
            global2lidar = invert_transform(ego2global @ lidar2ego)
            boxes += [self._box(row, global2lidar) for row in self._boxes_of.get(sample["token"], [])]
            box_start.append(len(boxes))
        calibrations = {token: k for k, token in enumerate(self._calibrations)}
        images = [self._data[token] for token in self._images]
        poses = [self._poses[image["ego_pose_token"]] for image in images]
        lenses = [row.get("camera_distortion") or {} for row in self._calibrations.values()]
        places, velocities, names, *counts, instances = zip(*boxes, strict=True) if boxes else ((),) * 6
        lidar_points, radar_points = counts
        return Index(
            camera_names=np.array([channel.lower() for channel in self._cameras]),
            tokens=np.array([sample["token"] for sample in samples]),
            scenes=np.array([self._scenes[sample["scene_token"]] for sample in samples]),
            stamps=np.array([sample["timestamp"] for sample in samples], np.int64),
            lidar2ego=np.stack(columns["lidar2ego"]),
            ego2global=np.stack(columns["ego2global"]),
            lidar_path=np.array(columns["lidar_path"]),
            cameras=np.array(columns["cameras"], np.int32),
            sweeps=np.array(columns["sweeps"], np.int32),
            image_path=np.array([_path(image["filename"]) for image in images]),
            image_stamp=np.array([image["timestamp"] for image in images], np.int64),
            image_size=np.array([(image["width"], image["height"]) for image in images], np.int32),
            image_calibration=np.array([calibrations[i["calibrated_sensor_token"]] for i in images], np.int32),
            image_pose=np.array([(*pose["rotation"], *pose["translation"]) for pose in poses], np.float64),
            sensor2ego=np.stack([_transform(row) for row in self._calibrations.values()]),
            intrinsics=np.array([row["camera_intrinsic"] or np.eye(3) for row in self._calibrations.values()]),
            lens_models=np.array([str(lens.get("model", "")) for lens in lenses]),
            distortions=np.array([_padded(lens.get("coefficients", ())) for lens in lenses]),
            box_start=np.array(box_start, np.int64),
            boxes=np.array(places, np.float64).reshape(-1, 7),
            velocities=np.array(velocities, np.float64).reshape(-1, 2),
            names=np.array(names, np.str_),
            lidar_points=np.array(lidar_points, np.int32),
            radar_points=np.array(radar_points, np.int32),
            instances=np.array(instances, np.int64),
        )

    def _image_set(self, images: list[Row]) -> list[int]:
        return [self._images.setdefault(image["token"], len(self._images)) for image in images]

    def _sweeps(self, cameras: list[Row], first: bool) -> list[list[int]]:
        """Follow the chain of images of each camera back; once a chain has ended, the last image set repeats."""
        if first:
            return [[-1] * len(cameras)] * SWEEPS
        sweeps = []
        images = cameras
        for _ in range(SWEEPS):
            if all(image["prev"] for image in images):
                images = [self._data[image["prev"]] for image in images]
            sweeps.append(self._image_set(images))
        return sweeps

    def _box(self, row: Row, global2lidar: np.ndarray) -> tuple[Any, ...]:
        """Return one annotation in the lidar frame: box [7], velocity [2], name, points, instance."""
        center = transform_points(global2lidar, np.array([row["translation"]], np.float64))[0]
        width, length, height = row["size"]
        rotation = global2lidar[:3, :3] @ rotation_from_quaternion(*row["rotation"])
        # the x axis and the y axis of a tilted box give different headings; the reference uses the y axis
        yaw = np.arctan2(-rotation[0, 1], rotation[0, 0])
        velocity = global2lidar[:3, :2] @ self._velocity(row)  # [3]; nuScenes' velocities are level
        category = self._category[row["instance_token"]]
        name = CLASS_OF.get(category, category)
        points = row["num_lidar_pts"], row["num_radar_pts"]
        instance = self._instances[row["instance_token"]]
        return (*center, length, width, height, yaw), velocity[:2], name, *points, instance

    def _velocity(self, row: Row) -> np.ndarray:
        """Return the velocity [2] of an annotation in the global frame, from its neighbours; NaN without any.

        A row of our own data sets may give it, which tables of nuScenes never do.
        """
        if "velocity" in row:
            return np.array(row["velocity"], np.float64).reshape(2)
        before, after = (self._annotations[row[side]] if row[side] else row for side in ("prev", "next"))
        seconds = 1e-6 * (self._stamp(after) - self._stamp(before))
        sides = (before is not row) + (after is not row)
        if sides == 0 or seconds > MAX_VELOCITY_TIME * sides:
            return np.full(2, np.nan)
        return (np.array(after["translation"][:2]) - np.array(before["translation"][:2])) / seconds

    def _stamp(self, annotation: Row) -> int:
        return int(self._samples[annotation["sample_token"]]["timestamp"])


def _cameras(sensors: list[Row]) -> list[str]:
    """Return the channels of the cameras: those of nuScenes first, in the order of CAMERAS, then the others as listed.

    Raises NuScenesError for a table without cameras, or with two whose names differ in case alone.
    """
    channels = {row["channel"].lower(): row["channel"] for row in sensors if row["modality"] == "camera"}
    if len(channels) < sum(row["modality"] == "camera" for row in sensors):
        raise NuScenesError("two cameras in the table of sensors have the same name; names differ in more than case")
    if not channels:
        raise NuScenesError("the table of sensors lists no camera; unpack the archive again")
    return [channels[name] for name in dict.fromkeys((*CAMERAS, *channels)) if name in channels]


def _check_names(names: list[str]) -> None:
    """Raise NuScenesError for tokens and scenes' names that are no plain names: files are called by them."""
    for name in names:
        if not isinstance(name, str) or "/" in name or name == ".":
            raise NuScenesError(f"{name!r} is no name that a sample or a scene can have; unpack the archive again")
        inside(Path(), name)


def _check_chains(samples: dict[str, Row]) -> None:
    """Raise NuScenesError if following `next` comes back to a sample; each is visited once."""
    done: set[str] = set()
    for start in samples:
        token, chain = start, set()
        while token and token not in done:
            if token in chain:
                raise NuScenesError(
                    f"the key frames go in a circle: {token} comes after itself; unpack the archive again"
                )
            chain.add(token)
            token = samples[token]["next"]
        done |= chain


def _padded(coefficients: Sequence[float]) -> list[float]:
    """Return the coefficients of a lens with zeros behind them, as many as any model has."""
    return [*map(float, coefficients), *[0.0] * (MOST_COEFFICIENTS - len(coefficients))]


def _path(name: str) -> bytes:
    """Return a file's name from the tables; raise ValueError if it leads out of the dataroot."""
    inside(Path(), name)
    return name.encode()


def _transform(row: Row) -> np.ndarray:
    return make_transform(rotation_from_quaternion(*row["rotation"]), np.array(row["translation"]))
