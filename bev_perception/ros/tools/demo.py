"""The demo: play a short drive from a bag to the real node over DDS, and make pictures, latencies and scores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.data.drive import CAMERAS, Drive
from bev_perception.data.messages import stamp_ns
from bev_perception.data.nuscenes import open_scene
from bev_perception.data.records import open_records
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.evaluation.regression import TINY_RANGE
from bev_perception.evaluation.replay import Replay
from bev_perception.families.catalog import build_model, family_of, gives
from bev_perception.families.family import BOXES
from bev_perception.families.variants import (
    TINY_DETECTOR,
    TINY_OCCUPANCY,
    Variant,
    load_variant,
    shipped_weights,
    write_variant,
)
from bev_perception.health import Health
from bev_perception.models.checkpoints import load_checkpoint
from bev_perception.pipeline.loading import write_initial_weights
from bev_perception.pipeline.offline import boxes_to_json, collect_frames
from bev_perception.pipeline.pipeline import PipelineSettings
from bev_perception.results.occupancy_codec import decode
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools.process import NodeProcess, new_domain
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.synth.generate import generate
from bev_perception.synth.scene import scene_name
from bev_perception.synth.settings import VERSION, SynthSettings
from bev_perception.tracking.trails import Trails
from bev_perception.types import Boxes3D, Frame, Occupancy, Result
from bev_perception.visualization.canvas import decode_views
from bev_perception.visualization.occupancy import draw_beside_boxes
from bev_perception.visualization.pictures import draw_frame, write_png
from bev_perception.visualization.video import write_video

if TYPE_CHECKING:
    from bev_perception.ros.tools.peer import Listener

#: seed of the synthetic drive; no training used it
SEED = 78
#: width and height of the synthetic images, pixels; the demo's pictures show them smaller still
IMAGE_SIZE = (800, 450)
#: boxes in a picture: of a trained model those with at least this score; of an untrained one, whose scores are all
#: low, this number of the best
SHOWN_SCORE, SHOWN = 0.3, 40
#: pictures per second in the video; the node gives 12 results per second
DRAWN_RATE = 4.0


@dataclass(frozen=True)
class DemoSettings:
    """Which drive the demo plays, which variant runs, and where the results go.

    out: directory for the results
    nuscenes: dataroot with the scene to play; None: a synthetic drive
    version: of the tables in `nuscenes`
    scene: name of the scene in `nuscenes`
    seconds: s, length of the synthetic drive
    variant: name, path of a YAML file, or loaded configuration
    checkpoint: weights of the variant, which then runs alone; None: the shipped ones, or untrained ones if none are
        shipped
    engine: of the node, as in PipelineSettings
    viewer: of the node, the parameter of that name
    """

    out: Path
    nuscenes: Path | None
    version: str
    scene: str
    seconds: float
    variant: Variant
    checkpoint: Path | None
    engine: str = PipelineSettings.engine
    viewer: str = ""


@dataclass(frozen=True)
class _Models:
    """What the node runs.

    parameters: of the node, by name; variants, checkpoints, engine and score threshold
    trained: False if the weights are untrained
    occupancy: whether a second variant predicts occupancy
    """

    parameters: dict[str, object]
    trained: bool
    occupancy: bool


@dataclass(frozen=True)
class _Recording:
    """A drive as a bag.

    bag: directory of the bag
    truth: dataroot and version of the tables with its ground truth; None: not to be scored
    """

    bag: Path
    truth: tuple[Path, str] | None = None


@dataclass(frozen=True)
class _Heard:
    """What the node has published.

    boxes: stamp (ns) -> boxes
    occupancies: stamp (ns) -> occupancy
    values: the values of its newest diagnostics, by name
    """

    boxes: dict[int, Boxes3D]
    occupancies: dict[int, Occupancy]
    values: dict[str, str]


def run_demo(settings: DemoSettings) -> str:
    """Run the demo; return a summary: the table of latencies, the scores, and where the files are."""
    ensure_interfaces()
    settings.out.mkdir(parents=True, exist_ok=True)
    models = _choose_models(settings)
    recording = _record(settings, models.trained)
    heard = _drive_through_node(settings.out, models, recording)
    frames = list(collect_frames(BagReader(recording.bag).events(), SynchronizerSettings(CAMERAS), Health()))
    answered = heard.boxes.keys() & heard.occupancies.keys() if models.occupancy else heard.boxes.keys()
    pictures = _draw(settings.out, [f for f in frames if f.stamp in answered], heard, models)
    table = _table(heard.values)
    if recording.truth is not None:
        table += "\n" + _score(settings.out, recording, *recording.truth, heard)
    (settings.out / "latency.txt").write_text(table + "\n")
    warning = ""
    if not models.trained:
        warning = " THE WEIGHTS ARE UNTRAINED: the boxes show that the path works, not what it detects."
    where = f"{pictures} frames in {settings.out}: demo.png, demo.mp4, detections.json, latency.txt, node.log, drive/"
    return f"{table}\n{where} (bag).{warning}"


def _choose_models(settings: DemoSettings) -> _Models:
    """Return the variant of the settings; with the default variant and weights, both shipped variants."""
    config = load_variant(settings.variant)
    checkpoint = settings.checkpoint or shipped_weights(config.name)
    if checkpoint is None:
        checkpoint = settings.out / "untrained.safetensors"
        write_initial_weights(settings.variant, checkpoint, seed=0)
    if BOXES not in gives(config):
        raise ConfigError(f"the demo needs a variant that detects; {config.name} gives occupancy, see `show occupancy`")
    trained = load_checkpoint(build_model(config), checkpoint).trained
    changed = isinstance(settings.variant, VariantConfig)
    named = write_variant(config, settings.out) if changed else settings.variant
    parameters: dict[str, object] = {"variant": named, "checkpoint": checkpoint, "engine": settings.engine}
    if settings.viewer:
        parameters["viewer"] = settings.viewer
    second = shipped_weights(TINY_OCCUPANCY)
    both = settings.checkpoint is None and settings.variant == TINY_DETECTOR and trained and second is not None
    if both:
        parameters |= {"occupancy_variant": TINY_OCCUPANCY, "occupancy_checkpoint": second}
    # the variant's own threshold, because the published boxes are scored too; untrained weights reach no threshold
    parameters["score_threshold"] = family_of(config).limits(config).score if trained else 0.0
    return _Models(parameters, trained, both)


def _record(settings: DemoSettings, trained: bool) -> _Recording:
    """Write the drive as a bag: a nuScenes scene, a synthetic scene, or simple drawings for an untrained model."""
    truth = None
    if settings.nuscenes is not None:
        drive = open_scene(settings.nuscenes, settings.version, settings.scene)
    elif trained:
        root = settings.out / f"synth_{settings.seconds:g}s"
        generate(root, SynthSettings(settings.seconds, SEED, image_size=IMAGE_SIZE), scenes=1)
        drive = open_scene(root, VERSION, scene_name(SEED, 0))
        truth = (root, VERSION)
    else:
        drive = synthetic_drive(settings.seconds)
    return _Recording(_make_bag(settings.out / "drive", drive), truth)


def _make_bag(bag: Path, drive: Drive) -> Path:
    if (bag / "metadata.yaml").exists():  # from an earlier run of the demo
        shutil.rmtree(bag)
    write_bag(drive, bag)
    return bag


def _drive_through_node(out: Path, models: _Models, recording: _Recording) -> _Heard:
    """Play the bag to the node in lockstep, and return what the node publishes."""
    from bev_perception.ros.messages import boxes_of
    from bev_perception.ros.tools.peer import NODE, Listener

    domain = new_domain()
    parameters = {**models.parameters, "image_transport": "compressed", "diagnostics_period": 0.5}
    lockstep: dict[str, object] = {"bag": recording.bag, "lockstep": True}
    if models.occupancy:  # the node publishes the occupancy of a frame last
        lockstep |= {"lockstep_topic": f"{NODE}/occupancy", "lockstep_type": "bev_perception/msg/SemanticOccupancy"}
    node = NodeProcess("perception_node", domain, out / "node.log", parameters)
    listener = Listener(domain, answers="occupancy" if models.occupancy else "detections")
    try:
        node.wait_log("is ready", timeout=120)
        player = NodeProcess("bag_player", domain, out / "player.log", lockstep)
        try:
            _watch(player, node, listener)
        finally:
            player.kill()
        time.sleep(1.0)  # one more diagnostics message
        if node.interrupt() != 0:
            raise ChildProcessError(f"the node did not end cleanly:\n{node.text()}")
        boxes = {stamp_ns(message.header.stamp): boxes_of(message) for message in listener.objects}
        (out / "detections.json").write_text(
            json.dumps([{"stamp": s, "boxes": boxes_to_json(b)} for s, b in boxes.items()], indent=1)
        )
        occupancies = {stamp_ns(message.header.stamp): decode(message) for message in listener.occupancies}
        return _Heard(boxes, occupancies, listener.values())
    finally:
        node.kill()
        listener.close()


def _watch(player: NodeProcess, node: NodeProcess, listener: Listener) -> None:
    """Show the progress until the player has finished.

    Raises ChildProcessError if the player or the node fails, or if the node publishes no results.
    """
    with tqdm(desc="play", unit="set") as bar:
        while player.alive():
            if not node.alive():
                raise ChildProcessError(f"the node ended with status {node.process.returncode}:\n{node.text()}")
            time.sleep(0.1)
            bar.update(len(listener.arrivals) - bar.n)
    if player.process.returncode != 0:
        raise ChildProcessError(f"the player ended with status {player.process.returncode}:\n{player.text()}")
    if not listener.arrivals:
        raise ChildProcessError("the node published no results; its log and the player's tell why")


def _table(values: dict[str, str]) -> str:
    """Return the latencies that the node reports in its diagnostics, as a table."""
    stages = [key.removesuffix(" p50 [ms]") for key in values if key.endswith(" p50 [ms]")]
    lines = [f"{'stage':12} {'p50 [ms]':>9} {'p95 [ms]':>9}"]
    lines += [f"{stage:12} {values[f'{stage} p50 [ms]']:>9} {values[f'{stage} p95 [ms]']:>9}" for stage in stages]
    lines.append(
        f"sets: {values.get('frames')}, device: {values.get('device')}, dropped: {values.get('last drop') or 'none'}"
    )
    return "\n".join(lines)


def _score(out: Path, recording: _Recording, root: Path, version: str, heard: _Heard) -> str:
    """Score the node's results against the ground truth at the key frames; return the scores as text."""
    replay = Replay(open_records(root, version))
    events = replay.watch(BagReader(recording.bag).events())
    for frame in collect_frames(events, SynchronizerSettings(CAMERAS), Health()):
        if frame.stamp in heard.boxes:
            result = Result(frame.stamp, heard.boxes[frame.stamp], heard.occupancies.get(frame.stamp), {}, None, {}, 0)
            replay.add(frame, result)
    boxes = replay.score(version, out / "scores", TINY_RANGE)
    found = f"boxes within {TINY_RANGE:g} m: mAP {100 * boxes.mean_ap:.1f} %, NDS {100 * boxes.nds:.1f} %"
    if heard.occupancies:
        occupancy = replay.score_occupancy(version, out / "scores")
        found += f"; occupancy: RayIoU {100 * occupancy.summary['RayIoU']:.1f} %"
    return f"{replay.coverage()}\n{found}"


