"""Benchmark a variant on this machine: speed, operations, parameters and memory. Does not need ROS.

The protocol is that of Liu et al., ICCV 2023, and of the timing script of their release: batch size 1, key frames in
order, with the features of past frames remembered. The first 10 frames do not count. The time between synchronizations
with the GPU covers the network and the post-processing, that is the decoding of boxes; "total" is their sum. It does
not include reading, decoding and resizing the images; the figure "with loading" does, with all steps in sequence as for
a live frame. Of families whose publication computes the whole queue of frames for each result, the network is timed in
this way, too, beside the sequential protocol (not in bf16 and fp16, which only the encoder computes in). Liu et al.
label their figures fp32 but measured them with PyTorch's defaults, which for convolutions are what is called tf32 here.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import platform
import resource
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from bev_perception.allocation import keep_memory_together
from bev_perception.config import VariantConfig
from bev_perception.data.drive import CAMERAS, DriveImage
from bev_perception.data.synthetic import World, synthetic_drive
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.limits import MachineLimits, measure_limits
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import Variant, load_variant, shipped_weights
from bev_perception.health import Stopwatch
from bev_perception.models.precision import PRECISIONS, encoder_precision
from bev_perception.models.protocol import Model
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.loading import load_pipeline, write_initial_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.sensing.preprocess import Preprocessor
from bev_perception.strict import UserError
from bev_perception.types import CameraImage, Frame, View

KEY_FRAME_RATE = 2.0  # Hz


@dataclass(frozen=True)
class TimingSettings:
    """Which variant is timed, and how.

    variant: name, path of a YAML file, or loaded configuration
    checkpoint: its weights; None: the shipped ones, or untrained initial weights, which take as long, if none are
        shipped
    device: "auto", "cpu", "cuda" or "cuda:N"
    precision: of backbone and neck, as in PipelineSettings
    engine: that computes them, as in PipelineSettings
    frames: number of frames that are timed
    warm_up: number of frames before them that are not timed; raised to the number that fills the memory
    """

    variant: Variant
    checkpoint: Path | None = None
    device: str = "auto"
    precision: str = PipelineSettings.precision
    engine: str = PipelineSettings.engine
    frames: int = 50
    warm_up: int = 10

    def __post_init__(self) -> None:
        """Check the number of frames."""
        if self.frames < 1:
            raise UserError(f"frames is {self.frames}; at least 1 must be timed")


@dataclass(frozen=True)
class Timing:
    """The results of a benchmark.

    variant: name
    trained: False if the weights are untrained
    device: that the variant ran on
    precision: of backbone and neck, as in PipelineSettings
    engine: that computed them
    image: the network's input, width x height in pixels
    cameras: number of cameras
    history: number of past frames used
    frames: number of frames that were timed
    warm_up: number of frames before them
    fps: frames per second, "total" and "with loading"
    ms: (median, 95th percentile) of the time of a frame in ms: "network", "post-processing", "total" of the two,
        "preprocess", "with loading" of all three, and "network, all frames" if it is also timed without a memory
    parameters: number of parameters of each stage of the model, see Model.stages
    flops: operations of each stage for one frame; a multiply-add counts as two, and only matrix products and
        convolutions count
    flops_all_frames: operations if all frames are computed anew; None where that is not timed
    peak_mb: MB, peak memory: on a GPU what PyTorch has allocated, on the CPU the resident memory of the process
    memory_mb: MB, the part of it that the features of past frames take
    limits: what the machine reached in this run, in the precision of the encoder
    machine: CPU, GPU and versions, see machine()
    """

    variant: str
    trained: bool
    device: str
    precision: str
    engine: str
    image: str
    cameras: int
    history: int
    frames: int
    warm_up: int
    fps: dict[str, float]
    ms: dict[str, tuple[float, float]]
    parameters: dict[str, int]
    flops: dict[str, int]
    flops_all_frames: int | None
    peak_mb: float
    memory_mb: float
    limits: MachineLimits
    machine: dict[str, str]

    def table(self) -> str:
        """Return the results as a readable table."""
        weights = "" if self.trained else ", UNTRAINED weights"
        engine = "" if self.engine == PipelineSettings.engine else f", engine {self.engine}"
        lines = [
            f"{self.variant}, {self.precision} on {self.device}{engine}{weights}",
            f"batch 1, {self.cameras} cameras, {self.image}, {self.history} past frames remembered; "
            f"{self.frames} frames after {self.warm_up} of warm-up",
            *(f"{name}: {value}" for name, value in self.machine.items()),
            "",
            f"{'':20}{'FPS':>10}{'median ms':>12}{'p95 ms':>10}",
        ]
        for name, (median, p95) in self.ms.items():
            rate = f"{self.fps[name]:10.2f}" if name in self.fps else " " * 10
            lines.append(f"{name:20}{rate}{median:12.1f}{p95:10.1f}")
        lines += ["", f"{'':20}{'M parameters':>14}{'GFLOP':>10}{'GMAC':>10}"]
        counts = [(name, count, self.flops[name]) for name, count in self.parameters.items()]
        counts.append(("all", sum(self.parameters.values()), sum(self.flops.values())))
        for name, count, flops in counts:
            lines.append(f"{name:20}{count / 1e6:14.2f}{_work(flops)}")
        if self.flops_all_frames is not None:
            lines.append(f"{'all, all frames':20}{'':14}{_work(self.flops_all_frames)}")
        network = self.ms["network"][0] / 1e3
        share = sum(self.flops.values()) / 1e9 / network / self.limits.gflops
        touched = sum(self.parameters.values()) * 4 / 1e9 + self.memory_mb / 1e3  # GB
        lines += [
            "",
            f"the machine's limits in this run: {self.limits.gflops:.0f} GFLOP/s in a matrix product, "
            f"{self.limits.gb_per_s:.1f} GB/s in a copy",
            f"the network computes at {share:.0%} of the matrix product's; to read weights and remembered features "
            f"once would take {touched / self.limits.gb_per_s / network:.1%} of its time",
        ]
        of = "resident, of the process" if self.device == "cpu" else "allocated on the GPU"
        lines += ["", f"peak memory {self.peak_mb:.0f} MB {of}; features remembered {self.memory_mb:.0f} MB"]
        return "\n".join(lines)

    def write(self, directory: Path) -> Path:
        """Write the results as JSON to the directory; return the path of the file."""
        directory.mkdir(parents=True, exist_ok=True)
        engine = "" if self.engine == PipelineSettings.engine else f"_{self.engine}"
        path = directory / f"{self.variant}_{self.precision}{engine}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        return path


def time_variant(settings: TimingSettings) -> Timing:
    """Time a variant in a separate process, so that the peak memory is that of the variant alone.

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
    """Return the names of CPU and GPU and the software versions, to be shown with every measurement."""
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
    """Return the median and the 95th percentile in ms, rounded to 0.1 ms."""
    median, p95 = (round(float(p) * 1e3, 1) for p in np.percentile(seconds, (50, 95)))
    return median, p95


