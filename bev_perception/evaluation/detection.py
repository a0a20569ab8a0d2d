"""Write boxes as a nuScenes submission, and score submissions with the official nuscenes-devkit.

The task and its metrics: Caesar et al., nuScenes, CVPR 2020; https://www.nuscenes.org/object-detection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.classes import attribute_of
from bev_perception.data.nuscenes import known_splits, open_devkit
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.geometry import quaternion_from_rotation, transform_points
from bev_perception.strict import parse_json
from bev_perception.types import Boxes3D

#: m from the car, in the ground plane, up to which a class counts (detection_cvpr_2019)
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
#: the sensors that the results come from, and whether other data was used
META = {"use_lidar": False, "use_camera": True, "use_radar": False, "use_map": False, "use_external": True}
#: errors of true positives: name in the devkit -> name in publications
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a result file by nuscenes-devkit.

    mean_ap: mAP, 0..1
    nds: nuScenes detection score, 0..1
    errors: mATE (m), mASE (1 - IOU), mAOE (rad), mAVE (m/s), mAAE (1 - accuracy)
    class_aps: class -> AP
    class_errors: class -> the five errors, NaN where an error is not defined for the class
    max_range: m, distance from the car up to which boxes count; None: CLASS_RANGE only
    """

    mean_ap: float
    nds: float
    errors: dict[str, float]
    class_aps: dict[str, float]
    class_errors: dict[str, dict[str, float]]
    max_range: float | None = None

    def table(self) -> str:
        """Return the scores as a readable table: first over all classes, then a line for each class."""
        heads = [name[1:] for name in ERRORS.values()]
        lines = [] if self.max_range is None else [f"within {self.max_range:g} m of the car"]
        lines += [f"mAP  {self.mean_ap:.4f}", *(f"{name} {value:.4f}" for name, value in self.errors.items())]
        lines += [f"NDS  {self.nds:.4f}", "", f"{'class':22}{'AP':>7}" + "".join(f"{head:>7}" for head in heads)]
        for name, ap in self.class_aps.items():
            errors = self.class_errors[name].values()
            lines.append(f"{name:22}{ap:7.3f}" + "".join("      -" if math.isnan(e) else f"{e:7.3f}" for e in errors))
        return "\n".join(lines)


def to_submission(
    boxes: Boxes3D, sample_token: str, lidar2ego: np.ndarray, ego2global: np.ndarray
) -> list[dict[str, Any]]:
    """Return boxes as the entries of one sample, in the same order; boxes beyond CLASS_RANGE are left out.

    The rotation of an entry includes the tilt of lidar and car.

    boxes: in the lidar frame
    sample_token: of the sample
    lidar2ego: [4, 4]
    ego2global: [4, 4], at the stamp of the sample
    """
    names = [boxes.class_names[label] for label in boxes.labels.tolist()]
    in_ego = transform_points(lidar2ego, boxes.centers)
    near = np.hypot(in_ego[:, 0], in_ego[:, 1]) <= np.array([CLASS_RANGE[name] for name in names])
    lidar2global = ego2global @ lidar2ego
    centers = transform_points(ego2global, in_ego)
    rotations = _turned_about_z(quaternion_from_rotation(lidar2global[:3, :3]), boxes.yaws)
    velocities = boxes.velocities @ lidar2global[:2, :2].T
    return [
        {
            "sample_token": sample_token,
            "translation": centers[i].tolist(),
            "size": boxes.sizes[i, [1, 0, 2]].tolist(),
            "rotation": rotations[i].tolist(),
            "velocity": velocities[i].tolist(),
            "detection_name": names[i],
            "detection_score": float(boxes.scores[i]),
            "attribute_name": attribute_of(names[i], math.hypot(*velocities[i])),
        }
        for i in np.flatnonzero(near)
    ]


