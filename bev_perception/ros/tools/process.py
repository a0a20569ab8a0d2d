"""Starts the package's own nodes as processes on a machine without `ros2 run`: for the demo, the bench and tests."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bev_perception.config import ConfigError
from bev_perception.families.variants import variants_directory

#: above, a domain's ports lie among those that the system hands out to anyone
HIGHEST_DOMAIN = 100
_counter = itertools.count()


def new_domain() -> int:
    """Return a DDS domain that this process has not used yet, most likely free on this machine."""
    return 1 + (os.getpid() * 13 + next(_counter)) % HIGHEST_DOMAIN


def dds_environment(domain: int) -> dict[str, str]:
    """Return the environment of a process on `domain`, with the shared-memory transport that loses no images."""
    profile = str(variants_directory().parent / "fastdds_shm.xml")
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,  # read up to Jazzy
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,  # read from Kilted on
        "PYTHONUNBUFFERED": "1",
    }


def wait_until(condition: Callable[[], object], timeout: float, what: str | Callable[[], str]) -> None:
    """Wait until `condition()` holds; raises TimeoutError naming `what` after `timeout` s of wall clock."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.005)


class NodeProcess:
    """One executable of bev_perception.ros in a process of its own; its log is the file `log`."""

    def __init__(self, executable: str, domain: int, log: Path, parameters: Mapping[str, object]) -> None:
        """Start `executable` (perception_node or bag_player) with ROS parameters."""
        self.log = log
        arguments = ["--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={value}"]
        command = [sys.executable, "-m", f"bev_perception.ros.{executable}", *arguments]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dds_environment(domain))

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def text(self) -> str:
        """Return what it has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = 60.0) -> None:
        """Wait until `text` is in the log; raises ConfigError with the log if the process ends before."""
        wait_until(lambda: text in self.text() or not self.alive(), timeout, lambda: f"{text!r} in:\n{self.text()}")
        if text not in self.text():
            raise ConfigError(f"the process ended with status {self.process.returncode}:\n{self.text()}")

    def resident_bytes(self) -> tuple[int, int]:
        """Return the memory it holds now and the most it ever held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        now, peak = (next(line for line in status.splitlines() if line.startswith(key)) for key in ("VmRSS", "VmHWM"))
        return int(now.split()[1]) * 1024, int(peak.split()[1]) * 1024

    def interrupt(self, timeout: float = 30.0) -> int:
        """Send SIGINT as Ctrl-C does; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """End it without asking, if it still runs."""
        if self.alive():
            self.process.kill()
            self.process.wait()
