"""Benchmark the occupancy messages: their size in bytes, and the times to build and to read them.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message, serialize_message

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import read_labels
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.msg import SemanticOccupancy
from bev_perception.results.costmap import CostmapSettings, costmap
from bev_perception.results.occupancy_codec import decode, encode
from bev_perception.ros import occupancy_messages
from bev_perception.types import BASE_FRAME, OCC3D_GRID, CameraImage, Frame, Occupancy, View

REPEATS = 20


def measure_occupancy(label: Path | None = None) -> dict[str, dict[str, Any]]:
    """Measure the messages of a synthetic street, and of an Occ3D label (a labels.npz) if one is given.

    Returns, for each of them:
    "occupied voxels": their number
    "dense bytes": size of the grid with one byte per voxel
    "<topic> bytes": size of the serialized message of each topic
    "<step> ms": p50 and p95 of the time of each step over REPEATS runs; building a message includes serializing it
    """
    grids = {"made-up street": made_up_street()}
    if label is not None:
        grids["label of Occ3D"] = Occupancy(read_labels(label).semantics, OCC3D_CLASSES)
    return {name: _measure(occupancy) for name, occupancy in grids.items()}


def made_up_street(seed: int = 0) -> Occupancy:
    """Return a synthetic street on the Occ3D grid: sidewalks, house fronts, trees and cars, with holes as in labels."""
    rng = np.random.default_rng(seed)
    label = {name: OCC3D_CLASSES.index(name) for name in OCC3D_CLASSES}
    semantics = np.full(OCC3D_GRID.shape, label["free"], np.uint8)
    x, y = np.indices(OCC3D_GRID.shape[:2]) * OCC3D_GRID.resolution + OCC3D_GRID.origin[0]
    side = np.abs(y + 2 * np.sin(x / 15))
    ground = np.select([side < 7, side < 10], [label["driveable_surface"], label["sidewalk"]], label["terrain"])
    known = rng.random(ground.shape) < np.clip(1.5 - np.hypot(x, y) / 25, 0.0, 1)  # labels become sparser with distance
    semantics[..., 2] = np.where(known, ground, label["free"])
    front = (side > 14) & (side < 14.8) & (np.sin(x / 4) > -0.8)
    semantics[..., 3:][front & known] = label["manmade"]
    for _ in range(40):
        tree = np.hypot(x - rng.uniform(-40, 40), side - rng.uniform(10, 30))[..., None] < rng.uniform(0, 2.5, 16)
        semantics[tree & (rng.random(tree.shape) < 0.3) & (semantics == label["free"])] = label["vegetation"]
    for _ in range(12):
        i, j = rng.integers(0, 188), 100 + rng.choice((-15, -8, 8, 15))
        semantics[i : i + 11, j : j + 5, 3:7] = label["car"]
    return Occupancy(semantics, OCC3D_CLASSES)


def _measure(occupancy: Occupancy) -> dict[str, Any]:
    views = tuple(
        View(CameraImage(rig.name, 0, rig.name, "jpeg", b""), rig.calibration, rig.sensor2ego, np.eye(4))
        for rig in synthetic_rig()
    )
    frame = Frame(0, tuple(view.image.camera for view in views), views, np.eye(4))
    settings = CostmapSettings()

    def build_occupancy() -> bytes:
        return serialize_message(occupancy_messages.semantic_occupancy(occupancy, 0, BASE_FRAME))

    def build_points() -> bytes:
        return serialize_message(occupancy_messages.points(occupancy, 0, BASE_FRAME))

    def build_costmap() -> bytes:
        cells = costmap(occupancy, frame, (), settings)
        return serialize_message(occupancy_messages.occupancy_grid(cells, occupancy.grid, 0, BASE_FRAME))

    sent = build_occupancy()
    message = deserialize_message(sent, SemanticOccupancy)
    topics = {"occupancy": build_occupancy, "occupancy_points": build_points, "costmap": build_costmap}
    steps: dict[str, Callable[[], object]] = {
        "encode": lambda: encode(occupancy),
        "decode": lambda: decode(message),
        **{f"build {topic}": build for topic, build in topics.items()},
        "read occupancy": lambda: decode(deserialize_message(sent, SemanticOccupancy)),
    }
    return {
        "occupied voxels": int(occupancy.occupied.sum()),
        "dense bytes": occupancy.semantics.size,
        **{f"{topic} bytes": len(build()) for topic, build in topics.items()},
        **{f"{name} ms": _time(step) for name, step in steps.items()},
    }


def _time(step: Callable[[], object]) -> list[float]:
    """Return the p50 and p95 of the time of a step in ms."""
    step()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return [round(float(p) * 1e3, 2) for p in np.percentile(seconds, (50, 95))]
