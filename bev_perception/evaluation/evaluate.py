"""A variant over a split of nuScenes: frame by frame as in live use, results and scores as the benchmark wants them.

Alone, or one process a GPU under torchrun: whole scenes are dealt out, for a scene's frames build on one another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from bev_perception.checkpoints import load_checkpoint
from bev_perception.config import VariantConfig, load_variant
from bev_perception.data.queues import evaluation_queue, read_frame
from bev_perception.data.records import Records, open_split
from bev_perception.decode import decode_boxes
from bev_perception.evaluation.detection import (
    DetectionScores,
    EvaluationError,
    score_results,
    to_submission,
    write_submission,
)
from bev_perception.models import build_model
from bev_perception.models.sparsebev import SparseBEV
from bev_perception.pipeline import LoadedVariant, Pipeline, choose_device
from bev_perception.preprocess import NoUsableViewError, Preprocessor
from bev_perception.types import Boxes3D, ModelInput

LOG = logging.getLogger(__name__)

#: how long a process waits for the slowest one
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class EvalSettings:
    """What is evaluated on what.

    variant: name, or path of a YAML file.  data: a nuScenes dataroot.  split: an official one of `version`.
    out: directory for results_nusc.json, metrics_summary.json and plots.
    device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun each process takes its own GPU unless it says "cpu".
    scenes: names; if given, only these of the split are run and scored.
    """

    variant: str
    checkpoint: Path
    data: Path
    version: str = "v1.0-trainval"
    split: str = "val"
    out: Path = Path("output/eval")
    device: str = "auto"
    scenes: tuple[str, ...] = ()


def evaluate(settings: EvalSettings) -> DetectionScores | None:
    """Run a variant over a split, write its results and score them.

    Returns None where there is nothing to say: in all processes of torchrun but the first, and for the split "test",
    the truth of which is secret.

    Raises EvaluationError for files that are missing (counted before anything runs) or damaged (named), and the
    errors of load_variant, load_checkpoint, open_split and score_results.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        records = _open(settings, rank, world)
        config = load_variant(settings.variant)
        _check_files(records, config)
        rows = _share_of(records, rank, world)
        results: dict[str, Any] = {}
        detected = detect(config, settings.checkpoint, _own_device(settings.device), records, rows)
        for i, boxes in tqdm(detected, total=len(rows), desc=settings.variant, unit="frame", disable=rank > 0):
            token = records.tokens[i]
            results[token] = to_submission(boxes, token, records.lidar2ego(i), records.ego2global(i))
        results = _gathered(results, rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()
    if rank > 0:
        return None
    path = settings.out / "results_nusc.json"
    write_submission({token: results[token] for token in records.tokens}, path)
    LOG.info("wrote %s: %d samples", path, len(results))
    if settings.split == "test":
        return None
    return score_results(path, settings.data, settings.version, settings.split, settings.out, settings.scenes)


def detect(
    config: VariantConfig, checkpoint: Path, device: torch.device, records: Records, rows: Iterable[int]
) -> Iterator[tuple[int, Boxes3D]]:
    """Yield each row, a number of a key frame, with its boxes in the lidar frame.  rows: ascending.

    A variant that looks back alone runs through the pipeline, with its memory; one that looks ahead gets whole queues.
    """
    model = build_model(config)
    info = load_checkpoint(model, checkpoint)
    model.eval().to(device)
    if config.frames.future:
        yield from detect_in_queues(config, model, device, records, rows)
        return
    pipeline = Pipeline([LoadedVariant(config, model, info)], device)
    try:
        yield from detect_in_order(pipeline, records, rows)
    finally:
        pipeline.close()


def detect_in_order(pipeline: Pipeline, records: Records, rows: Iterable[int]) -> Iterator[tuple[int, Boxes3D]]:
    """Yield rows with their boxes, frame by frame; the memory is wiped at a scene's start."""
    scene = ""
    for i in rows:
        if records.scenes[i] != scene:
            scene = records.scenes[i]
            pipeline.reset(f"{scene} starts")
        frame = read_frame(records, i)
        try:
            result = pipeline.step(frame)
        except NoUsableViewError as error:
            raise EvaluationError(f"sample {records.tokens[i]}: {error}") from error
        _check_views(records, i, records.cameras(i), result.missing)
        assert result.boxes is not None, "a detector always says which boxes there are"
        yield i, result.boxes


def detect_in_queues(
    config: VariantConfig, model: SparseBEV, device: torch.device, records: Records, rows: Iterable[int]
) -> Iterator[tuple[int, Boxes3D]]:
    """Yield rows with their boxes, each from its whole queue of frames, past and future."""
    preprocess = Preprocessor(config, device)
    loaded: dict[tuple[int, ...], ModelInput] = {}
    try:
        for i in rows:
            queue = [tuple(image_set.tolist()) for image_set in evaluation_queue(records, i, config.frames)]
            loaded = {images: loaded.get(images) or _load(preprocess, records, i, np.array(images)) for images in queue}
            # the current frame's place is the reference of all; as a neighbour it may have been loaded with another's
            frames = {**loaded, queue[0]: replace(loaded[queue[0]], reference2global=records.lidar2global(i))}
            with torch.inference_mode():
                outputs = model.predict_queue([frames[images] for images in queue])
            boxes = decode_boxes(
                outputs.logits[-1, 0], outputs.boxes[-1, 0], config.decode, config.class_names, model.legacy_boxes
            )
            yield i, boxes
    finally:
        preprocess.close()


def _open(settings: EvalSettings, rank: int, world: int) -> Records:
    """Open the records; the first process does so before the others, which then find the index made."""
    if rank > 0:
        dist.barrier()
    records = open_split(settings.data, settings.version, settings.split)
    if rank == 0 and world > 1:
        dist.barrier()
    return records.of_scenes(settings.scenes) if settings.scenes else records


def _load(preprocess: Preprocessor, records: Records, i: int, image_set: np.ndarray) -> ModelInput:
    try:
        inputs, missing = preprocess(read_frame(records, i, image_set))
    except NoUsableViewError as error:
        raise EvaluationError(f"sample {records.tokens[i]}: {error}") from error
    _check_views(records, i, image_set, missing)
    return inputs


def _check_views(records: Records, i: int, image_set: np.ndarray, missing: dict[str, str]) -> None:
    """Raise EvaluationError for images that could not be used; a score must not hide them."""
    if missing:
        damaged = [
            f"{image.path}: {missing[image.camera]}" for image in records.images(image_set) if image.camera in missing
        ]
        raise EvaluationError(f"sample {records.tokens[i]} has damaged files; copy them again: {'; '.join(damaged)}")


def _check_files(records: Records, config: VariantConfig) -> None:
    """Raise EvaluationError if files that the evaluation will read are missing."""
    if config.frames.future:
        wanted = [s for i in range(len(records)) for s in evaluation_queue(records, i, config.frames)]
    else:
        wanted = [records.cameras(i) for i in range(len(records))]
    missing = records.missing_files(wanted)
    if missing:
        total = len(np.unique(np.concatenate(wanted)))
        whole = _whole_scenes(records, set(missing))
        raise EvaluationError(
            f"{len(missing)} of {total} images are missing under {records.root}, such as {missing[0]}; unpack the "
            f"blobs that hold them, or evaluate single scenes (with all their images here: {whole or 'none'})"
        )


def _whole_scenes(records: Records, missing: set[str]) -> str:
    """Return the scenes that have all key-frame images, as text."""
    broken = {records.scenes[i] for i in range(len(records)) if missing.intersection(records.paths(records.cameras(i)))}
    return ", ".join(sorted(set(records.scenes) - broken))


def _share_of(records: Records, rank: int, world: int) -> list[int]:
    """Return the rows of this process: every world-th scene."""
    mine = set(sorted(set(records.scenes))[rank::world])
    return [i for i, scene in enumerate(records.scenes) if scene in mine]


def _own_device(name: str) -> torch.device:
    local = os.environ.get("LOCAL_RANK")
    if local is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local}"
    return choose_device(name)


def _gathered(results: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Return the results of all processes, in the first; nothing in the others."""
    if world == 1:
        return results
    parts: list[dict[str, Any]] | None = [{} for _ in range(world)] if rank == 0 else None
    dist.gather_object(results, parts)
    return {token: boxes for part in parts or [] for token, boxes in part.items()}
