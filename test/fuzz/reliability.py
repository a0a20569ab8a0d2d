"""Try every kind of fault and write what held into docs/reliability.md, between two markers: `make reliability`.

python test/fuzz/reliability.py [--count 2000]
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, fields
from pathlib import Path

from fuzz import KINDS, fuzz

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: written by make reliability -->", "<!-- end -->"
#: what each kind of mutants is
MUTANTS = {
    "png": "damaged PNG pictures",
    "jpeg": "damaged JPEG pictures",
    "checkpoint": "damaged checkpoints (.pth)",
    "safetensors": "damaged checkpoints (.safetensors)",
    "npz": "damaged label files (.npz)",
    "yaml": "damaged variant files (YAML)",
    "json": "damaged result files (JSON)",
    "bag": "damaged bags (MCAP, also compressed)",
}
#: kind of fault -> arguments of pytest that choose the tests of it
FAULTS = {
    "tf: loops, two parents, foreign frames, jumps, silence": [
        "test/sensing/test_transforms.py",
        "test/sensing/test_transform_tree.py",
    ],
    "images and camera_info out of time, lost, doubled, unstamped": ["test/sensing/test_synchronizer.py"],
    "hostile pictures: claimed sizes, animations, endless chunks and scans": [
        "test/sensing/test_compressed.py",
        "test/sensing/test_images.py",
    ],
    "hostile files: sizes, depths, aliases, pickles, wrapped labels": [
        "test/test_strict.py",
        "test/data/test_arrays.py",
        "test/data/test_bag_opening.py",
        "test/models/test_torch_files.py",
        "test/models/test_checkpoints.py",
    ],
    "output folders: two writers, full disks, kills": ["test/data/test_folders.py"],
    "a running node: lost cameras, wrong stamps, sizes, encodings, poses, non-finite results": [
        "test/ros/test_faults.py"
    ],
    "a running node: states, services and parameters out of order, floods": ["test/ros/test_node.py"],
    "a model that fails again and again": ["test/ros/test_breakdown.py", "test/ros/test_worker.py"],
    "SIGINT and SIGTERM, also while starting and in the middle of a step": [
        "test/ros/test_entry.py",
        "test/ros/test_spin.py",
    ],
    "caches of messages: damaged, half made, owned by others": [
        "test/ros/test_interfaces.py",
        "test/data/test_caches.py",
    ],
    "trainings: readers that fail or die, signals in every phase, kills": ["test/training/test_endings.py"],
}


@dataclass(frozen=True)
class Row:
    """What came of one kind of fault.

    kind: of the faults.
    tried: number of mutants or tests.
    held: how many of them ended as they should: read, refused with a sentence, or passed.
    skipped: how many could not be tried here.
    failed: the names of the others.
    """

    kind: str
    tried: int
    held: int
    skipped: int
    failed: tuple[str, ...] = ()


def try_mutants(kind, count):
    outcomes, faults = fuzz(kind, count)
    return Row(MUTANTS[kind], count, outcomes["read"] + outcomes["refused"], 0, tuple(faults))


def try_tests(kind, selection):
    """Run tests in a process of their own and count them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *selection]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict(os.environ)
        subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        return counted(kind, report)


def counted(kind, report):
    """Return the row of a JUnit report; a run that ended without one is a failure."""
    if not report.exists():
        return Row(kind, 0, 0, 0, ("pytest ended without a report",))
    cases = list(ET.parse(report).iter("testcase"))
    outcomes = [{child.tag for child in case} & {"failure", "error", "skipped"} for case in cases]
    failed = [f"{c.get('classname')}::{c.get('name')}" for c, o in zip(cases, outcomes, strict=True) if o - {"skipped"}]
    skipped = sum(outcome == {"skipped"} for outcome in outcomes)
    return Row(kind, len(cases) - skipped, len(cases) - skipped - len(failed), skipped, tuple(failed))


def page_with(page, table):
    """Return a page with the text between the two markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise SystemExit(f"{PAGE} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def table_of(rows, about):
    names = ("faults", "tried", "held", "skipped")
    assert len(names) == len(fields(Row)) - 1
    lines = [about, "", f"| {' | '.join(names)} |", "|---|---|---|---|"]
    lines += [f"| {row.kind} | {row.tried:,} | {row.held:,} | {row.skipped:,} |" for row in rows]
    failed = [f"- {row.kind}: {name.splitlines()[0]}" for row in rows for name in row.failed]
    return "\n".join(lines + (["", "Did not hold:", "", *failed] if failed else []))


def about(arguments):
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return f"`make reliability{arguments}` at {commit} on {today}, Python {platform.python_version()}:"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="mutants of each kind (default: %(default)s)")
    count = parser.parse_args().count
    said = about("" if count == 2000 else f' ARGS="--count {count}"')
    rows = []
    for kind, attempt in [
        *((MUTANTS[kind], lambda kind=kind: try_mutants(kind, count)) for kind in KINDS),
        *((kind, lambda kind=kind: try_tests(kind, FAULTS[kind])) for kind in FAULTS),
    ]:
        print(f"{kind} ...", flush=True)
        rows.append(attempt())
        print(f"    {rows[-1].held} of {rows[-1].tried} held", *rows[-1].failed, sep="\n    ", flush=True)
        PAGE.write_text(page_with(PAGE.read_text(), table_of(rows, said)))  # as it goes: the whole takes long
    return any(row.failed for row in rows)


if __name__ == "__main__":
    sys.exit(main())
