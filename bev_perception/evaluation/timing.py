"""How fast a variant runs on this machine and what it costs, by the protocol of Liu et al., ICCV 2023; needs no ROS.

The protocol (Liu et al., ICCV 2023, and the timing script of their release): batch 1, key frames in order, with the
features of past frames remembered; the first 10 frames do not count; the clock runs, between synchronisations with
the GPU, over the upload of the resized images, the network and the decoding of boxes. Reading, decoding and resizing
the images is not counted; it is here in the figure "with loading", one thing after the other as for a live frame.
Their figures are called fp32 and were taken with PyTorch's defaults, which for convolutions are what is tf32 here.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import platform
import resource
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bev_perception.data.drive import CAMERAS, DriveImage
from bev_perception.data.synthetic import World, synthetic_drive
from bev_perception.evaluation.detection import EvaluationError
from bev_perception.families.variants import Variant, load_variant, shipped_weights
from bev_perception.models.protocol import Model
from bev_perception.pipeline.loading import load_pipeline, write_initial_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.strict import UserError
from bev_perception.types import CameraImage, Frame, View

KEY_FRAME_RATE = 2.0  # Hz


@dataclass(frozen=True)
class TimingSettings:
    """What is timed and how.

    variant: name, or path of a YAML file.  checkpoint: None for those that are shipped, or where there are none,
    for untrained initial weights, which take as long.
    precision: as in PipelineSettings.  frames: that count.  warm_up: before those; more where the memory
    takes more to be full.
    """

    variant: Variant
    checkpoint: Path | None = None
    device: str = "auto"
    precision: str = PipelineSettings.precision
    frames: int = 50
    warm_up: int = 10

    def __post_init__(self) -> None:
        """Check the range."""
        if self.frames < 1:
            raise UserError(f"frames is {self.frames}; at least 1 must be timed")


@dataclass(frozen=True)
class Timing:
    """What was measured.

    image: the network's input, width x height.  history: past frames looked at.
    fps: frames over seconds, "without loading" and "with loading".  ms: (median, 95th percentile) of a frame by both
    and by every stage of the pipeline.
    parameters, flops: of backbone, neck and head, for one frame. A multiply-add is two operations; matrix products
    and convolutions count.
    peak_mb: highest allocation on the GPU by PyTorch, or resident memory of the whole process on the CPU.
    memory_mb: of that, features remembered.
    """

    variant: str
    trained: bool
    device: str
    precision: str
    image: str
    cameras: int
    history: int
    frames: int
    warm_up: int
    fps: dict[str, float]
    ms: dict[str, tuple[float, float]]
    parameters: dict[str, int]
    flops: dict[str, int]
    peak_mb: float
    memory_mb: float
    machine: dict[str, str]

    def table(self) -> str:
        """Return the figures as text for people."""
        weights = "" if self.trained else ", UNTRAINED weights"
        lines = [
            f"{self.variant}, {self.precision} on {self.device}{weights}",
            f"batch 1, {self.cameras} cameras, {self.image}, {self.history} past frames remembered; "
            f"{self.frames} frames after {self.warm_up} of warm-up",
            *(f"{name}: {value}" for name, value in self.machine.items()),
            "",
            f"{'':18}{'FPS':>10}{'median ms':>12}{'p95 ms':>10}",
        ]
        for name, (median, p95) in self.ms.items():
            rate = f"{self.fps[name]:10.2f}" if name in self.fps else " " * 10
            lines.append(f"{name:18}{rate}{median:12.1f}{p95:10.1f}")
        lines += ["", f"{'':18}{'M parameters':>14}{'GFLOP':>10}"]
        for name, count in self.parameters.items():
            lines.append(f"{name:18}{count / 1e6:14.2f}{self.flops[name] / 1e9:10.1f}")
        lines.append(f"{'all':18}{sum(self.parameters.values()) / 1e6:14.2f}{sum(self.flops.values()) / 1e9:10.1f}")
        of = "resident, of the process" if self.device == "cpu" else "allocated on the GPU"
        lines += ["", f"peak memory {self.peak_mb:.0f} MB {of}; features remembered {self.memory_mb:.0f} MB"]
        return "\n".join(lines)

    def write(self, directory: Path) -> Path:
        """Write the figures as JSON into the directory; return the file."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.variant}_{self.precision}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        return path


