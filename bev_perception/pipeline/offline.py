"""A bag through the pipeline without ROS, by the same steps as in the node, and the file of its results.

A file of results holds one JSON value a line: a header, a line for each frame, and at the end, once the bag has been
read to its end, a line with "complete". So a run that breaks off loses nothing that was written, and takes no more
memory in its last hour than in its first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bev_perception.data.occupancy_labels import write_occupancy
from bev_perception.data.rosbag import BagEvent, BagReader, CalibrationEvent, ImageEvent, TransformEvent
from bev_perception.families.catalog import family_of
from bev_perception.health import Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.sensing.synchronizer import Synchronizer, SynchronizerSettings
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.strict import UserError
from bev_perception.types import Boxes3D, Frame, FrameError, Result

#: the entries "format" and "version" of a header
RESULTS_FORMAT = "bev_perception results"
RESULTS_VERSION = 1


class ResultsError(UserError):
    """A file of results that cannot be read or continued; the message names cause and remedy."""


# ---- running ----


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
    """Yield the result of every frame of a recording that has one."""
    return (result for _, result in run_frames(events, pipeline, settings))


def run_frames(
    events: Iterable[BagEvent], pipeline: Pipeline, settings: SynchronizerSettings
) -> Iterator[tuple[Frame, Result]]:
    """Yield every frame of a recording that has a result, with it."""
    for frame in collect_frames(events, settings, pipeline.health):
        try:
            yield frame, pipeline.step(frame)
        except FrameError:
            continue  # counted by the pipeline, with the reasons


# ---- writing ----


def results_header(pipeline: Pipeline, bag: BagReader, settings: SynchronizerSettings) -> dict[str, Any]:
    """Return the first line of a file of results: what the numbers mean, and all that they depend on."""
    how = pipeline.settings
    threshold, count = _box_limits(pipeline)
    return {
        "format": RESULTS_FORMAT,
        "version": RESULTS_VERSION,
        "variants": {variant.config.name: str(variant.checkpoint.path) for variant in pipeline.variants},
        "sha256": {variant.config.name: _sha256(variant.checkpoint.path) for variant in pipeline.variants},
        "trained": pipeline.trained,
        "classes": {variant.config.name: list(variant.config.class_names) for variant in pipeline.variants},
        "score_threshold": threshold,
        "max_detections": count,
        "memory_interval": how.memory_interval,
        "precision": how.precision,
        "bag": bag.path.resolve().name,
        "cameras": list(settings.cameras),
        "anchor": settings.anchor or settings.cameras[0],
        "prefix": bag.prefix,
        "remap": dict(bag.remap),
        "frame_id": settings.base_frame,
        "fixed_frame": settings.fixed_frame,
        "units": {"stamp": "ns", "center": "m", "size": "m", "yaw": "rad", "velocity": "m/s", "memory_interval": "s"},
        "box": {
            "center": "x, y, z of the middle of the box",
            "size": "length, width, height",
            "yaw": "counter-clockwise from +x",
            "velocity": "x, y over ground, along the axes of frame_id",
        },
    }


def _box_limits(pipeline: Pipeline) -> tuple[float | None, int | None]:
    """Return the score threshold and the most boxes that hold, of the settings or the variant; None without boxes."""
    how = pipeline.settings
    for variant in pipeline.variants:
        own = family_of(variant.config).limits(variant.config)
        if own.count is not None:
            return (
                own.score if how.score_threshold is None else how.score_threshold,
                own.count if how.max_detections is None else how.max_detections,
            )
    return None, None


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


def write_results(
    path: Path,
    header: dict[str, Any],
    results: Iterable[Result],
    health: Health,
    occupancy: Path | None = None,
    earlier: ResultsFile | None = None,
) -> int:
    """Write results as they come, a line each, and return how many the file holds then.

    Where the results break off with an error (a damaged bag), the lines before it stay, and the error goes on.

    path: of the file; one that is there is replaced, unless it is continued
    header: of results_header
    results: of all frames of the recording, from its beginning on, also where a file is continued
    health: what the last line takes the counts of drops and resets from
    occupancy: directory for the voxels of the frames, <stamp>.npz each, see write_occupancy; None: not written
    earlier: what the file holds already, see unfinished_results; None: start anew

    Raises ResultsError if the results do not begin with those that the file holds already.
    """
    results = iter(results)
    count = 0 if earlier is None else _pass_over(earlier, results)
    with path.open("wb" if earlier is None else "r+b") as file:
        if earlier is None:
            _write_line(file, header)
        else:
            file.seek(earlier.size)
            file.truncate()  # half a line, or nothing
        for result in results:
            if result.occupancy is not None and occupancy is not None:
                write_occupancy(result.occupancy, occupancy, str(result.stamp))
            _write_line(file, _frame_line(result))
            count += 1
        snapshot = health.snapshot()
        _write_line(file, {"complete": True, "frames": count, "drops": snapshot.drops, "resets": snapshot.resets})
    return count


def _pass_over(earlier: ResultsFile, results: Iterator[Result]) -> int:
    """Take the results that the file holds already, whose frames fill the memory again; return how many they are."""
    count = 0
    for frame in earlier.frames():
        result = next(results, None)
        if result is None or result.stamp != frame["stamp"]:
            found = "no more frames" if result is None else f"one at {result.stamp} ns"
            raise ResultsError(
                f"frame {count} in {earlier.path} is at {frame['stamp']} ns, where the bag now gives {found}; "
                "it is another bag: run without --resume, or with another --out"
            )
        count += 1
    return count


def _frame_line(result: Result) -> dict[str, Any]:
    return {
        "stamp": result.stamp,
        "boxes": None if result.boxes is None else boxes_to_json(result.boxes),
        "missing": result.missing,
        "reset": result.reset,
        "history": result.history,
    }


def _write_line(file: IO[bytes], value: dict[str, Any]) -> None:
    file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
    file.flush()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- reading ----


@dataclass(frozen=True)
class ResultsFile:
    """A file of results, complete or not.

    path: of the file
    header: its first line, see results_header
    end: its last line ("frames", "drops" and "resets" of the whole run); None where the run was broken off
    size: bytes of the header and of the whole lines of frames
    """

    path: Path
    header: dict[str, Any]
    end: dict[str, Any] | None
    size: int

    def frames(self) -> Iterator[dict[str, Any]]:
        """Yield the frames one by one: "stamp", "boxes" (or None), "missing", "reset" and "history", see Result.

        Half a line at the end, of a run that was broken off, is left out. Raises ResultsError for a damaged line.
        """
        left = self.size
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                left -= len(line)
                if left < 0:
                    return
                if number > 1:
                    yield _parse(line, self.path, number, "stamp")


def read_results(path: Path) -> ResultsFile:
    """Open a file that write_results has written; its frames are read as they are asked for.

    Raises ResultsError for a file that is none.
    """
    size = count = 0
    first = last = b""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            first, last = first or line, line
            size, count = size + len(line), count + 1
    header = _parse(first, path, 1, "format")
    if (header["format"], header.get("version")) != (RESULTS_FORMAT, RESULTS_VERSION):
        raise ResultsError(
            f"{path} is {header['format']!r} of version {header.get('version')}, not {RESULTS_FORMAT!r} of version "
            f"{RESULTS_VERSION}; run the bag again with this version of the package"
        )
    end = _parse(last, path, count, "frames") if last.startswith(b'{"complete"') else None
    return ResultsFile(path, header, end, size - len(last) if end else size)


def unfinished_results(path: Path, header: dict[str, Any]) -> ResultsFile | None:
    """Return what a file holds already of a run with this header; None where there is no file, or an empty one.

    Raises ResultsError, naming what differs, if it is the file of another run.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    found = read_results(path)
    wanted = json.loads(json.dumps(header))
    differences = [
        f"{key} is {found.header.get(key)!r} there and {wanted.get(key)!r} now"
        for key in {**wanted, **found.header}
        if found.header.get(key) != wanted.get(key)
    ]
    if differences:
        raise ResultsError(
            f"{path} is of another run and is not continued: {'; '.join(differences)}. Run with the same options, "
            "without --resume to replace it, or with another --out"
        )
    return found


def _parse(line: bytes, path: Path, number: int, key: str) -> dict[str, Any]:
    """Return a line as the mapping that it must be, in which there must be `key`."""
    try:
        value = json.loads(line)
    except ValueError:  # no JSON, or no text at all
        value = None
    if not isinstance(value, dict) or key not in value:
        raise ResultsError(
            f"line {number} of {path} is not one of a file of results, as `bev_perception run` writes it; the file is "
            "damaged, or of another kind or an older version: run the bag again, without --resume"
        )
    return value
