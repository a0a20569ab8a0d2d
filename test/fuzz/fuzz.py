"""Read damaged input of every kind in processes of their own, and count what ended them: `make fuzz`.

python test/fuzz/fuzz.py [--count 2000] [KIND ...]
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = ("png", "jpeg", "checkpoint", "safetensors", "npz", "yaml", "json", "bag")
#: MB that a process may take, most of it for the libraries
MEMORY = 1500


def fuzz(kind: str, count: int) -> tuple[Counter, list[str]]:
    """Return the counts of outcomes, and a line for everything that should not have been."""
    outcomes, faults, first = Counter(), [], 0
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(HERE.parents[1]))
    while first < count:
        command = [sys.executable, str(HERE / "mutants.py"), kind, str(first), str(count - first)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
        number = first - 1
        for line in done.stdout.splitlines():
            what, _, rest = line.partition(" ")
            if what == "try":
                number = int(rest)
            elif what == "memory":
                outcomes["memory"] = max(outcomes["memory"], int(rest))
            else:
                outcomes[what] += 1
                if what == "error":
                    faults.append(f"{kind} {number}: {rest}")
        if done.returncode:
            outcomes["deaths"] += 1
            faults.append(f"{kind} {number} ended the process: status {done.returncode}\n{done.stderr[-500:]}")
        first = max(number, first) + 1
    if outcomes["memory"] > MEMORY:
        faults.append(f"{kind} took {outcomes['memory']} MB")
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--count", type=int, default=2000, help="mutants of each kind (default: %(default)s)")
    arguments = parser.parse_args()
    faults = []
    for kind in arguments.kinds:
        start = time.monotonic()
        outcomes, found = fuzz(kind, arguments.count)
        faults += found
        print(
            f"{kind:10} {arguments.count} mutants: {outcomes['read']} read, {outcomes['refused']} refused, "
            f"{outcomes['error']} other errors, {outcomes['deaths']} deaths; {outcomes['memory']} MB, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    print("\n".join(faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
