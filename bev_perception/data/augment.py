"""Training-time augmentation after Liu et al., ICCV 2023 (boxes), and Liu et al., ECCV 2024 (occupancy).

Drawing random values and applying them are separate functions. Resizing, cropping and mirroring of images and the
rotation of the world only change matrices, so training uses the same preprocessing as live operation. Colour changes
and the grid mask run on the device, on whole batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import BevAugmentationConfig, ImageConfig
from bev_perception.sensing.image_transform import ImageTransform
from bev_perception.strict import UserError

#: ranges of the random colour changes (shift of 0..255 values, factors, degrees); half of the images get each of them
MAX_BRIGHTNESS = 32.0
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
MAX_HUE = 18.0
#: probability that a batch gets a grid mask
GRID_MASK_PROBABILITY = 0.7


def train_transform(
    source_hw: tuple[int, int], config: ImageConfig, resize: float, left: float, flip: bool, rotation: float = 0.0
) -> ImageTransform:
    """Return the image transform for given random values; the bottom rows are always kept.

    source_hw: height and width of the image, pixels
    config: size of the network's input
    resize: scale factor of the image
    left: first column of the resized image that is kept, pixels; truncated to a whole number
    flip: whether to mirror the image
    rotation: of the image, degrees
    """
    height, width = source_hw
    resized = (int(width * resize), int(height * resize))
    crop = (int(left), resized[1] - config.height)
    return ImageTransform((width, height), resize, resized, crop, (config.width, config.height), flip, rotation)


def draw_image_transform(
    rng: np.random.Generator,
    source_hw: tuple[int, int],
    config: ImageConfig,
    resize_range: tuple[float, float],
    flip: bool,
    max_rotation: float = 0.0,
) -> ImageTransform:
    """Draw a scale factor from resize_range, a crop, if `flip` whether to mirror, and a rotation.

    max_rotation: degrees, to either side
    """
    resize = rng.uniform(*resize_range)
    left = rng.uniform(0, max(0, int(source_hw[1] * resize) - config.width))
    mirrored = flip and bool(rng.integers(2))
    rotation = float(rng.uniform(-max_rotation, max_rotation)) if max_rotation else 0.0
    return train_transform(source_hw, config, resize, left, mirrored, rotation)


@dataclass(frozen=True)
class BevDraw:
    """A random change of the world about the origin of the reference frame, applied in the order of the fields.

    rotation: rad, counter-clockwise about z
    scale: factor
    flip_x: whether x changes its sign
    flip_y: whether y changes its sign
    """

    rotation: float
    scale: float = 1.0
    flip_x: bool = False
    flip_y: bool = False

    @property
    def plane(self) -> np.ndarray:
        """[2, 2] rotation and mirroring of x and y, without the scale."""
        c, s = math.cos(self.rotation), math.sin(self.rotation)
        signs = np.array([[-1.0 if self.flip_x else 1.0], [-1.0 if self.flip_y else 1.0]])
        return signs * np.array([[c, -s], [s, c]])

    @property
    def matrix(self) -> np.ndarray:
        """[4, 4] from the world as it was to the changed one."""
        matrix = np.eye(4)
        matrix[:2, :2] = self.plane
        matrix[:3, :3] *= self.scale
        return matrix


def draw_bev(rng: np.random.Generator, config: BevAugmentationConfig) -> BevDraw:
    """Draw a change of the world, which all frames of a sample share."""
    rotation, scale = rng.uniform(-config.max_rotation, config.max_rotation), rng.uniform(*config.scale)
    if not config.flip:
        return BevDraw(rotation, scale)
    return BevDraw(rotation, scale, bool(rng.integers(2)), bool(rng.integers(2)))


def augment_boxes(boxes: np.ndarray, draw: BevDraw) -> np.ndarray:
    """Return augmented boxes [n, 9]: x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s)."""
    plane_t = draw.plane.T
    changed = boxes.copy()
    changed[:, :2] = boxes[:, :2] @ plane_t
    changed[:, 6] += draw.rotation
    if draw.flip_x:
        changed[:, 6] = math.pi - changed[:, 6]
    if draw.flip_y:
        changed[:, 6] *= -1
    changed[:, 7:9] = boxes[:, 7:9] @ plane_t
    changed[:, [0, 1, 2, 3, 4, 5, 7, 8]] *= draw.scale
    return changed


def augment_matrices(reference2other: np.ndarray, draw: BevDraw) -> np.ndarray:
    """Return matrices [..., 4, 4] that map the augmented frame to where the given ones map the reference frame."""
    back = np.eye(4)
    back[:2, :2] = draw.plane.T
    back[:3, :3] /= draw.scale
    return reference2other @ back


def augment_grid(grid: np.ndarray, draw: BevDraw, outside: float) -> np.ndarray:
    """Return a grid of voxel labels rotated and mirrored about its middle, by nearest neighbour.

    grid: [X, Y, ...] labels; the origin of the reference frame is in its middle
    draw: the change of the world
    outside: label of voxels that come from outside of the grid

    Raises UserError for a scale other than 1, since voxel labels cannot be scaled.
    """
    if draw.scale != 1.0:
        raise UserError(f"labels of voxels cannot be scaled by {draw.scale}; let the variant's training.bev.scale be 1")
    turned = _turn_grid(grid, draw.rotation, outside) if draw.rotation else grid
    return np.ascontiguousarray(turned[:: -1 if draw.flip_x else 1, :: -1 if draw.flip_y else 1])


def _turn_grid(grid: np.ndarray, rotation: float, outside: float) -> np.ndarray:
    (size_x, size_y), (c, s) = grid.shape[:2], (math.cos(rotation), math.sin(rotation))
    x = np.arange(size_x)[:, None] - (size_x - 1) / 2  # in voxels from the middle
    y = np.arange(size_y)[None, :] - (size_y - 1) / 2
    source_x = np.rint(c * x + s * y + (size_x - 1) / 2).astype(np.int64)
    source_y = np.rint(c * y - s * x + (size_y - 1) / 2).astype(np.int64)
    inside = (source_x >= 0) & (source_x < size_x) & (source_y >= 0) & (source_y < size_y)
    turned = np.full_like(grid, outside)
    turned[inside] = grid[source_x[inside], source_y[inside]]
    return turned


@dataclass(frozen=True)
class PhotometricDraw:
    """Random colour changes of n images; an image without a change has its neutral value.

    contrast_last: [n] bool, whether contrast is changed after hue and saturation instead of before
    brightness: [n], added to values of 0..255
    contrast: [n], factor
    saturation: [n], factor
    hue: [n], degrees, added
    channels: [n, 3], order of the channels as indices into RGB
    """

    contrast_last: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    channels: Tensor


def draw_photometric(n: int, generator: torch.Generator) -> PhotometricDraw:
    """Draw colour changes for each of n images; the tensors are on the generator's device."""

    def coins() -> Tensor:
        return torch.rand(n, generator=generator, device=generator.device) < 0.5

    def uniform(low: float, high: float, neutral: float) -> Tensor:
        values = low + (high - low) * torch.rand(n, generator=generator, device=generator.device)
        return torch.where(coins(), values, neutral)

    shuffled = torch.rand((n, 3), generator=generator, device=generator.device).argsort(dim=1)
    return PhotometricDraw(
        contrast_last=coins(),
        brightness=uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS, 0.0),
        contrast=uniform(*CONTRAST, 1.0),
        saturation=uniform(*SATURATION, 1.0),
        hue=uniform(-MAX_HUE, MAX_HUE, 0.0),
        channels=torch.where(coins()[:, None], shuffled, torch.arange(3, device=generator.device)),
    )


