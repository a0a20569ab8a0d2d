"""The part of a model that engines compute, and the comparison with eager mode."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from bev_perception.config import ImageConfig
from bev_perception.models.precision import PRECISIONS
from bev_perception.models.protocol import Model
from bev_perception.strict import UserError

#: from images [N, 3, H, W] to the model's image maps
Run = Callable[[Tensor], tuple[Tensor, ...]]

#: largest root mean square of an engine's difference to eager mode, as a share of that of the map; of number formats
#: with 8 to 11 bits it is larger, as an engine need not round where eager mode does
TOLERANCES = {"fp32": 1e-3}
TOLERANCE_OF_OTHERS = 0.05
#: most images that an engine takes at once
MOST_IMAGES = 64


class EngineError(UserError):
    """An engine computes something else than eager mode; the message says how far off it is."""


def input_size(image: ImageConfig) -> tuple[int, int]:
    """Return (height, width) of the images that the model gets, padding included, in pixels."""
    height, width = (math.ceil(size / image.pad) * image.pad for size in (image.height, image.width))
    return height, width


class EncoderPart(nn.Module):
    """The encoder of a model as a module of its own: images [N, 3, H, W] to its image maps, in float32.

    size: (H, W)
    precision: that an engine computes in
    device: that its weights are on
    """

    def __init__(self, model: Model, size: tuple[int, int], precision: str, device: torch.device) -> None:
        """Take the encoder's submodules from `model`, which stays as it is."""
        super().__init__()
        for name in model.encoder_parts:
            self.add_module(name, getattr(model, name))
        self.size, self.precision, self.device = size, precision, device
        self._image_maps = model.image_maps
        self._dtype: torch.dtype | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the image maps, in float32."""
        # no autocast at all in float32: a graph would hold a region of its own for it, which not every runtime takes
        with nullcontext() if self._dtype is None else torch.autocast(self.device.type, self._dtype):
            maps = self._image_maps(images)
        return tuple(level.float() for level in maps)

    def example(self, count: int) -> Tensor:
        """Return `count` made-up images, the same each time."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, *self.size, generator=generator).to(self.device)

    def exported(self, in_precision: bool = False) -> torch.export.ExportedProgram:
        """Return the part as a graph of PyTorch's operators, with the number of images left open.

        in_precision: whether the graph says which operators compute in bf16 or fp16; else all are float32
        """
        images = torch.export.Dim("cameras", min=1, max=MOST_IMAGES)
        self._dtype = PRECISIONS.get(self.precision) if in_precision else None
        with torch.no_grad():
            return torch.export.export(self, (self.example(2),), dynamic_shapes={"images": {0: images}})


class CheckedEngine:
    """An engine whose first result is compared with eager mode."""

    def __init__(self, name: str, run: Run, model: Model, precision: str) -> None:
        """Compare with `model`, in the surrounding precision, which is `precision`."""
        # the model holds the engine: a strong reference back would keep both, with their memory, until a collection
        self._name, self._run, self._model, self._precision = name, run, weakref.ref(model), precision
        self._unchecked = True

    def check_next(self) -> None:
        """Compare the next result again."""
        self._unchecked = True

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the image maps of images [N, 3, H, W]; raise EngineError if they are not those of eager mode."""
        maps = self._run(images)
        model = self._model()
        # black images, as of a warm-up, would hide most differences
        if self._unchecked and model is not None and (images != images.flatten()[0]).any():
            self._compare(maps, model.image_maps(images))
            self._unchecked = False
        return maps

    def _compare(self, maps: tuple[Tensor, ...], eager: tuple[Tensor, ...]) -> None:
        if not same_sizes(maps, eager):
            raise EngineError(
                f"engine {self._name!r} gives maps of other sizes than eager mode; choose engine 'eager', and report it"
            )
        tolerance = TOLERANCES.get(self._precision, TOLERANCE_OF_OTHERS)
        for k, (level, expected) in enumerate(zip(maps, eager, strict=True)):
            off = share(*(x.double().square().mean().sqrt() for x in (level - expected, expected)))
            if not off <= tolerance:  # NaN, too
                raise EngineError(
                    f"engine {self._name!r} differs from eager mode by {off:.2g} of the scale of map {k}, more "
                    f"than {tolerance:g}; choose engine 'eager', or precision 'fp32'"
                )


def same_sizes(maps: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether maps have the sizes of others, one by one."""
    return [level.shape for level in maps] == [level.shape for level in others]


def share(off: Tensor, scale: Tensor) -> float:
    """Return a difference [] as a share of a scale []; the difference itself where the scale is 0."""
    return (off / scale if scale > 0 else off).item()
