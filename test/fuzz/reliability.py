"""Try every kind of fault and write what held into docs/reliability.md, between two markers: `make reliability`.

python test/fuzz/reliability.py [--count 2000] [--limit 900] [--page docs/reliability.md]

The page is written after every part; parts that have not been tried yet are named there.
"""

import argparse
import contextlib
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from fuzz import KINDS, fuzz

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: written by make reliability -->", "<!-- end -->"
#: tests of one part that are run once more if they fail; if there are more, something else is wrong
RETRIED = 5
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
        "test/test_not_a_file.py",
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


def try_tests(kind, selection, limit, root=ROOT):
    """Run tests in a process of their own and count them; those that fail are run once more by themselves.

    limit: s, after which the tests are ended: those that are done count.
    root: folder that the selection is below.
    """
    with tempfile.TemporaryDirectory() as folder:
        outcomes, said = run_tests(selection, limit, Path(folder) / "first", root)
        failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
        if failed and len(failed) <= RETRIED:  # a busy machine makes some of them late
            again, _ = run_tests(failed, limit, Path(folder) / "again", root)
            outcomes |= again
        return counted(kind, outcomes, said)


def run_tests(selection, limit, file, root):
    """Return test -> outcome of those that came to an end, and what is to be said of the run as a whole."""
    file.touch()
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(root), "-p", "no:cacheprovider", "-p", "outcomes"]
    command += selection
    paths = [str(ROOT), str(ROOT / "test" / "fuzz")]
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(paths), OUTCOMES=str(file))
    said, begin = "", time.monotonic()
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        status = process.wait(limit)
        if status not in (0, 1):
            said = f"pytest ended with status {status}"
    except subprocess.TimeoutExpired:
        said = f"ended after {time.monotonic() - begin:.0f} s, with what was done by then"
    finally:  # also after SIGINT: nodes and trainings that the tests have started belong to the group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return outcomes_in(file), said


def outcomes_in(file):
    """Return test -> outcome; of several phases of a test, a failed one counts."""
    outcomes = {}
    for line in file.read_text().splitlines():
        outcome, _, name = line.partition(" ")
        outcomes[name] = outcome if outcomes.get(name) != "failed" else "failed"
    return outcomes


def counted(kind, outcomes, said=""):
    """Return the row of outcomes; a run without any, or that did not come to its end, has failed."""
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    skipped = sum(outcome == "skipped" for outcome in outcomes.values())
    tried = len(outcomes) - skipped
    said = said or ("" if outcomes else "pytest ended without a test")
    return Row(kind, tried, tried - len(failed), skipped, tuple(failed + [said] * bool(said)))


def page_with(page, table):
    """Return a page with the text between the two markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if END not in rest:
        raise SystemExit(f"{PAGE} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def table_of(rows, about, untried=()):
    """Return the page's table; `untried` are the parts that the run has not come to yet."""
    names = ("faults", "tried", "held", "skipped")
    assert len(names) == len(fields(Row)) - 1
    lines = [about, "", f"| {' | '.join(names)} |", "|---|---|---|---|"]
    lines += [f"| {row.kind} | {row.tried:,} | {row.held:,} | {row.skipped:,} |" for row in rows]
    lines += [f"| {kind} | not tried yet | | |" for kind in untried]
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
    parser.add_argument("--limit", type=float, default=900, help="s for the tests of one kind (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers (default: docs/reliability.md)")
    arguments = parser.parse_args()
    count, page = arguments.count, arguments.page
    said = about("" if count == 2000 else f' ARGS="--count {count}"')
    parts = {MUTANTS[kind]: partial(try_mutants, kind, count) for kind in KINDS}
    parts |= {kind: partial(try_tests, kind, selection, arguments.limit) for kind, selection in FAULTS.items()}
    rows, begin = [], time.monotonic()
    for number, (kind, attempt) in enumerate(parts.items(), 1):
        print(f"[{number}/{len(parts)}, {time.monotonic() - begin:.0f} s] {kind} ...", flush=True)
        row = attempt()
        rows.append(row)
        print(f"    {row.held} of {row.tried} held, {row.skipped} skipped", *row.failed, sep="\n    ", flush=True)
        page.write_text(page_with(page.read_text(), table_of(rows, said, list(parts)[number:])))
    return any(row.failed for row in rows)


if __name__ == "__main__":
    sys.exit(main())
