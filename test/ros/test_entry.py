"""How the ROS executables end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kit import load

BUSY = """
import hashlib, signal, threading, time
from bev_perception.ros.entry import end_in_time
signal.signal({signal}, lambda *_: print("asked to end", flush=True))
end_in_time(0.5)
lock = threading.Lock()
lock.acquire()
print("ready", flush=True)
while True:
    {work}
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "work", ["time.sleep(60)", "sum(range(10**6))", "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**8)"]
)
def test_whatever_the_process_does_it_ends_in_time(name, work):
    """Also in a step of C code that takes half a minute, during which Python runs no handler."""
    code = BUSY.format(signal=f"signal.{name}", work=work)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    begin = time.monotonic()
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in err
    assert 0.4 < time.monotonic() - begin < 3


def test_other_signals_do_not_end_it():
    code = BUSY.format(signal="signal.SIGUSR1", work="time.sleep(0.05)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.communicate()


def catches(pid, number):
    """Whether a process has a handler of a signal that Python has none of."""
    caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("executable", ["perception_node", "bag_player"])
@pytest.mark.parametrize("after", [0.0, 0.4, 1.5])
def test_sigint_while_it_is_starting(executable, after):
    """From the first line of main() on: while modules are imported, and the node is made."""
    with load():
        command = [sys.executable, "-m", f"bev_perception.ros.{executable}", "--ros-args", "-p", "bag:=none"]
        # coverage has a handler of SIGTERM, too, long before main() begins
        env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not catches(process.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, err = process.communicate(timeout=20)
    assert process.returncode in ((0,) if executable == "perception_node" else (0, 1))  # 1: there is no such bag
    assert "Traceback" not in err
    assert time.monotonic() - begin < 2.5


LEAVING = """
import atexit, os, signal, sys, time
from bev_perception.ros.endings import end_by, raise_exit, run_and_leave
atexit.register(lambda: print("taken down", flush=True))

def run():
    end_by(raise_exit)
    try:
        {work}
    finally:
        os.kill(os.getpid(), signal.SIGTERM)  # while it is on its way out
        time.sleep(0.1)

run_and_leave(run)
"""


@pytest.mark.parametrize(
    ("work", "status", "said"),
    [
        ("return 0", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(1)", 1, ""),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", 0, ""),
        ("raise OSError('no DDS')", 1, "OSError: no DDS"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
    ],
)
def test_however_it_ends_python_is_not_taken_down(work, status, said):
    """Also if a second signal comes while the first one, or an error, is leading out."""
    if status == 1 or work == "return 0":
        code = LEAVING.format(work=work).replace("os.kill(os.getpid(), signal.SIGTERM)", "pass", 1)
    else:
        code = LEAVING.format(work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (status, "") and said in done.stderr and bool(said) == bool(done.stderr)