def _turned_about_z(quaternion: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Return [n, 4] quaternions w, x, y, z: a rotation by each yaw about z, then `quaternion`."""
    w, x, y, z = quaternion
    c, s = np.cos(yaws / 2), np.sin(yaws / 2)
    return np.stack([w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], axis=1)


def write_submission(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write entries by sample token as a nuScenes result file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps({"meta": META, "results": results}))
    partial.replace(path)


def score_results(
    results_json: Path,
    root: Path,
    version: str,
    split: str | None,
    out: Path,
    scenes: Collection[str] = (),
    samples: Collection[str] = (),
    max_range: float | None = None,
) -> DetectionScores:
    """Score a result file with the official DetectionEval and its configuration detection_cvpr_2019.

    results_json: the result file; it must hold all samples of the split, or of `scenes`, that are in the tables
    root: the dataroot of nuScenes
    version: of the tables
    split: such as "val" or "mini_val"; None: the scenes may be of any split
    out: directory for metrics_summary.json and plots/curves.png (precision and errors over recall)
    scenes: names of the only scenes to score; empty: all of the split
    samples: tokens of the only samples to score; empty: all in the file
    max_range: m, distance from the car up to which boxes of any class count; None: the range of each class

    Raises EvaluationError for an unusable result file or range, NuScenesError for missing or damaged tables.
    """
    if max_range is not None and not max_range > 0:
        raise EvaluationError(f"a range of {max_range} m leaves nothing to score; give a positive one")
    results = _read_results(results_json)
    devkit = open_devkit(root, version)
    _check_samples(results, _tokens_by_scene(devkit, split, scenes), results_json)

    import matplotlib

    matplotlib.use("Agg")  # no window is ever opened
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.render import summary_plot

    out.mkdir(parents=True, exist_ok=True)
    if scenes:
        split = _define_split(devkit, scenes, out)
    config = config_factory("detection_cvpr_2019")
    if max_range is not None:
        config.class_range = {name: min(own, max_range) for name, own in config.class_range.items()}
    try:
        evaluation = DetectionEval(devkit, config, str(results_json), split, str(out), verbose=False)
    except Exception as error:  # whatever the devkit meets in the file
        raise EvaluationError(f"nuscenes-devkit refuses {results_json}: {type(error).__name__}: {error}") from error
    if samples:
        for boxes in (evaluation.gt_boxes, evaluation.pred_boxes):
            for token in set(boxes.sample_tokens) - set(samples):
                del boxes.boxes[token]
    metrics, curves = evaluation.evaluate()
    summary_plot(
        curves, metrics, config.min_precision, config.min_recall, config.dist_th_tp, str(out / "plots" / "curves.png")
    )
    summary = metrics.serialize()
    summary["meta"] = evaluation.meta
    (out / "metrics_summary.json").write_text(json.dumps(summary, indent=1))
    return DetectionScores(
        mean_ap=summary["mean_ap"],
        nds=summary["nd_score"],
        errors={name: summary["tp_errors"][key] for key, name in ERRORS.items()},
        class_aps=dict(summary["mean_dist_aps"]),
        class_errors={
            name: {ERRORS[key]: errors[key] for key in ERRORS} for name, errors in summary["label_tp_errors"].items()
        },
        max_range=max_range,
    )


def _read_results(path: Path) -> dict[str, list[Any]]:
    try:
        document = parse_json(path.read_bytes())
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({error}); give a results_nusc.json") from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict) or "meta" not in document:
        raise EvaluationError(f"{path} lacks 'meta' or 'results'; give a results_nusc.json of the detection task")
    if not any(document["results"].values()):
        raise EvaluationError(f"{path} holds not one box: there is nothing to score; are the weights trained?")
    results: dict[str, list[Any]] = document["results"]
    return results


def _tokens_by_scene(devkit: Any, split: str | None, scenes: Collection[str]) -> dict[str, str]:
    """Return sample token -> scene name, for the samples that the result file must hold."""
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


def _check_samples(results: dict[str, list[Any]], scene_of: dict[str, str], path: Path) -> None:
    missing = [token for token in scene_of if token not in results]
    if missing:
        raise EvaluationError(
            f"{path} lacks {len(missing)} of the {len(scene_of)} samples to be scored, such as {missing[0]} of "
            f"{scene_of[missing[0]]}; score it on the split that it was made for, or on single scenes"
        )


def _define_split(devkit: Any, scenes: Collection[str], out: Path) -> str:
    """Define a split of these scenes for the devkit, which reads it from a file under its dataroot."""
    name = "chosen_scenes"
    directory = out / "split"
    (directory / devkit.version).mkdir(parents=True, exist_ok=True)
    (directory / devkit.version / "splits.json").write_text(json.dumps({name: sorted(scenes)}))
    devkit.dataroot = str(directory)  # nothing else is read from it after the tables
    return name
