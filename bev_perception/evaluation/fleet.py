"""Read the results of a fleet of bags by its manifest, to sum them up and to score them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.data.folders import sha256_of
from bev_perception.evaluation.occupancy_files import read_occupancy
from bev_perception.evaluation.replay import Replay
from bev_perception.health import HealthSnapshot
from bev_perception.pipeline.fleet import VOXELS, FleetError, read_manifest
from bev_perception.pipeline.offline import read_results
from bev_perception.strict import inside
from bev_perception.types import NO_TRACK, Boxes3D, Result


@dataclass(frozen=True)
class FleetReport:
    """What became of the bags of a fleet.

    frames: bag -> number of frames, of those that are done
    failed: bag -> why it has failed
    health: drops and resets of all bags together
    occupancy: whether the results are occupancy
    """

    frames: dict[str, int]
    failed: dict[str, str]
    health: HealthSnapshot
    occupancy: bool

    def table(self) -> str:
        """Return one line a bag."""
        width = max(map(len, (*self.frames, *self.failed)), default=0)
        lines = [f"{name:{width}}  {count} frames" for name, count in self.frames.items()]
        return "\n".join([*lines, *(f"{name:{width}}  failed: {why}" for name, why in self.failed.items())])


def replay_fleet(manifest: Path, replay: Replay) -> FleetReport:
    """Give the results of all bags that are done to `replay`, and return what became of the bags.

    Raises FleetError for a manifest, or results, that are not what was written.
    """
    frames: dict[str, int] = {}
    failed: dict[str, str] = {}
    drops: Counter[str] = Counter()
    resets: Counter[str] = Counter()
    occupancy = False
    for name, entry in read_manifest(manifest).items():
        if entry.get("status") != "done":
            failed[name] = str(entry.get("error", "unknown"))
            continue
        path = inside(manifest.parent, str(entry["results"]))
        if not path.is_file() or sha256_of(path) != entry["results_sha256"]:
            raise FleetError(f"{path} is not what the manifest says; run the bags again, which keeps what is whole")
        results = read_results(path)
        (class_names,) = results.header["classes"].values()
        for count, frame in enumerate(results.frames(), 1):
            result = _result(frame, class_names, path.parent / VOXELS)
            occupancy |= result.occupancy is not None
            replay.add_stored(result, begins=count == 1)
            frames[name] = count
        end = results.end or {}
        drops.update(end.get("drops", {}))
        resets.update(end.get("resets", {}))
    health = HealthSnapshot(sum(frames.values()), 0.0, 0.0, dict(drops), dict(resets), {}, "", "", 0, "", {})
    return FleetReport(frames, failed, health, occupancy)


def _result(frame: dict[str, Any], class_names: Sequence[str], voxels: Path) -> Result:
    stamp, boxes = int(frame["stamp"]), None
    found = voxels / f"{stamp}.npz"
    if frame["boxes"] is not None:
        boxes = _boxes(frame["boxes"], tuple(class_names))
    occupancy = read_occupancy(found, class_names) if found.is_file() else None
    return Result(stamp, boxes, occupancy, frame["missing"], frame["reset"], {}, frame["history"])


def _boxes(rows: Sequence[dict[str, Any]], class_names: tuple[str, ...]) -> Boxes3D:
    def column(key: str, *shape: int) -> np.ndarray:
        return np.array([row[key] for row in rows], np.float64).reshape(len(rows), *shape)

    return Boxes3D(
        column("center", 3),
        column("size", 3),
        column("yaw"),
        column("velocity", 2),
        column("score"),
        np.array([class_names.index(row["class"]) for row in rows], np.int64),
        class_names,
        np.array([NO_TRACK if row["track_id"] is None else row["track_id"] for row in rows], np.int64),
    )
