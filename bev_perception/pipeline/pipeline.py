"""The pipeline from a frame to its result, with the same calls live, on a bag and on a data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bev_perception.config import NMS, ImageConfig, VariantConfig
from bev_perception.families.catalog import gives
from bev_perception.families.family import INSTANCES
from bev_perception.health import Health, Stopwatch
from bev_perception.models.memory import Memory, device_bytes
from bev_perception.models.precision import check_precision, strict_float32
from bev_perception.models.protocol import NotFiniteError, Perception, Prediction
from bev_perception.pipeline.continuity import Continuity
from bev_perception.pipeline.encoders import Encoder, LoadedVariant, Stream, empty_input, group_by_encoder
from bev_perception.pipeline.engines import EAGER
from bev_perception.pipeline.engines.part import input_size
from bev_perception.results.boxes import to_ego
from bev_perception.results.duplicates import without_duplicates
from bev_perception.sensing.image_fit import IMAGE_FIT, check_image_fit
from bev_perception.sensing.preprocess import Preprocessor, reference2base
from bev_perception.strict import ConfigError
from bev_perception.tracking.tracker import TRACKERS, Tracks, follow
from bev_perception.types import Boxes3D, Frame, FrameError, Limits, ModelInput, Occupancy, Result

#: the values of the setting `nms`
NMS_SETTINGS = ("auto", *NMS)


@dataclass(frozen=True)
class PipelineSettings:
    """How a variant is run; VariantConfig describes the variant itself.

    score_threshold: lowest score of the boxes in a result; None takes the variant's own
    max_detections: largest number of boxes in a result; None takes the variant's own
    memory_interval: s between remembered frames; capped at the variant's own interval; a shorter one reproduces the
        spacing of the training more closely and takes more memory
    tracker: where track ids come from if a variant gives none: "greedy" (see tracking/tracker.py), or "none"
    nms: how further boxes of one object are dropped: "auto", as the variant's file says; "distance", "rotated_iou" or
        "none", see results/duplicates.py
    precision: of backbone and neck: "fp32", "tf32", "bf16" or "fp16" (see models/precision.py); cannot be changed once
        the pipeline runs; everything else computes in float32
    engine: what computes backbone and neck, see pipeline/engines; cannot be changed once the pipeline runs
    image_fit: how pictures unlike those of the training become inputs, see sensing/image_fit.py; cannot be changed once
        the pipeline runs
    max_speed: m/s; faster ego motion is a pose jump, which wipes the memory
    max_turn_rate: rad/s; faster turning is a pose jump, which wipes the memory
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    memory_interval: float = 0.25
    tracker: str = "greedy"
    nms: str = "auto"
    precision: str = "fp32"
    engine: str = EAGER
    image_fit: str = IMAGE_FIT
    max_speed: float = 80.0
    max_turn_rate: float = 4.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold is {self.score_threshold}; it must lie in 0..1")
        if self.max_detections is not None and self.max_detections < 1:
            raise ConfigError(f"max_detections is {self.max_detections}; it must be at least 1")
        if not self.memory_interval > 0:
            raise ConfigError(f"memory_interval is {self.memory_interval} s; it must be positive")
        check_image_fit(self.image_fit)
        if self.tracker not in TRACKERS:
            raise ConfigError(f"tracker is {self.tracker!r}; it must be one of {', '.join(TRACKERS)}")
        if self.nms not in NMS_SETTINGS:
            raise ConfigError(f"nms is {self.nms!r}; it must be one of {', '.join(NMS_SETTINGS)}")

    @property
    def limits(self) -> Limits:
        """The limits on the boxes of a result."""
        return Limits(self.score_threshold, self.max_detections)

    def nms_of(self, config: VariantConfig) -> str:
        """Return how further boxes of one object of a variant are dropped, one of NMS."""
        return config.nms if self.nms == "auto" else self.nms


@dataclass(frozen=True)
class Break:
    """Why memories are wiped before a frame.

    cause: short and fixed; wipes are counted by it
    message: the details
    requests: number of requested resets that the wipe answers
    """

    cause: str
    message: str
    requests: int = 0


