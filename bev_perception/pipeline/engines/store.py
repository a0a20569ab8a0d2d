"""Where engines are kept: a directory in the cache for each variant, weights, size, precision and set of versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import bev_perception
from bev_perception.config import VariantConfig
from bev_perception.data.caches import cache_root, private_directory
from bev_perception.pipeline.engines.part import EncoderPart

LOG = logging.getLogger(__name__)

#: packages that make or run engines
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def engine_directory(
    variant: VariantConfig, engine: str, part: EncoderPart, build: Callable[[EncoderPart, Path], None]
) -> Path:
    """Return the directory of an engine; build it there first, with a line of progress, if it is not in the cache.

    variant: its name is in that of the directory, its settings are in the hash
    engine: name
    part: what it computes
    build: writes the engine into an empty directory
    """
    engines = private_directory(private_directory(cache_root()) / "engines")
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in variant.name)
    directory = engines / f"{name}_{engine}_{_key(variant, part)[:16]}"
    if directory.exists():
        return private_directory(directory)
    LOG.info("building engine %s for %s, once; this takes a minute or several", engine, variant.name)
    started = time.perf_counter()
    made = Path(tempfile.mkdtemp(dir=engines, prefix=".building_"))
    try:
        build(part, made)
        os.replace(made, directory)
    except OSError:
        if not directory.exists():  # else another process has been faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    LOG.info("built engine %s in %.0f s; it is kept in %s", engine, time.perf_counter() - started, directory)
    return directory


def _key(variant: VariantConfig, part: EncoderPart) -> str:
    """Return a hash of all that an engine depends on."""
    state = part.state_dict()
    facts: list[object] = [
        bev_perception.__version__,
        part.size,
        part.precision,
        part.device.type,
        _processor(part.device),
    ]
    facts += [variant.image, variant.backbone, variant.neck]
    facts.append(torch.get_num_threads())  # compiled code is made for a number of threads
    facts += [(package, _version(package)) for package in _PACKAGES]
    facts += [repr(part), [(name, tuple(value.shape), str(value.dtype)) for name, value in state.items()]]
    digest = hashlib.sha256(repr(facts).encode())
    for value in state.values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return "".join(line for line in lines[:40] if line.startswith(("model name", "flags", "Features")))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
