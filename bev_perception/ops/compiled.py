"""Loops that numba compiles, where it is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger(__name__)


def compile_loop(function: Callable[..., Any], signature: str, what: str) -> Callable[..., Any] | None:
    """Return a function compiled by numba; without numba, warn and return None.

    signature: numba types of the arguments
    what: says in the log what takes longer without it
    """
    try:
        import numba
    except ImportError as error:
        LOG.warning("%s by PyTorch, many times slower: numba cannot be imported (%s); install it", what, error)
        return None
    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except (RuntimeError, OSError) as error:  # there is no writable cache for the compiled code
        LOG.info("what is compiled for this is compiled anew at every start: %s (%s)", what, error)
        return numba.njit(signature, nogil=True)(function)
