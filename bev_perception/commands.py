"""How the commands of this package are typed on this machine, for sentences that name one."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

PACKAGE = "bev_perception"


def command(words: str) -> str:
    """Return a command, such as `eval-demo --record`, as it is typed here.

    pip installs a program; a ROS 2 workspace has executables for `ros2 run`; a source tree has neither.
    """
    if shutil.which(PACKAGE):
        return f"{PACKAGE} {words}"
    if in_workspace(PACKAGE):
        return f"ros2 run {PACKAGE} {PACKAGE} {words}"
    return f"{Path(sys.executable).name} -m {PACKAGE}.cli {words}"


def ros_command(executable: str, words: str) -> str:
    """Return how a ROS executable is started here: by `ros2 run` in a workspace, else as a command.

    words: the command, such as `play`.
    """
    return f"ros2 run {PACKAGE} {executable}" if in_workspace(executable) else command(words)


def in_workspace(executable: str) -> bool:
    """Whether a ROS 2 workspace that is sourced has an executable of this package."""
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    return any(Path(prefix, "lib", PACKAGE, executable).is_file() for prefix in prefixes if prefix)
