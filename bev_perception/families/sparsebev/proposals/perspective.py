"""Perspective head: a dense detector on the features of each image, which predicts objects from that camera alone.

Direct supervision of the image features trains a backbone long before the queries of a decoder can, and the head's
detections are where queries can start (perspective supervision and two stages, Yang et al., BEVFormer v2, CVPR 2023).
The heat maps are those of CenterNet (Zhou et al., 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: number of values at an object's middle: its offset from the middle of the cell (x, y, cells), the logarithm of the
#: pixel span there (m), log sizes (3), and cos and sin of its heading relative to its bearing, seen from above.
#: The pixel span, the width in m that one pixel covers, is the depth over the focal length. An object's apparent size
#: determines the span, whereas the same depth looks different through every lens (as with the virtual depth of Brazil
#: et al., Omni3D, CVPR 2023). Objects with the same heading relative to the line of sight look alike anywhere in the
#: image.
NUM_CODES = 8
#: number of values of a cell's ray: how steeply it rises, and the logarithm of the pixel span where it meets the ground
NUM_RAY_CODES = 2
#: m, pixel span that the head predicts before training: 20 m away at a focal length of 400 pixels
FIRST_SPAN = 0.05
#: m, limits of the depth of lifted objects, and of the ground
DEPTHS = (1.0, 100.0)
#: log m, limits of the sizes of lifted objects
LOG_SIZES = (-2.0, 3.5)


@dataclass(frozen=True)
class PerspectiveOutput:
    """The head's predictions for images.

    heat: [B, N, classes, h, w], logits of "the middle of an object of this class is in this cell"
    codes: [B, N, NUM_CODES, h, w], of the object whose middle is in a cell
    """

    heat: Tensor
    codes: Tensor


class PerspectiveHead(nn.Module):
    """Two small branches over one pyramid level, without shared layers: class and position are learnt before depth.

    Convolutions know neither their position in the image nor how the camera is mounted, but the distance of an object
    on the ground follows from both. So each cell gets an encoding of its ray as a further input (as Li et al.,
    BEVDepth, AAAI 2023, give the camera parameters to the network that estimates depth).
    """

    def __init__(self, dims: int, num_classes: int, ground: float) -> None:
        """Build the branches.

        dims: channels of the features
        num_classes: number of classes
        ground: z of the ground in the reference frame, m
        """
        super().__init__()
        self.ground = ground
        heat_bias = torch.full((num_classes,), -math.log(99))  # every class starts at a probability of 1 %
        code_bias = torch.zeros(NUM_CODES)
        code_bias[2] = math.log(FIRST_SPAN)
        self.heat, self.codes = _branch(dims, heat_bias), _branch(dims, code_bias)

    def wide_layers(self) -> tuple[nn.Module, ...]:
        """Return the layers with nearly all of the computation; none of them is an output layer."""
        return self.heat[0], self.codes[0]

    def look(self, features: Tensor) -> Tensor:
        """Return what the wide layers make of images alone, wherever their cameras are, [N, h, w, 2 C].

        features: [N, h, w, C], one pyramid level

        Nearly all of the work, done once for each image and remembered.
        """
        weight, bias = (
            torch.cat([getattr(layer, name) for layer in self.wide_layers()]) for name in ("weight", "bias")
        )
        maps = F.conv2d(features.permute(0, 3, 1, 2), weight[:, : features.shape[-1]], bias, padding=1)
        return maps.permute(0, 2, 3, 1)

    def predict(self, looked: Tensor, image2reference: Tensor, image_size: tuple[int, int]) -> PerspectiveOutput:
        """Return what `forward` does, to rounding, from the output of `look` for B x N images, [B, N, h, w, 2 C]."""
        shape, dims = looked.shape[:2], looked.shape[-1] // 2
        rays = ray_codes(image2reference, image_size, (looked.shape[2], looked.shape[3]), self.ground)
        weight = torch.cat([layer.get_parameter("weight") for layer in self.wide_layers()])[:, dims:]
        added = F.conv2d(rays.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)  # [B*N, 2 C, h, w]
        wide = (looked.flatten(0, 1).permute(0, 3, 1, 2) + added).relu()
        heat, codes = (
            branch[-1](x) for branch, x in zip((self.heat, self.codes), wide.split(dims, dim=1), strict=True)
        )
        return PerspectiveOutput(heat.unflatten(0, shape), codes.unflatten(0, shape))

    def forward(self, features: Tensor, image2reference: Tensor, image_size: tuple[int, int]) -> PerspectiveOutput:
        """Return the predictions for the images of all cameras.

        features: [B, N, h, w, C], one pyramid level
        image2reference: [B, N, 4, 4], see invert_cameras
        image_size: (height, width) of the images, pixels
        """
        shape = features.shape[:2]
        cells = (features.shape[2], features.shape[3])
        rays = ray_codes(image2reference, image_size, cells, self.ground)
        images = torch.cat([features, rays], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
        return PerspectiveOutput(self.heat(images).unflatten(0, shape), self.codes(images).unflatten(0, shape))


def _branch(dims: int, bias: Tensor) -> nn.Sequential:
    """Return a branch over features of `dims` channels and ray codes; bias: its initial outputs, one per channel."""
    last = nn.Conv2d(dims, len(bias), 1)
    last.bias = nn.Parameter(bias)
    return nn.Sequential(nn.Conv2d(dims + NUM_RAY_CODES, dims, 3, padding=1), nn.ReLU(inplace=True), last)


def invert_cameras(reference2image: Tensor) -> Tensor:
    """Return the transforms [B, N, 4, 4] from depth-scaled pixels to the reference frame (m).

    reference2image: [B, N, 4, 4], the opposite direction

    For a missing camera both are zeros.
    """
    missing = _missing(reference2image)[..., None, None]
    eye = torch.eye(4, device=reference2image.device, dtype=reference2image.dtype)
    # inv would wait for the device to check that the matrices are invertible
    inverse, _ = torch.linalg.inv_ex(torch.where(missing, eye, reference2image))
    return inverse.masked_fill(missing, 0.0)


def _missing(matrices: Tensor) -> Tensor:
    """Return [B, N] bool, whether the matrices [B, N, 4, 4] belong to missing cameras."""
    return (matrices == 0).all(dim=-1).all(dim=-1)


def pixel_spans(image2reference: Tensor) -> Tensor:
    """Return the span [...] of a pixel at a depth of 1 m (m): one over the focal length; almost 0 for a missing camera.

    image2reference: [..., 4, 4], see invert_cameras
    """
    return image2reference[..., :3, 0].norm(dim=-1).clamp(min=1e-6)


def bearings(centers: Tensor, image2reference: Tensor) -> Tensor:
    """Return the bearings [K] of points as seen from cameras, angles about z in rad.

    centers: [K, 3], m
    image2reference: [K, 4, 4], see invert_cameras
    """
    away = centers[..., :2] - image2reference[..., :2, 3]
    return torch.atan2(away[..., 1], away[..., 0])


def mirrors(image2reference: Tensor) -> Tensor:
    """Return [K]: -1 if an image shows the world mirrored (by augmentation in training), otherwise 1."""
    rows = image2reference[..., :3, :3]
    # a triple product, since det would wait for the device
    return torch.where((torch.linalg.cross(rows[..., 0], rows[..., 1]) * rows[..., 2]).sum(dim=-1) < 0, -1.0, 1.0)


def ray_codes(image2reference: Tensor, image_size: tuple[int, int], cells: tuple[int, int], ground: float) -> Tensor:
    """Return the codes [B, N, h, w, NUM_RAY_CODES] of the rays through the middles of cells, scaled to the order of 1.

    image2reference: [B, N, 4, 4], see invert_cameras
    image_size: (height, width) of the images, pixels
    cells: (h, w), number of cells
    ground: z of the ground in the reference frame, m
    """
    stride, like = image_size[1] / cells[1], image2reference
    v, u = ((torch.arange(n, device=like.device, dtype=like.dtype) + 0.5) * stride for n in cells)
    a, b, c, start = image2reference[..., 2, :, None, None].unbind(dim=2)  # [B, N, 1, 1], the row of z
    rise = a * u + b * v[:, None] + c  # [B, N, h, w], m per m of depth
    nearest, furthest = DEPTHS
    depth = torch.where(rise < 0, (ground - start) / rise, furthest).clamp(nearest, furthest)
    span = depth * pixel_spans(image2reference)[..., None, None]
    return torch.stack([5 * rise.clamp(-1, 1), span.log() / 4], dim=-1)


def lift(
    seen: PerspectiveOutput, image2reference: Tensor, image_size: tuple[int, int], count: int
) -> tuple[Tensor, Tensor]:
    """Lift the most probable objects of each sample, over all of its images, to 3D boxes; no gradient flows through.

    seen: predictions of the head
    image2reference: [B, N, 4, 4], see invert_cameras
    image_size: (height, width) of the images, pixels
    count: number of objects per sample

    Returns boxes [B, count, 8]: x, y, z (m), logarithms of length, width, height (m), sin and cos of the yaw; and
    labels [B, count] int64. An object that is in several images is returned several times.
    """
    heat, codes = seen.heat.detach(), seen.codes.detach()
    batch, _, classes, height, width = heat.shape
    peaks = heat == F.max_pool2d(heat.flatten(0, 1), 3, stride=1, padding=1).view_as(heat)
    heat = heat.masked_fill(~peaks | _missing(image2reference)[..., None, None, None], -torch.inf)
    best = heat.flatten(1).topk(count, dim=1).indices  # [B, count]
    cell = best % (height * width)
    label = best // (height * width) % classes
    camera = best // (height * width * classes)
    sample = torch.arange(batch, device=best.device)[:, None]
    x, y = cell % width, cell // width
    code = codes[sample, camera, :, y, x]  # [B, count, NUM_CODES]

    stride = image_size[1] / width
    pixel = (torch.stack([x, y], dim=-1) + 0.5 + code[..., :2]) * stride
    back = image2reference[sample, camera]  # [B, count, 4, 4]
    depth = (code[..., 2:3] - pixel_spans(back)[..., None].log()).clamp(*map(math.log, DEPTHS)).exp()
    scaled = torch.cat([pixel * depth, depth], dim=-1)  # [B, count, 3]
    center = (back[..., :3, :3] @ scaled[..., None])[..., 0] + back[..., :3, 3]
    yaw = bearings(center, back) + torch.atan2(mirrors(back) * code[..., 7], code[..., 6])
    turned = torch.stack([yaw.sin(), yaw.cos()], dim=-1)
    return torch.cat([center, code[..., 3:6].clamp(*LOG_SIZES), turned], dim=-1), label
