"""Runs the independent DDS client (dds_client.py) with the Python of its own venv."""

import json
import os
import subprocess
from pathlib import Path

#: the ROS wheels set these for every interpreter of their venv; in another venv they would load the wrong libraries
FOREIGN = ("LD_LIBRARY_PATH", "_ROS_WHEELS_BOOTSTRAP_COMPLETE", "PYTHONPATH")


def run_client(venv_python: Path, domain_id: int, spec_path: Path, timeout: float) -> dict:
    """Publish the set of images that `spec_path` describes until an answer comes, and return that.

    The result has "stamp" (ns), "frame_id", "detections", "seconds" (since the first set) and "sets_sent" (each 1 s
    later than the one before), or "error" where nothing came back within `timeout` s. The layout of the specification
    is in dds_client.py. Raises RuntimeError if the client itself fails.
    """
    return run_script(venv_python, "dds_client.py", [str(domain_id), str(spec_path)], timeout)


def run_script(venv_python: Path, script: str, arguments: list[str], timeout: float) -> dict:
    """Run a script of this directory with --timeout, and return the JSON that it prints.

    Raises RuntimeError if it fails.
    """
    path = Path(__file__).with_name(script)
    command = [str(venv_python), str(path), *arguments, "--timeout", str(timeout)]
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout + 30, check=False)
    if done.returncode:
        raise RuntimeError(f"the client failed with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)
