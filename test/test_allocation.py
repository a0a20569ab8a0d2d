"""Memory allocation of the process, in processes of their own as it cannot be undone."""

import json
import os
import subprocess
import sys

from bev_perception.allocation import HUGE_PAGES

FAULTS = """
import json, os, resource, sys, threading
if sys.argv[1] == "kept":
    from bev_perception.allocation import keep_memory_together
    keep_memory_together()
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(3):
        np.ones(100 << 20, np.uint8)
    before = faults()
    for _ in range(4):
        np.ones(100 << 20, np.uint8)
    print(json.dumps([faults() - before, os.environ.get("THP_MEM_ALLOC_ENABLE")]))

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
#: pages of 4 kB of the four arrays
PAGES = 4 * (100 << 20) // 4096


def measure(how: str, **environment: str) -> tuple[int, str | None]:
    env = {key: value for key, value in os.environ.items() if key != HUGE_PAGES} | environment
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=env)
    faults, huge = json.loads(done.stdout)
    return faults, huge


def test_large_buffers_are_not_mapped_again_and_again():
    """Also those of a thread, as the node's worker is one."""
    faults, huge = measure("kept", NUMPY_MADVISE_HUGEPAGE="0")
    assert faults < PAGES // 10 and huge == "1"


def test_by_default_each_is_mapped_anew():
    faults, huge = measure("as it comes", NUMPY_MADVISE_HUGEPAGE="0")
    assert faults > PAGES // 2 and huge is None


def test_what_the_user_has_set_stays():
    assert measure("kept", **{HUGE_PAGES: "0"})[1] == "0"


def test_commands_and_executables_set_it_up_before_torch_is_imported():
    for start in (
        "bev_perception.cli import main; main(['variants'])",
        "bev_perception.ros.entry import prepare_process",
    ):
        code = (
            "import sys, bev_perception.allocation as allocation\n"
            "calls = []\n"
            "allocation.keep_memory_together = lambda: calls.append('torch' in sys.modules)\n"
            f"from {start}\n"
            "calls or prepare_process()\n"
            "sys.exit(calls != [False])"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
