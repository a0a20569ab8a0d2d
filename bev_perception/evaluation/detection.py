"""Score detection results with the official nuscenes-devkit.

The task and its metrics: Caesar et al., nuScenes, CVPR 2020; https://www.nuscenes.org/object-detection.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.data.nuscenes import open_devkit
from bev_perception.evaluation.distances import ap_by_distance
from bev_perception.evaluation.errors import RefusedResultsError
from bev_perception.evaluation.own_classes import OWN_RANGE, known_to_devkit, own_classes
from bev_perception.evaluation.submissions import (
    check_range,
    check_samples,
    define_split,
    read_submission,
    tokens_by_scene,
)

#: boxes below this score are no duplicates, since the node does not publish them by default
DUPLICATE_SCORE = 0.3
#: m between the centres of a box and its object, as for nuScenes' true positives
DUPLICATE_DISTANCE = 2.0
#: errors of true positives: name in the devkit -> name in publications
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}


@dataclass(frozen=True)
class DetectionScores:
    """The scores of a result file by nuscenes-devkit, whose means take a class without objects as one never found.

    mean_ap: mAP, 0..1
    nds: nuScenes detection score, 0..1
    errors: mATE (m), mASE (1 - IOU), mAOE (rad), mAVE (m/s), mAAE (1 - accuracy)
    class_aps: class -> AP
    class_errors: class -> the five errors, NaN where an error is not defined for the class
    objects: class -> number of its objects in the truth, each counted in every sample
    duplicates: share of the found objects that have a further box, see count_duplicates; NaN where none is found
    max_range: m, distance from the car up to which boxes count; None: the range of each class only
    by_distance: mAP of near and far objects, see distances.ap_by_distance
    """

    mean_ap: float
    nds: float
    errors: dict[str, float]
    class_aps: dict[str, float]
    class_errors: dict[str, dict[str, float]]
    objects: dict[str, int]
    duplicates: float = math.nan
    max_range: float | None = None
    by_distance: dict[str, float] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """The classes that have objects in the truth."""
        return tuple(name for name in self.class_aps if self.objects[name])

    @property
    def known_means(self) -> dict[str, float]:
        """The mAP, the five errors and NDS by name, over the classes that have objects; NaN without any."""
        known = self.known
        mean_ap = _mean([self.class_aps[name] for name in known])
        errors = {error: _mean([self.class_errors[name][error] for name in known]) for error in ERRORS.values()}
        # an error that none of the classes has, as the speed of cones and barriers, earns nothing: so does the devkit
        parts = [0.0 if math.isnan(error) else 1 - min(1.0, error) for error in errors.values()]
        return {"mAP": mean_ap, **errors, "NDS": (5 * mean_ap + sum(parts)) / 10}

    def table(self) -> str:
        """Return the scores as a readable table: first over all classes, then a line for each class.

        A class without objects in the truth has no scores; means leave it out, and the devkit's stand beside them.
        """
        heads = [name[1:] for name in ERRORS.values()]
        lines = [] if self.max_range is None else [f"within {self.max_range:g} m of the car"]
        official = {"mAP": self.mean_ap, **self.errors, "NDS": self.nds}
        if len(self.known) == len(self.class_aps):
            lines += [f"{name:5}{value:.4f}" for name, value in official.items()]
        else:
            known, total = len(self.known), len(self.class_aps)
            lines.append(f"means over the {known} of {total} classes that have objects here; in brackets those of")
            lines.append("nuscenes-devkit, where all others count as never found")
            for name, value in self.known_means.items():
                lines.append(f"{name:5}{_cell(value, 6, 4)} ({official[name]:.4f})")
        if not math.isnan(self.duplicates):
            lines.append(
                f"found objects with a further box (score {DUPLICATE_SCORE:g} or more): {100 * self.duplicates:.1f} %"
            )
        if self.by_distance:
            parts = [f"{name} {_cell(value, 6, 4).strip()}" for name, value in self.by_distance.items()]
            lines.append(f"mAP by distance from the car: {', '.join(parts)}")
        lines += ["", f"{'class':22}{'AP':>7}" + "".join(f"{head:>7}" for head in heads)]
        for name, ap in self.class_aps.items():
            values = [ap, *self.class_errors[name].values()]
            lines.append(f"{name:22}" + "".join(_cell(v if self.objects[name] else math.nan) for v in values))
        return "\n".join(lines)


def _mean(values: list[float]) -> float:
    """Return the mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _cell(value: float, width: int = 7, digits: int = 3) -> str:
    return f"{'-':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"


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
    check_range(max_range)
    results = read_submission(results_json, "detection")
    devkit = open_devkit(root, version)
    check_samples(results, tokens_by_scene(devkit, split, scenes), results_json)

    import matplotlib

    matplotlib.use("Agg")  # no window is ever opened
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.render import summary_plot

    out.mkdir(parents=True, exist_ok=True)
    if scenes:
        split = define_split(devkit, scenes, out)
    config = config_factory("detection_cvpr_2019")
    own = own_classes(devkit)
    config.class_range.update(dict.fromkeys(own, OWN_RANGE))
    if max_range is not None:
        config.class_range = {name: min(reach, max_range) for name, reach in config.class_range.items()}
    with known_to_devkit(own):
        try:
            evaluation = DetectionEval(devkit, config, str(results_json), split, str(out), verbose=False)
        except Exception as error:  # whatever the devkit meets in the file
            raise RefusedResultsError(
                f"nuscenes-devkit refuses {results_json}: {type(error).__name__}: {error}"
            ) from error
        if samples:
            for boxes in (evaluation.gt_boxes, evaluation.pred_boxes):
                for token in set(boxes.sample_tokens) - set(samples):
                    del boxes.boxes[token]
        metrics, curves = evaluation.evaluate()
        plot, limits = str(out / "plots" / "curves.png"), (config.min_precision, config.min_recall, config.dist_th_tp)
        summary_plot(curves, metrics, *limits, plot)
    summary = metrics.serialize()
    summary["meta"] = evaluation.meta
    objects = Counter(box.detection_name for box in evaluation.gt_boxes.all)
    scores = DetectionScores(
        mean_ap=summary["mean_ap"],
        nds=summary["nd_score"],
        errors={name: summary["tp_errors"][key] for key, name in ERRORS.items()},
        class_aps=dict(summary["mean_dist_aps"]),
        class_errors={
            name: {ERRORS[key]: errors[key] for key in ERRORS} for name, errors in summary["label_tp_errors"].items()
        },
        objects={name: objects[name] for name in config.class_names},
        duplicates=count_duplicates(evaluation.gt_boxes, evaluation.pred_boxes),
        max_range=max_range,
        by_distance=ap_by_distance(evaluation.gt_boxes, evaluation.pred_boxes, config),
    )
    means = {name: None if math.isnan(value) else value for name, value in scores.known_means.items()}
    summary["classes_with_objects"] = {"names": scores.known, "means": means}
    summary["mean_ap_by_distance"] = {
        name: None if math.isnan(value) else value for name, value in scores.by_distance.items()
    }
    (out / "metrics_summary.json").write_text(json.dumps(summary, indent=1))
    return scores


def count_duplicates(truth: Any, found: Any) -> float:
    """Return the number of further boxes on objects that have one, by the number of objects that have a box.

    A box of DUPLICATE_SCORE or more is on the nearest object of its class, within DUPLICATE_DISTANCE; NaN where no
    object has a box.

    truth: the devkit's EvalBoxes of the objects
    found: those of the results
    """
    objects, boxes = 0, 0
    for token in truth.sample_tokens:
        for name in {box.detection_name for box in truth[token]}:
            there = np.array([box.translation[:2] for box in truth[token] if box.detection_name == name])
            sure = [b for b in found[token] if b.detection_name == name and b.detection_score >= DUPLICATE_SCORE]
            if not sure:
                continue
            apart = np.linalg.norm(np.array([box.translation[:2] for box in sure])[:, None] - there, axis=2)
            on = apart.argmin(axis=1)[apart.min(axis=1) <= DUPLICATE_DISTANCE]
            objects += len(np.unique(on))
            boxes += len(on)
    return (boxes - objects) / objects if objects else math.nan
