"""Score tracking results with the official nuscenes-devkit.

The task and its metrics: https://www.nuscenes.org/tracking. AMOTA and AMOTP (Weng et al., IROS 2020) are means over 40
recalls; the other scores are those at the confidence with the best MOTA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bev_perception.data.nuscenes import open_devkit
from bev_perception.evaluation.detection import DetectionScores
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.submissions import (
    check_range,
    check_samples,
    define_split,
    read_submission,
    tokens_by_scene,
)

#: the scores by their names in the devkit -> in tables
SCORES = {
    "amota": "AMOTA",
    "amotp": "AMOTP",
    "recall": "recall",
    "mota": "MOTA",
    "motp": "MOTP",
    "ids": "IDS",
    "frag": "FRAG",
    "fp": "FP",
    "fn": "FN",
}
#: scores that are counts
COUNTS = frozenset({"ids", "frag", "fp", "fn"})
#: scores that are drawn over recall: name in the devkit -> title
DRAWN = {
    "motar": "MOTAR (its mean is AMOTA)",
    "mota": "MOTA",
    "motp": "MOTP [m] (its mean is AMOTP)",
    "ids": "IDS",
    "fp": "FP",
    "fn": "FN",
}


@dataclass(frozen=True)
class TrackingScores:
    """The scores of a tracking result file by nuscenes-devkit, by the names in SCORES.

    AMOTA, MOTA and recall are 0..1; AMOTP and MOTP m; IDS (changes of identity), FRAG (interrupted tracks), FP (false
    positives) and FN (misses) are counts.

    overall: means over the classes; sums of the counts
    classes: class -> its scores; NaN where the split has no object of the class
    max_range: m, distance from the car up to which boxes count; None: the range of each class only
    """

    overall: dict[str, float]
    classes: dict[str, dict[str, float]]
    max_range: float | None = None

    def table(self) -> str:
        """Return the scores as a readable table: a line for each class, and one over all classes."""
        lines = [] if self.max_range is None else [f"within {self.max_range:g} m of the car"]
        known = sum(not math.isnan(scores["amota"]) for scores in self.classes.values())
        if known < len(self.classes):
            lines.append(
                f"all: over the {known} of {len(self.classes)} classes with objects here, as nuscenes-devkit has it"
            )
        lines.append(f"{'class':22}" + "".join(f"{head:>7}" for head in SCORES.values()))
        for name, scores in [*self.classes.items(), ("all", self.overall)]:
            lines.append(f"{name:22}" + "".join(_cell(key, scores[key]) for key in SCORES))
        return "\n".join(lines)


def _cell(key: str, value: float) -> str:
    if math.isnan(value):
        return "      -"
    return f"{value:7.0f}" if key in COUNTS else f"{value:7.3f}"


@dataclass(frozen=True)
class BoxScores:
    """The scores of one run in both tasks.

    detection: of the boxes
    tracking: of their tracks
    """

    detection: DetectionScores
    tracking: TrackingScores

    def table(self) -> str:
        """Return both tables."""
        return f"{self.detection.table()}\n\n{self.tracking.table()}"


def check_tracking_devkit() -> None:
    """Raise EvaluationError if a package is missing that the devkit needs for tracking but does not require."""
    missing = [name for name in ("motmetrics", "pandas") if find_spec(name) is None]
    if missing:
        raise EvaluationError(f"scores of tracks need {' and '.join(missing)}; pip install bev_perception[nuscenes]")


def score_tracks(
    results_json: Path,
    root: Path,
    version: str,
    split: str | None,
    out: Path,
    scenes: Collection[str] = (),
    samples: Collection[str] = (),
    max_range: float | None = None,
) -> TrackingScores:
    """Score a tracking result file with the official TrackingEval and its configuration tracking_nips_2019.

    Arguments as in score_results. Writes tracking_metrics.json and plots/tracking_curves.png (each score over recall)
    to `out`.

    Raises EvaluationError for an unusable result file or range and for missing packages, NuScenesError for missing or
    damaged tables.
    """
    check_range(max_range)
    check_tracking_devkit()
    results = read_submission(results_json, "tracking")
    devkit = open_devkit(root, version)
    scene_of = tokens_by_scene(devkit, split, scenes)
    check_samples(results, scene_of, results_json)
    _check_boxes(devkit, results, scene_of, results_json)

    from nuscenes.eval.common.config import config_factory

    out.mkdir(parents=True, exist_ok=True)
    if scenes:
        split = define_split(devkit, scenes, out)
    config = config_factory("tracking_nips_2019")
    if max_range is not None:
        config.class_range = {name: min(own, max_range) for name, own in config.class_range.items()}
    evaluation = _evaluation(devkit, config, results_json, split, out)
    if samples:
        _leave_out(evaluation, {devkit.get("sample", token)["timestamp"] for token in samples})
    metrics, curves = evaluation.evaluate()
    _draw_curves(config, curves, out / "plots" / "tracking_curves.png")
    summary = metrics.serialize()
    summary["meta"] = evaluation.meta
    (out / "tracking_metrics.json").write_text(json.dumps(summary, indent=1))
    by_class = summary["label_metrics"]
    return TrackingScores(
        overall={key: summary[key] for key in SCORES},
        classes={name: {key: by_class[key][name] for key in SCORES} for name in config.class_names},
        max_range=max_range,
    )


def _evaluation(devkit: Any, config: Any, results_json: Path, split: str | None, out: Path) -> Any:
    """Return the devkit's TrackingEval with both sides loaded.

    It opens the tables itself; here it gets those that are open, which know the split of chosen scenes.
    """
    from nuscenes.eval.tracking import evaluate

    try:
        with patch.object(evaluate, "NuScenes", lambda **_: devkit):
            return evaluate.TrackingEval(
                config, str(results_json), split, str(out), devkit.version, devkit.dataroot, verbose=False
            )
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"nuscenes-devkit refuses {results_json}: {type(error).__name__}: {error}") from error


def _check_boxes(devkit: Any, results: dict[str, list[Any]], scene_of: dict[str, str], path: Path) -> None:
    """Raise EvaluationError where results or truth are empty on the samples, which the devkit does not explain."""
    if not any(results[token] for token in scene_of):
        raise EvaluationError(f"{path} holds not one box of the samples to be scored; are the weights trained?")
    if not any(devkit.get("sample", token)["anns"] for token in scene_of):
        raise EvaluationError(f"{devkit.version} has no boxes for these samples; the truth of test is not published")


def _leave_out(evaluation: Any, kept: Collection[int]) -> None:
    """Leave all samples but those with the timestamps `kept` out of an evaluation."""
    for tracks in (evaluation.tracks_gt, evaluation.tracks_pred):
        for scene in tracks.values():
            for timestamp in set(scene) - set(kept):
                del scene[timestamp]


def _draw_curves(config: Any, curves: Any, path: Path) -> None:
    """Draw scores of each class over recall.

    config: the devkit's TrackingConfig, which has the classes' colours
    curves: the devkit's TrackingMetricDataList
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for panel, (key, title) in zip(figure.subplots(2, 3).flat, DRAWN.items(), strict=True):
        for name, curve in curves.md.items():
            color = config.tracking_colors[name]
            panel.plot(curve.recall_hypo, curve.get_metric(key), label=name, color=color, marker=".", markersize=3)
        panel.set(title=title, xlabel="recall", xlim=(0, 1), ylim=(0, 1.05 if key in ("motar", "mota") else None))
    figure.axes[0].legend(fontsize=7)
    canvas.print_png(str(path))