def distort_colors(images: Tensor, draw: PhotometricDraw) -> Tensor:
    """Return images [n, 3, h, w] (float BGR, 0..255) with changed colours; values outside of 0..255 are not clipped."""

    def each(values: Tensor) -> Tensor:
        return values.to(images.device)[:, None, None, None]

    rgb = images.flip(1) + each(draw.brightness)
    rgb = rgb * each(torch.where(draw.contrast_last, 1.0, draw.contrast))
    hue, saturation, value = rgb_to_hsv(rgb).split(1, dim=1)
    hue = hue + each(draw.hue)
    hue = torch.where(hue > 360, hue - 360, torch.where(hue < 0, hue + 360, hue))
    rgb = hsv_to_rgb(torch.cat([hue, saturation * each(draw.saturation), value], dim=1))
    rgb = rgb * each(torch.where(draw.contrast_last, draw.contrast, 1.0))
    channels = draw.channels.to(images.device)[:, :, None, None].expand_as(rgb)
    return rgb.gather(1, channels).flip(1)


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """Return [n, 3, h, w] hue (degrees), saturation (0..1) and value (0..255) of RGB 0..255 (Smith, SIGGRAPH 1978)."""
    value, largest = rgb.max(dim=1)
    spread = value - rgb.min(dim=1).values
    saturation = (spread / 255) / (value / 255 + 1e-8)
    safe = torch.where(spread == 0, 1.0, spread)
    red, green, blue = rgb.unbind(1)
    sextant = torch.stack([(green - blue) / safe, (blue - red) / safe + 2, (red - green) / safe + 4], dim=1)
    hue = sextant.gather(1, largest[:, None])[:, 0].remainder(6) * 60
    return torch.stack([hue, saturation, value], dim=1)


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """Invert rgb_to_hsv; saturations and values outside of their ranges go through the same formula."""
    hue, saturation, value = hsv.unbind(1)
    # a channel has its full value within 60 degrees of its hue, falls over the next 60 and stays at its minimum
    position = (hue[:, None] / 60 + hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]).remainder(6)
    missing = torch.minimum(position, 4 - position).clamp(0, 1)
    return (value * (1 - saturation * missing.transpose(0, 1))).transpose(0, 1)


@dataclass(frozen=True)
class GridMaskDraw:
    """A random grid of squares to blank.

    period: distance from one square to the next, pixels
    top: offset of the grid along rows, pixels
    left: offset of the grid along columns, pixels
    """

    period: int
    top: int
    left: int


def draw_grid_mask(height: int, width: int, generator: torch.Generator) -> GridMaskDraw | None:
    """Draw the grid for a batch of images of this size (padding included); None: this batch gets no mask."""

    def below(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator, device=generator.device))

    if torch.rand((), generator=generator, device=generator.device) > GRID_MASK_PROBABILITY:
        return None
    period = below(2, height)
    return GridMaskDraw(period, below(0, period), below(0, period))


def grid_mask(height: int, width: int, draw: GridMaskDraw) -> np.ndarray:
    """Return [height, width] bool, False in the squares to blank (GridMask, Chen et al., 2020).

    Stripes of rows and of columns, half a period wide, are kept; the squares between them are blanked. The grid is laid
    out on a canvas one and a half times as large, of which the middle is used.
    """
    stripe = min(max(int(draw.period * 0.5 + 0.5), 1), draw.period - 1)

    def kept(length: int, offset: int) -> np.ndarray:
        canvas = int(1.5 * length)
        line = np.zeros(canvas, bool)
        for start in range(offset, offset + draw.period * (canvas // draw.period), draw.period):
            line[start : start + stripe] = True
        first = (canvas - length) // 2
        return line[first : first + length]

    return kept(height, draw.top)[:, None] | kept(width, draw.left)[None]
