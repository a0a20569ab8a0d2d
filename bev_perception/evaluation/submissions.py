"""Submission files of nuScenes' detection and tracking tasks: made of boxes, written, read and checked.

The format: Caesar et al., nuScenes, CVPR 2020; https://www.nuscenes.org/object-detection and
https://www.nuscenes.org/tracking. Both tasks describe boxes alike; names, scores and what only one of them has differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.classes import attribute_of
from bev_perception.data.nuscenes import known_splits
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.own_classes import OWN_RANGE
from bev_perception.files import whole_file
from bev_perception.geometry import quaternion_from_rotation, transform_points
from bev_perception.strict import open_regular, parse_json, read_regular
from bev_perception.types import NO_TRACK, Boxes3D

#: m from the car, in the ground plane, up to which a class counts (detection_cvpr_2019, tracking_nips_2019)
CLASS_RANGE = {
    "car": 50.0,
    "truck": 50.0,
    "bus": 50.0,
    "trailer": 50.0,
    "construction_vehicle": 50.0,
    "pedestrian": 40.0,
    "motorcycle": 40.0,
    "bicycle": 40.0,
    "traffic_cone": 30.0,
    "barrier": 30.0,
}
#: classes of the tracking task
TRACKED_CLASSES = frozenset({"bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck"})
#: the sensors that the results come from, and whether other data was used
META = {"use_lidar": False, "use_camera": True, "use_radar": False, "use_map": False, "use_external": True}
#: tasks by a key that each of their entries has
TASKS = {'"detection_name"': "detection", '"tracking_name"': "tracking"}

#: names of the files of results
DETECTION_FILE, TRACKING_FILE = "results_nusc.json", "tracking_nusc.json"

#: entries by sample token
Results = dict[str, list[dict[str, Any]]]


def to_submission(
    boxes: Boxes3D, sample_token: str, reference2ego: np.ndarray, ego2global: np.ndarray
) -> list[dict[str, Any]]:
    """Return boxes as the detection entries of one sample, in the same order; boxes beyond CLASS_RANGE are left out.

    The rotation of an entry includes the tilt of lidar and car.

    boxes: in the reference frame of the model: the lidar's, or base_link
    sample_token: of the sample
    reference2ego: [4, 4]
    ego2global: [4, 4], at the stamp of the sample
    """
    return [
        {
            **placed,
            "detection_name": name,
            "detection_score": float(boxes.scores[i]),
            "attribute_name": attribute_of(name, math.hypot(*placed["velocity"])),
        }
        for i, name, placed in _placed(boxes, sample_token, reference2ego, ego2global)
    ]


def to_tracking_submission(
    boxes: Boxes3D, sample_token: str, reference2ego: np.ndarray, ego2global: np.ndarray
) -> list[dict[str, Any]]:
    """Return boxes as the tracking entries of one sample; arguments as in `to_submission`.

    Left out beside those beyond CLASS_RANGE: boxes of classes that the task does not have, and boxes without a track.

    Raises EvaluationError for boxes that have no track ids at all.
    """
    if boxes.track_ids is None:
        raise EvaluationError("the boxes have no track ids; run with the tracker, or a variant that gives ids")
    return [
        {
            **placed,
            "tracking_id": str(boxes.track_ids[i]),
            "tracking_name": name,
            "tracking_score": float(boxes.scores[i]),
        }
        for i, name, placed in _placed(boxes, sample_token, reference2ego, ego2global)
        if name in TRACKED_CLASSES and boxes.track_ids[i] != NO_TRACK
    ]


def _placed(
    boxes: Boxes3D, sample_token: str, reference2ego: np.ndarray, ego2global: np.ndarray
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield index, class and what both tasks say of each box within CLASS_RANGE; arguments as in `to_submission`."""
    names = [boxes.class_names[label] for label in boxes.labels.tolist()]
    in_ego = transform_points(reference2ego, boxes.centers)
    near = np.hypot(in_ego[:, 0], in_ego[:, 1]) <= np.array([CLASS_RANGE.get(name, OWN_RANGE) for name in names])
    reference2global = ego2global @ reference2ego
    centers = transform_points(ego2global, in_ego)
    rotations = _turned_about_z(quaternion_from_rotation(reference2global[:3, :3]), boxes.yaws)
    velocities = boxes.velocities @ reference2global[:2, :2].T
    for i in np.flatnonzero(near).tolist():
        yield (
            i,
            names[i],
            {
                "sample_token": sample_token,
                "translation": centers[i].tolist(),
                "size": boxes.sizes[i, [1, 0, 2]].tolist(),
                "rotation": rotations[i].tolist(),
                "velocity": velocities[i].tolist(),
            },
        )


