"""The number formats that a model's encoder, its backbone and neck, can compute in; all else computes in float32.

In training the wide layers of a perspective head compute as the encoder does, see supervision.step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from bev_perception.config import ConfigError

#: precision of the encoder in training and inference -> the type that autocast uses there
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
#: in inference alone: float32 numbers, multiplied by NVIDIA's tensor cores with 10 bits of mantissa
TF32 = "tf32"
#: compute capability of the first GPUs (Ampere) whose hardware has TF32 and bfloat16
AMPERE = (8, 0)


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigError, naming the remedy, for a precision that is unknown or that `device` does not have."""
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
    """Return the context in which the encoder computes in a precision that check_precision has let pass.

    "fp32" means it: PyTorch's own default lets cuDNN convolve in TF32, so that its "float32" depends on the GPU.
    """
    dtype = PRECISIONS.get(precision)
    if dtype is not None:
        return torch.autocast(device.type, dtype)
    return _tf32(precision == TF32) if device.type == "cuda" else nullcontext()


def strict_float32(device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which float32 means float32 on `device`, whatever PyTorch's flags say of TF32."""
    return _tf32(False) if device.type == "cuda" else nullcontext()


@contextmanager
def tiny_is_zero() -> Iterator[None]:
    """Take numbers below float32's normal range (1e-38) for zero; the CPU computes with them many times more slowly.

    What attention hardly looks at has many such gradients. Where the CPU cannot do so, nothing changes. It holds for
    this thread and for those that PyTorch starts inside, which keep to it; nothing depends on what such numbers are.
    """
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # NumPy looks at the range only once, and would warn if it then found no such numbers
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let float32 convolutions and matrix products inside use TF32 or not; leave PyTorch's flags as they were."""
    convolution, product = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolution, product
