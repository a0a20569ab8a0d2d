"""Score detection results with the official nuscenes-devkit.

The task and its metrics: Caesar et al., nuScenes, CVPR 2020; https://www.nuscenes.org/object-detection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bev_perception.data.nuscenes import open_devkit
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.submissions import (
    check_range,
    check_samples,
    define_split,
    read_submission,
    tokens_by_scene,
)

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
    max_range: m, distance from the car up to which boxes count; None: the range of each class only
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
