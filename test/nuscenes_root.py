"""Writes the made-up drive as a small dataroot of nuScenes: tables, key frames, sweeps and boxes, for tests."""

import json

import cv2
import numpy as np

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.drive import CAMERAS, DriveImage
from bev_perception.data.synthetic import START, World, synthetic_drive
from bev_perception.geometry import make_transform, quaternion_from_rotation, rotation_from_yaw

VERSION = "v1.0-mini"
SCENES = ("scene-0103", "scene-0916")  # the official names of mini_val
SETS = 6  # image sets from one key frame to the next, at 12 Hz
LIDAR2EGO = make_transform(rotation_from_yaw(-1.55), np.array([0.9, 0.1, 1.8]))  # not the variants' nominal mounting
CATEGORIES = {"car": "vehicle.car", "truck": "vehicle.truck", "pedestrian": "human.pedestrian.adult"}
REACH = 60.0  # m, of the annotations


def write_nuscenes(root, key_frames=5, seed=3, image_size=(400, 225)):
    """Write two scenes of `key_frames` each; return the root."""
    tables = _Tables(root, seed)
    drive = synthetic_drive(len(SCENES) * key_frames / 2, seed, image_size)
    images = [event for event in drive if isinstance(event, DriveImage)]
    sets = [images[k : k + len(CAMERAS)] for k in range(0, len(images), len(CAMERAS))]
    tables.add_rig(drive.cameras)
    per_scene = SETS * (key_frames - 1) + 1
    for k, name in enumerate(SCENES):
        start = k * SETS * key_frames
        tables.add_scene(name, sets[start : start + per_scene])
    tables.write()
    return root


def _pose(transform):
    return {
        "rotation": quaternion_from_rotation(transform[:3, :3]).tolist(),
        "translation": transform[:3, 3].tolist(),
    }


def ground_points(seed):
    """500 lidar points [n, 5] float32 on flat ground: x, y, z in the lidar frame (m), intensity, ring."""
    rng = np.random.default_rng(seed)
    distance, bearing = rng.uniform(3, 50, 500), rng.uniform(0, 2 * np.pi, 500)
    columns = [distance * np.cos(bearing), distance * np.sin(bearing), np.full(500, -LIDAR2EGO[2, 3])]
    return np.stack([*columns, np.full(500, 80.0), np.zeros(500)], axis=1).astype(np.float32)


