"""A bag through the pipeline without ROS: the node's own steps, in the order in which the bag holds the messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bev_perception.data.occupancy_labels import write_occupancy
from bev_perception.data.rosbag import BagEvent, CalibrationEvent, ImageEvent, TransformEvent
from bev_perception.health import Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.sensing.preprocess import NoUsableViewError
from bev_perception.sensing.synchronizer import Synchronizer, SynchronizerSettings
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.types import Boxes3D, Frame, Result


def collect_frames(events: Iterable[BagEvent], settings: SynchronizerSettings, health: Health) -> Iterator[Frame]:
    """Yield the frames of a recording, as the node would form them; what is dropped is counted in `health`."""
    tree = TransformTree()
    synchronizer = Synchronizer(settings, tree, health)
    for event in events:
        if isinstance(event, ImageEvent):
            synchronizer.add(event.image)
        elif isinstance(event, CalibrationEvent):
            synchronizer.set_calibration(event.camera, event.calibration or event.error)
        elif isinstance(event, TransformEvent) and event.static:
            tree.set_static(event.parent, event.child, event.child2parent)
        elif isinstance(event, TransformEvent):
            tree.add(event.parent, event.child, event.stamp, event.child2parent)
        else:
            health.drop("bad message", f"{event.topic}: {event.error}")
        yield from synchronizer.poll()


def run_events(events: Iterable[BagEvent], pipeline: Pipeline, settings: SynchronizerSettings) -> Iterator[Result]:
    """Yield the result of every frame of a recording that has a usable view."""
    return (result for _, result in run_frames(events, pipeline, settings))


def run_frames(
    events: Iterable[BagEvent], pipeline: Pipeline, settings: SynchronizerSettings
) -> Iterator[tuple[Frame, Result]]:
    """Yield every frame of a recording that has a usable view, with its result."""
    for frame in collect_frames(events, settings, pipeline.health):
        try:
            yield frame, pipeline.step(frame)
        except NoUsableViewError:
            continue  # counted by the pipeline, with the reasons


def boxes_to_json(boxes: Boxes3D) -> list[dict[str, Any]]:
    """Return boxes as plain values: class, score, center (m), size (l, w, h in m), yaw (rad), velocity (m/s)."""
    return [
        {
            "class": boxes.class_names[int(boxes.labels[i])],
            "score": float(boxes.scores[i]),
            "center": [float(v) for v in boxes.centers[i]],
            "size": [float(v) for v in boxes.sizes[i]],
            "yaw": float(boxes.yaws[i]),
            "velocity": [float(v) for v in boxes.velocities[i]],
        }
        for i in range(len(boxes))
    ]


def write_results(path: Path, pipeline: Pipeline, results: Iterable[Result], occupancy: Path | None = None) -> int:
    """Write results as JSON (stamps in ns, boxes in base_link at that stamp); return the number of frames.

    occupancy: directory for the frames' occupancy, <stamp>.npz each (see write_occupancy); None: it is not written.

    Where the results break off with an error (a damaged bag), those before it are written, marked as not complete,
    and the error goes on.
    """
    frames: list[dict[str, Any]] = []
    complete = False
    try:
        for result in results:
            if result.occupancy is not None and occupancy is not None:
                write_occupancy(result.occupancy, occupancy, str(result.stamp))
            frames.append(
                {
                    "stamp": result.stamp,
                    "boxes": None if result.boxes is None else boxes_to_json(result.boxes),
                    "missing": result.missing,
                    "reset": result.reset,
                    "history": result.history,
                }
            )
        complete = True
    finally:
        _write_document(path, pipeline, frames, complete)
    return len(frames)


def _write_document(path: Path, pipeline: Pipeline, frames: list[dict[str, Any]], complete: bool) -> None:
    snapshot = pipeline.health.snapshot()
    document = {
        "variants": {v.config.name: str(v.checkpoint.path) for v in pipeline.variants},
        "trained": pipeline.trained,
        "complete": complete,
        "frames": frames,
        "drops": snapshot.drops,
        "resets": snapshot.resets,
    }
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(document, indent=1))
    partial.replace(path)
