"""Write a variant's image encoder as a file that other runtimes take, checked against eager mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.families.variants import Variant, load_variant
from bev_perception.pipeline.engines import onnx_runtime, open_vino
from bev_perception.pipeline.engines.part import EncoderPart, EngineError, Run, input_size, same_sizes, share
from bev_perception.pipeline.loading import load_weights

#: largest difference to eager mode, as a share of the largest number of a map
TOLERANCE = 1e-4
#: file beside it that describes inputs and outputs
DESCRIPTION = "encoder.md"
#: numbers of images that the file is compared with
COUNTS = (1, 6)


class _Format(NamedTuple):
    """How a format is written and run.

    file: name of the file
    check: raises ConfigError, which says what to install, where it cannot be written and run
    write: writes the file
    run: returns what runs it
    usage: lines of Python that run it
    """

    file: str
    check: Callable[[], None]
    write: Callable[[EncoderPart, Path], None]
    run: Callable[[Path], Run]
    usage: str


def _write_torch(part: EncoderPart, path: Path) -> None:
    torch.export.save(part.exported(), path)


def _run_torch(path: Path) -> Run:
    return torch.export.load(path).module()


_CPU = torch.device("cpu")
_FORMATS = {
    "onnx": _Format(
        onnx_runtime.FILE,
        lambda: onnx_runtime.check("fp32", _CPU),
        onnx_runtime.write_onnx,
        lambda path: onnx_runtime.run_onnx(path, ["CPUExecutionProvider"], _CPU),
        'session = onnxruntime.InferenceSession("{file}")\nmaps = session.run(None, {{"images": images}})',
    ),
    "openvino": _Format(
        open_vino.FILE,
        lambda: open_vino.check("fp32", _CPU),
        open_vino.write_openvino,
        lambda path: open_vino.run_openvino(path, "fp32"),
        'model = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})\n'
        "maps = list(model(images).values())",
    ),
    "torch": _Format(
        "encoder.pt2",
        lambda: None,
        _write_torch,
        _run_torch,
        'encoder = torch.export.load("{file}").module()\nmaps = encoder(torch.from_numpy(images))',
    ),
}
#: names of all formats
FORMATS = tuple(_FORMATS)


def export_encoder(variant: Variant, checkpoint: Path | None, kind: str, out: Path) -> Path:
    """Write a variant's image encoder (backbone and neck) and DESCRIPTION beside it; return the path of the file.

    variant: name, path of a YAML file, or loaded configuration
    checkpoint: its weights; None: the shipped ones
    kind: one of FORMATS
    out: directory

    The file is run once written, with one image and with six; its maps are those of eager mode to TOLERANCE.

    Raises ConfigError for a format that is unknown or that something is missing for, EngineError for a file whose
    results differ, and the errors of load_weights.
    """
    if kind not in FORMATS:
        raise ConfigError(f"format is {kind!r}; it must be one of {', '.join(FORMATS)}")
    form, config = _FORMATS[kind], load_variant(variant)
    form.check()
    loaded = load_weights(config, checkpoint, _CPU)
    part = EncoderPart(loaded.model, input_size(config.image), "fp32", _CPU)
    out.mkdir(parents=True, exist_ok=True)
    path = out / form.file
    form.write(part, path)
    maps, off = _compare(form.run(path), part, path)
    weights = loaded.checkpoint.path.name + ("" if loaded.checkpoint.trained else ", UNTRAINED")
    (out / DESCRIPTION).write_text(_readme(config, kind, form, weights, maps, off))
    return path


def _compare(run: Run, part: EncoderPart, path: Path) -> tuple[Sequence[Tensor], float]:
    """Return the maps of one image, and the largest difference to eager mode; raise EngineError if it is too large."""
    worst, shown = 0.0, None
    for count in COUNTS:
        images = part.example(count)
        with torch.inference_mode():
            eager, maps = part(images), tuple(run(images))
        if not same_sizes(maps, eager):
            raise EngineError(f"{path} gives maps of other sizes than the model; do not use it, and report it")
        for level, expected in zip(maps, eager, strict=True):
            off = share((level - expected).abs().max(), expected.abs().max())
            if not off <= TOLERANCE:  # NaN, too
                raise EngineError(
                    f"{path} differs from the model by {off:.2g} of a map's largest number; do not use it"
                )
            worst = max(worst, off)
        shown = shown or maps
    assert shown is not None
    return shown, worst


def _readme(config: VariantConfig, kind: str, form: _Format, weights: str, maps: Sequence[Tensor], off: float) -> str:
    image, (height, width) = config.image, input_size(config.image)
    rows = [f"| `{onnx_runtime.map_name(k)}` | {_shape(level)} |" for k, level in enumerate(maps)]
    return f"""# Image encoder of {config.name}

`{form.file}` holds backbone and neck with their weights ({weights}), float32, batch norms folded. It does not hold the
decoder, nor the memory of past frames. When it was written, its maps of {" and ".join(map(str, COUNTS))} images
differed from eager PyTorch's by at most {off:.1e} of their largest number.

- Input `images`: N x 3 x {height} x {width}, float32, for any number N of images (cameras).
- Channels are in the order {image.channel_order}: values of 0 to 255, minus {image.mean}, divided by {image.std}.
- Pictures are {image.height} high and {image.width} wide, then padded with zeros at the lower and right border.

| output | shape |
|---|---|
{chr(10).join(rows)}

    {form.usage.format(file=form.file).replace(chr(10), chr(10) + "    ")}
"""


def _shape(level: Tensor) -> str:
    return " x ".join(["N", *map(str, level.shape[1:])])
