"""The demo: a short drive as a bag, through the real node over DDS, to pictures and a table of latencies."""

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

from bev_perception.checkpoints import load_checkpoint
from bev_perception.config import NUSCENES_CLASSES, load_variant
from bev_perception.data.drive import CAMERAS, Drive
from bev_perception.data.messages import stamp_ns
from bev_perception.data.nuscenes import open_scene
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.geometry import rotation_from_quaternion, yaw_from_rotation
from bev_perception.health import Health
from bev_perception.images import decode_image
from bev_perception.models import build_model
from bev_perception.offline import boxes_to_json, collect_frames
from bev_perception.pipeline import write_initial_weights
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.process import NodeProcess, new_domain
from bev_perception.synchronizer import SynchronizerSettings
from bev_perception.types import Boxes3D, Frame
from bev_perception.visualization.pictures import draw_frame, write_png, write_video

if TYPE_CHECKING:
    from bev_perception.msg import Object3DArray
    from bev_perception.ros.peer import Listener

#: boxes that a picture shows; an untrained model is sure of nothing, and hundreds of boxes hide the picture
SHOWN = 40


@dataclass(frozen=True)
class DemoSettings:
    """out: directory to fill.  nuscenes: a dataroot for real images, else a made-up drive of `seconds` is used.

    checkpoint: None makes untrained weights.
    """

    out: Path
    nuscenes: Path | None
    version: str
    scene: str
    seconds: float
    variant: str
    checkpoint: Path | None


def run_demo(settings: DemoSettings) -> str:
    """Run the demo; return its closing text: the table of latencies and one line that says where everything is."""
    ensure_interfaces()
    settings.out.mkdir(parents=True, exist_ok=True)
    bag, drive = _make_bag(settings)
    checkpoint = settings.checkpoint or settings.out / "untrained.safetensors"
    if settings.checkpoint is None:
        write_initial_weights(settings.variant, checkpoint, seed=0)
    trained = load_checkpoint(build_model(load_variant(settings.variant)), checkpoint).trained
    boxes, table = _drive_through_node(settings, bag, checkpoint, trained)
    rate = 12.0 if drive.name.startswith("synthetic") else 2.0
    pictures = _draw(settings.out, bag, boxes, rate, "" if trained else "weights: UNTRAINED, the boxes mean nothing")
    (settings.out / "latency.txt").write_text(table + "\n")
    warning = "" if trained else " THE WEIGHTS ARE UNTRAINED: the boxes show that the path works, not what it detects."
    where = f"{pictures} frames in {settings.out}: demo.png, demo.mp4, detections.json, latency.txt, node.log, drive/"
    return f"{table}\n{where} (bag).{warning}"


def _make_bag(settings: DemoSettings) -> tuple[Path, Drive]:
    if settings.nuscenes is not None:
        drive = open_scene(settings.nuscenes, settings.version, settings.scene)
    else:
        drive = synthetic_drive(settings.seconds)
    bag = settings.out / "drive"
    if (bag / "metadata.yaml").exists():  # of the demo before
        shutil.rmtree(bag)
    write_bag(drive, bag)
    return bag, drive


def _drive_through_node(
    settings: DemoSettings, bag: Path, checkpoint: Path, trained: bool
) -> tuple[dict[int, Boxes3D], str]:
    """Play the bag to the node, set by set; return the boxes by stamp and the table of latencies."""
    from bev_perception.ros.peer import Listener  # needs the messages that ensure_interfaces provides

    domain = new_domain()
    parameters: dict[str, object] = {
        "variant": settings.variant,
        "checkpoint": checkpoint,
        "image_transport": "compressed",
        "diagnostics_period": 0.5,
    }
    if not trained:
        parameters["score_threshold"] = 0.0  # nothing reaches a sensible one
    node = NodeProcess("perception_node", domain, settings.out / "node.log", parameters)
    listener = Listener(domain)
    try:
        node.wait_log("is ready", timeout=120)
        player = NodeProcess("bag_player", domain, settings.out / "player.log", {"bag": bag, "lockstep": True})
        try:
            _watch(player, node, listener)
        finally:
            player.kill()
        time.sleep(1.0)  # one more diagnostics message
        if node.interrupt() != 0:
            raise ChildProcessError(f"the node did not end cleanly:\n{node.text()}")
        boxes = {stamp_ns(message.header.stamp): _boxes(message) for message in listener.objects}
        (settings.out / "detections.json").write_text(
            json.dumps([{"stamp": s, "boxes": boxes_to_json(b)} for s, b in boxes.items()], indent=1)
        )
        return boxes, _table(listener.values())
    finally:
        node.kill()
        listener.close()


