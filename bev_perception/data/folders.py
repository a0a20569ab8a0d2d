"""Files and folders of results: one writer at a time, complete when they appear, known by their content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bev_perception.strict import UserError, open_regular


class FolderError(UserError):
    """An output folder that cannot be written; the message names cause and remedy."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


@contextmanager
def one_writer(folder: Path, leftovers: str = "") -> Iterator[None]:
    """Make a folder unless it exists, and keep other processes that ask for it in this way out of it.

    The lock belongs to the process and ends with it, however that ends; nothing of it is left in the folder.

    folder: to write into
    leftovers: pattern of files in it that a writer which was killed has left unfinished; they are removed

    Raises FolderError if the folder cannot be made, or another process is writing into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be written ({error}); choose another place") from error
    with locked(folder):
        for path in folder.glob(leftovers) if leftovers else ():
            path.unlink()
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes that ask for a file or folder in this way from it.

    Raises FolderError if one of them has it, and OSError if it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderError(f"another process is writing {path}; wait for its end, or name another") from error
        yield
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a path to write a new folder to, which becomes `path` when the block ends without an error.

    It lies in <path>.partial, which is removed in the end; what a process that was killed has left there is removed,
    too.

    Raises FolderError if another process is writing the same folder, or the disk refuses it.
    """
    outer = path.with_name(f"{path.name}.partial")
    with one_writer(outer):
        try:
            for left in outer.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield outer / path.name
            (outer / path.name).rename(path)
        except OSError as error:
            raise FolderError(f"{path} cannot be written ({error}); make room, or choose another place") from error
        finally:
            shutil.rmtree(outer, ignore_errors=True)