def _turned_about_z(quaternion: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Return [n, 4] quaternions w, x, y, z: a rotation by each yaw about z, then `quaternion`."""
    w, x, y, z = quaternion
    c, s = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], axis=1)


def write_submission(results: Results, path: Path) -> None:
    """Write entries by sample token as a nuScenes result file, completely or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"meta": META, "results": results}))


def task_of(path: Path) -> str:
    """Return the task that a result file is for, "detection" or "tracking", by the first name of a task in it.

    "detection" for a file without any; read_submission says what is wrong with it.
    """
    before = ""
    with open_regular(path) as file:
        while block := file.read(1 << 16):
            text = before + block.decode(errors="replace")
            found = [(text.index(key), task) for key, task in TASKS.items() if key in text]
            if found:
                return min(found)[1]
            before = text[-32:]  # a key may lie across two blocks
    return "detection"


def read_submission(path: Path, task: str) -> Results:
    """Return the entries of a result file by sample token.

    task: "detection" or "tracking"

    Raises EvaluationError for a file that is damaged, empty or of another kind.
    """
    try:
        document = parse_json(read_regular(path))
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({error}); give a result file of the {task} task") from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict) or "meta" not in document:
        raise EvaluationError(f"{path} lacks 'meta' or 'results'; give a result file of the {task} task")
    if not any(document["results"].values()):
        raise EvaluationError(f"{path} holds not one box: there is nothing to score; are the weights trained?")
    results: Results = document["results"]
    return results


def tokens_by_scene(devkit: Any, split: str | None, scenes: Collection[str]) -> dict[str, str]:
    """Return sample token -> scene name, for the samples that a result file must hold.

    devkit: the NuScenes object, see open_devkit
    split: None: the scenes may be of any split
    scenes: names of the only ones; empty: all of the split

    Raises EvaluationError for an unknown split, and for scenes that the tables do not hold.
    """
    splits = known_splits(Path(devkit.dataroot), devkit.version)
    if split is not None and split not in splits:
        raise EvaluationError(f"unknown split {split!r}; known: {', '.join(sorted(splits))}")
    name_of = {scene["token"]: scene["name"] for scene in devkit.scene}
    known = set(name_of.values()) & set(name_of.values() if split is None else splits[split])
    unknown = set(scenes) - known
    if unknown or not known:
        raise EvaluationError(
            f"the tables {devkit.version} hold no scene {', '.join(sorted(unknown))} of the split {split!r}; "
            "choose the version that belongs to the split"
        )
    wanted = set(scenes) or known
    return {s["token"]: name_of[s["scene_token"]] for s in devkit.sample if name_of[s["scene_token"]] in wanted}


def check_samples(results: Results, scene_of: dict[str, str], path: Path) -> None:
    """Raise EvaluationError if the results of `path` lack samples of `scene_of`, see tokens_by_scene."""
    missing = [token for token in scene_of if token not in results]
    if missing:
        raise EvaluationError(
            f"{path} lacks {len(missing)} of the {len(scene_of)} samples to be scored, such as {missing[0]} of "
            f"{scene_of[missing[0]]}; score it on the split that it was made for, or on single scenes"
        )


def check_range(max_range: float | None) -> None:
    """Raise EvaluationError for a range (m) that is not positive."""
    if max_range is not None and not max_range > 0:
        raise EvaluationError(f"a range of {max_range} m leaves nothing to score; give a positive one")


def define_split(devkit: Any, scenes: Collection[str], out: Path) -> str:
    """Define a split of these scenes for the devkit, which reads it from a file under its dataroot; return its name."""
    name = "chosen_scenes"
    directory = out / "split"
    (directory / devkit.version).mkdir(parents=True, exist_ok=True)
    (directory / devkit.version / "splits.json").write_text(json.dumps({name: sorted(scenes)}))
    devkit.dataroot = str(directory)  # nothing else is read from it after the tables
    return name