class Pipeline:
    """Runs one variant, or several with different outputs, and keeps or wipes their memories.

    Variants with equal encoders, including the weights, share one encoder, which encodes the images once.
    Call step() from one thread at a time; any thread may replace `settings` or call reset().
    """

    def __init__(
        self,
        variants: Sequence[LoadedVariant],
        device: torch.device,
        settings: PipelineSettings | None = None,
        health: Health | None = None,
    ) -> None:
        """Build a pipeline of loaded variants; load_pipeline also loads them.

        variants: with their models on `device`
        device: for the inputs
        settings: None takes the defaults of PipelineSettings
        health: counts frames and drops; None creates a new one

        An engine is built here, unless it is in the cache, which takes minutes.

        Raises ConfigError for variants that cannot run live or not together, for a precision that the device does not
        support, and for an engine that cannot be had; EngineError for one whose results are not those of eager mode.
        """
        _check_variants([variant.config for variant in variants])
        self.variants = tuple(variants)
        self.device = device
        self.settings = settings or PipelineSettings()
        check_precision(self.settings.precision, device)
        self.health = health or Health()
        self._preprocess: dict[ImageConfig, Preprocessor] = {}
        for variant in variants:
            if variant.config.image not in self._preprocess:
                self._preprocess[variant.config.image] = Preprocessor(variant.config, device, self.settings.image_fit)
        self._interval = self._memory_interval()
        self._encoders = [
            Encoder(group, self._interval, self.settings.precision) for group in group_by_encoder(variants)
        ]
        for encoder in self._encoders:
            encoder.use_engine(self.settings.engine, device)
        self._streams = [stream for encoder in self._encoders for stream in encoder.streams]
        self._tracks = Tracks()
        self._continuity = Continuity(min(variant.config.frames.max_gap for variant in variants))
        self._reset_requests: deque[str] = deque()

    def close(self) -> None:
        """Stop the threads; the pipeline cannot be used any more."""
        for preprocess in self._preprocess.values():
            preprocess.close()

    def reset(self, cause: str) -> None:
        """Request that the memory is wiped before the next frame; `cause` appears in the log."""
        self._reset_requests.append(cause)

    @property
    def name(self) -> str:
        """The names of the variants, joined by " + "."""
        return " + ".join(variant.config.name for variant in self.variants)

    @property
    def gives(self) -> frozenset[str]:
        """The kinds of output of all variants, see families.family."""
        return frozenset().union(*(gives(variant.config) for variant in self.variants))

    @property
    def trained(self) -> bool:
        """False if the checkpoint of any variant is marked as untrained."""
        return all(variant.checkpoint.trained for variant in self.variants)

    @property
    def encoders(self) -> tuple[tuple[str, ...], ...]:
        """The names of the variants, grouped by encoder: ((a, b),) if they share one, else ((a,), (b,))."""
        return tuple(tuple(stream.config.name for stream in encoder.streams) for encoder in self._encoders)

    @property
    def memory_frames(self) -> int:
        """Number of remembered frames of the variant that remembers the most."""
        return max(len(stream.memory) for stream in self._streams)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the memories take on the device; tensors that variants share count once."""
        return device_bytes(stream.memory for stream in self._streams)

    def step(self, frame: Frame) -> Result:
        """Return the result for one frame, and remember the frame.

        Raises FrameError for a frame that cannot be used: NoUsableViewError if none of its images can be used, and
        NotFiniteError if its pose or the model's output contains NaN or infinity. Such a frame is counted, and the
        memory is as it was before.
        """
        try:
            return self._step(frame)
        except FrameError as error:
            self.health.fail(error.cause, str(error))
            raise

    def _step(self, frame: Frame) -> Result:
        watch = Stopwatch()
        with watch.stage("preprocess"):
            inputs, missing = self._prepare(frame)
        broken = self._break_before(frame)
        memories = {stream: stream.memory.wiped() if broken else stream.memory for stream in self._streams}
        with watch.stage("model"), torch.inference_mode(), strict_float32(self.device):
            predictions = dict(self._predict(inputs, memories, frame))
            self._synchronize()
        with watch.stage("decode"):
            seen, reference_boxes = self._decode(predictions, frame)
            tracks, ids = self._follow(seen.boxes, frame, broken)
        self._remember(predictions, memories, tracks, frame, broken)  # last, so that an error costs only this frame
        self._count(watch)
        reset = None if broken is None else f"{broken.cause}: {broken.message}"
        history = max(len(memory) for memory in memories.values())
        boxes, reference_boxes = (_with_ids(found, ids) for found in (seen.boxes, reference_boxes))
        return Result(*(frame.stamp, boxes, seen.occupancy, missing, reset, watch.seconds, history, reference_boxes))

    def warm_up(self, cameras: int) -> None:
        """Run the models once on black images of `cameras` cameras, so that the first real frame is not slow."""
        for encoder in self._encoders:
            height, width = input_size(encoder.image)
            with torch.inference_mode(), strict_float32(self.device):
                encoder.warm_up(empty_input(cameras, height, width, self.device))
                self._synchronize()

    def _prepare(self, frame: Frame) -> tuple[dict[ImageConfig, ModelInput], dict[str, str]]:
        """Return the model input for each image configuration of the variants, and why which cameras are missing."""
        poses = (frame.ego2global, frame.lidar2global)
        if not all(pose is None or np.isfinite(pose).all() for pose in poses):
            raise NotFiniteError("the frame's pose holds NaN or infinity; check tf")
        inputs, missing = {}, dict(frame.missing)
        for image, preprocess in self._preprocess.items():
            inputs[image], unusable = preprocess(frame)
            missing.update(unusable)
            for camera, warning in preprocess.warnings(frame).items():
                self.health.notice("picture cut off", warning, camera)
        for camera, reason in missing.items():
            self.health.drop("missing view", f"{camera}: {reason}", camera)
        return inputs, missing

    def _predict(
        self, inputs: dict[ImageConfig, ModelInput], memories: dict[Stream, Memory], frame: Frame
    ) -> Iterator[tuple[Stream, Prediction]]:
        """Yield each variant's stream with its prediction; each encoder encodes the images once."""
        for encoder in self._encoders:
            encoded = encoder.encode(inputs[encoder.image])
            for stream in encoder.streams:
                yield stream, stream.predict(encoded, memories[stream], inputs[encoder.image], frame)

    def _decode(self, predictions: dict[Stream, Prediction], frame: Frame) -> tuple[Perception, Boxes3D | None]:
        """Return boxes (in base_link) and occupancy, and the boxes in the reference frame of their model."""
        boxes: Boxes3D | None = None
        reference_boxes: Boxes3D | None = None
        occupancy: Occupancy | None = None
        for stream, prediction in predictions.items():
            try:
                seen = stream.model.decode(prediction.outputs, self.settings.limits)
            except NotFiniteError as error:
                raise NotFiniteError(f"{stream.config.name}: {error}") from error
            if seen.boxes is not None:
                reference_boxes = without_duplicates(seen.boxes, self.settings.nms_of(stream.config))
                boxes = to_ego(reference_boxes, reference2base(stream.config, frame))
            occupancy = occupancy if seen.occupancy is None else _in_base(seen.occupancy, frame)
        return Perception(boxes, occupancy), reference_boxes

    def _follow(self, boxes: Boxes3D | None, frame: Frame, broken: Break | None) -> tuple[Tracks, np.ndarray | None]:
        """Return the tracks after the frame, and the ids of its boxes; None if the tracker has nothing to say."""
        tracks = self._tracks if broken is None else self._tracks.cleared()
        if boxes is None or boxes.track_ids is not None or self.settings.tracker == "none":
            return tracks, None
        return follow(tracks, boxes, frame.ego2global, frame.stamp)

    def _remember(
        self,
        predictions: dict[Stream, Prediction],
        memories: dict[Stream, Memory],
        tracks: Tracks,
        frame: Frame,
        broken: Break | None,
    ) -> None:
        """Keep the tracks, and what the frame adds to the memories, which have been wiped if it broke with them."""
        if broken is not None:
            for _ in range(broken.requests):
                self._reset_requests.popleft()
            self._continuity.restart()
            self.health.reset(broken.cause, broken.message)
        due = self._continuity.is_due(frame.stamp, self._interval)
        for stream, prediction in predictions.items():
            stream.memory = memories[stream].after(prediction.entry, prediction.carried, due)
        self._tracks = tracks
        self._continuity.passed(frame, due)

    def _break_before(self, frame: Frame) -> Break | None:
        """Return why the memories do not continue into this frame; None if they do."""
        self._follow_settings()
        requests = len(self._reset_requests)
        if requests:
            return Break("requested", self._reset_requests[requests - 1], requests)
        broken = self._continuity.break_before(frame, self.settings.max_speed, self.settings.max_turn_rate)
        return None if broken is None else Break(*broken)

    def _follow_settings(self) -> None:
        """If the memory interval has changed, resize the memories so that they still reach as far back."""
        interval = self._memory_interval()
        if interval != self._interval:
            self._interval = interval
            for stream in self._streams:
                stream.resize(interval)

    def _memory_interval(self) -> float:
        return min(self.settings.memory_interval, *(variant.config.frames.interval for variant in self.variants))

    def _count(self, watch: Stopwatch) -> None:
        for stage, seconds in watch.seconds.items():
            self.health.time(stage, seconds)
        self.health.frame_done()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _in_base(occupancy: Occupancy, frame: Frame) -> Occupancy:
    """Return the occupancy of a variant, which is relative to the ground below base_link, in base_link."""
    x, y, z = occupancy.grid.origin
    return replace(occupancy, grid=replace(occupancy.grid, origin=(x, y, z - frame.base_height)))


