"""Read arrays from npz files whose sizes are checked before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from bev_perception.strict import UserError, open_regular

_SUFFIX = ".npy"


class ArraysError(UserError):
    """A file that is no npz, is damaged, or holds more than was asked for."""


def read_arrays(path: Path, names: Collection[str] | None = None, limit: int = 1 << 26) -> dict[str, np.ndarray]:
    """Return arrays of an npz file by name.

    path: of the file
    names: of the arrays to read, where there are some; None: all
    limit: the most bytes that they may have together; by default 67 MB, where occupancy on Occ3D's grid has 0.6 MB

    Raises FileNotFoundError, and ArraysError for a file that is damaged, larger, or would have to be unpickled.
    """
    try:
        with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            entries = {entry.filename.removesuffix(_SUFFIX): entry for entry in archive.infolist()}
            wanted = {name: entry for name, entry in entries.items() if names is None or name in names}
            if sum(entry.file_size for entry in wanted.values()) > limit:
                raise ArraysError(f"it unpacks to more than {limit} bytes")
            arrays = {}
            for name, entry in wanted.items():
                with archive.open(entry) as file:
                    arrays[name] = _read_array(file, entry.file_size)
            return arrays
    except (FileNotFoundError, ArraysError):
        raise
    except Exception as error:  # damaged bytes can meet the reader anywhere
        raise ArraysError(str(error) or type(error).__name__) from error


def names_of(path: Path) -> list[str]:
    """Return the names of the arrays in an npz file; raise OSError or BadZipFile if it is none."""
    with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
        return [name.removesuffix(_SUFFIX) for name in archive.namelist()]


def _read_array(file: IO[bytes], size: int) -> np.ndarray:
    """Return the array in an npy file of `size` bytes if it says that it is as large as it is."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ArraysError("it holds Python objects")
    content = file.read()
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise ArraysError(f"an array of shape {shape} and type {dtype} does not fit its {size} bytes")
    # a bytearray, so that the array can be written to
    return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")
