"""Summarize results over recordings, and score them where the truth of nuScenes is available.

A bag contains no truth. A bag of a nuScenes scene, as `bag create --nuscenes` writes it, is scored by its stamps: the
result of a frame that has the stamp of an image of a key frame is scored on that key frame. Boxes are transformed to
the global frame with the pose from the recording's tf, so that grouping, tf and mounting are part of what is scored.
So is the difference in time: boxes belong to the anchor camera's stamp and the truth to the lidar's, a few 10 ms later,
in which an object at 10 m/s moves about 0.4 m. Voxels are moved to the pose of the car at the stamp of the lidar.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.data.records import Records
from bev_perception.data.rosbag import BagEvent, ImageEvent
from bev_perception.evaluation.detection import DetectionScores, score_results
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.occupancy import OccupancyCounts, OccupancyScores
from bev_perception.evaluation.occupancy_files import SCORES_FILE, count_row
from bev_perception.evaluation.submissions import (
    DETECTION_FILE,
    TRACKING_FILE,
    to_submission,
    to_tracking_submission,
    write_submission,
)
from bev_perception.evaluation.tracking import TrackingScores, score_tracks
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.health import HealthSnapshot
from bev_perception.types import Frame, Occupancy, Result

#: m, largest distance between the poses of recording and nuScenes; between camera and lidar a car moves up to 2 m
SAME_FRAME = 10.0


class Replay:
    """Collects results of recordings one after the other: `watch` the events, and `add` the result of each frame.

    frames: number of frames so far
    """

    def __init__(
        self, records: Records | None = None, labels: str | Path = LABELS_FOLDER, tracking: bool = False
    ) -> None:
        """Start empty.

        records: key frames of nuScenes that may be among the frames; None: only a summary is possible
        labels: folder of their occupancy labels, see labels_path
        tracking: whether tracks shall be scored, see score_tracking
        """
        self._records, self._labels, self._tracking = records, labels, tracking
        rows = range(0 if records is None else len(records))
        self._row_of = {stamp: i for i in rows for stamp in self._key_stamps(i)}
        self._held: set[int] = set()  # key frames of which the recordings have an image
        self._answered: set[int] = set()  # those that a result is of
        self._submission: dict[int, list[dict[str, Any]]] = {}
        self._tracks: dict[int, list[dict[str, Any]]] = {}
        self._counts: dict[int, OccupancyCounts] = {}
        self._nothing: Occupancy | None = None  # stands for an occupancy that was lost
        self.frames = 0
        self._last = 0  # stamp of the recording's last frame
        self._intervals, self._seconds = 0, 0.0  # between frames of one recording
        self._boxes: Counter[str] = Counter()

    def watch(self, events: Iterable[BagEvent]) -> Iterator[BagEvent]:
        """Yield the events of a recording unchanged, and note which key frames it has images of."""
        self._last = 0
        for event in events:
            if isinstance(event, ImageEvent) and event.image.stamp in self._row_of:
                self._held.add(self._row_of[event.image.stamp])
            yield event

    def add(self, frame: Frame, result: Result) -> None:
        """Add the result of a frame of the recording that is being watched.

        Raises EvaluationError if the fixed frame of the recording is not the global frame of nuScenes, or if the labels
        cannot be compared with the occupancy; NuScenesError for missing or damaged labels.
        """
        if self._last:
            self._intervals += 1
            self._seconds += (frame.stamp - self._last) / 1e9
        self._last = frame.stamp
        self.frames += 1
        if result.boxes is not None:
            self._boxes.update(result.boxes.class_names[label] for label in result.boxes.labels.tolist())
        row = self._row_of.get(frame.stamp)
        if row is None:
            return
        self._check_place(row, frame)
        self._answered.add(row)
        records = self._of_nuscenes
        if result.boxes is not None:
            place = (records.tokens[row], np.eye(4), frame.ego2global)
            self._submission[row] = to_submission(result.boxes, *place)
            if self._tracking:
                self._tracks[row] = to_tracking_submission(result.boxes, *place)
        if result.occupancy is not None:
            moved = move_occupancy(result.occupancy, frame.ego2global, records.ego2global(row))
            self._counts[row] = count_row(moved, records, row, self._labels)
            if self._nothing is None:
                none = None if moved.instances is None else np.zeros_like(moved.instances)
                self._nothing = replace(moved, semantics=np.full_like(moved.semantics, moved.free), instances=none)

    def add_stored(self, result: Result, begins: bool) -> None:
        """Add a result that was stored before, without its frame; the pose of a key frame is that of nuScenes.

        begins: whether another recording begins with it

        Raises the errors of `add`.
        """
        if begins:
            self._last = 0
        ego2global, row = np.eye(4), self._row_of.get(result.stamp)
        if row is not None:
            self._held.add(row)
            images = self._of_nuscenes.images(self._of_nuscenes.cameras(row))
            ego2global = next(image.ego2global for image in images if image.stamp * 1000 == result.stamp)
        self.add(Frame(result.stamp, (), (), ego2global), result)

    def summary(self, health: HealthSnapshot) -> str:
        """Return as text the number of frames, what was dropped, and the number of boxes by class."""
        rate = f", {self._intervals / self._seconds:.1f} Hz" if self._seconds else ""
        lines = [f"{self.frames} frames, {self._seconds:.1f} s of recording{rate}"]
        lines += [f"{what}: {cause} {n}" for what, causes in _losses(health) for cause, n in causes.items()]
        if self._nothing is None or self._boxes:
            found = (f"{name} {n / self.frames:.1f}" for name, n in self._boxes.most_common())
            lines.append("boxes a frame: " + (", ".join(found) or "none"))
        return "\n".join(lines)

    def score(self, version: str, out: Path, max_range: float | None = None) -> DetectionScores:
        """Write out/results_nusc.json and score it on the key frames of which the recordings have an image.

        A key frame without a result counts as one without boxes. All other key frames of the scenes are in the file
        without boxes, because nuscenes-devkit requires them, but are not scored.

        version: of the tables
        out: directory to write to
        max_range: as in score_results

        Raises EvaluationError if there is no such key frame, or no truth for any.
        """
        path = out / DETECTION_FILE
        return score_results(path, *self._write(self._submission, version, path), max_range)

    def score_tracking(self, version: str, out: Path, max_range: float | None = None) -> TrackingScores:
        """Write out/tracking_nusc.json and score it on the same key frames as `score`; arguments and errors as there.

        Tracks are those of all frames of the recording, of which the key frames are a part.
        """
        path = out / TRACKING_FILE
        return score_tracks(path, *self._write(self._tracks, version, path), max_range)

    def _write(
        self, entries: dict[int, list[dict[str, Any]]], version: str, path: Path
    ) -> tuple[Path, str, None, Path, list[str], set[str]]:
        """Write a submission with entries by row; return what scores are to be of: root, version, ... samples."""
        records = self._of_nuscenes
        self._check_held(version)
        if not any(len(records.annotations(i).names) for i in self._held):
            raise EvaluationError(f"{version} has no boxes for these key frames; the truth of test is not published")
        scenes = {records.scenes[i] for i in self._held}
        samples = [i for i in range(len(records)) if records.scenes[i] in scenes]
        write_submission({records.tokens[i]: entries.get(i, []) for i in samples}, path)
        tokens = {records.tokens[i] for i in self._held}
        return records.root, version, None, path.parent, sorted(scenes), tokens

    def score_occupancy(self, version: str, out: Path, only_predicted: float = math.nan) -> OccupancyScores:
        """Score occupancy on the same key frames as `score`, and write out/occupancy_metrics.json.

        A key frame without a result counts as one in which everything is free.

        only_predicted: see Family.only_predicted

        Raises EvaluationError if there is no such key frame, or no result at all.
        """
        self._check_held(version)
        if self._nothing is None:
            raise EvaluationError("no key frame got an occupancy; run a variant that gives one")
        for row in self._held - self._counts.keys():
            self._counts[row] = count_row(self._nothing, self._of_nuscenes, row, self._labels)
        first, *others = self._counts.values()
        scores = OccupancyScores.of(sum(others, start=first), self._nothing.class_names, only_predicted)
        scores.write(out / SCORES_FILE)
        return scores

    def coverage(self) -> str:
        """Return as text which key frames were scored."""
        records = self._of_nuscenes
        scenes = sorted({records.scenes[i] for i in self._held})
        total = sum(scene in scenes for scene in records.scenes)
        lost = len(self._held - self._answered)
        text = f"scored on {len(self._held)} of the {total} key frames of {', '.join(scenes)}"
        return text + (f"; {lost} of them gave no result" if lost else "")

    @property
    def _of_nuscenes(self) -> Records:
        if self._records is None:
            raise EvaluationError("nothing can be scored without the data set; name its root")
        return self._records

    def _check_held(self, version: str) -> None:
        if not self._held:
            raise EvaluationError(
                f"no image of the recording has the stamp of a key frame of {version}; give the version that the "
                "recording was made of, or leave out the data for a summary alone"
            )

    def _key_stamps(self, row: int) -> list[int]:
        """Return the stamps (ns) of a key frame's images; a frame has one of them, whichever camera is its anchor."""
        records = self._of_nuscenes
        return [stamp * 1000 for stamp in records.image_stamps(records.cameras(row))]

    def _check_place(self, row: int, frame: Frame) -> None:
        there = self._of_nuscenes.ego2global(row)[:3, 3]
        here = frame.ego2global[:3, 3]
        if np.linalg.norm(here - there) > SAME_FRAME:
            raise EvaluationError(
                f"the recording has the car at {here.round(1).tolist()}, nuScenes at {there.round(1).tolist()}: its "
                "fixed frame is not the global frame of the maps; only in that frame boxes can be scored"
            )


