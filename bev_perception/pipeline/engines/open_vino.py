"""Engine "openvino": Intel's runtime for CPUs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bev_perception.config import ConfigError
from bev_perception.pipeline.engines.onnx_runtime import require
from bev_perception.pipeline.engines.part import EncoderPart, Run

FILE = "encoder.xml"
#: our precision -> OpenVINO's name of it
_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
#: our precision -> what OpenVINO says of a CPU that computes in it
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}


def check(precision: str, device: torch.device) -> None:
    """Raise ConfigError, which says what to install, where OpenVINO cannot be had."""
    if device.type != "cpu":
        raise ConfigError(
            f"engine 'openvino' runs on the CPU, not on {device}; set device to 'cpu', or choose 'compile'"
        )
    require("openvino", ("openvino",), "bev_perception[openvino]")
    import openvino

    can = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES.get(precision) not in can:
        raise ConfigError(f"engine 'openvino' does not compute in {precision} on this CPU; choose precision 'fp32'")


def build(part: EncoderPart, directory: Path) -> None:
    """Write the part in OpenVINO's own format."""
    write_openvino(part, directory / FILE)


def write_openvino(part: EncoderPart, path: Path) -> None:
    """Write the part as an .xml file, with the number of images left open; the .bin file beside it has the weights."""
    import openvino

    model = openvino.convert_model(part.exported())
    openvino.save_model(model, path, compress_to_fp16=False)


def load(directory: Path, precision: str, device: torch.device) -> Run:
    """Return the part, run by OpenVINO in `precision`."""
    return run_openvino(directory / FILE, precision)


def run_openvino(path: Path, precision: str) -> Run:
    """Return what runs an .xml file on the CPU in `precision`."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": _TYPES[precision], "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", hints)
    request = compiled.create_infer_request()

    def maps(images: Tensor) -> tuple[Tensor, ...]:
        request.infer([images.float().contiguous().numpy()])
        # copies: the request's own memory is written again by the next frame
        return tuple(torch.from_numpy(request.get_output_tensor(k).data.copy()) for k in range(len(compiled.outputs)))

    return maps
