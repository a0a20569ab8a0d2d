"""Run the pipeline over a bag without ROS, with the same steps as the node, and write and read its results.

A results file has one JSON value on each line: a header, then a line for each frame, and a last line with "complete"
once the bag has been read to its end. An interrupted run keeps all lines written so far, and memory does not grow with
the length of the bag.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from bev_perception.commands import command
from bev_perception.config import digest
from bev_perception.data.folders import locked, sha256_of
from bev_perception.data.occupancy_labels import write_occupancy
from bev_perception.data.rosbag import BagEvent, BagReader, CalibrationEvent, ImageEvent, TransformEvent
from bev_perception.families.catalog import family_of
from bev_perception.health import Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.sensing.synchronizer import Synchronizer
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.sensing.transforms import Transforms, open_transforms
from bev_perception.strict import UserError, open_regular, parse_json
from bev_perception.types import NO_TRACK, Boxes3D, Frame, FrameError, Result

#: the entries "format" and "version" of a header
RESULTS_FORMAT = "bev_perception results"
RESULTS_VERSION = 1
#: keys of the header that may differ when a run is resumed: weights are known by their sha256, wherever they lie
NAMED_BY_OTHERS = frozenset({"variants"})


class ResultsError(UserError):
    """A results file that cannot be read or resumed; the message names cause and remedy."""


# ---- running ----


def collect_frames(events: Iterable[BagEvent], settings: SynchronizerSettings, health: Health) -> Iterator[Frame]:
    """Yield the frames of a recording, grouped as in the node; dropped images and messages are counted in `health`."""
    transforms = open_transforms()
    synchronizer = Synchronizer(settings, transforms, health)
    for event in events:
        if isinstance(event, ImageEvent):
            synchronizer.add(event.image)
        elif isinstance(event, CalibrationEvent):
            synchronizer.set_calibration(event.camera, event.calibration or event.error, event.image_topic)
        elif isinstance(event, TransformEvent):
            _add_transform(event, transforms, health)
        else:
            health.drop("bad message", f"{event.topic}: {event.error}")
        yield from synchronizer.poll()
    yield from synchronizer.finish()


def _add_transform(event: TransformEvent, transforms: Transforms, health: Health) -> None:
    try:
        if event.static:
            transforms.set_static(event.parent, event.child, event.child2parent)
        else:
            transforms.add(event.parent, event.child, event.stamp, event.child2parent)
    except UserError as error:
        health.drop("bad tf", str(error))
    for sentence in transforms.take_disputes().values():
        health.notice("tf changed a parent", sentence)


def run_events(events: Iterable[BagEvent], pipeline: Pipeline, settings: SynchronizerSettings) -> Iterator[Result]:
    """Yield the result of each frame of a recording; frames without a result are left out."""
    return (result for _, result in run_frames(events, pipeline, settings))


def run_frames(
    events: Iterable[BagEvent], pipeline: Pipeline, settings: SynchronizerSettings
) -> Iterator[tuple[Frame, Result]]:
    """Yield each frame of a recording with its result; frames without a result are left out."""
    for frame in collect_frames(events, settings, pipeline.health):
        try:
            yield frame, pipeline.step(frame)
        except FrameError:
            continue  # the pipeline has counted it, with the reason


# ---- writing ----


def results_header(
    pipeline: Pipeline, bag: BagReader, settings: SynchronizerSettings, occupancy: Path | None = None
) -> dict[str, Any]:
    """Return the first line of a results file: the meaning and units of the numbers, and all that they depend on."""
    how = pipeline.settings
    threshold, count = _box_limits(pipeline)
    return {
        "format": RESULTS_FORMAT,
        "version": RESULTS_VERSION,
        "variants": {variant.config.name: str(variant.checkpoint.path) for variant in pipeline.variants},
        "sha256": {variant.config.name: sha256_of(variant.checkpoint.path) for variant in pipeline.variants},
        "trained": pipeline.trained,
        "settings": {variant.config.name: digest(variant.config) for variant in pipeline.variants},
        "classes": {variant.config.name: list(variant.config.class_names) for variant in pipeline.variants},
        "score_threshold": threshold,
        "max_detections": count,
        "memory_interval": how.memory_interval,
        "tracker": how.tracker,
        "nms": {variant.config.name: how.nms_of(variant.config) for variant in pipeline.variants},
        "precision": how.precision,
        "engine": how.engine,
        "image_fit": how.image_fit,
        "bag": " ".join(path.resolve().name for path in bag.parts),
        "occupancy": None if occupancy is None else occupancy.resolve().name,
        "cameras": list(settings.cameras),
        "anchor": settings.anchor or settings.cameras[0],
        "prefix": bag.prefix,
        "remap": dict(bag.remap),
        "camera_frames": dict(settings.camera_frames),
        "rectified": list(settings.rectified),
        "frame_id": settings.base_frame,
        "base_height": settings.base_height,
        "fixed_frame": settings.fixed_frame,
        "units": {"stamp": "ns", "center": "m", "size": "m", "yaw": "rad", "velocity": "m/s", "memory_interval": "s"},
        "box": {
            "center": "x, y, z of the middle of the box",
            "size": "length, width, height",
            "yaw": "counter-clockwise from +x",
            "velocity": "x, y over ground, along the axes of frame_id",
            "track_id": "the same for an object in all frames, never given again; null for a box without a track",
        },
    }


def _box_limits(pipeline: Pipeline) -> tuple[float | None, int | None]:
    """Return the score threshold and the largest number of boxes in use; None for variants without boxes."""
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
    """Return boxes as plain values: class, score, center (m), size (l, w, h in m), yaw (rad), velocity (m/s), track_id.

    The track id of a box without a track is None.
    """
    ids = np.full(len(boxes), NO_TRACK) if boxes.track_ids is None else boxes.track_ids
    return [
        {
            "class": boxes.class_names[int(boxes.labels[i])],
            "score": float(boxes.scores[i]),
            "center": [float(v) for v in boxes.centers[i]],
            "size": [float(v) for v in boxes.sizes[i]],
            "yaw": float(boxes.yaws[i]),
            "velocity": [float(v) for v in boxes.velocities[i]],
            "track_id": None if ids[i] == NO_TRACK else int(ids[i]),
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
    """Write each result as a line as soon as it is available; return the number of frames in the file.

    If the results end with an error (a damaged bag), the lines written before are kept, and the error is raised.

    path: of the file; an existing file is replaced, unless it is resumed
    header: see results_header
    results: of all frames from the beginning of the recording, also if a file is resumed
    health: source of the counts of drops and resets in the last line
    occupancy: directory for the voxels of each frame as <stamp>.npz, see write_occupancy; None: not written
    earlier: the file to resume, see unfinished_results; None: start from the beginning

    Raises ResultsError if the results do not begin with those that are in the file already.
    """
    results = iter(results)
    count = 0 if earlier is None else _pass_over(earlier, results)
    path.touch()
    with locked(path), path.open("r+b") as file:
        if earlier is None:
            file.truncate()
            _write_line(file, header)
        else:
            file.seek(earlier.size)
            file.truncate()  # the incomplete last line, if there is one
        for result in results:
            if result.occupancy is not None and occupancy is not None:
                write_occupancy(result.occupancy, occupancy, str(result.stamp))
            _write_line(file, _frame_line(result))
            count += 1
        snapshot = health.snapshot()
        _write_line(file, {"complete": True, "frames": count, "drops": snapshot.drops, "resets": snapshot.resets})
    return count


def _pass_over(earlier: ResultsFile, results: Iterator[Result]) -> int:
    """Skip the results that are already in the file and return their number; computing them refills the memory."""
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


# ---- reading ----


@dataclass(frozen=True)
class ResultsFile:
    """A results file, complete or not.

    path: of the file
    header: the first line, see results_header
    end: the last line, with "frames", "drops" and "resets" of the whole run; None if the run was interrupted
    size: length of the header and the complete lines of frames, bytes
    """

    path: Path
    header: dict[str, Any]
    end: dict[str, Any] | None
    size: int

    def frames(self) -> Iterator[dict[str, Any]]:
        """Yield the frames one by one: "stamp", "boxes" (or None), "missing", "reset" and "history", see Result.

        An incomplete line at the end of an interrupted run is skipped. Raises ResultsError for a damaged line.
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
    """Open a file of write_results; its frames are read on demand.

    Raises ResultsError for any other file.
    """
    size = count = 0
    first = last = b""
    with open_regular(path) as file:
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
    """Return the file to resume a run with this header from; None if there is no file, or an empty one.

    Raises ResultsError, naming the differences, if the file belongs to another run.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    found = read_results(path)
    wanted = json.loads(json.dumps(header))
    differences = [
        f"{key} is {found.header.get(key)!r} there and {wanted.get(key)!r} now"
        for key in {**wanted, **found.header}
        if found.header.get(key) != wanted.get(key) and key not in NAMED_BY_OTHERS
    ]
    if differences:
        raise ResultsError(
            f"{path} is of another run and is not continued: {'; '.join(differences)}. Run with the same options, "
            "without --resume to replace it, or with another --out"
        )
    return found


def _parse(line: bytes, path: Path, number: int, key: str) -> dict[str, Any]:
    """Return a line as a mapping, which must contain `key`."""
    try:
        value = parse_json(line)
    except ValueError:  # not JSON, or not even text
        value = None
    if not isinstance(value, dict) or key not in value:
        raise ResultsError(
            f"line {number} of {path} is not what `{command('run')}` writes; the file is damaged, of another kind "
            "or of an older version: run the bag again, without --resume"
        )
    return value