class _Tables:
    def __init__(self, root, seed):
        self.root = root
        self.world = World(seed)
        self.rows = {
            "attribute": [
                {"token": name, "name": name, "description": ""}
                for name in ("vehicle.moving", "vehicle.parked", "pedestrian.moving", "pedestrian.standing")
            ],
            "calibrated_sensor": [],
            "category": [{"token": c, "name": c, "description": ""} for c in CATEGORIES.values()],
            "ego_pose": [],
            "instance": [],
            "log": [{"token": "log", "logfile": "", "vehicle": "", "date_captured": "", "location": "nowhere"}],
            "map": [{"token": "map", "category": "semantic_prior", "filename": "maps/0.png", "log_tokens": ["log"]}],
            "sample": [],
            "sample_annotation": [],
            "sample_data": [],
            "scene": [],
            "sensor": [],
            "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        }

    def add_rig(self, cameras):
        self.size = {camera.name: (camera.calibration.width, camera.calibration.height) for camera in cameras}
        for camera in cameras:
            self._add_sensor(camera.name.upper(), "camera", camera.sensor2ego, camera.calibration.intrinsics.tolist())
        self._add_sensor("LIDAR_TOP", "lidar", LIDAR2EGO, [])

    def _add_sensor(self, channel, modality, sensor2ego, intrinsics):
        self.rows["sensor"].append({"token": channel, "channel": channel, "modality": modality})
        self.rows["calibrated_sensor"].append(
            {"token": channel, "sensor_token": channel, **_pose(sensor2ego), "camera_intrinsic": intrinsics}
        )

    def add_scene(self, name, sets):
        stamps = [sets[k][0].stamp + 40_000_000 for k in range(0, len(sets), SETS)]
        tokens = [f"{name}-{k}" for k in range(len(stamps))]
        self.rows["scene"].append(
            {
                "token": name,
                "name": name,
                "log_token": "log",
                "nbr_samples": len(tokens),
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
                "description": "",
            }
        )
        samples = zip(tokens, stamps, strict=True)
        self._chain("sample", [{"token": t, "timestamp": s // 1000, "scene_token": name} for t, s in samples])
        scans = [
            self._data("LIDAR_TOP", token, stamp, True, "pcd.bin", 0, 0)
            for token, stamp in zip(tokens, stamps, strict=True)
        ]
        for k, scan in enumerate(scans):
            path = self.root / scan["filename"]
            path.parent.mkdir(parents=True, exist_ok=True)
            ground_points(k).tofile(path)
        self._chain("sample_data", scans)
        for camera in CAMERAS:
            shots = [next(image for image in images if image.camera == camera) for images in sets]
            rows = []
            for k, image in enumerate(shots):
                row = self._data(
                    camera.upper(), tokens[-(-k // SETS)], image.stamp, k % SETS == 0, "jpg", *self.size[camera]
                )
                path = self.root / row["filename"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image.jpeg)
                rows.append(row)
            self._chain("sample_data", rows)
        self._add_boxes(name, tokens, stamps)

    def _data(self, channel, sample, stamp, is_key_frame, fileformat, width, height):
        token = f"{channel}-{stamp}"
        self.rows["ego_pose"].append(
            {"token": token, "timestamp": stamp // 1000, **_pose(self.world.ego2global(stamp))}
        )
        return {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": token,
            "calibrated_sensor_token": channel,
            "timestamp": stamp // 1000,
            "fileformat": fileformat,
            "is_key_frame": is_key_frame,
            "height": height,
            "width": width,
            "filename": f"{'samples' if is_key_frame else 'sweeps'}/{channel}/{stamp - START}.{fileformat}",
        }

    def _chain(self, table, rows):
        tokens = ["", *(row["token"] for row in rows), ""]
        self.rows[table] += [{**row, "prev": tokens[k], "next": tokens[k + 2]} for k, row in enumerate(rows)]

    def _add_boxes(self, scene, samples, stamps):
        tracks = {}
        for sample, stamp in zip(samples, stamps, strict=True):
            boxes, ego = self.world.boxes(stamp), self.world.ego2global(stamp)
            near = np.linalg.norm(boxes.centers[:, :2] - ego[:2, 3], axis=1) < REACH
            for i in np.flatnonzero(near):
                tracks.setdefault(i, []).append(self._annotation(scene, sample, boxes, i))
        for i, rows in tracks.items():
            self._chain("sample_annotation", rows)
            self.rows["instance"].append(
                {
                    "token": f"{scene}-{i}",
                    "category_token": CATEGORIES[NUSCENES_CLASSES[boxes.labels[i]]],
                    "nbr_annotations": len(rows),
                    "first_annotation_token": rows[0]["token"],
                    "last_annotation_token": rows[-1]["token"],
                }
            )

    def _annotation(self, scene, sample, boxes, i):
        moving = np.linalg.norm(boxes.velocities[i]) > 0.2
        kind = (
            ("pedestrian.moving", "pedestrian.standing")
            if boxes.labels[i] == 8
            else ("vehicle.moving", "vehicle.parked")
        )
        return {
            "token": f"{sample}-{i}",
            "sample_token": sample,
            "instance_token": f"{scene}-{i}",
            "visibility_token": "4",
            "attribute_tokens": [kind[0] if moving else kind[1]],
            "translation": boxes.centers[i].tolist(),
            "size": boxes.sizes[i][[1, 0, 2]].tolist(),
            "rotation": quaternion_from_rotation(rotation_from_yaw(boxes.yaws[i])).tolist(),
            "num_lidar_pts": 5,
            "num_radar_pts": 0,
        }

    def write(self):
        (self.root / VERSION).mkdir(parents=True)
        for name, rows in self.rows.items():
            (self.root / VERSION / f"{name}.json").write_text(json.dumps(rows))
        (self.root / "maps").mkdir()
        cv2.imwrite(str(self.root / "maps" / "0.png"), np.zeros((8, 8), np.uint8))
