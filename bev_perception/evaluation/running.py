"""A variant over the key frames of nuScenes: frame by frame as in live use, shared out among the processes there are.

Whole scenes are dealt out, for a scene's frames build on one another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from bev_perception.config import VariantConfig
from bev_perception.data.queues import evaluation_queue, read_frame
from bev_perception.data.records import Records
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.models.precision import check_precision, encoder_precision, strict_float32
from bev_perception.models.protocol import Encoded, Model
from bev_perception.pipeline.loading import choose_device, load_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.preprocess import NoUsableViewError, Preprocessor
from bev_perception.types import Limits, ModelInput, Result

#: how long a process waits for the slowest one
PATIENCE = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started: its number, and how many there are."""

    rank: int
    world: int

    def first_before_others(self, make: Callable[[], T]) -> T:
        """Return what `make` makes; the others start when the first has ended, and find what it has left."""
        if self.rank > 0:
            dist.barrier()
        made = make()
        if self.rank == 0 and self.world > 1:
            dist.barrier()
        return made

    def share(self, records: Records) -> list[int]:
        """Return the rows of this process: every world-th scene."""
        mine = set(sorted(set(records.scenes))[self.rank :: self.world])
        return [i for i, scene in enumerate(records.scenes) if scene in mine]

    def gather(self, part: T) -> list[T]:
        """Return the parts of all processes, in the first; nothing in the others."""
        if self.world == 1:
            return [part]
        parts: list[T] | None = [part] * self.world if self.rank == 0 else None
        dist.gather_object(part, parts)
        return parts or []


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes of torchrun, if it started this one, as long as the context lasts."""
    processes = Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if processes.world > 1:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield processes
    finally:
        if processes.world > 1:
            dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """Return the device called `name`; under torchrun each process takes its own GPU unless another is named."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{local}"
    return choose_device(name)


def run_rows(
    config: VariantConfig,
    checkpoint: Path | None,
    device: torch.device,
    records: Records,
    rows: Iterable[int],
    precision: str = PipelineSettings.precision,
    memory: bool = True,
) -> Iterator[tuple[int, Result]]:
    """Yield each row, a number of a key frame, with its result.

    checkpoint: None for the weights that are shipped.  rows: ascending.  precision: of the encoder, as in
    PipelineSettings.  memory: whether frames are remembered from one row to the next.
    A variant that looks back alone runs through the pipeline, with its memory; one that looks ahead gets whole queues.

    Raises EvaluationError for a variant that looks ahead and is to do without its other frames.
    """
    loaded = load_weights(config, checkpoint, device)
    if config.frames.future:
        if not memory:
            raise EvaluationError(
                f"{config.name} looks ahead: its frames are read, not remembered, and cannot be forgotten; choose a "
                "variant with frames.future = 0"
            )
        yield from run_in_queues(config, loaded.model, device, records, rows, precision)
        return
    pipeline = Pipeline([loaded], device, PipelineSettings(precision=precision))
    try:
        yield from run_in_order(pipeline, records, rows, memory)
    finally:
        pipeline.close()


def run_in_order(
    pipeline: Pipeline, records: Records, rows: Iterable[int], memory: bool = True
) -> Iterator[tuple[int, Result]]:
    """Yield rows with their results, frame by frame; the memory is wiped at a scene's start, or always without one."""
    scene = ""
    for i in rows:
        if records.scenes[i] != scene or not memory:
            scene = records.scenes[i]
            pipeline.reset(f"{scene} starts" if memory else "there shall be no memory")
        frame = read_frame(records, i)
        try:
            result = pipeline.step(frame)
        except NoUsableViewError as error:
            raise EvaluationError(f"sample {records.tokens[i]}: {error}") from error
        _check_views(records, i, records.cameras(i), result.missing)
        yield i, result


def run_in_queues(
    config: VariantConfig,
    model: Model,
    device: torch.device,
    records: Records,
    rows: Iterable[int],
    precision: str = PipelineSettings.precision,
    limits: Limits | None = None,
) -> Iterator[tuple[int, Result]]:
    """Yield rows with their results, each from its whole queue of frames, past and future.

    A frame is read and encoded once, and kept as long as one queue after the other has it.
    """
    check_precision(precision, device)
    preprocess = Preprocessor(config, device)
    inputs: dict[tuple[int, ...], ModelInput] = {}
    encoded: dict[tuple[int, ...], Encoded] = {}
    try:
        for i in rows:
            queue = [tuple(image_set.tolist()) for image_set in evaluation_queue(records, i, config.frames)]
            distinct = dict.fromkeys(queue)  # where the recording ends, a frame repeats
            inputs = {s: inputs.get(s) or _load(preprocess, records, i, np.array(s)) for s in distinct}
            # the current frame's place is the reference of all; as a neighbour it may have been loaded with another's
            current = inputs[queue[0]].seen_from(records.lidar2global(i))
            with torch.inference_mode(), strict_float32(device):
                with encoder_precision(precision, device):
                    encoded = {s: encoded.get(s) or model.encode(inputs[s]) for s in distinct}
                others = [model.remember(encoded[s], (), inputs[s]) for s in queue[1:]]
                prediction = model.predict(encoded[queue[0]], others, current, None)
            seen = model.decode(prediction.outputs, limits or Limits())
            boxes = None if seen.boxes is None else to_ego(seen.boxes, records.lidar2ego(i))
            stamp, history = records.stamps[i] * 1000, len(others)
            yield i, Result(stamp, boxes, seen.occupancy, {}, None, {}, history, reference_boxes=seen.boxes)
    finally:
        preprocess.close()


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


def check_images(records: Records, config: VariantConfig) -> None:
    """Raise EvaluationError if images that running the variant will read are missing."""
    if config.frames.future:
        wanted = [s for i in range(len(records)) for s in evaluation_queue(records, i, config.frames)]
    else:
        wanted = [records.cameras(i) for i in range(len(records))]
    missing = records.missing_files(wanted)
    if missing:
        total, gone = len(np.unique(np.concatenate(wanted))), set(missing)
        lacking = [i for i in range(len(records)) if gone.intersection(records.paths(records.cameras(i)))]
        raise EvaluationError(
            f"{len(missing)} of {total} images are missing under {records.root}, such as {missing[0]}; unpack the "
            f"blobs that hold them, or evaluate single scenes (with all their images here: "
            f"{whole_scenes(records, lacking)})"
        )


def whole_scenes(records: Records, lacking: Iterable[int]) -> str:
    """Return the scenes that have none of the rows `lacking`, as text."""
    return ", ".join(sorted(set(records.scenes) - {records.scenes[i] for i in lacking})) or "none"
