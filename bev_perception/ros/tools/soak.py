"""Watch the memory, threads and open files of the node over thousands of results: `make soak`."""

from __future__ import annotations

import contextlib
import csv
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bev_perception.data.drive import CameraRig, DriveImage
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.families.variants import TINY_DETECTOR, TINY_OCCUPANCY
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools.process import NodeProcess, new_domain, wait_until
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.ros.tools.peer import RigPeer

#: MB of resident memory per 1,000 results from which on the node grows
LIMIT = 2.0
#: rows of the table of a whole run
ROWS = 200
#: small pictures, which are soon decoded; what the model sees has its own size
IMAGE_SIZE = (400, 225)
#: s of the drive that is shown again and again; whenever it begins anew, all objects are others
DRIVE = 2.0
#: s to wait for each result
PATIENCE = 120.0
#: ns from a set that got no result to the next
GIVEN_UP = 500_000_000
#: number of sets in a row without a result that end a run
ATTEMPTS = 5
#: s to wait for the node
START = 600.0


@dataclass(frozen=True)
class Sample:
    """The node after some results.

    results: number of results since the warm-up.
    seconds: since the warm-up.
    resident: MB of resident memory.
    threads: number of threads.
    files: number of open files.
    """

    results: int
    seconds: float
    resident: float
    threads: int
    files: int


@dataclass
class Soak:
    """What a run has given up to now.

    wanted: number of results that the run is to have, after the warm-up.
    warm_up: number of results before the first sample.
    samples: in their order.
    messages: topic -> number of messages received.
    lost: number of sets of images that got no result.
    ended: why the run ended early; empty if it did not.
    """

    wanted: int
    warm_up: int
    samples: list[Sample] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    ended: str = ""

    @property
    def growth(self) -> tuple[float, float]:
        """Slope of the resident memory by least squares and its standard error, MB per 1,000 results."""
        results, resident = np.array([(s.results, s.resident) for s in self.samples], np.float64).reshape(-1, 2).T
        if len(results) < 3:
            return float("nan"), float("nan")
        centred = results - results.mean()
        slope = float(centred @ resident / (centred @ centred))
        rest = resident - resident.mean() - slope * centred
        error = float(np.sqrt(rest @ rest / (len(rest) - 2) / (centred @ centred)))
        return 1000 * slope, 1000 * error

    @property
    def faults(self) -> list[str]:
        """What is not as it should be."""
        found = [self.ended] if self.ended else []
        slope = self.growth[0]
        if not slope < LIMIT:
            found.append(f"resident memory grows by {slope:.2f} MB per 1,000 results, {LIMIT:g} or more")
        half = len(self.samples) // 2
        for name in ("threads", "files"):
            first, second = ([getattr(s, name) for s in part] for part in (self.samples[:half], self.samples[half:]))
            if first and max(second) > max(first):
                found.append(f"{name} grow: {max(first)} in the first half, {max(second)} in the second")
        return found

    def text(self) -> str:
        """Return what the run has shown, in lines."""
        done = self.samples[-1] if self.samples else Sample(0, 0.0, float("nan"), 0, 0)
        slope, error = self.growth
        lines = [
            f"{done.results} of {self.wanted} results after {self.warm_up} of warm-up, in {done.seconds:.0f} s",
            f"resident memory: {done.resident:.1f} MB, {slope:+.2f} +- {error:.2f} MB per 1,000 results",
        ]
        for name in ("threads", "files"):
            values = [getattr(sample, name) for sample in self.samples] or [0]
            lines.append(f"{name}: {min(values)} to {max(values)}")
        lines.append(f"sets of images without a result: {self.lost}")
        lines += [f"messages on {topic}: {count}" for topic, count in sorted(self.messages.items())]
        return "\n".join(lines + [f"NOT AS IT SHOULD BE: {fault}" for fault in self.faults])


