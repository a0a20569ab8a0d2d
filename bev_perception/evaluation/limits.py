"""What a machine can do at best, measured: its rates in a large matrix product and in a copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bev_perception.models.precision import PRECISIONS, encoder_precision

#: rows of the matrices, so large that nothing else counts and small enough to take milliseconds
_ROWS = {"cpu": 1024, "cuda": 8192}
#: bytes that are copied, more than caches hold
_COPIED = 128 << 20
_REPEATS = 7


@dataclass(frozen=True)
class MachineLimits:
    """The best of a few tries.

    gflops: 1e9 operations a second in a product of two square matrices; a multiply-add counts as two
    gb_per_s: 1e9 bytes a second, read and written, in a copy of memory
    """

    gflops: float
    gb_per_s: float


def measure_limits(device: torch.device, precision: str = "fp32") -> MachineLimits:
    """Return the limits of a device in a precision, as in PipelineSettings; takes less than a second or two.

    CPUs use the threads that PyTorch is set to.
    """
    rows = _ROWS[device.type]
    a, b = (torch.ones(rows, rows, device=device, dtype=PRECISIONS.get(precision)) for _ in range(2))
    source = torch.ones(_COPIED, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    with encoder_precision(precision, device), torch.inference_mode():
        product = _best(lambda: torch.mm(a, b), device)
        copy = _best(lambda: target.copy_(source), device)
    return MachineLimits(2 * rows**3 / product / 1e9, 2 * _COPIED / copy / 1e9)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of a few times, in s; the first does not count."""
    seconds = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
