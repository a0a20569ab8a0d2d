"""One frame in, one result out: the same calls live, from a bag and on a dataset."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bev_perception.checkpoints import CheckpointInfo, load_checkpoint, save_checkpoint
from bev_perception.config import ConfigError, DecodeConfig, VariantConfig, load_variant
from bev_perception.decode import decode_boxes, to_ego
from bev_perception.geometry import invert_transform, yaw_from_rotation
from bev_perception.health import Health, Stopwatch
from bev_perception.models import build_model
from bev_perception.models.sparsebev import SparseBEV
from bev_perception.preprocess import NoUsableViewError, Preprocessor, reference2ego
from bev_perception.types import Frame, ModelInput, Result


@dataclass(frozen=True)
class PipelineSettings:
    """How a variant is run; what the variant is stands in its VariantConfig.

    score_threshold, max_detections: of the boxes handed out; None takes the variant's own.
    memory_interval: s between the frames that are remembered (never more than the variant's interval); shorter
    follows the trained spacing more closely and takes more memory.
    max_speed (m/s), max_turn_rate (rad/s): ego motion beyond it is a pose jump, which wipes the memory.
    """

    score_threshold: float | None = None
    max_detections: int | None = None
    memory_interval: float = 0.25
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
    """A variant with its weights, its memory and the rules for keeping and wiping that memory.

    step() is to be called from one thread at a time; settings may be replaced and reset() called from any.
    """

    def __init__(
        self,
        config: VariantConfig,
        model: SparseBEV,
        device: torch.device,
        checkpoint: CheckpointInfo,
        settings: PipelineSettings | None = None,
        health: Health | None = None,
    ) -> None:
        """Wrap a loaded model; see load_pipeline for the usual way."""
        if config.frames.future:
            raise ConfigError(
                f"{config.name} looks {config.frames.future} frames into the future, which a live camera stream "
                "does not have; choose a variant with frames.future = 0"
            )
        self.config = config
        self.model = model
        self.device = device
        self.checkpoint = checkpoint
        self.settings = settings or PipelineSettings()
        self.health = health or Health()
        self._preprocess = Preprocessor(config, device)
        self._reference2ego = reference2ego(config)
        self._memory = self.model.new_memory(self._capacity())
        self._last: tuple[int, np.ndarray] | None = None
        self._last_commit: int | None = None
        self._reset_requests: deque[str] = deque()

    def close(self) -> None:
        """End the threads; the pipeline cannot be used any more."""
        self._preprocess.close()

    def reset(self, cause: str) -> None:
        """Have the memory wiped before the next frame; `cause` is for the log."""
        self._reset_requests.append(cause)

    @property
    def memory_frames(self) -> int:
        """Number of frames remembered."""
        return len(self._memory)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the memory takes on the device."""
        return self._memory.nbytes

    def step(self, frame: Frame) -> Result:
        """Detect in one frame and remember it.

        Raises NoUsableViewError when not one image of the frame can be used; the memory is then as it was.
        """
        watch = Stopwatch()
        with watch.stage("preprocess"):
            try:
                inputs, unusable = self._preprocess(frame)
            except NoUsableViewError as error:
                self.health.drop("no usable view", str(error))
                raise
        missing = {**frame.missing, **unusable}
        for camera, reason in missing.items():
            self.health.drop("missing view", f"{camera}: {reason}")
        reset = self._wipe_if_broken(frame)
        history = len(self._memory)
        with watch.stage("model"), torch.inference_mode():
            outputs, memory = self.model(inputs, self._memory)
            self._synchronize()
        with watch.stage("decode"):
            boxes = decode_boxes(
                outputs.logits[-1, 0],
                outputs.boxes[-1, 0],
                self._decode_config(),
                self.config.class_names,
                self.model.legacy_boxes,
            )
            if frame.lidar2global is None:
                boxes = to_ego(boxes, self._reference2ego)
        self._last = (frame.stamp, frame.ego2global)
        if self._is_due(frame.stamp):
            self._memory = memory
            self._last_commit = frame.stamp
        for stage, seconds in watch.seconds.items():
            self.health.time(stage, seconds)
        self.health.frame_done()
        return Result(frame.stamp, boxes, None, missing, reset, watch.seconds, history)

    def warm_up(self, cameras: int) -> None:
        """Run the model once on empty images, so that the first real frame is not the slow one."""
        image = self.config.image
        height, width = (math.ceil(side / image.pad) * image.pad for side in (image.height, image.width))
        inputs = ModelInput(
            images=torch.zeros(cameras, 3, height, width, device=self.device),
            global2image=np.tile(np.eye(4), (cameras, 1, 1)),
            reference2global=np.eye(4),
            present=np.ones(cameras, bool),
            stamps=np.zeros(cameras, np.int64),
            stamp=0,
        )
        with torch.inference_mode():
            self.model(inputs, self.model.new_memory(self._capacity()))
            self._synchronize()

    def _capacity(self) -> int:
        """Return how many frames must be kept so that the oldest one the variant looks at is among them."""
        frames = self.config.frames
        return math.ceil(frames.past * frames.interval / self._memory_interval()) + 2

    def _memory_interval(self) -> float:
        return min(self.settings.memory_interval, self.config.frames.interval)

    def _is_due(self, stamp: int) -> bool:
        if self._last_commit is None:
            return True
        return stamp - self._last_commit >= (1 - COMMIT_SLACK) * self._memory_interval() * 1e9

    def _decode_config(self) -> DecodeConfig:
        decode = self.config.decode
        threshold, count = self.settings.score_threshold, self.settings.max_detections
        return dataclasses.replace(
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
        self._memory = self.model.new_memory(self._capacity())
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
        if seconds > self.config.frames.max_gap:
            return "gap", f"{seconds:.3f} s without a frame; {self.config.name} allows {self.config.frames.max_gap} s"
        motion = invert_transform(last_pose) @ frame.ego2global
        distance, turn = float(np.linalg.norm(motion[:3, 3])), abs(yaw_from_rotation(motion[:3, :3]))
        step = max(seconds, SHORTEST_STEP)
        if distance > self.settings.max_speed * step or turn > self.settings.max_turn_rate * step:
            return "pose jump", f"{distance:.2f} m and {math.degrees(turn):.1f} degrees in {seconds:.3f} s"
        return None

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first GPU, or the CPU where there is none.

    Raises ConfigError for a device that this machine or this PyTorch does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {error}; choose 'auto', 'cpu' or 'cuda:N'") from error
    return device


def load_pipeline(
    variant: str | Path,
    checkpoint: str | Path,
    device: str = "auto",
    settings: PipelineSettings | None = None,
    health: Health | None = None,
) -> Pipeline:
    """Build a variant, load its weights strictly and wrap it.

    Raises ConfigError and CheckpointError, which name the cause and the remedy.
    """
    config = load_variant(variant)
    where = choose_device(device)
    model = build_model(config)
    info = load_checkpoint(model, checkpoint)
    model.eval().to(where)
    return Pipeline(config, model, where, info, settings, health)


def write_initial_weights(variant: str | Path, path: Path, seed: int) -> None:
    """Write a variant's initial, untrained weights as safetensors that say so; for trial runs and tests."""
    config = load_variant(variant)
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(build_model(config), path, {"variant": config.name, "trained": "false", "seed": str(seed)})
