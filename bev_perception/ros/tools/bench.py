"""Benchmark this machine: stages of the model, latency over DDS and lost images. There is no pass or fail."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from bev_perception.data.drive import NUSCENES_IMAGE_SIZE, CameraRig, DriveImage
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.evaluation.lidar_rays import measure_casting
from bev_perception.evaluation.timing import Timing, TimingSettings, machine, percentiles, time_variant
from bev_perception.families.variants import TINY_DETECTOR, TINY_OCCUPANCY
from bev_perception.pipeline.loading import write_initial_weights
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools.process import NodeProcess, new_domain

if TYPE_CHECKING:
    from bev_perception.ros.tools.peer import RigPeer

FULL = "r50_nuimg_704x256"


@dataclass(frozen=True)
class Counts:
    """How often each quantity is measured.

    warm_up: frames of each variant that are not timed
    full_frames: timed frames of the full-size variant; 0 leaves it out
    small_frames: timed frames of each tiny variant
    cast_samples: samples for the speed of casting rays
    latency_sets: sets of images for the latency of each transport
    stream_sets: sets of images that are published at 12 Hz for each transport
    """

    warm_up: int
    full_frames: int
    small_frames: int
    cast_samples: int
    latency_sets: int
    stream_sets: int


COUNTS = Counts(
    warm_up=TimingSettings.warm_up,
    full_frames=10,
    small_frames=60,
    cast_samples=20,
    latency_sets=40,
    stream_sets=240,
)


def run_bench(out: Path, counts: Counts) -> str:
    """Measure everything, write the results to out/bench.json, and return them as text."""
    ensure_interfaces()
    out.mkdir(parents=True, exist_ok=True)
    from bev_perception.ros.tools.occupancy_bench import measure_occupancy

    wanted = {FULL: counts.full_frames, TINY_DETECTOR: counts.small_frames, TINY_OCCUPANCY: counts.small_frames}
    timings = [
        time_variant(TimingSettings(variant, frames=frames, warm_up=counts.warm_up))
        for variant, frames in wanted.items()
        if frames
    ]
    figures: dict[str, Any] = {"machine": machine(), "stages": {t.variant: asdict(t) for t in timings}}
    rate = measure_casting(counts.cast_samples)
    figures["RayIoU, 8 origins, prediction and truth"] = {"samples/s on one core": round(rate, 1)}
    for name, figure in measure_occupancy().items():
        figures[f"occupancy messages, {name}"] = figure
    checkpoint = out / f"{TINY_DETECTOR}.safetensors"
    write_initial_weights(TINY_DETECTOR, checkpoint, seed=0)
    for transport in ("compressed", "raw"):
        figures[f"latency, {transport}"] = _time_latency(out, checkpoint, transport, counts.latency_sets)
        figures[f"12 Hz, {transport}"] = _count_losses(out, checkpoint, transport, counts.stream_sets)
    (out / "bench.json").write_text(json.dumps(figures, indent=1))
    return _text(figures, timings)


@contextmanager
def _node_and_rig(
    out: Path, checkpoint: Path, transport: str, size: tuple[int, int], name: str
) -> Iterator[tuple[NodeProcess, RigPeer]]:
    """Start the node and a publisher of images that is already connected to it; stop both at the end of the context."""
    from bev_perception.ros.tools.peer import RigPeer

    rigs, images = _first_images(size, transport == "raw")
    domain = new_domain()
    parameters = {
        "variant": TINY_DETECTOR,
        "checkpoint": checkpoint,
        "image_transport": transport,
        "score_threshold": 0.0,
        "diagnostics_period": 0.2,
    }
    node = NodeProcess("perception_node", domain, out / f"{name}.log", parameters)
    rig = RigPeer(domain, rigs, images)
    try:
        node.wait_log("is ready", 120)
        rig.connect()
        yield node, rig
        node.interrupt()
    finally:
        node.kill()
        rig.close()


def _first_images(size: tuple[int, int], raw: bool) -> tuple[tuple[CameraRig, ...], dict[str, Any]]:
    drive = synthetic_drive(0.2, image_size=size)
    jpegs: dict[str, bytes] = {}
    for event in drive:
        if isinstance(event, DriveImage):
            jpegs.setdefault(event.camera, event.jpeg)
    if not raw:
        return drive.cameras, dict(jpegs)
    return drive.cameras, {c: cv2.imdecode(np.frombuffer(j, np.uint8), cv2.IMREAD_COLOR) for c, j in jpegs.items()}


def _time_latency(out: Path, checkpoint: Path, transport: str, sets: int) -> dict[str, Any]:
    """Measure the time from publishing a set's last image to receiving its detections, and the model's part of it."""
    with _node_and_rig(out, checkpoint, transport, NUSCENES_IMAGE_SIZE, f"latency_{transport}") as (_, rig):
        whole = []
        for _ in range(sets):
            stamp = rig.send_set()
            rig.wait_detection(stamp, 60)
            whole.append(rig.arrivals[stamp] - rig.published)
        time.sleep(0.5)
        values = rig.values()
    stages = ("preprocess", "model", "decode")
    own = sum(float(values[f"{stage} p50 [ms]"]) for stage in stages)
    end_to_end = percentiles(whole)
    return {
        "end to end ms": end_to_end,
        "preprocess + model + decode p50 ms": round(own, 1),
        "overhead p50 ms": round(end_to_end[0] - own, 1),
        "sets": sets,
    }


def _count_losses(out: Path, checkpoint: Path, transport: str, sets: int) -> dict[str, Any]:
    """Publish sets of images at 12 Hz in real time, and count those that were lost, incomplete or dropped."""
    with _node_and_rig(out, checkpoint, transport, NUSCENES_IMAGE_SIZE, f"stream_{transport}") as (node, rig):
        time.sleep(1.0)  # until the diagnostics count all frames of the start
        before = rig.values()
        start = time.perf_counter()
        for k in range(sets):
            time.sleep(max(0.0, start + k / 12 - time.perf_counter()))
            rig.send_set()
        published = time.perf_counter() - start
        time.sleep(2.0)
        after = rig.values()
        peak = node.resident_bytes()[1]

    def gained(key: str) -> int:
        return int(after.get(key, 0)) - int(before.get(key, 0))

    detected, busy = gained("frames"), gained("dropped: model busy")
    degraded = gained("dropped: missing view")
    return {
        "sets": sets,
        "rate Hz": round(sets / published, 2),
        "lost on the way": sets - detected - busy,
        "views missing": degraded,
        "given up, model busy": busy,
        "detected": detected,
        "node's peak MB": round(peak / 1e6),
    }


def _text(figures: dict[str, Any], timings: list[Timing]) -> str:
    lines = [timing.table() for timing in timings]
    for name, figure in figures.items():
        if name not in ("machine", "stages"):
            lines += ["", f"{name}:"] + [f"  {key}: {value}" for key, value in figure.items()]
    return "\n".join(lines)
