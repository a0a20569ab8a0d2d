"""The tables of nuScenes (Caesar et al., CVPR 2020) for synthetic scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bev_perception.data.nuscenes import TABLES
from bev_perception.data.table_rows import Row, token_of, write_json
from bev_perception.synth.settings import CAMERAS, EVERY_SCENE, LIDAR, SPLITS, VAL_EVERY, VERSION

#: tables that each scene adds rows to; the others are the same for all scenes
SCENE_TABLES = tuple(name for name in TABLES if name not in ("attribute", "category", "sensor", "visibility"))
CATEGORIES = (
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.police_officer",
    "movable_object.barrier",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
)
ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
_LEVELS = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}


def category_token(name: str) -> str:
    """Return the token of a category."""
    return token_of("category", name)


def attribute_token(name: str) -> str:
    """Return the token of an attribute."""
    return token_of("attribute", name)


def sensor_token(channel: str) -> str:
    """Return the token of a sensor."""
    return token_of("sensor", channel)


def _common(cameras: Sequence[str]) -> dict[str, list[Row]]:
    """Return the tables that do not depend on the scenes.

    cameras: channels
    """
    return {
        "category": [{"token": category_token(name), "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": attribute_token(name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": token, "level": level, "description": f"visibility of whole object is {level[1:]} %"}
            for token, level in _LEVELS.items()
        ],
        "sensor": [
            {"token": sensor_token(channel), "channel": channel, "modality": "lidar" if channel == LIDAR else "camera"}
            for channel in (*cameras, LIDAR)
        ],
    }


def splits_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the scenes of each split, in the form in which nuscenes-devkit reads custom splits from splits.json."""
    train, val = SPLITS
    return {
        train: [name for k, name in enumerate(names) if k % VAL_EVERY],
        val: [name for k, name in enumerate(names) if k % VAL_EVERY == 0],
        EVERY_SCENE: list(names),
    }


def write_tables(root: Path, scenes: Iterable[dict[str, list[Row]]], cameras: Sequence[str] = CAMERAS) -> None:
    """Write all tables and splits.json.

    root: the dataroot
    scenes: rows of each scene by table (SCENE_TABLES)
    cameras: channels
    """
    tables: dict[str, list[Row]] = {name: [] for name in TABLES} | _common(cameras)
    for scene in scenes:
        for name in SCENE_TABLES:
            tables[name] += scene[name]
    directory = root / VERSION
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        write_json(directory / f"{name}.json", rows)
    write_json(directory / "splits.json", splits_of([row["name"] for row in tables["scene"]]))