def _time_here(settings: TimingSettings) -> Timing:
    keep_memory_together()  # as the commands and the node do
    torch.backends.cudnn.benchmark = True  # as in the protocol; a global setting, but this process does nothing else
    pipeline = _load(settings)
    (variant,) = pipeline.variants
    warm_up = max(settings.warm_up, variant.config.frames.past)  # fill the memory
    frames = made_up_key_frames(warm_up + settings.frames + 1)
    seconds: dict[str, list[float]] = {}
    for k in tqdm(range(warm_up + settings.frames), desc=variant.config.name, unit="frame"):
        result = pipeline.step(next(frames))
        if k >= warm_up:
            _note(result.timings, seconds)
    # read now, before counting the operations allocates more memory
    peak, memory = _peak_bytes(pipeline.device), pipeline.memory_bytes
    limits = measure_limits(pipeline.device, settings.precision)  # right after, as clocks and neighbours change
    variant.model.engine = None  # operations are counted as eager mode dispatches them
    last = next(frames)
    flops = count_operations(variant.model, lambda: pipeline.step(last))
    flops_all = _all_frames(pipeline, variant, settings, seconds)
    pipeline.close()
    return Timing(
        variant=variant.config.name,
        trained=pipeline.trained,
        device=str(pipeline.device),
        precision=settings.precision,
        engine=settings.engine,
        image=f"{variant.config.image.width}x{variant.config.image.height}",
        cameras=len(CAMERAS),
        history=min(result.history, variant.config.frames.past),
        frames=settings.frames,
        warm_up=warm_up,
        fps={name: settings.frames / sum(seconds[name]) for name in ("total", "with loading")},
        ms={name: percentiles(values) for name, values in seconds.items()},
        parameters=_by_stage(_as_trained(variant.config)),
        flops=flops,
        flops_all_frames=flops_all,
        peak_mb=peak / 1e6,
        memory_mb=memory / 1e6,
        limits=limits,
        machine=machine(),
    )


