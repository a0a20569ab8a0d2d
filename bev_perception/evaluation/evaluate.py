"""Evaluate a variant on a split of nuScenes: run it, write the results in the benchmarks' formats, and score them.

Runs in one process, or under torchrun in one process for each GPU; see running.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from bev_perception.config import VariantConfig
from bev_perception.data.folders import one_writer
from bev_perception.data.occupancy_labels import LABELS_FOLDER, write_occupancy
from bev_perception.data.records import Records, open_split
from bev_perception.evaluation.detection import DetectionScores, score_results
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.occupancy import OccupancyCounts, OccupancyScores
from bev_perception.evaluation.occupancy_files import SCORES_FILE, check_labels, count_row
from bev_perception.evaluation.running import check_images, joined_processes, own_device, run_rows
from bev_perception.evaluation.submissions import (
    DETECTION_FILE,
    TRACKING_FILE,
    to_submission,
    to_tracking_submission,
    write_submission,
)
from bev_perception.evaluation.tracking import BoxScores, TrackingScores, check_tracking_devkit, score_tracks
from bev_perception.families.catalog import family_of, gives
from bev_perception.families.family import INSTANCES, OCCUPANCY
from bev_perception.families.variants import Variant, load_variant
from bev_perception.pipeline.pipeline import PipelineSettings
from bev_perception.types import Result

LOG = logging.getLogger(__name__)

#: the split whose ground truth is not public
SECRET_SPLIT = "test"

Scores = DetectionScores | TrackingScores | BoxScores | OccupancyScores


@dataclass(frozen=True)
class EvalSettings:
    """Which variant is evaluated, on which data, and how.

    variant: name, path of a YAML file, or loaded configuration
    checkpoint: its weights; None: the shipped ones
    data: nuScenes dataroot
    version: of its tables, e.g. v1.0-mini
    split: of `version`; an official one, or one in splits.json next to its tables
    out: directory for results and scores: results_nusc.json, metrics_summary.json and plots of a variant that
        detects, with `tracking` also tracking_nusc.json and tracking_metrics.json; occupancy_metrics.json of a variant
        that predicts occupancy
    device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun "auto" and "cuda" give each process a GPU of its own
    precision: of backbone and neck, as in PipelineSettings
    nms: how further boxes of one object are dropped, as in PipelineSettings
    engine: that computes them, as in PipelineSettings; not with `recompute`
    image_fit: how pictures unlike those of the training become inputs, as in PipelineSettings
    scenes: names of the only scenes of the split to run and score; empty: all
    max_range: m, distance from the car up to which boxes count, as in score_results; None: by class
    memory: False wipes the memory before each frame
    recompute: whether the past frames of each sample are computed anew, as the publications of some families do, and
        not remembered
    without: names of cameras whose images are left out
    tracking: whether tracks are written and scored, too; a variant without ids of its own gets those of the tracker
    labels: folder of occupancy labels, relative to `data` or absolute
    save_occupancy: directory for the occupancy of each sample; None: not written
    """

    variant: Variant
    checkpoint: Path | None
    data: Path
    version: str
    split: str
    out: Path = Path("output/eval")
    device: str = "auto"
    precision: str = PipelineSettings.precision
    nms: str = PipelineSettings.nms
    engine: str = PipelineSettings.engine
    image_fit: str = PipelineSettings.image_fit
    scenes: tuple[str, ...] = ()
    max_range: float | None = None
    memory: bool = True
    recompute: bool = False
    without: tuple[str, ...] = ()
    tracking: bool = False
    labels: str | Path = LABELS_FOLDER
    save_occupancy: Path | None = None


def evaluate(settings: EvalSettings) -> Scores | None:
    """Run a variant on a split, write its results and score them.

    Returns None where there are no scores: in all processes of torchrun except the first, and for the split "test",
    whose ground truth is secret.

    Raises EvaluationError for missing images and labels (counted before the run starts) and damaged ones (named), and
    the errors of load_variant, load_checkpoint, open_split and score_results.
    """
    config = load_variant(settings.variant)
    device = own_device(settings.device)
    with joined_processes() as processes:
        records = processes.first_before_others(lambda: open_split(settings.data, settings.version, settings.split))
        if settings.scenes:
            records = records.of_scenes(settings.scenes)
        check_images(records, config)
        evaluation = _evaluation(settings, config, records, device)
        rows = processes.share(records)
        how = PipelineSettings(
            precision=settings.precision, nms=settings.nms, engine=settings.engine, image_fit=settings.image_fit
        )
        memory, recompute, without = settings.memory, settings.recompute, settings.without
        results = run_rows(config, settings.checkpoint, device, records, rows, how, memory, recompute, without)
        for i, result in tqdm(results, total=len(rows), desc=config.name, unit="frame", disable=processes.rank > 0):
            evaluation.add(i, result)
        parts = processes.gather(evaluation.part)
        try:
            if processes.rank > 0:
                return None
            with one_writer(settings.out):
                return evaluation.finish(parts)
        finally:
            processes.wait()  # in a training, the others would wait for the first one with little patience


class _Evaluation(Protocol):
    """How results become scores: each process adds its own results, then the first process scores those of all."""

    @property
    def part(self) -> Any:
        """The results or counts of this process so far."""

    def add(self, i: int, result: Result) -> None:
        """Add the result of key frame i."""

    def finish(self, parts: list[Any]) -> Scores | None:
        """Write and score the parts of all processes; return None for the split "test"."""


def _evaluation(settings: EvalSettings, config: VariantConfig, records: Records, device: torch.device) -> _Evaluation:
    if OCCUPANCY in gives(config):
        return _OccupancyEvaluation(settings, config, records, device)
    return _DetectionEvaluation(settings, config, records)


class _DetectionEvaluation:
    def __init__(self, settings: EvalSettings, config: VariantConfig, records: Records) -> None:
        if settings.save_occupancy is not None:
            raise EvaluationError(f"{config.name} gives no occupancy that could be saved; leave --save-occupancy out")
        if settings.tracking:
            check_tracking_devkit()
            if not settings.memory:
                raise EvaluationError("without memory there are no tracks; leave out one of --no-memory and --tracking")
        self.part: dict[str, list[Any]] = {}  # sample token -> entries of each task
        self._settings, self._records = settings, records
        self._in_lidar = config.reference_frame.is_lidar
        self._tasks = [(to_submission, DETECTION_FILE)]
        if settings.tracking:
            self._tasks.append((to_tracking_submission, TRACKING_FILE))

    def add(self, i: int, result: Result) -> None:
        boxes, token = result.reference_boxes, self._records.tokens[i]
        assert boxes is not None, "a detector always says which boxes there are"
        reference2ego = self._records.lidar2ego(i) if self._in_lidar else np.eye(4)
        ego2global = self._records.ego2global(i)
        self.part[token] = [write(boxes, token, reference2ego, ego2global) for write, _ in self._tasks]

    def finish(self, parts: list[dict[str, list[Any]]]) -> DetectionScores | BoxScores | None:
        results = {token: entries for part in parts for token, entries in part.items()}
        settings = self._settings
        for k, (_, name) in enumerate(self._tasks):
            write_submission({token: results[token][k] for token in self._records.tokens}, settings.out / name)
            LOG.info("wrote %s: %d samples", settings.out / name, len(results))
        if settings.split == SECRET_SPLIT:
            return None
        where = (settings.data, settings.version, settings.split, settings.out, settings.scenes)
        detection = score_results(settings.out / DETECTION_FILE, *where, max_range=settings.max_range)
        if not settings.tracking:
            return detection
        return BoxScores(detection, score_tracks(settings.out / TRACKING_FILE, *where, max_range=settings.max_range))


class _OccupancyEvaluation:
    def __init__(self, settings: EvalSettings, config: VariantConfig, records: Records, device: torch.device) -> None:
        self.part: OccupancyCounts | None = None
        self._settings, self._records, self._config, self._device = settings, records, config, device
        if settings.max_range is not None:
            raise EvaluationError(f"{config.name} gives no boxes, which alone have a range; leave --max-range out")
        if settings.tracking:
            raise EvaluationError(f"{config.name} gives no boxes that could be tracked; leave --tracking out")
        self._scored = settings.split != SECRET_SPLIT
        if self._scored:
            check_labels(records, settings.labels, config.class_names, INSTANCES in gives(config))
        elif settings.save_occupancy is None:
            raise EvaluationError("the split 'test' has no public labels; say where to save results (--save-occupancy)")

    def add(self, i: int, result: Result) -> None:
        assert result.occupancy is not None, "a variant of occupancy always says what there is"
        settings = self._settings
        if settings.save_occupancy is not None:
            write_occupancy(result.occupancy, settings.save_occupancy, self._records.tokens[i])
        if self._scored:
            counts = count_row(result.occupancy, self._records, i, settings.labels, self._device)
            self.part = counts if self.part is None else self.part + counts

    def finish(self, parts: list[OccupancyCounts | None]) -> OccupancyScores | None:
        if not self._scored:
            return None
        first, *others = (part for part in parts if part is not None)  # a process may have run no scene
        scores = OccupancyScores.of(
            sum(others, start=first), self._config.class_names, family_of(self._config).only_predicted
        )
        scores.write(self._settings.out / SCORES_FILE)
        LOG.info("wrote %s", self._settings.out / SCORES_FILE)
        return scores
