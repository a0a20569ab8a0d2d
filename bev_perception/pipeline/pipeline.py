"""One frame in, one result out: the same calls live, from a bag and on a dataset."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bev_perception.config import ConfigError, ImageConfig, VariantConfig
from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.families.sparsebev.decode import decode_boxes
from bev_perception.families.sparsebev.model import SparseBEV, SparseBEVOutput
from bev_perception.families.sparseocc.config import sparseocc_head
from bev_perception.families.sparseocc.decode import decode_occupancy
from bev_perception.geometry import invert_transform, yaw_from_rotation
from bev_perception.health import Health, Stopwatch
from bev_perception.models.memory import FeatureQueue
from bev_perception.models.precision import check_precision
from bev_perception.pipeline.encoders import Encoder, LoadedVariant, group_by_encoder
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.preprocess import NoUsableViewError, Preprocessor, reference2ego, reference2global
from bev_perception.types import Boxes3D, Frame, ModelInput, Result


@dataclass(frozen=True)
class PipelineSettings:
    """How a variant is run; what the variant is stands in its VariantConfig.

    score_threshold, max_detections: of the boxes handed out; None takes the variant's own.
    memory_interval: s between the frames that are remembered (never more than the variant's interval); shorter
    follows the trained spacing more closely and takes more memory.
    precision: of backbone and neck, "fp32", "tf32", "bf16" or "fp16" (see precision.py); fixed once the pipeline runs.
    max_speed (m/s), max_turn_rate (rad/s): ego motion beyond it is a pose jump, which wipes the memory.
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    memory_interval: float = 0.25
    precision: str = "fp32"
    max_speed: float = 80.0
    max_turn_rate: float = 4.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold is {self.score_threshold}; it must lie in 0..1")
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}; it must be at least 1")
        if not self.memory_interval > 0:
            raise ValueError(f"memory_interval is {self.memory_interval} s; it must be positive")


#: shortest time that a speed is computed over, so that jitter between close stamps is no jump (s)
SHORTEST_STEP = 0.05
#: a frame this much (of the memory interval) early is remembered all the same: camera stamps jitter
COMMIT_SLACK = 0.1


