"""Regression test of the shipped weights: measure their scores again and compare them with the recorded ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from bev_perception.commands import command
from bev_perception.evaluation.detection import DetectionScores
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings, Scores, evaluate
from bev_perception.evaluation.occupancy import OccupancyScores
from bev_perception.families.catalog import gives
from bev_perception.families.family import BOXES
from bev_perception.families.variants import load_variant, weights_directory
from bev_perception.strict import ConfigError, read_yaml

#: percentage points by which a score may be lower than recorded: other versions and CPUs round sums differently, which
#: moves boxes and voxels across thresholds. The kernels of another CPU once made a difference of 0.01, see
#: docs/weights.md.
TOLERANCE = 0.5

#: variant -> name of the score -> percent
ScoresByVariant = dict[str, dict[str, float]]


def scores_file() -> Path:
    """Return the path of the file with the recorded scores of the shipped weights."""
    return weights_directory() / "scores.yaml"


def measure(variants: Sequence[str], data: Path, version: str, split: str, out: Path) -> ScoresByVariant:
    """Return the scores of variants with their shipped weights on a split, run on the CPU like the recorded scores.

    variants: names
    data: nuScenes dataroot
    version: of its tables
    split: of that version
    out: directory for the results, with a subdirectory for each variant

    Raises the errors of evaluate, and EvaluationError for the split "test", whose ground truth is secret.
    """
    measured = {}
    for variant in variants:
        settings = EvalSettings(variant, None, data, version, split, out / variant, device="cpu")
        if BOXES in gives(load_variant(variant)):
            settings = replace(settings, max_range=TINY_RANGE)
        found = evaluate(settings)
        if found is None:
            raise EvaluationError(f"there is no truth of the split {split!r}; measure on another one")
        measured[variant] = headline(found)
    return measured


def headline(scores: Scores) -> dict[str, float]:
    """Return the scores that stand for a run, by name, in percent: mAP and NDS, or RayIoU."""
    if isinstance(scores, DetectionScores):
        found = {"mAP": scores.mean_ap, "NDS": scores.nds}
    else:
        assert isinstance(scores, OccupancyScores), "tracks are not measured"
        found = {"RayIoU": scores.summary["RayIoU"]}
    return {name: round(100 * value, 2) for name, value in found.items()}


def write_scores(scores: ScoresByVariant, path: Path) -> None:
    """Write scores to the file that records them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "# Percent, of the weights in this directory; `bev_perception eval-demo --record` writes them.\n"
    path.write_text(head + yaml.safe_dump(scores, sort_keys=False))


def read_scores(path: Path) -> ScoresByVariant:
    """Return the recorded scores.

    Raises EvaluationError, naming the cause and the remedy, if the file is missing or damaged.
    """
    remedy = f"`{command('eval-demo --record')}` writes it"
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise EvaluationError(f"the recorded scores cannot be read from {path} ({error}); {remedy}") from error
    by_variant = all(isinstance(scores, dict) for scores in values.values())
    if not by_variant or not all(isinstance(v, float | int) for scores in values.values() for v in scores.values()):
        raise EvaluationError(f"{path} holds no numbers by variant and score; {remedy}")
    recorded: ScoresByVariant = values
    return recorded


def compare(recorded: ScoresByVariant, measured: ScoresByVariant) -> tuple[str, list[str]]:
    """Return a table of recorded and measured scores, and a message for each that is worse by more than TOLERANCE.

    Raises EvaluationError for a measured score that is not recorded.
    """
    lines, worse = [f"{'percent':18}{'':8}{'recorded':>9}{'measured':>9}"], []
    for variant, scores in measured.items():
        for name, now in scores.items():
            before = recorded.get(variant, {}).get(name, math.nan)
            if math.isnan(before):
                raise EvaluationError(f"no {name} of {variant} is recorded; record the scores anew (--record)")
            lines.append(f"{variant:18}{name:8}{before:9.2f}{now:9.2f}")
            if not now >= before - TOLERANCE:
                worse.append(f"{name} of {variant} is {now:.2f}, recorded are {before:.2f}")
    return "\n".join(lines), worse


#: m from the car up to which the boxes of the tiny detector are scored
TINY_RANGE = 40.0
