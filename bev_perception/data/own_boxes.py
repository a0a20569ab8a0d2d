"""Boxes of one's own recordings: JSON lines, and a file that maps their classes.

A line is a box, or says that nothing is to be seen at its stamp (class null, nothing else is read):

    {"stamp": 1700000000500000000, "frame": "map", "class": "forklift", "track_id": 7, "center": [12.1, -3.0, 1.1],
     "size": [2.4, 1.2, 2.2], "yaw": 1.57, "velocity": [0.0, 1.5]}
    {"stamp": 1700000001000000000, "class": null}
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.strict import ConfigError, UserError, parse_json, read_yaml

#: ns; no recording is older (2001), but stamps in s, ms or us look as if they were
FIRST_STAMP = 1_000_000_000_000_000_000
#: longest line of a file of boxes, bytes
MAX_LINE = 100_000
KEYS = frozenset({"stamp", "frame", "class", "track_id", "center", "size", "yaw", "velocity", "bag"})
_REQUIRED = ("frame", "class", "track_id", "center", "size", "yaw")
#: keys of the results of `run` that say nothing of a truth
_PASSED_OVER = frozenset({"score"})
_CLASS_NAME = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")


class BoxesError(UserError):
    """A file of boxes or classes that cannot be used; the message names cause and remedy."""


@dataclass(frozen=True)
class OwnBox:
    """A box as its file gives it.

    stamp: ns
    frame: tf frame of what follows
    name: class, as the file calls it
    track: of the object, the same at all stamps
    center: [3], m
    size: [3], length, width, height, m
    yaw: rad, counter-clockwise from +x
    velocity: [2], m/s over ground along the axes of the frame; None if it is not given
    """

    stamp: int
    frame: str
    name: str
    track: str
    center: np.ndarray
    size: np.ndarray
    yaw: float
    velocity: np.ndarray | None


@dataclass(frozen=True)
class OwnBoxes:
    """A file of boxes.

    path: of the file
    of_stamps: stamp (ns) -> its boxes; none where nothing was to be seen
    bags: stamp -> names of the only bags that it is of; a stamp that names none is of any
    """

    path: Path
    of_stamps: Mapping[int, list[OwnBox]]
    bags: Mapping[int, set[str]]

    def stamps_of(self, bag: str) -> list[int]:
        """Return the annotated stamps (ns) that may be of a bag, ascending."""
        return sorted(stamp for stamp in self.of_stamps if not self.bags[stamp] or bag in self.bags[stamp])


def read_own_boxes(path: Path) -> OwnBoxes:
    """Read a file of boxes.

    Raises BoxesError, naming the line, for a file that is missing, empty or not of this form.
    """
    of_stamps: dict[int, list[OwnBox]] = {}
    bags: dict[int, set[str]] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), 1):
                if not line.strip():
                    continue
                try:
                    stamp, bag, box = _parse(line)
                except BoxesError as error:
                    raise BoxesError(f"{path}, line {number}: {error}") from error
                boxes = of_stamps.setdefault(stamp, [])
                bags.setdefault(stamp, set()).update([bag] if bag else [])
                if box is not None:
                    if any((other.track, other.name) == (box.track, box.name) for other in boxes):
                        raise BoxesError(
                            f"{path}, line {number}: the {box.name} of track {box.track} has two boxes at {stamp} ns; "
                            "give every object a track_id of its own"
                        )
                    boxes.append(box)
    except OSError as error:
        raise BoxesError(f"the boxes {path} cannot be read ({error}); give a file of JSON lines") from error
    if not of_stamps:
        raise BoxesError(f"{path} is empty; write a box on each line, see docs/own-data.md")
    return OwnBoxes(path, of_stamps, bags)


def _parse(line: bytes) -> tuple[int, str, OwnBox | None]:
    """Return stamp, name of the bag or "", and the box of a line; raise BoxesError, without the file, if it is none."""
    try:
        row = parse_json(line)
    except ValueError as error:
        raise BoxesError(f"no JSON ({error}); write one box on each line, as in docs/own-data.md") from error
    if not isinstance(row, dict):
        raise BoxesError("no JSON object; write one box on each line, as in docs/own-data.md")
    for key in sorted(row.keys() - KEYS - _PASSED_OVER):
        near = difflib.get_close_matches(key, KEYS, n=1)
        raise BoxesError(f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else _known()))
    stamp, bag = row.get("stamp"), row.get("bag", "")
    if type(stamp) is not int or stamp < FIRST_STAMP or stamp >= 1 << 63:
        raise BoxesError(f"stamp is {stamp!r}; it must be the time of headers in whole ns, as 1700000000500000000")
    if not isinstance(bag, str):
        raise BoxesError(f"bag is {bag!r}; it must be the name of the bag's directory, or be left out")
    if row.get("class", "") is None:
        return stamp, bag, None
    if lacking := [key for key in _REQUIRED if row.get(key) is None]:
        raise BoxesError(f"{', '.join(lacking)} is missing; {_known()}")
    for key in ("frame", "class"):
        if not isinstance(row[key], str) or not row[key]:
            raise BoxesError(f"{key} is {row[key]!r}; it must be a name")
    if not isinstance(row["track_id"], (str, int)) or isinstance(row["track_id"], bool):
        raise BoxesError(f"track_id is {row['track_id']!r}; it must be a number or a name")
    size = _numbers(row, "size", 3)
    if size.min() <= 0:
        raise BoxesError(f"size is {size.tolist()}; length, width and height must be positive, in m")
    velocity = None if row.get("velocity") is None else _numbers(row, "velocity", 2)
    yaw = row["yaw"]
    if isinstance(yaw, bool) or not isinstance(yaw, (int, float)) or not abs(yaw) <= 4 * math.pi:
        raise BoxesError(f"yaw is {yaw!r}; it must be an angle in rad, not in degrees")
    center, frame = _numbers(row, "center", 3), row["frame"].lstrip("/")
    return stamp, bag, OwnBox(stamp, frame, row["class"], str(row["track_id"]), center, size, float(yaw), velocity)


def _known() -> str:
    return f"a box has {', '.join(_REQUIRED)} and stamp, and may have velocity and bag"


def _numbers(row: dict[str, Any], key: str, count: int) -> np.ndarray:
    values = row[key]
    if (
        not isinstance(values, list)
        or len(values) != count
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e9 for v in values)
    ):
        raise BoxesError(f"{key} is {values!r}; it must be {count} numbers")
    return np.array(values, np.float64)


def read_classes(path: Path) -> dict[str, str | None]:
    """Return class in the file of boxes -> class of the data set, None for those that are left out.

    Raises ConfigError for a file that is no such mapping, or with a class that is nearly one of nuScenes.
    """
    classes: dict[str, str | None] = {}
    for key, value in read_yaml(path).items():
        if value is not None and (not isinstance(value, str) or not _CLASS_NAME.fullmatch(value)):
            raise ConfigError(
                f"{path}: {key} becomes {value!r}; a class is called by small letters, digits and _, such as "
                "traffic_cone, and null leaves it out"
            )
        near = [] if value is None else difflib.get_close_matches(value, NUSCENES_CLASSES, n=1, cutoff=0.85)
        if near and near[0] != value:
            raise ConfigError(f"{path}: {key} becomes {value!r}; did you mean {near[0]!r}?")
        classes[str(key)] = value
    if not any(classes.values()):
        raise ConfigError(f"{path} maps no class; write a line such as `person: pedestrian` for each class")
    return classes


def check_mapped(boxes: OwnBoxes, classes: Mapping[str, str | None], path: Path) -> None:
    """Raise ConfigError if boxes have classes that `classes`, read from `path`, does not name."""
    names: Iterable[str] = sorted({box.name for found in boxes.of_stamps.values() for box in found})
    if lacking := [name for name in names if name not in classes]:
        raise ConfigError(
            f"{path} does not say what becomes of {', '.join(lacking)}, which {boxes.path} has; add a line such as "
            f"`{lacking[0]}: car`, or `{lacking[0]}: null` to leave it out"
        )
