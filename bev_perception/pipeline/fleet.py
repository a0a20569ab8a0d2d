"""Run a variant over many bags: a directory of results each, in any number of processes, with a manifest.

OUT/<bag>/results.jsonl is what `run` writes, OUT/<bag>/entry.json says how that bag ended, and OUT/manifest.json holds
all entries. Bags that are done are not run again; one that was interrupted is resumed; one that fails costs itself
alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bev_perception.data.folders import FolderError, locked, one_writer, sha256_of
from bev_perception.data.rosbag import BagReader
from bev_perception.data.table_rows import write_json
from bev_perception.families.catalog import gives
from bev_perception.families.family import OCCUPANCY
from bev_perception.families.variants import Variant, load_variant
from bev_perception.models.device import choose_device
from bev_perception.pipeline.loading import load_weights
from bev_perception.pipeline.offline import results_header, run_events, unfinished_results, write_results
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.strict import UserError, parse_json

LOG = logging.getLogger(__name__)

MANIFEST, ENTRY, RESULTS, VOXELS = "manifest.json", "entry.json", "results.jsonl", "occupancy"
#: entries "format" and "version" of a manifest
MANIFEST_FORMAT, MANIFEST_VERSION = "bev_perception fleet", 1
_STORAGE = (".mcap", ".db3")
#: how often the lock on the directory of results is tried for, 0.1 s apart
LOCK_TRIES = 100

Entry = dict[str, Any]


class FleetError(UserError):
    """Bags that cannot be run as a fleet, or a manifest that cannot be read; the message names cause and remedy."""


@dataclass(frozen=True)
class FleetSettings:
    """What is run, and where to.

    out: directory of the results
    open_bag: opens a bag with the settings for grouping its images; must be picklable for other machines
    variant: name, path of a YAML file, or loaded configuration
    checkpoint: path of its weights; None: the shipped ones
    device: see choose_device
    how: how the variant is run
    """

    out: Path
    open_bag: Callable[[Path], tuple[BagReader, SynchronizerSettings]]
    variant: Variant
    checkpoint: Path | None = None
    device: str = "auto"
    how: PipelineSettings = field(default_factory=PipelineSettings)


def find_bags(source: Path) -> list[Path]:
    """Return the bags in a directory, or those that a text file lists, one a line, relative to it; sorted by name.

    Raises FleetError, naming cause and remedy, if there are none, or two of one name.
    """
    if source.is_dir():
        folders = {path.parent for path in source.rglob("metadata.yaml")}
        files = (path for ending in _STORAGE for path in source.rglob(f"*{ending}"))
        bags = [*folders, *(path for path in files if path.parent not in folders)]
    else:
        try:
            lines = (line.strip() for line in source.read_text(errors="replace").splitlines())
        except OSError as error:
            raise FleetError(f"{source} cannot be read ({error}); give a directory, or a list of bags") from error
        bags = [source.parent / line for line in lines if line and not line.startswith("#")]
    if not bags:
        raise FleetError(f"{source} holds no bags; give a directory of rosbag2 bags, or a file with a path a line")
    bags.sort(key=lambda path: (path.name, str(path)))
    names = [bag_name(path) for path in bags]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FleetError(f"two bags are called {twice[0]}; results lie in directories of these names: rename one")
    return bags


def bag_name(path: Path) -> str:
    """Return the name of a bag, which its directory of results gets."""
    return path.stem if path.suffix in _STORAGE else path.name


def shard_of(bags: Sequence[Path], text: str) -> list[Path]:
    """Return the bags of a shard "i/n", i from 0 on; raise FleetError for what is none."""
    index, sign, count = text.partition("/")
    if not (sign and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise FleetError(f"--shard {text} is no part of a fleet; write I/N with I from 0 to N - 1, such as 0/8")
    return list(bags[int(index) :: int(count)])


class FleetRunner:
    """Runs bags one after the other; the weights are loaded once."""

    def __init__(self, settings: FleetSettings) -> None:
        """Load the weights; raises ConfigError and CheckpointError."""
        self._settings = settings
        self._device = choose_device(settings.device)
        self._loaded = load_weights(load_variant(settings.variant), settings.checkpoint, self._device)

    def run(self, path: Path) -> Entry:
        """Run a bag unless it is done, and return its entry; whatever goes wrong is in it under "error"."""
        folder = self._settings.out / bag_name(path)
        try:
            with one_writer(folder, "*.part.*"):
                entry = self._run(path, folder)
                write_json(folder / ENTRY, entry)
        except UserError as error:
            return self._failed(path, folder, str(error))
        except Exception as error:  # one bag must not cost the others
            LOG.error("%s: an unexpected error: %s", path, traceback.format_exc())
            return self._failed(path, folder, f"{type(error).__name__}: {error}")
        return entry

    def _run(self, path: Path, folder: Path) -> Entry:
        settings = self._settings
        bag, grouping = settings.open_bag(path)
        occupancy = folder / VOXELS if OCCUPANCY in gives(self._loaded.config) else None
        pipeline = Pipeline([self._loaded], self._device, settings.how)
        results, of_bag = folder / RESULTS, fingerprint(path)
        header = results_header(pipeline, bag, grouping, occupancy)
        before = _read_entry(folder / ENTRY)
        if before is not None and before.get("status") == "done":
            if before["bag_sha256"] != of_bag:
                raise FleetError(f"{path} has changed since it was run; remove {folder}, or choose another --out")
            if not results.is_file() or sha256_of(results) != before["results_sha256"]:
                LOG.warning("%s is not what was written; the bag is run again", results)
                results.unlink(missing_ok=True)
                before = None
        try:
            earlier = unfinished_results(results, header)
            if earlier is not None and earlier.end is not None and before is not None:
                return {**before, "kept": True}
            if earlier is not None and earlier.end is not None:
                frames = int(earlier.end["frames"])
            else:
                found = run_events(bag.events(), pipeline, grouping)
                frames = write_results(results, header, found, pipeline.health, occupancy, earlier)
        finally:
            pipeline.close()
        if not frames:
            drops = pipeline.health.snapshot().last_drop
            raise FleetError(f"{path} gives no frame{': ' + drops if drops else ''}; `check --bag` says more")
        return self._entry(path, of_bag) | {
            "status": "done",
            "frames": frames,
            "results": f"{folder.name}/{RESULTS}",
            "results_sha256": sha256_of(results),
        }

    def _entry(self, path: Path, of_bag: str) -> Entry:
        return {
            "bag": str(path.resolve()),
            "bag_sha256": of_bag,
            "variant": self._loaded.config.name,
            "weights_sha256": sha256_of(self._loaded.checkpoint.path),
            "versions": versions(),
        }

    def _failed(self, path: Path, folder: Path, error: str) -> Entry:
        entry = {"bag": str(path.resolve()), "status": "failed", "error": error, "versions": versions()}
        try:
            if (_read_entry(folder / ENTRY) or {}).get("status") != "done":
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / ENTRY, entry)
        except OSError as refused:
            LOG.error("%s cannot be written: %s", folder / ENTRY, refused)
        return entry


def run_fleet(settings: FleetSettings, bags: Iterable[Path]) -> Iterator[Entry]:
    """Run bags in this process, and yield the entry of each; then write the manifest."""
    runner = FleetRunner(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    for path in bags:
        yield runner.run(path)
    write_manifest(settings.out)


def write_manifest(out: Path) -> Path:
    """Write the manifest of all entries that are there, also those of other shards; return its path."""
    path = out / MANIFEST
    with _patiently_locked(out):
        entries = {file.parent.name: _read_entry(file) for file in sorted(out.glob(f"*/{ENTRY}"))}
        known = {name: entry for name, entry in entries.items() if entry is not None}
        write_json(path, {"format": MANIFEST_FORMAT, "version": MANIFEST_VERSION, "bags": known})
    return path


@contextmanager
def _patiently_locked(out: Path) -> Iterator[None]:
    """Hold the lock of a directory, which other shards hold for a moment each."""
    for wait in (0.1,) * LOCK_TRIES:
        try:
            with locked(out):
                yield
                return
        except FolderError:
            time.sleep(wait)
    raise FleetError(f"another process has {out} for itself; wait for its end, then run the same command again")


def read_manifest(path: Path) -> dict[str, Entry]:
    """Return bag -> entry of a manifest; raise FleetError for any other file."""
    try:
        document = parse_json(path.read_bytes())
        if (document["format"], document["version"]) != (MANIFEST_FORMAT, MANIFEST_VERSION):
            raise FleetError(f"{path} is of another version; run the bags again, which keeps what is done")
        bags: dict[str, Entry] = dict(document["bags"])
    except FleetError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FleetError(f"{path} is no manifest ({error!r}); give OUT/{MANIFEST} of `run --bags`") from error
    return bags


def versions() -> dict[str, str]:
    """Return the versions of what computes results."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("bev_perception", "torch", "numpy", "opencv-python-headless", "opencv-python", "rosbags"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of what tells a bag from another: its metadata, and the names and sizes of its files."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        if file.name == "metadata.yaml":
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _read_entry(path: Path) -> Entry | None:
    try:
        entry: Entry = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) else None