def time_variant(settings: TimingSettings) -> Timing:
    """Time a variant in a process of its own, so that the peak of memory is its own.

    Raises the errors of load_pipeline, and EvaluationError if the process dies.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_time_here, settings).result()
        except BrokenProcessPool as error:
            raise EvaluationError(
                f"the process that ran {settings.variant} died; was it killed because memory was short?"
            ) from error


def machine() -> dict[str, str]:
    """Return what stands beside every measurement: CPU, GPU, versions."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return {"cpu": model, "gpu": gpu, "versions": versions}


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile in ms, rounded to what a clock is good for."""
    median, p95 = (round(float(p) * 1e3, 1) for p in np.percentile(seconds, (50, 95)))
    return median, p95


def _time_here(settings: TimingSettings) -> Timing:
    torch.backends.cudnn.benchmark = True  # the protocol's; this process does nothing else
    pipeline = _load(settings)
    (variant,) = pipeline.variants
    warm_up = max(settings.warm_up, variant.config.frames.past)  # then the memory is full
    frames = made_up_key_frames(warm_up + settings.frames + 1)
    seconds: dict[str, list[float]] = {}
    for k in tqdm(range(warm_up + settings.frames), desc=variant.config.name, unit="frame"):
        result = pipeline.step(next(frames))
        if k >= warm_up:
            _note(result.timings, seconds)
    # read before anything else takes memory
    peak, memory = _peak_bytes(pipeline.device), pipeline.memory_bytes
    flops = _count_flops(pipeline, variant.model, next(frames))
    pipeline.close()
    return Timing(
        variant=variant.config.name,
        trained=pipeline.trained,
        device=str(pipeline.device),
        precision=settings.precision,
        image=f"{variant.config.image.width}x{variant.config.image.height}",
        cameras=len(CAMERAS),
        history=min(result.history, variant.config.frames.past),
        frames=settings.frames,
        warm_up=warm_up,
        fps={name: settings.frames / sum(seconds[name]) for name in ("without loading", "with loading")},
        ms={name: percentiles(values) for name, values in seconds.items()},
        parameters=_by_stage(variant.model),
        flops=flops,
        peak_mb=peak / 1e6,
        memory_mb=memory / 1e6,
        machine=machine(),
    )


def _load(settings: TimingSettings) -> Pipeline:
    run = PipelineSettings(precision=settings.precision)
    if settings.checkpoint is not None or shipped_weights(load_variant(settings.variant).name) is not None:
        return load_pipeline(settings.variant, settings.checkpoint, settings.device, run)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "initial.safetensors"
        write_initial_weights(settings.variant, checkpoint, seed=0)
        return load_pipeline(settings.variant, checkpoint, settings.device, run)


def _note(timings: dict[str, float], seconds: dict[str, list[float]]) -> None:
    whole = sum(timings.values())
    for name, value in {"without loading": whole - timings["preprocess"], "with loading": whole, **timings}.items():
        seconds.setdefault(name, []).append(value)


def made_up_key_frames(count: int) -> Iterator[Frame]:
    """Yield frames of the made-up drive with six 1600x900 JPEGs, at the rate of nuScenes' key frames."""
    drive, world = synthetic_drive(count / KEY_FRAME_RATE, rate=KEY_FRAME_RATE), World()
    rig = {camera.name: camera for camera in drive.cameras}
    views: dict[str, View] = {}
    for event in drive:
        if not isinstance(event, DriveImage):
            continue
        mounted = rig[event.camera]
        image = CameraImage(event.camera, event.stamp, event.camera, "jpeg", event.jpeg)
        views[event.camera] = View(image, mounted.calibration, mounted.sensor2ego, world.ego2global(event.stamp))
        if len(views) == len(CAMERAS):
            anchor = views[CAMERAS[0]]
            yield Frame(anchor.image.stamp, CAMERAS, tuple(views[c] for c in CAMERAS), anchor.ego2global)
            views = {}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _by_stage(model: Model) -> dict[str, int]:
    """Return the number of parameters of backbone, neck and head, which is all the rest that inference needs."""
    counts = dict.fromkeys([*map(_stage, model.encoder_parts), "head"], 0)
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        if part not in model.training_only:
            counts[_stage(part) if part in model.encoder_parts else "head"] += parameter.numel()
    return counts


def _count_flops(pipeline: Pipeline, model: Model, frame: Frame) -> dict[str, int]:
    """Return the operations that backbone, neck and head take for one more frame."""
    counter = FlopCounterMode(display=False)
    marks: dict[str, list[int]] = {part: [] for part in model.encoder_parts}
    hooks = []
    for part, passed in marks.items():

        def note(*_: object, passed: list[int] = passed) -> None:
            passed.append(counter.get_total_flops())

        module = getattr(model, part)
        hooks += [module.register_forward_pre_hook(note), module.register_forward_hook(note)]
    model.requires_grad_(False)  # else the counter looks for a graph, of which inference mode keeps none
    # of the fused kernels of attention the counter does not know all; as matrix products it does
    with counter, sdpa_kernel(SDPBackend.MATH):
        pipeline.step(frame)
    for hook in hooks:
        hook.remove()
    flops = {_stage(part): after - before for part, (before, after) in marks.items()}
    return {**flops, "head": counter.get_total_flops() - sum(flops.values())}


def _stage(part: str) -> str:
    return part.removeprefix("img_")
