"""Replayed recordings: what was found in how many frames, and against the truth of nuScenes where it is at hand.

A bag has no truth in it. One of a nuScenes scene, such as `bag create --nuscenes` writes, is scored by its stamps:
a frame that took the stamp of a key frame's image answers for that key frame. Its boxes go to the global frame with
the pose that the recording's tf has for the frame, as a live rig would do it, so that grouping, tf and mounting are
part of what is scored. So is that boxes are of the anchor camera's time while the truth is of the lidar's, a few 10 ms
later: what moves with 10 m/s is then 0.4 m behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.data.records import Records
from bev_perception.data.rosbag import BagEvent, ImageEvent
from bev_perception.evaluation.detection import DetectionScores, score_results, to_submission, write_submission
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.health import HealthSnapshot
from bev_perception.types import Frame, Result

#: m that the recording's fixed frame may seem to be off the global frame; a car goes 2 m from camera to lidar
SAME_FRAME = 10.0


class Replay:
    """Collects the results of recordings, one after the other: `watch` the events, `add` what comes of them.

    frames: how many there were.
    """

    def __init__(self, records: Records | None = None) -> None:
        """Start empty.  records: the key frames of nuScenes that may be among the frames."""
        self._records = records
        rows = range(0 if records is None else len(records))
        self._row_of = {stamp: i for i in rows for stamp in self._key_stamps(i)}
        self._held: set[int] = set()  # key frames of which the recordings have an image
        self._submission: dict[int, list[dict[str, Any]]] = {}
        self.frames = 0
        self._last = 0  # stamp of the recording's last frame
        self._intervals, self._seconds = 0, 0.0  # between frames of one recording
        self._boxes: Counter[str] = Counter()

    def watch(self, events: Iterable[BagEvent]) -> Iterator[BagEvent]:
        """Pass on the events of one recording, and note which key frames it has images of."""
        self._last = 0
        for event in events:
            if isinstance(event, ImageEvent) and event.image.stamp in self._row_of:
                self._held.add(self._row_of[event.image.stamp])
            yield event

    def add(self, frame: Frame, result: Result) -> None:
        """Take the result of a frame of the recording that is being watched.

        Raises EvaluationError for a result that cannot be scored: one without boxes, or of a recording the fixed frame
        of which is not nuScenes' global frame.
        """
        if self._last:
            self._intervals += 1
            self._seconds += (frame.stamp - self._last) / 1e9
        self._last = frame.stamp
        self.frames += 1
        if result.boxes is None:
            if self._records is not None:
                raise EvaluationError("on bags only boxes are scored; evaluate a variant of occupancy on a split")
            return
        self._boxes.update(result.boxes.class_names[label] for label in result.boxes.labels.tolist())
        row = self._row_of.get(frame.stamp)
        if row is not None:
            self._check_place(row, frame)
            token = self._of_nuscenes.tokens[row]
            self._submission[row] = to_submission(result.boxes, token, np.eye(4), frame.ego2global)

    def summary(self, health: HealthSnapshot) -> str:
        """Return as text how many frames there were, what was lost, and the boxes found, by class."""
        rate = f", {self._intervals / self._seconds:.1f} Hz" if self._seconds else ""
        lines = [f"{self.frames} frames, {self._seconds:.1f} s of recording{rate}"]
        lines += [f"{what}: {cause} {n}" for what, causes in _losses(health) for cause, n in causes.items()]
        found = (f"{name} {n / self.frames:.1f}" for name, n in self._boxes.most_common())
        lines.append("boxes a frame: " + (", ".join(found) or "none"))
        return "\n".join(lines)

    def score(self, version: str, out: Path, max_range: float | None = None) -> DetectionScores:
        """Write out/results_nusc.json and score it on those key frames of which the recordings have an image.

        One that gave no result counts as one with no boxes found. The other key frames of the scenes stand in the file
        without boxes, as nuscenes-devkit demands, and do not count.  max_range: as in score_results.

        Raises EvaluationError if there is no such key frame, or no truth of it.
        """
        records = self._of_nuscenes
        if not self._held:
            raise EvaluationError(
                f"no image of the recording has the stamp of a key frame of {version}; give the version that the "
                "recording was made of, or leave out the data for a summary alone"
            )
        if not any(len(records.annotations(i).names) for i in self._held):
            raise EvaluationError(f"{version} has no boxes for these key frames; the truth of test is not published")
        scenes = {records.scenes[i] for i in self._held}
        samples = [i for i in range(len(records)) if records.scenes[i] in scenes]
        path = out / "results_nusc.json"
        write_submission({records.tokens[i]: self._submission.get(i, []) for i in samples}, path)
        tokens = {records.tokens[i] for i in self._held}
        return score_results(path, records.root, version, None, out, sorted(scenes), tokens, max_range)

    def coverage(self) -> str:
        """Return as text which key frames are scored."""
        records = self._of_nuscenes
        scenes = sorted({records.scenes[i] for i in self._held})
        total = sum(scene in scenes for scene in records.scenes)
        lost = len(self._held - self._submission.keys())
        text = f"scored on {len(self._held)} of the {total} key frames of {', '.join(scenes)}"
        return text + (f"; {lost} of them gave no result" if lost else "")

    @property
    def _of_nuscenes(self) -> Records:
        if self._records is None:
            raise EvaluationError("nothing can be scored without the data set; name its root")
        return self._records

    def _key_stamps(self, row: int) -> list[int]:
        """Return the stamps (ns) of a key frame's images; whichever camera is the anchor, a frame has one of them."""
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


def _losses(health: HealthSnapshot) -> list[tuple[str, dict[str, int]]]:
    return [("dropped", health.drops), ("memory wiped", health.resets)]
