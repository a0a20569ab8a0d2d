"""Engines "onnxruntime" and "tensorrt": ONNX, run by ONNX Runtime, which hands it to TensorRT for the latter."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bev_perception.config import ConfigError
from bev_perception.pipeline.engines.part import EncoderPart, Run

FILE = "encoder.onnx"
#: name of the input
IMAGES = "images"


def check(precision: str, device: torch.device) -> None:
    """Raise ConfigError, which says what to install, where ONNX Runtime cannot be had."""
    remedy = "bev_perception[onnxruntime]" if device.type == "cpu" else "onnx onnxscript onnxruntime-gpu"
    require("onnxruntime", ("onnx", "onnxscript", "onnxruntime"), remedy)
    _require_provider("onnxruntime", _provider(device), remedy)
    _only_fp32("onnxruntime", precision)


def check_tensorrt(precision: str, device: torch.device) -> None:
    """Raise ConfigError, which says what to install, where TensorRT cannot be had."""
    if device.type != "cuda":
        raise ConfigError(f"engine 'tensorrt' is for NVIDIA's GPUs; on {device} choose 'openvino' or 'compile'")
    remedy = "onnx onnxscript onnxruntime-gpu tensorrt"
    require("tensorrt", ("onnx", "onnxscript", "onnxruntime", "tensorrt"), remedy)
    _require_provider("tensorrt", "TensorrtExecutionProvider", remedy)
    _only_fp32("tensorrt", precision)


def require(engine: str, modules: tuple[str, ...], remedy: str) -> None:
    """Raise ConfigError, which says to `pip install` the remedy, if one of the modules cannot be imported."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"engine {engine!r} needs what is not installed: {', '.join(missing)}; `pip install {remedy}`, or choose "
            "engine 'eager'"
        )


def build(part: EncoderPart, directory: Path) -> None:
    """Write the part as ONNX."""
    write_onnx(part, directory / FILE)


def write_onnx(part: EncoderPart, path: Path) -> None:
    """Write the part as an ONNX file, with the number of images left open; large weights lie beside it."""
    with torch.no_grad():
        outputs = len(part(part.example(1)))
        names = [map_name(k) for k in range(outputs)]
        program = torch.onnx.export(
            part.exported(), dynamo=True, verbose=False, input_names=[IMAGES], output_names=names
        )
    assert program is not None  # it is, without a path
    program.save(str(path))


def map_name(k: int) -> str:
    """Return the name of output k."""
    return f"map{k}"


def load(directory: Path, precision: str, device: torch.device) -> Run:
    """Return the part, run by ONNX Runtime."""
    return run_onnx(directory / FILE, [(_provider(device), _options(device))], device)


def load_tensorrt(directory: Path, precision: str, device: torch.device) -> Run:
    """Return the part, run by TensorRT, which keeps what it has built beside the ONNX file."""
    cached = {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(directory), "device_id": _index(device)}
    return run_onnx(directory / FILE, [("TensorrtExecutionProvider", cached)], device)


def run_onnx(path: Path, providers: list[Any], device: torch.device) -> Run:
    """Return what runs an ONNX file with execution providers of ONNX Runtime; results are moved to `device`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def maps(images: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {IMAGES: images.float().cpu().numpy()})
        return tuple(torch.from_numpy(level).to(device) for level in outputs)

    return maps


def _provider(device: torch.device) -> str:
    return "CPUExecutionProvider" if device.type == "cpu" else "CUDAExecutionProvider"


def _options(device: torch.device) -> dict[str, Any]:
    """Return the provider's options: the GPU that the model is on, in strict float32."""
    return {} if device.type == "cpu" else {"device_id": _index(device), "use_tf32": 0}


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _require_provider(engine: str, provider: str, remedy: str) -> None:
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"engine {engine!r} needs {provider}, which this ONNX Runtime lacks; `pip install {remedy}`, or choose "
            "engine 'eager'"
        )


def _only_fp32(engine: str, precision: str) -> None:
    if precision != "fp32":
        raise ConfigError(f"engine {engine!r} computes in fp32, not in {precision}; choose precision 'fp32'")
