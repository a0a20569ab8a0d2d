"""Rows of the tables of nuScenes (Caesar et al., CVPR 2020), for data sets that are written in that form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.files import whole_file
from bev_perception.geometry import quaternion_from_rotation

Row = dict[str, Any]


def token_of(*what: object) -> str:
    """Return the token of something, 32 hexadecimal digits; the same arguments always give the same token."""
    return hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=16).hexdigest()


def linked(rows: Sequence[Row]) -> list[Row]:
    """Fill in prev and next of consecutive rows."""
    for k, row in enumerate(rows):
        row["prev"] = rows[k - 1]["token"] if k else ""
        row["next"] = rows[k + 1]["token"] if k + 1 < len(rows) else ""
    return list(rows)


def pose_row(transform: np.ndarray) -> Row:
    """Return the entries rotation and translation of a pose [4, 4]."""
    return {
        "rotation": quaternion_from_rotation(transform[:3, :3]).tolist(),
        "translation": transform[:3, 3].tolist(),
    }


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, which only appears once it is complete."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(document))
