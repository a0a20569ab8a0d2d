"""Run a variant on the key frames of nuScenes, frame by frame, in one process or several.

Frames and memory are as in live use; track ids that a network gives follow its published rule.

Each process gets whole scenes, because the frames of a scene depend on the memory of the frames before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from bev_perception.config import VariantConfig
from bev_perception.data.queues import evaluation_queue, key_frame_queue, read_frame
from bev_perception.data.records import Records
from bev_perception.data.sequences import shard_scenes
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.geometry import invert_transform
from bev_perception.models.device import choose_device
from bev_perception.models.precision import check_precision, encoder_precision, strict_float32
from bev_perception.models.protocol import Encoded, Model
from bev_perception.pipeline.engines import use_engine
from bev_perception.pipeline.loading import load_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.results.boxes import to_ego
from bev_perception.results.duplicates import without_duplicates
from bev_perception.sensing.preprocess import NoUsableViewError, Preprocessor
from bev_perception.tracking.tracker import Tracks, follow
from bev_perception.types import Frame, Limits, ModelInput, Result

#: time that a process waits for the slowest one before it gives up
PATIENCE = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that torchrun started.

    rank: index of this process, from 0
    world: number of processes; 1 without torchrun
    group: through which they talk; None: the only one that there is
    """

    rank: int
    world: int
    group: dist.ProcessGroup | None = None

    def first_before_others(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process, then in the others, which can use files that the first has written."""
        if self.rank > 0:
            self.wait()
        made = make()
        if self.rank == 0:
            self.wait()
        return made

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            dist.barrier(self.group)

    def share(self, records: Records) -> list[int]:
        """Return the rows of `records` that this process runs, scene by scene; see shard_scenes."""
        scenes: dict[str, list[int]] = {}
        for i, scene in enumerate(records.scenes):
            scenes.setdefault(scene, []).append(i)
        return shard_scenes(list(scenes.values()), self.world)[self.rank]

    def gather(self, part: T) -> list[T]:
        """Return the parts of all processes in the first process, and an empty list in the others."""
        if self.world == 1:
            return [part]
        parts: list[T] | None = [part] * self.world if self.rank == 0 else None
        dist.gather_object(part, parts, group=self.group)
        return parts or []


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun started for the duration of the context; without torchrun, do nothing.

    Where they are connected already, as in a training that validates, they get a group of their own beside that one,
    which would not wait until the first process has scored.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(rank, world)
        return
    group = None
    if dist.is_initialized():
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(rank, world, group)
    finally:
        dist.destroy_process_group(group)


def own_device(name: str) -> torch.device:
    """Return the device called `name`; under torchrun, "auto" and "cuda" give each process a GPU of its own."""
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
    how: PipelineSettings | None = None,
    memory: bool = True,
    recompute: bool = False,
    without: Collection[str] = (),
) -> Iterator[tuple[int, Result]]:
    """Load a variant, run it on key frames, and yield the row of each key frame with its result.

    A variant that uses only past frames runs through the pipeline, with its memory. A variant that also uses future
    frames gets the whole queue of frames for each key frame.

    config: the variant
    checkpoint: its weights; None: the shipped ones
    device: to run on
    records: the key frames
    rows: indices into `records`, ascending
    how: precision, engine, nms, image_fit; the engine is not used with `recompute`
    memory: False wipes the memory before each frame
    recompute: whether all frames of a key frame's queue are computed anew, see Model.recompute
    without: cameras whose images are left out of every frame

    Raises EvaluationError for cameras that there are not or if `recompute` is to do without some, for a variant with
    future frames if `memory` is False, and for one that cannot recompute.
    """
    cameras = records.camera_names
    if unknown := sorted(set(without) - set(cameras)):
        raise EvaluationError(f"{', '.join(unknown)}: there is no such camera; there are {', '.join(cameras)}")
    if set(without) == set(cameras):
        raise EvaluationError("no camera would be left; leave fewer out")
    if recompute and without:
        raise EvaluationError("with --alignment all frames are computed with every camera; leave --without out")
    how = how or PipelineSettings()
    config = replace(config, nms=how.nms_of(config))
    loaded = load_weights(config, checkpoint, device)
    if recompute:
        yield from recompute_rows(config, loaded.model, device, records, rows, how.image_fit)
        return
    if config.frames.future:
        if not memory:
            raise EvaluationError(
                f"{config.name} looks ahead: its frames are read, not remembered, and cannot be forgotten; choose a "
                "variant with frames.future = 0"
            )
        check_precision(how.precision, device)
        use_engine(loaded.model, config, how.engine, how.precision, device)
        fit = how.image_fit
        yield from run_in_queues(config, loaded.model, device, records, rows, how.precision, None, without, fit)
        return
    loaded.model.for_benchmark = True
    pipeline = Pipeline([loaded], device, how)
    try:
        yield from run_in_order(pipeline, records, rows, memory, without)
    finally:
        pipeline.close()


def run_in_order(
    pipeline: Pipeline, records: Records, rows: Iterable[int], memory: bool = True, without: Collection[str] = ()
) -> Iterator[tuple[int, Result]]:
    """Run key frames through a pipeline one by one, and yield the row of each with its result.

    The memory is wiped at the start of each scene, or before each frame if `memory` is False. The cameras in `without`
    are left out.

    Raises EvaluationError for images that cannot be used.
    """
    scene = ""
    for i in rows:
        if records.scenes[i] != scene or not memory:
            scene = records.scenes[i]
            pipeline.reset(f"{scene} starts" if memory else "there shall be no memory")
        frame = leave_out(read_frame(records, i), without)
        try:
            result = pipeline.step(frame)
        except NoUsableViewError as error:
            raise EvaluationError(f"sample {records.tokens[i]}: {error}") from error
        _check_views(records, i, records.cameras(i), result.missing, without)
        yield i, result


def run_in_queues(
    config: VariantConfig,
    model: Model,
    device: torch.device,
    records: Records,
    rows: Iterable[int],
    precision: str = PipelineSettings.precision,
    limits: Limits | None = None,
    without: Collection[str] = (),
    image_fit: str = PipelineSettings.image_fit,
) -> Iterator[tuple[int, Result]]:
    """Run a model on the whole queue of past and future frames of each row, and yield the row with its result.

    A frame is read and encoded once, and kept as long as consecutive queues contain it. Boxes without track ids get
    those of the tracker, which starts anew with each scene.

    config: the variant
    model: its model, on `device`
    device: to run on
    records: the key frames
    rows: indices into `records`, ascending
    precision: of backbone and neck, as in PipelineSettings
    limits: score threshold and number of the boxes; None takes the variant's own
    without: cameras whose images are left out
    image_fit: as in PipelineSettings

    Raises EvaluationError for images that cannot be used.
    """
    check_precision(precision, device)
    preprocess = Preprocessor(config, device, image_fit)
    inputs: dict[tuple[int, ...], ModelInput] = {}
    encoded: dict[tuple[int, ...], Encoded] = {}
    scene, tracks = "", Tracks()
    try:
        for i in rows:
            queue = [tuple(image_set.tolist()) for image_set in evaluation_queue(records, i, config.frames)]
            distinct = dict.fromkeys(queue)  # at the ends of the recording, frames repeat
            inputs = {s: inputs.get(s) or _load(preprocess, records, i, np.array(s), without) for s in distinct}
            # all frames use the current frame's reference; as a neighbour, it may have been loaded with another one
            reference2ego = records.lidar2ego(i) if config.reference_frame.is_lidar else np.eye(4)
            reference2global = records.ego2global(i) @ reference2ego
            current = inputs[queue[0]].seen_from(reference2global)
            with torch.inference_mode(), strict_float32(device):
                with encoder_precision(precision, device):
                    encoded = {s: encoded.get(s) or model.encode(inputs[s]) for s in distinct}
                others = [model.remember(encoded[s], (), inputs[s]) for s in queue[1:]]
                prediction = model.predict(encoded[queue[0]], others, current, None)
            seen = model.decode(prediction.outputs, limits or Limits())
            found = None if seen.boxes is None else without_duplicates(seen.boxes, config.nms)
            stamp, history = records.stamps[i] * 1000, len(others)
            if found is not None and found.track_ids is None:
                if records.scenes[i] != scene:
                    scene, tracks = records.scenes[i], tracks.cleared()
                tracks, ids = follow(tracks, found, reference2global, stamp)
                found = replace(found, track_ids=ids)
            boxes = None if found is None else to_ego(found, reference2ego)
            yield i, Result(stamp, boxes, seen.occupancy, {}, None, {}, history, reference_boxes=found)
    finally:
        preprocess.close()


def recompute_rows(
    config: VariantConfig,
    model: Model,
    device: torch.device,
    records: Records,
    rows: Iterable[int],
    image_fit: str = PipelineSettings.image_fit,
) -> Iterator[tuple[int, Result]]:
    """Run a model on each row and its past key frames, all computed anew in float32; yield the row with its result.

    Images are read once, and kept as long as consecutive queues contain them. Boxes get track ids from the tracker.

    Raises EvaluationError for images that cannot be used, and for a model that is not evaluated in this way.
    """
    if type(model).recompute is Model.recompute:
        raise EvaluationError(f"{config.name} is evaluated with what it remembers; leave --alignment out")
    if lacking := set(model.exposures or ()) - set(records.camera_names):
        raise EvaluationError(
            f"--alignment needs {' and '.join(sorted(lacking))}, which this data set lacks; leave it out"
        )
    preprocess = Preprocessor(config, device, image_fit)
    inputs: dict[tuple[int, ...], ModelInput] = {}
    scene, tracks = "", Tracks()
    try:
        for i in rows:
            queue = [tuple(image_set.tolist()) for image_set in key_frame_queue(records, i, config.frames, 1)]
            distinct = dict.fromkeys(queue)
            inputs = {s: inputs.get(s) or _load(preprocess, records, i, np.array(s), ()) for s in distinct}
            frames = [_at_exposure(inputs[s], model, 0, records) for s in queue]
            with torch.inference_mode(), strict_float32(device):
                outputs = model.recompute(frames)
            seen, boxes = model.decode(outputs, Limits()), None
            stamp, ego2global = records.stamps[i] * 1000, records.ego2global(i)
            if seen.boxes is not None:
                exported2global = _at_exposure(inputs[queue[0]], model, 1, records).reference2global
                found = without_duplicates(seen.boxes, config.nms)
                boxes = to_ego(found, invert_transform(ego2global) @ exported2global)
                if records.scenes[i] != scene:
                    scene, tracks = records.scenes[i], tracks.cleared()
                tracks, ids = follow(tracks, boxes, ego2global, stamp)
                boxes = replace(boxes, track_ids=ids)
            yield i, Result(stamp, boxes, seen.occupancy, {}, None, {}, len(queue) - 1, reference_boxes=boxes)
    finally:
        preprocess.close()


def _at_exposure(inputs: ModelInput, model: Model, which: int, records: Records) -> ModelInput:
    """Return a frame whose reference frame is base_link at the exposure that the model names, see Model.exposures."""
    if model.exposures is None:
        return inputs
    return inputs.seen_from(inputs.cameras.ego2global[records.camera_names.index(model.exposures[which])])


def leave_out(frame: Frame, cameras: Collection[str]) -> Frame:
    """Return a frame without the views of some cameras, as if these had sent nothing."""
    if not cameras:
        return frame
    views = tuple(None if c in cameras else view for c, view in zip(frame.cameras, frame.views, strict=True))
    return replace(frame, views=views, missing=frame.missing | dict.fromkeys(cameras, "left out"))


def _load(
    preprocess: Preprocessor, records: Records, i: int, image_set: np.ndarray, without: Collection[str]
) -> ModelInput:
    try:
        inputs, missing = preprocess(leave_out(read_frame(records, i, image_set), without))
    except NoUsableViewError as error:
        raise EvaluationError(f"sample {records.tokens[i]}: {error}") from error
    _check_views(records, i, image_set, missing, without)
    return inputs


def _check_views(
    records: Records, i: int, image_set: np.ndarray, missing: dict[str, str], without: Collection[str]
) -> None:
    """Raise EvaluationError if images could not be used that were not to be left out: a score must not hide them."""
    damaged = [
        f"{image.path}: {missing[image.camera]}"
        for image in records.images(image_set)
        if image.camera in missing and image.camera not in without
    ]
    if damaged:
        raise EvaluationError(f"sample {records.tokens[i]} has damaged files; copy them again: {'; '.join(damaged)}")


def check_images(records: Records, config: VariantConfig) -> None:
    """Raise EvaluationError if any image is missing that the variant needs for the key frames in `records`."""
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
    """Return the names of the scenes without any of the rows `lacking`, as text."""
    return ", ".join(sorted(set(records.scenes) - {records.scenes[i] for i in lacking})) or "none"
