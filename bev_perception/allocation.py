"""How the process gets its memory from the system: large buffers stay in one heap, on huge pages.

PyTorch's CPU tensors come from the malloc of the C library. By default, that gives every large buffer back to the
system as soon as it is free, so that the next one like it, a moment later, is mapped and zeroed page by page again.
"""

from __future__ import annotations

import ctypes
import os

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
#: bytes that stay at the top of the heap when they are free
KEPT = 1 << 30
#: PyTorch asks for huge pages for tensors of 2 MB and more where this is 1; it reads it when it allocates the first one
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def keep_memory_together() -> None:
    """Make malloc serve all threads from one heap, large buffers included, and keep what is free in it.

    Every executable and command calls this first, before torch is imported; processes that it starts afresh do so, too.
    By default each thread has a heap of its own. Large buffers that live for seconds (the remembered features) between
    others that live for milliseconds fragment these heaps, so that the process grows for thousands of frames. A mapping
    of its own for each large buffer would prevent that as well, but makes every frame clearly slower.

    Without glibc nothing changes. A value that the user has given to THP_MEM_ALLOC_ENABLE stays.
    """
    os.environ.setdefault(HUGE_PAGES, "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only glibc has it
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_MAX, 0)  # a larger threshold would do as well, but older versions refuse more than 32 MB
        mallopt(M_TRIM_THRESHOLD, KEPT)
