"""Numba compilation of the loops over pixels, rays and voxels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

_COMMON: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy"}
_HOT = _COMMON | {"forceinline": True, "_nrt": False}
#: hash of all source files of this package
_SOURCES = hashlib.blake2b(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))), digest_size=16
).hexdigest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function with loops that Python code calls."""
    return _stamped(njit(**_COMMON)(function))


def hot(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call for every pixel.

    Such a function creates no arrays, so reference counting of its arguments is switched off; the counting would take
    three times as long as everything else.
    """
    return _stamped(njit(**_HOT)(function))


def _stamped(compiled: Any) -> Any:
    """Make numba's on-disk cache invalid as soon as any source file of this package changes.

    By default numba checks only the function's own file, but the cached code also contains functions from other files.
    """
    compiled._cache._cache_file._source_stamp = _SOURCES
    return compiled
