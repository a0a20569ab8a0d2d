"""How the loops over pixels, rays and voxels are compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

_COMMON: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy"}
_HOT = _COMMON | {"forceinline": True, "_nrt": False}
#: of all sources of this package
_SOURCES = hashlib.blake2b(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))), digest_size=16
).hexdigest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a loop that Python calls."""
    return _stamped(njit(**_COMMON)(function))


def hot(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call for every pixel.

    It makes no array, so it can do without counting references to those that it is given; counting takes three times
    as long as all the rest.
    """
    return _stamped(njit(**_HOT)(function))


def _stamped(compiled: Any) -> Any:
    """Let compiled code that is kept on disk count only as long as no source has changed.

    numba looks at the function's own file alone, but what it keeps has functions of other files in it.
    """
    compiled._cache._cache_file._source_stamp = _SOURCES
    return compiled
