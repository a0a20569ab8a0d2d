"""Precisions (number formats) of a model's encoder, i.e. its backbone and neck; all else is float32.

strict_float32 keeps the whole of a step from TF32; encoder_precision says what the encoder computes in.

In training, the wide layers of a perspective head use the encoder's precision as well, see supervision.step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from bev_perception.config import ConfigError

#: precision of the encoder in training and inference -> dtype for autocast
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: only in inference: float32 numbers, which NVIDIA's tensor cores multiply with 10 bits of mantissa
TF32 = "tf32"
#: compute capability of the first GPUs (Ampere) that support TF32 and bfloat16 in hardware
AMPERE = (8, 0)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError, naming the remedy, for a precision that is unknown or that `device` does not support."""
    if precision not in (*PRECISIONS, TF32):
        raise ConfigError(f"precision is {precision!r}; it must be one of {', '.join((*PRECISIONS, TF32))}")
    if precision == TF32 and device.type != "cuda":
        raise ConfigError(f"precision 'tf32' is a format of NVIDIA's GPUs; on {device} choose 'fp32' or 'bf16'")
    if PRECISIONS.get(precision) is not None and not torch.amp.is_autocast_available(device.type):
        raise ConfigError(f"precision {precision!r} cannot be had on {device}; choose 'fp32'")
    if precision in (TF32, "bf16") and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} is too old for precision {precision!r}; choose 'fp16' or 'fp32'"
        )


def encoder_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which the encoder computes in `precision`, which check_precision has accepted.

    "fp32" is strict: by default PyTorch lets cuDNN compute convolutions in TF32, so "float32" depends on the GPU.
    """
    dtype = PRECISIONS.get(precision)
    if dtype is not None:
        return torch.autocast(device.type, dtype)
    return _tf32(precision == TF32) if device.type == "cuda" else nullcontext()


def strict_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which float32 is never replaced by TF32 on `device`, whatever PyTorch's flags are."""
    return _tf32(False) if device.type == "cuda" else nullcontext()


@contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Flush denormal numbers (below 1e-38 in float32) to zero; CPUs compute with them many times more slowly.

    Attention weights near zero give many denormal gradients. On CPUs that cannot flush them, nothing changes. The
    setting applies to this thread and to threads that PyTorch starts inside the context, which keep it afterwards; no
    result depends on the values of denormals.
    """
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # NumPy determines the range only once; inside the context it would warn of missing denormals
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 convolutions and matrix products; restore PyTorch's flags afterwards."""
    convolution, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolution, product