def _watch(player: NodeProcess, node: NodeProcess, listener: Listener) -> None:
    """Show the progress until the player is done; raises ChildProcessError if it or the node fails."""
    with tqdm(desc="play", unit="set") as bar:
        while player.alive():
            if not node.alive():
                raise ChildProcessError(f"the node ended with status {node.process.returncode}:\n{node.text()}")
            time.sleep(0.1)
            bar.update(len(listener.arrivals) - bar.n)
    if player.process.returncode != 0:
        raise ChildProcessError(f"the player ended with status {player.process.returncode}:\n{player.text()}")
    if not listener.arrivals:
        raise ChildProcessError("the node published no detections; its log and the player's tell why")


def _boxes(message: Object3DArray) -> Boxes3D:
    objects = message.objects
    size = lambda v: (v.x, v.y, v.z)  # noqa: E731
    quaternions = [(o.pose.orientation.w, 0.0, 0.0, o.pose.orientation.z) for o in objects]
    return Boxes3D(
        centers=np.array([size(o.pose.position) for o in objects]).reshape(-1, 3),
        sizes=np.array([size(o.size) for o in objects]).reshape(-1, 3),
        yaws=np.array([yaw_from_rotation(rotation_from_quaternion(*q)) for q in quaternions]),
        velocities=np.array([(o.velocity.x, o.velocity.y) for o in objects]).reshape(-1, 2),
        scores=np.array([o.score for o in objects]),
        labels=np.array([NUSCENES_CLASSES.index(o.class_name) for o in objects], np.int64),
        class_names=NUSCENES_CLASSES,
    )


def _table(values: dict[str, str]) -> str:
    """Return the node's own latencies as text."""
    stages = [key.removesuffix(" p50 [ms]") for key in values if key.endswith(" p50 [ms]")]
    lines = [f"{'stage':12} {'p50 [ms]':>9} {'p95 [ms]':>9}"]
    lines += [f"{stage:12} {values[f'{stage} p50 [ms]']:>9} {values[f'{stage} p95 [ms]']:>9}" for stage in stages]
    lines.append(
        f"sets: {values.get('frames')}, device: {values.get('device')}, dropped: {values.get('last drop') or 'none'}"
    )
    return "\n".join(lines)


def _draw(out: Path, bag: Path, boxes: dict[int, Boxes3D], rate: float, note: str) -> int:
    frames = list(collect_frames(BagReader(bag).events(), SynchronizerSettings(CAMERAS), Health()))
    shown = [frame for frame in frames if frame.stamp in boxes]

    def pictures() -> Iterator[np.ndarray]:
        for frame in tqdm(shown, desc="draw", unit="frame"):
            picture = _draw_one(frame, boxes[frame.stamp], note)
            if frame is shown[len(shown) // 2]:
                write_png(out / "demo.png", picture)
            yield picture

    return write_video(out / "demo.mp4", pictures(), rate)


def _draw_one(frame: Frame, boxes: Boxes3D, note: str) -> np.ndarray:
    images = {view.image.camera: decode_image(view.image) for view in frame.views if view is not None}
    return draw_frame(frame, images, boxes.select(np.arange(min(SHOWN, len(boxes)))), note)
