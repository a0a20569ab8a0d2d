"""Start the nodes of this package as processes, without `ros2 run`: for the demo, benchmarks and tests."""

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

#: highest DDS domain in use; the ports of higher ones overlap with the system's ephemeral ports
HIGHEST_DOMAIN = 100
_counter = itertools.count()


def new_domain() -> int:
    """Return a DDS domain that this process has not used yet and that is most likely free on this machine."""
    return 1 + (os.getpid() * 13 + next(_counter)) % HIGHEST_DOMAIN


def dds_environment(domain: int) -> dict[str, str]:
    """Return environment variables for a DDS domain, with a shared-memory transport that does not lose images."""
    profile = str(variants_directory().parent / "fastdds_shm.xml")
    return {
        **os.environ,
        "ROS_DOMAIN_ID": str(domain),
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,  # read up to Jazzy
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,  # read from Kilted on
        "PYTHONUNBUFFERED": "1",
    }


def wait_until(condition: Callable[[], object], timeout: float, what: str | Callable[[], str]) -> None:
    """Wait until `condition()` is true.

    Raises TimeoutError, which names `what`, after `timeout` s.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.005)


class NodeProcess:
    """An executable of bev_perception.ros in a separate process, which logs to the file `log`."""

    def __init__(self, executable: str, domain: int, log: Path, parameters: Mapping[str, object]) -> None:
        """Start the process.

        executable: perception_node or bag_player
        domain: number of the DDS domain
        log: file for its output
        parameters: ROS parameters, name -> value
        """
        self.log = log
        arguments = ["--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={value}"]
        command = [sys.executable, "-m", f"bev_perception.ros.{executable}", *arguments]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dds_environment(domain))

    def alive(self) -> bool:
        """Return whether the process is still running."""
        return self.process.poll() is None

    def text(self) -> str:
        """Return what the process has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = 60.0) -> None:
        """Wait until `text` is in the log.

        Raises ConfigError with the log if the process ends before, and TimeoutError after `timeout` s.
        """
        wait_until(lambda: text in self.text() or not self.alive(), timeout, lambda: f"{text!r} in:\n{self.text()}")
        if text not in self.text():
            raise ConfigError(f"the process ended with status {self.process.returncode}:\n{self.text()}")

    def resident_bytes(self) -> tuple[int, int]:
        """Return the current and the peak resident memory of the process, bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        now, peak = (next(line for line in status.splitlines() if line.startswith(key)) for key in ("VmRSS", "VmHWM"))
        return int(now.split()[1]) * 1024, int(peak.split()[1]) * 1024

    def interrupt(self, timeout: float = 30.0) -> int:
        """Send SIGINT, as Ctrl-C does, wait for the end of the process and return its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """Kill the process with SIGKILL if it is still running."""
        if self.alive():
            self.process.kill()
            self.process.wait()
