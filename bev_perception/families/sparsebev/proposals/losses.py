"""Training targets of the perspective head for images with known boxes, and its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.config import TrainingConfig
from bev_perception.families.sparsebev.proposals.perspective import (
    PerspectiveOutput,
    bearings,
    invert_cameras,
    mirrors,
    pixel_spans,
)
from bev_perception.models.query_layers import EncodedViews
from bev_perception.supervision.criteria import COUNT_EPS, average_count
from bev_perception.supervision.samples import Batch, BoxTruth

LOSS_NAMES = ("loss_heat", "loss_codes")
#: m; least depth of an object's middle in front of the camera
MIN_DEPTH = 1.0
#: standard deviation of the heat around a middle: share of the object's height in the image, and limits in cells
SPREAD, MIN_SPREAD, MAX_SPREAD = 0.15, 0.5, 2.5
#: exponents of the focal loss (Zhou et al., Objects as Points, 2019, equation 1)
ALPHA, BETA = 2, 4
#: weights of the losses of the codes; the weight of the heat's loss is 1. Depth matters most. For an object on the
#: ground, depth follows from the position of its middle within a cell, which needs a high weight to be learnt: with
#: weights of 0.1, and the cells around the middle supervised as well, the position remained a guess
CODE_WEIGHTS = (1.0, 1.0, 2.0, 0.3, 0.3, 0.3, 0.3, 0.3)


@dataclass(frozen=True)
class Sightings:
    """K objects as single cameras see them; an object may be in several images.

    image: [K], index among the B * N images
    label: [K], class
    cell: [K, 2], x and y of the object's middle, in cells, not rounded
    spread: [K], standard deviation of the object's heat, in cells
    codes: [K, NUM_CODES], see NUM_CODES
    """

    image: Tensor
    label: Tensor
    cell: Tensor
    spread: Tensor
    codes: Tensor


def find_sightings(
    truth: BoxTruth, reference2image: Tensor, image_size: tuple[int, int], cells: tuple[int, int], first: int
) -> Sightings:
    """Return where a sample's boxes are in its N images.

    truth: known boxes of the sample
    reference2image: [N, 4, 4], reference frame (m) to depth-scaled pixels
    image_size: (height, width) of the images, pixels
    cells: (height, width) of the head's maps, cells
    first: index of the sample's first image
    """
    boxes = truth.boxes
    stride = image_size[1] / cells[1]
    turn, place = reference2image[:, :3, :3], reference2image[:, :3, 3]
    middle = torch.einsum("nij,kj->nki", turn, boxes[:, :3]) + place[:, None]  # [N, K, 3]
    depth = middle[..., 2]
    pixel = middle[..., :2] / depth.clamp(min=MIN_DEPTH)[..., None]
    limits = pixel.new_tensor([image_size[1], image_size[0]])
    camera, k = ((depth > MIN_DEPTH) & ((pixel >= 0) & (pixel < limits)).all(dim=-1)).nonzero(as_tuple=True)

    pixel, depth = pixel[camera, k], depth[camera, k]
    up = turn[camera, :, 2] * boxes[k, 5, None]
    rise = (up[:, 1] - pixel[:, 1] * up[:, 2]).abs() / depth  # pixels
    cell = pixel / stride
    back = invert_cameras(reference2image[None])[0, camera]  # [K, 4, 4]
    heading = boxes[k, 6] - bearings(boxes[k, :3], back)
    codes = torch.cat(
        [
            cell - cell.floor() - 0.5,
            (pixel_spans(back) * depth).log()[:, None],
            boxes[k, 3:6].log(),
            heading.cos()[:, None],
            (mirrors(back) * heading.sin())[:, None],
        ],
        dim=1,
    )
    spread = (SPREAD * rise / stride).clamp(MIN_SPREAD, MAX_SPREAD)
    return Sightings(first + camera, truth.labels[k], cell, spread, codes)


def perspective_losses(
    output: PerspectiveOutput, truths: Sequence[BoxTruth], reference2image: Tensor, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return both losses by name, averaged over the objects that are visible in the images of all processes.

    output: of the head
    truths: known boxes, one entry per sample
    reference2image: [B, N, 4, 4], reference frame (m) to depth-scaled pixels
    image_size: (height, width) of the images that the matrices project into, pixels
    """
    cameras, cells = output.heat.shape[1], (output.heat.shape[-2], output.heat.shape[-1])
    found = [
        find_sightings(truth, matrices, image_size, cells, b * cameras)
        for b, (truth, matrices) in enumerate(zip(truths, reference2image, strict=True))
    ]
    seen = Sightings(*(torch.cat([getattr(s, f.name) for s in found]) for f in fields(Sightings)))
    count = average_count([len(seen.image)], seen.image.device).clamp(min=1)[0] + COUNT_EPS
    heat = output.heat.flatten(0, 1)  # [B*N, classes, h, w]
    wanted = draw_heat(seen, heat.shape)
    x, y = seen.cell.floor().long().unbind(dim=1)
    middles = torch.zeros_like(wanted, dtype=torch.bool)
    middles[seen.image, seen.label, y, x] = True
    return {
        "loss_heat": _heat_loss(heat, wanted, middles) / count,
        "loss_codes": _code_errors(output.codes.flatten(0, 1), seen).sum() / count,
    }


def _code_errors(codes: Tensor, seen: Sightings) -> Tensor:
    """Return the weighted error [K] of codes [B*N, NUM_CODES, h, w] at the cell of each object's middle."""
    x, y = seen.cell.floor().long().unbind(dim=1)
    return (codes[seen.image, :, y, x] - seen.codes).abs() @ codes.new_tensor(CODE_WEIGHTS)


def draw_heat(seen: Sightings, shape: torch.Size) -> Tensor:
    """Return heat maps of shape [images, classes, h, w]: a Gaussian around each object's middle, 1 at the middle.

    Where the Gaussians of several objects of a class overlap, the highest value counts.
    """
    images, classes, height, width = shape
    columns = torch.arange(width, device=seen.cell.device) - seen.cell[:, :1].floor()  # [K, w]
    rows = torch.arange(height, device=seen.cell.device) - seen.cell[:, 1:].floor()
    squares = rows[:, :, None] ** 2 + columns[:, None] ** 2  # [K, h, w]
    bells = torch.exp(-squares / (2 * seen.spread[:, None, None] ** 2))
    flat = bells.new_zeros(images * classes, height * width)
    index = (seen.image * classes + seen.label)[:, None].expand(-1, height * width)
    return flat.scatter_reduce(0, index, bells.flatten(1), "amax").view(shape)


def _heat_loss(logits: Tensor, wanted: Tensor, middles: Tensor) -> Tensor:
    """Return the sum of the focal loss of heat maps (Zhou et al., Objects as Points, 2019, equation 1)."""
    probability = logits.sigmoid()
    found = (1 - probability) ** ALPHA * F.logsigmoid(logits)
    missed = (1 - wanted) ** BETA * probability**ALPHA * F.logsigmoid(-logits)
    return -torch.where(middles, found, missed).sum()


def weighted_perspective_losses(
    seen: PerspectiveOutput, batch: Batch[BoxTruth], views: EncodedViews, recipe: TrainingConfig
) -> dict[str, Tensor]:
    """Return perspective_losses of a batch, multiplied by the weight in the recipe."""
    losses = perspective_losses(seen, batch.truths, views.reference2image[:, 0], views.image_size)
    return {name: recipe.family.proposals.perspective_weight * loss for name, loss in losses.items()}
