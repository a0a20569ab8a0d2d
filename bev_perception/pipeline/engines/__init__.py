"""Engines: what computes a model's image maps (backbone and neck) in place of PyTorch's eager mode.

An engine is made once for a variant, its weights, the size of its images, its precision and the versions at hand,
before the first frame, and kept in the cache directory. Its results are compared with those of eager mode when it is
loaded, and in its first frame.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.models.precision import encoder_precision, strict_float32
from bev_perception.models.protocol import Model
from bev_perception.pipeline.engines import compiled, onnx_runtime, open_vino
from bev_perception.pipeline.engines.part import CheckedEngine, EncoderPart, Run, input_size
from bev_perception.pipeline.engines.store import engine_directory

LOG = logging.getLogger(__name__)

EAGER = "eager"


class _Engine(NamedTuple):
    """How an engine is had.

    check: raises ConfigError, which says what to install, where it cannot be had with a precision and a device
    build: writes it into an empty directory
    load: returns what runs it, from that directory
    """

    check: Callable[[str, torch.device], None]
    build: Callable[[EncoderPart, Path], None]
    load: Callable[[Path, str, torch.device], Run]


_ENGINES = {
    "compile": _Engine(compiled.check, compiled.build, compiled.load),
    "onnxruntime": _Engine(onnx_runtime.check, onnx_runtime.build, onnx_runtime.load),
    "openvino": _Engine(open_vino.check, open_vino.build, open_vino.load),
    "tensorrt": _Engine(onnx_runtime.check_tensorrt, onnx_runtime.build, onnx_runtime.load_tensorrt),
}
#: names of all engines
ENGINES = (EAGER, *_ENGINES)


def check_engine(engine: str, precision: str, device: torch.device) -> None:
    """Raise ConfigError, naming the remedy, for an engine that is unknown or cannot be had here."""
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")
    if engine != EAGER:
        _ENGINES[engine].check(precision, device)


def use_engine(model: Model, config: VariantConfig, engine: str, precision: str, device: torch.device) -> None:
    """Let an engine compute the model's image maps from now on; make it first, unless it is in the cache.

    model: on `device`, with its weights
    config: its variant
    engine: one of ENGINES
    precision: of backbone and neck, which check_precision has accepted
    device: that the model runs on

    Raises ConfigError for an engine that cannot be had here, and EngineError for one that computes something else.
    """
    check_engine(engine, precision, device)
    if engine == EAGER:
        return
    kind = _ENGINES[engine]
    part = EncoderPart(model, input_size(config.image), precision, device)
    directory = engine_directory(config, engine, part, kind.build)
    try:
        run = kind.load(directory, precision, device)
    except Exception as error:  # whatever a runtime raises for a damaged file
        LOG.warning("engine %s in %s cannot be loaded (%s); it is built anew", engine, directory, error)
        shutil.rmtree(directory)
        run = kind.load(engine_directory(config, engine, part, kind.build), precision, device)
    checked = CheckedEngine(engine, run, model, precision)
    with torch.inference_mode(), strict_float32(device), encoder_precision(precision, device):
        checked(part.example(3))  # another number of images than it was made with
    checked.check_next()
    model.engine = checked
