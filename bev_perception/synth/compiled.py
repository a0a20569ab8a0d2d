"""How the loops over pixels, rays and voxels are compiled."""

from __future__ import annotations

from typing import Any

from numba import njit

_COMMON: dict[str, Any] = {"cache": True, "fastmath": True, "error_model": "numpy"}
_HOT = _COMMON | {"forceinline": True, "_nrt": False}

#: a loop that Python calls
kernel: Any = njit(**_COMMON)
#: a function that kernels call for every pixel. It makes no array, so it can do without counting references to those
#: that it is given; counting takes three times as long as all the rest.
hot: Any = njit(**_HOT)