def _draw(out: Path, frames: list[Frame], heard: _Heard, models: _Models) -> int:
    """Write the video demo.mp4 and its middle picture demo.png; return the number of pictures."""
    rate = 1e9 / float(np.median(np.diff([frame.stamp for frame in frames]))) if len(frames) > 1 else DRAWN_RATE  # Hz
    step = max(1, round(rate / DRAWN_RATE)) if models.trained else 1
    shown = frames[::step]
    note = "" if models.trained else "weights: UNTRAINED, the boxes mean nothing"

    def pictures() -> Iterator[np.ndarray]:
        trails = Trails()
        for frame in tqdm(shown, desc="draw", unit="frame"):
            boxes = _worth_showing(heard.boxes[frame.stamp], models)
            trails.add(frame.stamp, boxes, frame.ego2global)
            picture = draw_frame(frame, decode_views(frame), boxes, note, trails=trails.lines(), scores=True)
            if models.occupancy:
                picture = draw_beside_boxes(picture, heard.occupancies[frame.stamp])
            if frame is shown[len(shown) // 2]:
                write_png(out / "demo.png", picture)
            yield picture

    return write_video(out / "demo.mp4", pictures(), rate / step)


def _worth_showing(boxes: Boxes3D, models: _Models) -> Boxes3D:
    if models.trained:
        return boxes.select(boxes.scores >= SHOWN_SCORE)
    return boxes.select(np.arange(min(SHOWN, len(boxes))))
