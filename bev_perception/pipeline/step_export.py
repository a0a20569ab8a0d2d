"""Write a variant's step, all that comes after its encoder, as a file for other runtimes, and check it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.families.variants import Variant, load_variant
from bev_perception.models.encoder import CameraModel
from bev_perception.models.memory import FrameFeatures
from bev_perception.pipeline.encoders import noise_input
from bev_perception.pipeline.engines import onnx_runtime
from bev_perception.pipeline.engines.part import MOST_IMAGES, EngineError, input_size
from bev_perception.pipeline.loading import load_weights

#: file beside it that describes inputs and outputs
DESCRIPTION = "step.md"
#: format -> name of the file
FILES = {"onnx": "step.onnx", "torch": "step.pt2"}
#: numbers of cameras that the file is compared with
COUNTS = (3, 6)
#: largest difference to eager mode, as a share of an output's root mean square
TOLERANCE = 1e-3
#: share of an output's rows that may differ by more: where two candidates are nearly equal, either may be chosen
UNDECIDED = 0.02

_CPU = torch.device("cpu")


class StepPart(nn.Module):
    """A model's step as a function of tensors: the levels of all frames and what CameraModel.step_inputs names."""

    def __init__(self, model: CameraModel, size: tuple[int, int]) -> None:
        """Take `model`, which stays as it is; size: (H, W) of its images."""
        super().__init__()
        self.model, self.size = model, size
        self.names = tuple(self.example(1))

    def forward(self, values: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs for inputs in the order of `names`."""
        return tuple(self.step(values).values())

    def step(self, values: list[Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name."""
        return self.model.step(dict(zip(self.names, values, strict=True)), self.size)

    @torch.no_grad()
    def example(self, cameras: int) -> dict[str, Tensor]:
        """Return made-up inputs, see noise_input."""
        frames = self.model.config.frames
        ages = [frames.interval * k for k in range(1 + frames.past)]
        drive = [noise_input(cameras, *self.size, _CPU, seconds=10 - age) for age in ages]
        seen = [
            FrameFeatures(
                self.model.pyramid(frame.images), frame.global2image, frame.present, frame.stamps, frame.stamp
            )
            for frame in drive
        ]
        return self.model.step_inputs(seen, drive[0].reference2global)

    def exported(self) -> torch.export.ExportedProgram:
        """Return the step as a graph of PyTorch's operators, with the number of cameras left open."""
        cameras = torch.export.Dim("cameras", min=1, max=MOST_IMAGES)
        example = self.example(2)
        shapes = [None if (axis := camera_axis(name)) is None else {axis: cameras} for name in example]
        with torch.no_grad():
            return torch.export.export(self, (list(example.values()),), dynamic_shapes=(shapes,))


def camera_axis(name: str) -> int | None:
    """Return which axis of an input of CameraModel.step_inputs counts cameras; None: none does."""
    return {"reference2image": 1, "image2reference": 1, "time_differences": None}.get(name, 0)


def export_step(variant: Variant, checkpoint: Path | None, kind: str, out: Path) -> Path:
    """Write a variant's step and DESCRIPTION beside it; return the path of the file. Arguments as in export_encoder.

    The file is run once written, with several numbers of cameras, and compared with eager mode.

    Raises ConfigError for a family whose step is not exported or for a format that something is missing for,
    EngineError for a file whose results differ, and the errors of load_weights.
    """
    config = load_variant(variant)
    if kind == "onnx":
        onnx_runtime.check("fp32", _CPU)
    if kind not in FILES:
        raise ConfigError(f"a step is not exported as {kind!r}, whose converter refuses it; choose {', '.join(FILES)}")
    loaded = load_weights(config, checkpoint, _CPU)
    if not isinstance(loaded.model, CameraModel) or type(loaded.model).step is CameraModel.step:
        raise ConfigError(f"the step of {config.name} cannot be exported; export its encoder: --part encoder")
    part = StepPart(loaded.model, input_size(config.image))
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILES[kind]
    _write(part, kind, path)
    outputs = _compare(part, kind, path)
    weights = loaded.checkpoint.path.name + ("" if loaded.checkpoint.trained else ", UNTRAINED")
    (out / DESCRIPTION).write_text(_readme(config, path.name, weights, part, outputs))
    return path


def _write(part: StepPart, kind: str, path: Path) -> None:
    program = part.exported()
    if kind == "torch":
        torch.export.save(program, path)
    else:
        outputs = list(part.step(list(part.example(1).values())))
        with torch.no_grad():
            onnx = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(part.names), output_names=outputs
            )
        assert onnx is not None  # it is, without a path
        onnx.save(str(path))


def _run(kind: str, path: Path, named: dict[str, Tensor]) -> list[Tensor]:
    """Return the outputs of a file for named inputs."""
    if kind == "torch":
        return list(torch.export.load(path).module()(list(named.values())))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in named.items()}
    return [torch.from_numpy(value) for value in session.run(None, arrays)]


def _compare(part: StepPart, kind: str, path: Path) -> dict[str, Tensor]:
    """Return the outputs of an example; raise EngineError if those of the file differ."""
    for cameras in COUNTS:
        named = part.example(cameras)
        with torch.no_grad():
            eager, found = part.step(list(named.values())), _run(kind, path, named)
        for (name, expected), value in zip(eager.items(), found, strict=True):
            if value.shape != expected.shape:
                raise EngineError(f"{path} gives {name} in another shape than the model; do not use it, and report it")
            off = (value.double() - expected.double()).abs().flatten(1).amax(dim=1)  # of each row
            wrong = (~(off <= TOLERANCE * expected.double().square().mean().sqrt())).double().mean().item()  # NaN, too
            if wrong > UNDECIDED:
                raise EngineError(f"{path} differs from the model in {wrong:.1%} of the rows of {name}; do not use it")
    return eager


def _readme(config: VariantConfig, file: str, weights: str, part: StepPart, outputs: dict[str, Tensor]) -> str:
    frames = config.frames
    inputs = [f"| `{name}` | {_shape(value, camera_axis(name))} |" for name, value in part.example(1).items()]
    given = [f"| `{name}` | {_shape(value, None)} | {value.dtype}" for name, value in outputs.items()]
    return f"""# The step of {config.name}

`{file}` holds all that comes after the image encoder, with weights ({weights}), float32. When it was written, its
outputs for {" and ".join(map(str, COUNTS))} cameras were those of eager PyTorch, to {TOLERANCE:g} of their scale.

Frame 0 is the current one; frame t the one nearest to {frames.interval:g} s x t earlier, or the oldest (or current)
one while there is none. N is the number of cameras, the same in all frames.

- `frame{{t}}_level{{k}}`: map k of frame t, from the encoder (`export --part encoder`); zeros for a missing camera.
- `reference2image[t, n]`: from the reference frame ({config.reference_frame.sensor}) now to depth-scaled pixels of
  camera n at frame t, after resizing and cropping, through the global frame; all zeros for a missing camera.
- `image2reference`: its inverse, zeros for a missing camera.
- `time_differences[t]`: s, current minus frame t, averaged over the cameras that both have.

| input | shape |
|---|---|
{chr(10).join(inputs)}

| output | shape | type |
|---|---|---|
{chr(10).join(given)}

docs/exported_loop.py runs encoder and step on a stream.
"""


def _shape(value: Tensor, cameras: int | None) -> str:
    return " x ".join("N" if axis == cameras else str(size) for axis, size in enumerate(value.shape))
