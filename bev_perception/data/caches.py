"""Where this package keeps what it makes once: compiled messages, the index of nuScenes' tables.

Code and file names are taken from caches without further questions, so they must be the user's own.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bev_perception.strict import UserError

#: the environment variable that names the cache directory
VARIABLE = "BEV_PERCEPTION_CACHE"
#: what the owner may do with a cache directory, and nobody else
PRIVATE = 0o700


class CacheError(UserError):
    """A cache directory that cannot or must not be used; the message names cause and remedy."""


def cache_root() -> Path:
    """Return the cache directory: $BEV_PERCEPTION_CACHE, else $XDG_CACHE_HOME/bev_perception, else ~/.cache/..."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bev_perception"


def private_directory(path: Path) -> Path:
    """Make a directory that belongs to the user alone, unless it exists, and return it.

    One of the user's own that others can read is closed to them.

    Raises CacheError if it cannot be made, is another user's, or could have been written by others.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(PRIVATE, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise CacheError(
            f"the cache {path} cannot be made ({error}); set {VARIABLE} to a directory that you can write to"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise CacheError(
            f"the cache {path} is not used, as others than you could have written to it (owner {found.st_uid}, mode "
            f"{stat.S_IMODE(found.st_mode):o}); remove it, or set {VARIABLE} to a directory of your own"
        )
    if stat.S_IMODE(found.st_mode) != PRIVATE:
        path.chmod(PRIVATE)
    return path


def is_own_file(path: Path) -> bool:
    """Whether a file exists that the user alone can have written."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