class Pipeline:
    """One variant, or one that detects and one that gives occupancy, with their memory and the rules for keeping it.

    Variants whose encoders are the same, weights included, share one: it encodes the images once, into one memory.
    step() is to be called from one thread at a time; settings may be replaced and reset() called from any.
    """

    def __init__(
        self,
        variants: Sequence[LoadedVariant],
        device: torch.device,
        settings: PipelineSettings | None = None,
        health: Health | None = None,
    ) -> None:
        """Wrap loaded models, which are on `device`; see load_pipeline for the usual way.

        Raises ConfigError for variants that cannot run live or together, and for a precision that the device lacks.
        """
        _check_variants([variant.config for variant in variants])
        self.variants = tuple(variants)
        self.device = device
        self.settings = settings or PipelineSettings()
        check_precision(self.settings.precision, device)
        self.health = health or Health()
        self._preprocess = {v.config.image: Preprocessor(v.config, device) for v in variants}
        self._encoders = [
            Encoder(group, self._memory_interval(), self.settings.precision) for group in group_by_encoder(variants)
        ]
        self._last: tuple[int, np.ndarray] | None = None
        self._last_commit: int | None = None
        self._reset_requests: deque[str] = deque()

    def close(self) -> None:
        """End the threads; the pipeline cannot be used any more."""
        for preprocess in self._preprocess.values():
            preprocess.close()

    def reset(self, cause: str) -> None:
        """Have the memory wiped before the next frame; `cause` is for the log."""
        self._reset_requests.append(cause)

    @property
    def name(self) -> str:
        """The variants' names."""
        return " + ".join(variant.config.name for variant in self.variants)

    @property
    def trained(self) -> bool:
        """False if any of the weights say that they are untrained."""
        return all(variant.checkpoint.trained for variant in self.variants)

    @property
    def encoders(self) -> tuple[tuple[str, ...], ...]:
        """The names of the variants by encoder: ((a, b),) if they share one, ((a,), (b,)) if not."""
        return tuple(tuple(v.config.name for v in encoder.variants) for encoder in self._encoders)

    @property
    def memory_frames(self) -> int:
        """Number of frames remembered."""
        return len(self._encoders[0].memory)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the memory takes on the device."""
        return sum(encoder.memory.nbytes for encoder in self._encoders)

    def step(self, frame: Frame) -> Result:
        """Say what one frame shows and remember it.

        Raises NoUsableViewError when not one image of the frame can be used; the memory is then as it was.
        """
        watch = Stopwatch()
        with watch.stage("preprocess"):
            inputs, missing = self._prepare(frame)
        for camera, reason in missing.items():
            self.health.drop("missing view", f"{camera}: {reason}")
        reset = self._wipe_if_broken(frame)
        history = self.memory_frames
        outputs: list[tuple[LoadedVariant, Any]] = []
        memories: list[FeatureQueue] = []
        with watch.stage("model"), torch.inference_mode():
            for encoder in self._encoders:
                current = encoder.encode(inputs[encoder.image])
                memories.append(encoder.memory.push(current))
                for variant in encoder.variants:
                    seen = replace(inputs[encoder.image], reference2global=reference2global(variant.config, frame))
                    history_of = variant.model.with_history(current, encoder.memory)
                    outputs.append((variant, variant.model.predict(history_of, seen)))
            self._synchronize()
        boxes = occupancy = None
        with watch.stage("decode"):
            for variant, output in outputs:
                if isinstance(variant.model, SparseBEV):
                    boxes = self._decode_boxes(variant.model, output, frame)
                else:
                    occupancy = decode_occupancy(output, sparseocc_head(variant.config), variant.config.class_names)
        self._last = (frame.stamp, frame.ego2global)
        if self._is_due(frame.stamp):
            for encoder, memory in zip(self._encoders, memories, strict=True):
                encoder.memory = memory
            self._last_commit = frame.stamp
        for stage, seconds in watch.seconds.items():
            self.health.time(stage, seconds)
        self.health.frame_done()
        return Result(frame.stamp, boxes, occupancy, missing, reset, watch.seconds, history)

    def warm_up(self, cameras: int) -> None:
        """Run the models once on empty images, so that the first real frame is not the slow one."""
        for encoder in self._encoders:
            height, width = (math.ceil(s / encoder.image.pad) * encoder.image.pad for s in _size(encoder.image))
            inputs = ModelInput(
                images=torch.zeros(cameras, 3, height, width, device=self.device),
                global2image=np.tile(np.eye(4), (cameras, 1, 1)),
                reference2global=np.eye(4),
                present=np.ones(cameras, bool),
                stamps=np.zeros(cameras, np.int64),
                stamp=0,
            )
            with torch.inference_mode():
                current = encoder.encode(inputs)
                for variant in encoder.variants:
                    variant.model.predict(variant.model.with_history(current, encoder.empty), inputs)
                self._synchronize()

    def _prepare(self, frame: Frame) -> tuple[dict[ImageConfig, ModelInput], dict[str, str]]:
        """Return the input for each kind of image that the variants take, and what is missing."""
        inputs = {}
        missing = dict(frame.missing)
        for image, preprocess in self._preprocess.items():
            try:
                inputs[image], unusable = preprocess(frame)
            except NoUsableViewError as error:
                self.health.drop("no usable view", str(error))
                raise
            missing.update(unusable)
        return inputs, missing

    def _decode_boxes(self, model: SparseBEV, output: SparseBEVOutput, frame: Frame) -> Boxes3D:
        boxes = decode_boxes(
            output.logits[-1, 0],
            output.boxes[-1, 0],
            self._decode_config(model.config.decode),
            model.config.class_names,
            model.legacy_boxes,
        )
        return boxes if frame.lidar2global is not None else to_ego(boxes, reference2ego(model.config))

    def _memory_interval(self) -> float:
        return min(self.settings.memory_interval, *(variant.config.frames.interval for variant in self.variants))

    def _is_due(self, stamp: int) -> bool:
        if self._last_commit is None:
            return True
        return stamp - self._last_commit >= (1 - COMMIT_SLACK) * self._memory_interval() * 1e9

    def _decode_config(self, decode: DecodeConfig) -> DecodeConfig:
        threshold, count = self.settings.score_threshold, self.settings.max_detections
        return replace(
            decode,
            score_threshold=decode.score_threshold if threshold is None else threshold,
            max_num=decode.max_num if count is None else count,
        )

    def _wipe_if_broken(self, frame: Frame) -> str | None:
        """Wipe the memory if it does not continue into this frame; return why, or None."""
        broken = self._break(frame)
        while self._reset_requests:
            broken = ("requested", self._reset_requests.popleft())
        if broken is None:
            return None
        cause, message = broken
        for encoder in self._encoders:
            encoder.memory = encoder.empty
        self._last_commit = None
        self.health.reset(cause, message)
        return f"{cause}: {message}"

    def _break(self, frame: Frame) -> tuple[str, str] | None:
        if self._last is None:
            return None
        last_stamp, last_pose = self._last
        seconds = (frame.stamp - last_stamp) / 1e9
        if seconds <= 0:
            return "time ran backwards", f"by {-seconds:.3f} s"
        longest = min(variant.config.frames.max_gap for variant in self.variants)
        if seconds > longest:
            return "gap", f"{seconds:.3f} s without a frame; {self.name} allows {longest} s"
        motion = invert_transform(last_pose) @ frame.ego2global
        distance, turn = float(np.linalg.norm(motion[:3, 3])), abs(yaw_from_rotation(motion[:3, :3]))
        step = max(seconds, SHORTEST_STEP)
        if distance > self.settings.max_speed * step or turn > self.settings.max_turn_rate * step:
            return "pose jump", f"{distance:.2f} m and {math.degrees(turn):.1f} degrees in {seconds:.3f} s"
        return None

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _check_variants(configs: Sequence[VariantConfig]) -> None:
    """Raise ConfigError for variants that cannot run live, or not together."""
    for config in configs:
        if config.frames.future:
            raise ConfigError(
                f"{config.name} looks {config.frames.future} frames into the future, which a live camera stream "
                "does not have; choose a variant with frames.future = 0"
            )
    kinds = [type(config.head) for config in configs]
    if not kinds or len(set(kinds)) < len(kinds):
        names = ", ".join(config.name for config in configs) or "none"
        raise ConfigError(f"one variant that detects, one that gives occupancy, or one of each can run; got {names}")


def _size(image: ImageConfig) -> tuple[int, int]:
    return image.height, image.width