def _with_ids(boxes: Boxes3D | None, ids: np.ndarray | None) -> Boxes3D | None:
    """Return boxes with the ids of the tracker, or with those that they have."""
    return boxes if boxes is None or ids is None else replace(boxes, track_ids=ids)


def _check_variants(configs: Sequence[VariantConfig]) -> None:
    """Raise ConfigError for variants that cannot run live, or that cannot run together."""
    if not configs:
        raise ConfigError("no variant is given; name one at least")
    for config in configs:
        if config.frames.future:
            raise ConfigError(
                f"{config.name} looks {config.frames.future} frames into the future, which a live camera stream "
                "does not have; choose a variant with frames.future = 0"
            )
    trained: dict[ImageConfig, VariantConfig] = {}
    for config in configs:
        other = trained.setdefault(config.image, config)
        if other.trained_cameras != config.trained_cameras:
            raise ConfigError(
                f"{other.name} and {config.name} take the same images, but of other trained_cameras; run one of them"
            )
    given: dict[str, str] = {}
    for config in configs:
        for what in sorted(gives(config) - {INSTANCES}):
            if what in given:
                raise ConfigError(
                    f"{given[what]} and {config.name} both give {what}; run one of them, or one that gives something "
                    "else beside it"
                )
            given[what] = config.name
