"""Generates one scene: its files, and its rows of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bev_perception.data.drive import NUSCENES_IMAGE_SIZE, CameraRig
from bev_perception.data.table_rows import Row, linked, pose_row, token_of
from bev_perception.geometry import invert_transform, quaternion_from_rotation, rotation_from_yaw, transform_points
from bev_perception.synth.compiled import kernel
from bev_perception.synth.lidar import sweep
from bev_perception.synth.occupancy import camera_rays, label
from bev_perception.synth.pictures import Photographer, visibility
from bev_perception.synth.roads import CELL
from bev_perception.synth.settings import (
    CAMERA_RATES,
    KEY_RATE,
    LIDAR,
    RIGS,
    WEATHER,
    Schedule,
    SynthSettings,
    cameras_of,
    lidar_of,
    make_schedule,
)
from bev_perception.synth.tables import SCENE_TABLES, attribute_token, category_token, sensor_token
from bev_perception.synth.world import World, make_world

#: us, start of the first scene (September 2020), and time from the start of one scene to that of the next
EPOCH, BETWEEN = 1_600_000_000_000_000, 3_600_000_000
#: m from the car within which objects get boxes; pixels of 1600x900 that must be visible of one without lidar points
BOX_REACH, BOX_PIXELS = 85.0, 30
MAP_RESOLUTION = 0.1  # m per pixel


@dataclass(frozen=True)
class _Sight:
    """What is known at one key frame, with n things that may have a box.

    points: [m, 3] lidar points in the lidar's frame, m
    centers: [n, 3] of the boxes in the world, m
    yaws: [n] rad
    hits: [n] lidar points within the box
    seen: [n] visible pixels
    extent: [n] pixels that would be visible if nothing hid the thing
    distance: [n] from the car, m
    attributes: nuScenes attribute of each thing, "" for none
    """

    points: np.ndarray
    centers: np.ndarray
    yaws: np.ndarray
    hits: np.ndarray
    seen: np.ndarray
    extent: np.ndarray
    distance: np.ndarray
    attributes: list[str]


def scene_name(seed: int, index: int) -> str:
    """Return the name of a scene.

    seed: of the data set
    index: number of the scene
    """
    return f"synth-{seed:03d}-{index:04d}"


def make_scene(
    root: Path, settings: SynthSettings, index: int, tick: Callable[[], None] = lambda: None
) -> dict[str, list[Row]]:
    """Write the files of a scene; return its rows by table.

    root: the dataroot
    settings: of the data set
    index: number of the scene
    tick: called after every file
    """
    return _SceneMaker(root, settings, index, tick).make()


class _SceneMaker:
    def __init__(self, root: Path, settings: SynthSettings, index: int, tick: Callable[[], None]) -> None:
        self._root, self._settings, self._tick = root, settings, tick
        self._name = scene_name(settings.seed, index)
        self._start = EPOCH + index * BETWEEN
        kinds = WEATHER[settings.weather[index % len(settings.weather)]] if settings.weather else ()
        self._world: World = make_world((settings.seed, index, 0), settings.seconds, kinds)
        self._rng = np.random.default_rng((settings.seed, index, 1))
        self._rig = int(self._rng.integers(len(RIGS)))
        self._schedule: Schedule = make_schedule(settings, self._start, self._rng)
        self._cameras, self._lidar2ego = cameras_of(settings, self._rig), lidar_of(settings, self._rig)
        above = {c: replace(camera, sensor2ego=self._above_ground(camera)) for c, camera in self._cameras.items()}
        self._photographer = Photographer(self._world, above, self._rng, tail=settings.rig is None)
        self._boxed = np.array([bool(thing.category) for thing in self._world.things] + [False])
        self._rows: dict[str, list[Row]] = {name: [] for name in SCENE_TABLES}
        self._data: dict[str, list[Row]] = {channel: [] for channel in (*self._cameras, LIDAR)}

    def make(self) -> dict[str, list[Row]]:
        keys = len(self._schedule.key_stamps)
        objects = len(self._world.solids.classes)
        seen, extent = np.zeros((keys, objects), np.int64), np.zeros((keys, objects), np.int64)
        for shot in self._schedule.shots:
            view = self._photographer.take(shot.channel, self._time(shot.stamp), with_extent=shot.key >= 0)
            if shot.key >= 0:
                seen[shot.key] += view.seen
                extent[shot.key] += view.extent
            self._write_image(shot.channel, shot.stamp, shot.key, view.image)
            self._tick()
        sights = [self._make_sweep(key, seen[key], extent[key]) for key in range(keys)]
        noticed = self._noticed(sights)
        for key in range(keys):
            self._write_labels(key, sights[key].points, noticed[key])
            self._tick()
        self._write_map()
        self._add_common_rows()
        self._add_annotations(sights, noticed)
        for channel, rows in self._data.items():
            spaced = rows if channel == LIDAR or self._settings.camera_rate > KEY_RATE else self._with_stand_ins(rows)
            self._rows["sample_data"] += linked(spaced)
        return self._rows

    def _above_ground(self, camera: CameraRig) -> np.ndarray:
        """Return a camera's pose [4, 4] above the point on the ground that the world moves."""
        return self._settings.base2ground @ camera.sensor2ego

    def _ego2global(self, time: float) -> np.ndarray:
        """Return the pose [4, 4] of base_link."""
        return self._world.ego2global(time) @ self._settings.base2ground

    def _time(self, stamp: int) -> float:
        return (stamp - self._start) * 1e-6

    def _token(self, *what: object) -> str:
        return token_of(self._name, *what)

    def _sample_token(self, key: int) -> str:
        return self._token("sample", key)

    def _add_data(self, channel: str, stamp: int, key: int, is_key: bool, suffix: str, **more: Any) -> Path:
        """Add a row of sample_data and its ego pose; return the path of its file."""
        folder = f"{'samples' if is_key else 'sweeps'}/{channel}"
        filename = f"{folder}/{self._name}__{channel}__{stamp}.{suffix}"
        token = self._token(channel, stamp)
        pose = self._ego2global(self._time(stamp))
        self._rows["ego_pose"].append({"token": token, "timestamp": stamp, **pose_row(pose)})
        row = {
            "token": token,
            "sample_token": self._sample_token(key),
            "ego_pose_token": token,
            "calibrated_sensor_token": self._token("calibration", channel),
            "timestamp": stamp,
            "is_key_frame": is_key,
            "filename": filename,
        }
        self._data[channel].append(row | more)
        (self._root / folder).mkdir(parents=True, exist_ok=True)
        return self._root / filename

    def _with_stand_ins(self, rows: list[Row]) -> list[Row]:
        """Return a camera's key frames with rows between them that repeat the nearer key frame's file, stamp and pose.

        There are as many such rows as there are sweeps at the full rate, so that stepping back by a number of images
        covers the same time.
        """
        steps = max(CAMERA_RATES) // KEY_RATE
        spaced = rows[:1]
        for before, after in pairwise(rows):
            for k in range(1, steps):
                nearer = before if 2 * k <= steps else after
                copy = {"token": self._token(after["token"], k), "sample_token": after["sample_token"]}
                spaced.append(nearer | copy | {"is_key_frame": False})
            spaced.append(after)
        return spaced

    def _write_image(self, channel: str, stamp: int, key: int, image: np.ndarray) -> None:
        # an image between two key frames belongs to the later one
        of_key = key if key >= 0 else int(np.searchsorted(self._schedule.key_stamps, stamp))
        height, width = image.shape[:2]
        path = self._add_data(channel, stamp, of_key, key >= 0, "jpg", fileformat="jpg", width=width, height=height)
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, self._settings.jpeg_quality])[1]
        path.write_bytes(jpeg.tobytes())

    def _make_sweep(self, key: int, seen: np.ndarray, extent: np.ndarray) -> _Sight:
        """Write the lidar sweep of a key frame; return what is known of the things that may have a box.

        seen, extent: [O] pixels of each object, summed over the cameras, as in View
        """
        world, stamp = self._world, int(self._schedule.key_stamps[key])
        time = self._time(stamp)
        ego2global = self._ego2global(time)
        lidar2global = ego2global @ self._lidar2ego
        points, _ = sweep(world.solids, world.poses_at(time), world.ground, lidar2global, world.light.wet, self._rng)
        path = self._add_data(LIDAR, stamp, key, True, "pcd.bin", fileformat="pcd", width=0, height=0)
        path.write_bytes(points.tobytes() if self._settings.lidar else b"")

        things, places = np.flatnonzero(self._boxed), world.places_at(time)[self._boxed]
        middles, sizes = (np.array(a) for a in zip(*(world.things[o].box for o in things), strict=True))
        c, s = np.cos(places[:, 3]), np.sin(places[:, 3])
        centers = places[:, :3] + np.stack(
            [c * middles[:, 0] - s * middles[:, 1], s * middles[:, 0] + c * middles[:, 1], middles[:, 2]], axis=1
        )
        xyz = points[:, :3].astype(np.float64)
        speeds = world.speeds_at(time)
        return _Sight(
            points=xyz,
            centers=centers,
            yaws=places[:, 3],
            hits=count_inside(centers, sizes, places[:, 3], transform_points(lidar2global, xyz)),
            seen=seen[things],
            extent=extent[things],
            distance=np.hypot(*(centers[:, :2] - ego2global[:2, 3]).T),
            attributes=[world.things[o].attribute(speeds[o]) for o in things],
        )

    def _noticed(self, sights: list[_Sight]) -> np.ndarray:
        """Return [S, n] bool: a thing has a box from the first key frame in which it is visible to the last."""
        width = sum(camera.calibration.width for camera in self._cameras.values()) / len(self._cameras)
        enough = BOX_PIXELS * (width / NUSCENES_IMAGE_SIZE[0]) ** 2
        shows = np.array([((v.hits > 0) | (v.seen >= enough)) & (v.distance < BOX_REACH) for v in sights])
        begun, to_come = np.logical_or.accumulate(shows), np.logical_or.accumulate(shows[::-1])[::-1]
        return begun & to_come

    def _write_labels(self, key: int, points: np.ndarray, noticed: np.ndarray) -> None:
        """Write the occupancy labels of a key frame; things without a box in it are left out, see _noticed.

        points: [m, 3] of the lidar in its frame, m
        noticed: [n] bool, which of the things that may have a box have one
        """
        world, time = self._world, self._time(int(self._schedule.key_stamps[key]))
        ego2global, lidar2ego = self._ego2global(time), self._lidar2ego
        present = ~self._boxed
        present[self._boxed] = noticed
        labels = label(
            world.solids,
            world.poses_at(time),
            world.ground,
            present,
            self._boxed,
            ego2global,
            (lidar2ego[:3, 3], transform_points(lidar2ego, points)),
            self._rays(key, ego2global),
        )
        folder = self._root / "gts" / self._name / self._sample_token(key)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "labels.npz", **vars(labels))

    def _rays(self, key: int, ego2global: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ray origins and directions of a key frame's images, in the ego frame at the lidar's stamp."""
        found = []
        for shot in self._schedule.shots:
            if shot.key == key:
                camera = self._cameras[shot.channel]
                sensor2global = self._ego2global(self._time(shot.stamp)) @ camera.sensor2ego
                sensor2ego = invert_transform(ego2global) @ sensor2global
                found.append((sensor2ego[:3, 3], camera_rays(camera.calibration, sensor2ego[:3, :3])))
        return found

    def _add_annotations(self, sights: list[_Sight], noticed: np.ndarray) -> None:
        """Add instances and annotations.

        sights: one per key frame
        noticed: [S, n] result of _noticed
        """
        for n, o in enumerate(np.flatnonzero(self._boxed).tolist()):
            keys = np.flatnonzero(noticed[:, n])
            if not len(keys):
                continue
            thing, instance = self._world.things[o], self._token("instance", o)
            length, width, height = thing.box[1].tolist()
            rows = []
            for key in keys.tolist():
                sight = sights[key]
                attribute = sight.attributes[n]
                rows.append(
                    {
                        "token": self._token("annotation", o, key),
                        "sample_token": self._sample_token(key),
                        "instance_token": instance,
                        "visibility_token": visibility(sight.seen[n], sight.extent[n]),
                        "attribute_tokens": [attribute_token(attribute)] if attribute else [],
                        "translation": sight.centers[n].tolist(),
                        "size": [width, length, height],
                        "rotation": quaternion_from_rotation(rotation_from_yaw(sight.yaws[n])).tolist(),
                        "num_lidar_pts": int(sight.hits[n]),
                        "num_radar_pts": 0,
                    }
                )
            self._rows["sample_annotation"] += linked(rows)
            self._rows["instance"].append(
                {
                    "token": instance,
                    "category_token": category_token(thing.category),
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
            )

    def _add_common_rows(self) -> None:
        """Add samples, scene, log, map and calibrations."""
        stamps, streets = self._schedule.key_stamps, self._world.streets
        samples = [
            {"token": self._sample_token(k), "timestamp": int(stamp), "scene_token": self._token("scene")}
            for k, stamp in enumerate(stamps)
        ]
        self._rows["sample"] += linked(samples)
        self._rows["scene"].append(
            {
                "token": self._token("scene"),
                "log_token": self._token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": self._name,
                "description": f"Made up: {self._world.weather}, {2 * streets.main.lanes} lanes, "
                f"{len(streets.junctions)} junctions, drives on the {'right' if streets.main.hand > 0 else 'left'}",
            }
        )
        log = {"token": self._token("log"), "logfile": self._name, "vehicle": f"rig{self._rig}"}
        self._rows["log"].append(log | {"date_captured": "2020-09-13", "location": self._name})
        self._rows["map"].append(
            {
                "token": self._token("map"),
                "category": "semantic_prior",
                "filename": self._map_file(),
                "log_tokens": [self._token("log")],
            }
        )
        for channel, camera in self._cameras.items():
            calibration = camera.calibration
            self._add_sensor(channel, camera.sensor2ego, calibration.intrinsics.tolist())
            if calibration.distortion:  # nuScenes' own pictures have none, and no place for it
                lens = {"model": calibration.distortion_model, "coefficients": list(calibration.distortion)}
                self._rows["calibrated_sensor"][-1]["camera_distortion"] = lens
        self._add_sensor(LIDAR, self._lidar2ego, [])

    def _add_sensor(self, channel: str, sensor2ego: np.ndarray, intrinsics: list[list[float]]) -> None:
        self._rows["calibrated_sensor"].append(
            {
                "token": self._token("calibration", channel),
                "sensor_token": sensor_token(channel),
                **pose_row(sensor2ego),
                "camera_intrinsic": intrinsics,
            }
        )

    def _map_file(self) -> str:
        return f"maps/{self._token('map')}.png"

    def _write_map(self) -> None:
        """Write the mask of road and pavements in the format of nuScenes: north up, 0.1 m per pixel."""
        edges, pavement = self._world.ground.raster[..., 4].copy(), self._world.streets.main.pavement
        size = [round(side / MAP_RESOLUTION) for side in self._world.streets.size]
        pixel2cell = np.array([[MAP_RESOLUTION / CELL, 0, 0], [0, MAP_RESOLUTION / CELL, 0]])
        fine = cv2.warpAffine(edges, pixel2cell, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        path = self._root / self._map_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.uint8(255) * (fine < pavement)[::-1]
        path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


@kernel
def count_inside(centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the number of points in each box, [n].

    centers: [n, 3] m
    sizes: [n, 3] length, width, height, m
    yaws: [n] rad
    points: [m, 3] m
    """
    counts = np.zeros(len(centers), np.int64)
    for n in range(len(centers)):
        c, s = np.cos(yaws[n]), np.sin(yaws[n])
        half = 0.5 * sizes[n]
        reach = half[0] + half[1]
        for m in range(len(points)):
            dx, dy, dz = points[m, 0] - centers[n, 0], points[m, 1] - centers[n, 1], points[m, 2] - centers[n, 2]
            if abs(dx) > reach or abs(dy) > reach or abs(dz) > half[2]:
                continue
            if abs(c * dx + s * dy) <= half[0] and abs(c * dy - s * dx) <= half[1]:
                counts[n] += 1
    return counts
