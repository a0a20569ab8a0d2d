"""How the ROS executables end."""

import signal
import subprocess
import sys
import time

import pytest

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
