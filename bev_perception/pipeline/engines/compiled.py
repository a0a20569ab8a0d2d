"""Engine "compile": PyTorch's own compiler, ahead of time (AOTInductor), into a library that the cache keeps."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from bev_perception.config import ConfigError
from bev_perception.pipeline.engines.part import EncoderPart, Run

_FILE = "encoder.pt2"


def check(precision: str, device: torch.device) -> None:
    """Raise ConfigError where there is no compiler."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++")):
        raise ConfigError("engine 'compile' needs a C++ compiler; install g++, or choose engine 'eager'")


def build(part: EncoderPart, directory: Path) -> None:
    """Compile the part."""
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(part.exported(in_precision=True), package_path=str(directory / _FILE))


def load(directory: Path, precision: str, device: torch.device) -> Run:
    """Return the compiled part."""
    run = torch._inductor.aoti_load_package(str(directory / _FILE))

    def maps(images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, enabled=False):  # the precision is compiled in
            return tuple(run(images.contiguous()))  # as the example was

    return maps