def _load(settings: TimingSettings) -> Pipeline:
    run = PipelineSettings(precision=settings.precision, engine=settings.engine)
    if settings.checkpoint is not None or shipped_weights(load_variant(settings.variant).name) is not None:
        return load_pipeline(settings.variant, settings.checkpoint, settings.device, run)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "initial.safetensors"
        write_initial_weights(settings.variant, checkpoint, seed=0)
        return load_pipeline(settings.variant, checkpoint, settings.device, run)


def _note(timings: dict[str, float], seconds: dict[str, list[float]]) -> None:
    network, after, before = timings["model"], timings["decode"], timings["preprocess"]
    named = {"network": network, "post-processing": after, "total": network + after, "preprocess": before}
    for name, value in {**named, "with loading": network + after + before}.items():
        seconds.setdefault(name, []).append(value)


def _all_frames(
    pipeline: Pipeline, variant: LoadedVariant, settings: TimingSettings, seconds: dict[str, list[float]]
) -> int | None:
    """Time the network on whole queues of frames, and return its operations; None for models that only remember.

    None, too, where an engine or a precision of the encoder's stage is timed, which the whole queue does without.
    """
    model, count = variant.model, 1 + variant.config.frames.past
    if PRECISIONS.get(settings.precision) is not None or settings.engine != PipelineSettings.engine:
        return None
    prepare = Preprocessor(variant.config, pipeline.device)
    queue = [prepare(frame)[0] for frame in made_up_key_frames(count)][::-1]
    prepare.close()
    with torch.inference_mode(), encoder_precision(settings.precision, pipeline.device):
        outputs: list[Any] = []
        flops = count_operations(model, lambda: outputs.append(model.recompute(queue)))
        if outputs == [None]:
            return None
        for _ in range(max(1, settings.frames // count)):
            watch = Stopwatch()
            with watch.stage("network"):
                model.recompute(queue)
                if pipeline.device.type == "cuda":
                    torch.cuda.synchronize(pipeline.device)
            seconds.setdefault("network, all frames", []).append(watch.seconds["network"])
    return sum(flops.values())


def made_up_key_frames(count: int) -> Iterator[Frame]:
    """Yield frames of the synthetic drive with six 1600x900 JPEGs, at the rate of nuScenes' key frames."""
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


def _as_trained(config: VariantConfig) -> Model:
    """Return the model with its batch norms, without memory for the weights."""
    with torch.device("meta"):
        return build_model(config)


def _by_stage(model: Model) -> dict[str, int]:
    """Return the number of parameters of each stage that inference needs, the rest as "head"."""
    counts = dict.fromkeys([*_stages(model), "head"], 0)
    for name, parameter in model.named_parameters():
        if name.split(".")[0] not in model.training_only:
            counts[_stage_of(name, model)] += parameter.numel()
    return counts


def _stages(model: Model) -> dict[str, list[str]]:
    """Return the stages that the model has, with the paths of their submodules."""
    known = {path for path, _ in model.named_modules()}
    found = {stage: [path for path in paths if path in known] for stage, paths in model.stages.items()}
    return {stage: paths for stage, paths in found.items() if paths}


def _stage_of(name: str, model: Model) -> str:
    owners = (stage for stage, paths in _stages(model).items() if any(name.startswith(f"{p}.") for p in paths))
    return next(owners, "head")


def count_operations(model: Model, run: Callable[[], object]) -> dict[str, int]:
    """Return the number of operations that `run` lets each stage of the model do; see Timing.flops."""
    counter = FlopCounterMode(display=False)
    flops = dict.fromkeys([*_stages(model), "head"], 0)
    hooks = []
    for stage, paths in _stages(model).items():

        def begin(*_: object, stage: str = stage) -> None:
            flops[stage] -= counter.get_total_flops()

        def end(*_: object, stage: str = stage) -> None:
            flops[stage] += counter.get_total_flops()

        for path in paths:
            module = model.get_submodule(path)
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    model.requires_grad_(False)  # otherwise the counter expects an autograd graph, which inference mode does not record
    # the counter does not know all fused attention kernels; MATH computes attention as matrix products, which it counts
    with counter, sdpa_kernel(SDPBackend.MATH):
        run()
    for hook in hooks:
        hook.remove()
    flops["head"] = counter.get_total_flops() - sum(flops.values())
    return flops


def _work(flops: int) -> str:
    return f"{flops / 1e9:10.1f}{flops / 2e9:10.1f}"