def move_occupancy(occupancy: Occupancy, ego2global: np.ndarray, other2global: np.ndarray) -> Occupancy:
    """Return an occupancy resampled for another pose of the car; voxels from outside of the grid are free.

    occupancy: in base_link at `ego2global`
    ego2global: [4, 4], pose of the car that the voxels belong to
    other2global: [4, 4], pose of the car that the voxels shall belong to
    """
    grid = occupancy.grid
    middles = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in grid.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    there = np.array(grid.origin) + grid.resolution * middles
    here = transform_points(invert_transform(ego2global) @ other2global, there)
    at = np.floor((here - grid.origin) / grid.resolution).astype(np.int64)  # [n, 3], the voxels that they were
    inside = ((at >= 0) & (at < grid.shape)).all(axis=1)
    source = tuple(at[inside].T)

    def moved(values: np.ndarray, empty: int) -> np.ndarray:
        taken = np.full(len(at), empty, values.dtype)
        taken[inside] = values[source]
        return taken.reshape(grid.shape)

    instances = None if occupancy.instances is None else moved(occupancy.instances, 0)
    return replace(occupancy, semantics=moved(occupancy.semantics, occupancy.free), instances=instances)


def _losses(health: HealthSnapshot) -> list[tuple[str, dict[str, int]]]:
    return [("dropped", health.drops), ("memory wiped", health.resets)]
