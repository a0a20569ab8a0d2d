"""Generates a synthetic data set: its scenes in parallel, then the tables. Complete scenes are not generated again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from bev_perception.data.table_rows import write_json
from bev_perception.rig.rig_file import rig_document
from bev_perception.synth.scene import make_scene, scene_name
from bev_perception.synth.settings import KEY_RATE, SynthError, SynthSettings, cameras_of, key_frames
from bev_perception.synth.tables import write_tables

#: version of what a scene of given settings looks like; raise it with every change of that
FORMAT = 3
#: directory with the rows of complete scenes, from which an interrupted call resumes and a later one adds scenes
PROGRESS = ".synth"
_ticks: Any = None


def generate(root: Path, settings: SynthSettings, scenes: int, workers: int = 1) -> int:
    """Generate scenes 0 to `scenes` - 1; return how many were still to be made.

    The files do not depend on the number of processes. A scene whose rows are in PROGRESS is complete; all others are
    generated anew. Then the tables are written.

    root: the dataroot
    settings: of every scene
    scenes: number of scenes that the data set is to have
    workers: number of processes

    Raises SynthError if the dataroot already holds scenes of other settings, or for numbers below 1.
    """
    if scenes < 1 or workers < 1:
        raise SynthError(f"{scenes} scenes in {workers} processes cannot be made; both must be at least 1")
    _claim(root, settings)
    todo = [k for k in range(scenes) if not _rows_file(root, settings, k).exists()]
    keys = key_frames(settings)
    cameras = cameras_of(settings)
    steps = keys + len(cameras) * (1 + settings.camera_rate // KEY_RATE * (keys - 1))  # label files and images
    with tqdm(total=len(todo) * steps, desc=f"making {len(todo)} scenes", unit="file") as bar:
        for done in _make(root, settings, todo, workers):
            bar.update(done)
    rows = (json.loads(_rows_file(root, settings, k).read_bytes()) for k in range(scenes))
    write_tables(root, rows, tuple(cameras))
    return len(todo)


def _claim(root: Path, settings: SynthSettings) -> None:
    """Record the settings of a dataroot, or compare them with the recorded ones.

    Raises SynthError if they differ.
    """
    file = root / PROGRESS / "settings.json"
    wanted = json.loads(json.dumps({"format": FORMAT, **_plain(settings)}))
    if file.exists():
        found = json.loads(file.read_bytes())
        if found != wanted:
            other = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in wanted.items() if found.get(k) != v)
            raise SynthError(f"{root} holds scenes made with {other}; choose another directory or delete this one")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def _plain(settings: SynthSettings) -> dict[str, Any]:
    """Return the settings as plain values; later ones only where they are not at their defaults, as before them."""
    values = {of.name: getattr(settings, of.name) for of in fields(settings)}
    if settings.rig is not None:
        values["rig"] = rig_document(settings.rig)
    later = {of.name: of.default for of in fields(settings) if of.name in ("weather", "rig", "lidar")}
    assert MISSING not in later.values()
    return {name: value for name, value in values.items() if name not in later or value != later[name]}


def _rows_file(root: Path, settings: SynthSettings, index: int) -> Path:
    return root / PROGRESS / f"{scene_name(settings.seed, index)}.json"


def _make(root: Path, settings: SynthSettings, todo: list[int], workers: int) -> Iterator[int]:
    """Generate the scenes; yield the number of files finished since the last yield."""
    if workers == 1:
        counts: list[int] = []
        for index in todo:
            make_one(root, settings, index, lambda: counts.append(1))
            yield len(counts)
            counts.clear()
        return
    context = multiprocessing.get_context("spawn")
    ticks = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _enter_worker, (ticks,)) as pool:
        pending = {pool.submit(_make_in_worker, root, settings, index) for index in todo}
        shown = 0
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                if ticks.value > shown:
                    yield ticks.value - shown
                    shown = ticks.value
        except BrokenProcessPool as error:
            raise SynthError(
                "a process that makes scenes was ended from outside, as the system does when memory is short; give the "
                "same command again, which goes on with what is left, or fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_one(root: Path, settings: SynthSettings, index: int, tick: Any) -> None:
    """Generate a scene and record that it is complete.

    root: the dataroot
    settings: of the scene
    index: number of the scene
    tick: called after every file
    """
    rows = make_scene(root, settings, index, tick)
    write_json(_rows_file(root, settings, index), rows)


def _enter_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    cv2.setNumThreads(1)


def _make_in_worker(root: Path, settings: SynthSettings, index: int) -> None:
    make_one(root, settings, index, _count)


def _count() -> None:
    with _ticks.get_lock():
        _ticks.value += 1