def run_soak(out: Path, results: int, warm_up: int, report: Callable[[str], None] = print) -> Soak:
    """Run both shipped variants in one node, in lockstep, and watch its process.

    A run that is interrupted, or whose node ends, is told up to there; soak.csv has its rows at any time.

    out: folder for soak.csv, soak.png, soak.txt and the node's log.
    results: number of results to watch.
    warm_up: number of results before them, which are not watched.
    report: called with a line now and then.

    Raises UserError for numbers that cannot be.
    """
    if results < 3 or warm_up < 0:
        raise UserError(f"{results} results after {warm_up}: watch at least 3")
    ensure_interfaces()
    out.mkdir(parents=True, exist_ok=True)
    soak = Soak(results, warm_up)
    with (out / "soak.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(Sample.__dataclass_fields__)
        try:
            for sample in _watch(soak, out):
                table.writerow(
                    [f"{value:.1f}" if isinstance(value, float) else value for value in vars(sample).values()]
                )
                file.flush()
                if len(soak.samples) % (ROWS // 10) == 0:
                    report(soak.text().splitlines()[0] + ", " + soak.text().splitlines()[1])
        except KeyboardInterrupt:
            soak.ended = "interrupted"
        except (TimeoutError, OSError) as error:  # a node that is gone has no files in /proc
            soak.ended = f"ended early: {error or type(error).__name__}; see {out / 'node.log'}"
    if soak.samples:
        draw(soak.samples, out / "soak.png")
    (out / "soak.txt").write_text(soak.text() + "\n")
    return soak


def _watch(soak: Soak, out: Path) -> Iterator[Sample]:
    """Yield samples of the node, which are kept in `soak`, too."""
    every = max(1, soak.wanted // ROWS)
    with _node_and_rig(out, soak.messages) as (node, rig, images):
        for _ in range(soak.warm_up):
            _step(node, rig, next(images))  # those lost at the start are not counted
        soak.messages.update(dict.fromkeys(soak.messages, 0))
        began = time.monotonic()
        for k in range(1, soak.wanted + 1):
            soak.lost += _step(node, rig, next(images))
            if k % every == 0:
                process = Path(f"/proc/{node.process.pid}")
                threads, files = (len(os.listdir(process / name)) for name in ("task", "fd"))
                memory = node.resident_bytes()[0] / 1e6
                soak.samples.append(Sample(k, time.monotonic() - began, memory, threads, files))
                yield soak.samples[-1]


def _step(node: NodeProcess, rig: RigPeer, images: dict[str, array[int]]) -> int:
    """Send a set of images, and wait for the occupancy, which is published after the boxes.

    If messages get lost on a busy machine, another set follows, late enough that the node gives up the one before;
    return how many were lost.
    """
    for camera, message in rig.contents.items():
        message.data = images[camera]
    lost = 0
    stamp: int | None = None  # the next one
    while not _is_answered(node, rig, rig.send_set(stamp)):
        lost += 1
        if lost == ATTEMPTS:
            raise TimeoutError(f"{lost} sets of images in a row had no result; it says {rig.values().get('message')!r}")
        rig.now += GIVEN_UP
        stamp = rig.now
    for kept in (rig.arrivals, rig.detections, rig.objects, rig.occupancies, rig.diagnostics):
        kept.clear()  # the peer shares the machine with the node
    return lost


def _is_answered(node: NodeProcess, rig: RigPeer, stamp: int) -> bool:
    """Return whether a set of images gets a result in time; raise TimeoutError if the node has ended."""
    try:
        wait_until(lambda: stamp in rig.arrivals or not node.alive(), PATIENCE, "a result")
    except TimeoutError:
        return False
    if not node.alive():
        raise TimeoutError("the node has ended")
    return True


@contextlib.contextmanager
def _node_and_rig(
    out: Path, messages: dict[str, int]
) -> Iterator[tuple[NodeProcess, RigPeer, Iterator[dict[str, array[int]]]]]:
    """Start the node and a rig that subscribes to all that it publishes; yield both, and the images of sets.

    messages: topic -> number of messages, which is kept up to date.
    """
    from bev_perception.ros.outputs import DETECTION_TOPICS, OCCUPANCY_TOPICS
    from bev_perception.ros.tools.peer import NODE, RigPeer

    rigs, sets = _images_of_a_drive()
    domain = new_domain()
    parameters = {
        "variant": TINY_DETECTOR,
        "occupancy_variant": TINY_OCCUPANCY,
        "image_transport": "compressed",
        "score_threshold": 0.0,
    }
    node = NodeProcess("perception_node", domain, out / "node.log", parameters)
    first = {camera: image.tobytes() for camera, image in sets[0].items()}
    rig = RigPeer(domain, rigs, first, answers="occupancy")
    try:
        node.wait_log("is ready", START)
        rig.wait_matched(START)
        for topic, kind in (DETECTION_TOPICS | OCCUPANCY_TOPICS).items():
            messages[topic] = 0
            count = partial(_count, messages, topic)
            rig.node.create_subscription(kind, f"{NODE}/{topic}", count, 50, raw=True)
        rig.connect(START)
        yield node, rig, cycle(sets)
        node.interrupt()
    finally:
        node.kill()
        rig.close()


def _count(messages: dict[str, int], topic: str, _: bytes) -> None:
    messages[topic] += 1


def _images_of_a_drive() -> tuple[tuple[CameraRig, ...], list[dict[str, array[int]]]]:
    """Return the cameras, and camera -> JPEG for each set of a short drive."""
    drive = synthetic_drive(DRIVE, image_size=IMAGE_SIZE)
    images: dict[str, list[array[int]]] = {rig.name: [] for rig in drive.cameras}
    for event in drive:
        if isinstance(event, DriveImage):
            images[event.camera].append(array("B", event.jpeg))
    return drive.cameras, [dict(zip(images, of_set, strict=True)) for of_set in zip(*images.values(), strict=False)]


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Draw the samples as a PNG: memory with its straight line, and threads and open files below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    results = np.array([sample.results for sample in samples])
    resident = np.array([sample.resident for sample in samples])
    above.plot(results, resident, color="black", linewidth=1, label="resident memory")
    if len(samples) > 2:
        slope, offset = np.polyfit(results, resident, 1)
        above.plot(results, slope * results + offset, "--", color="tab:red", label=f"{1000 * slope:+.2f} MB per 1,000")
    middle, reach = float(resident.mean()), max(10.0, float(np.ptp(resident)))
    above.set(title="the node in lockstep", ylabel="MB", ylim=(middle - reach, middle + reach))
    above.legend()
    below.plot(results, [sample.threads for sample in samples], label="threads")
    below.plot(results, [sample.files for sample in samples], label="open files")
    below.set(xlabel="results after the warm-up", ylim=(0, None))
    below.legend()
    canvas.print_png(str(path))
