"""Resize and crop of a camera's picture to the network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bev_perception.config import ImageConfig
from bev_perception.strict import UserError


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop, flip and rotation from a camera's image to the network's input; sizes are (width, height), pixels.

    source: size of the camera's image
    resize: ratio of the resize
    resized: size after the resize
    crop: left and top pixel that the crop keeps; may be negative: the crop is black outside of the resized image
    size: size of the result
    flip: whether left and right are swapped after the crop (training only)
    rotation: degrees, counter-clockwise about the middle of the result, after the flip (training only)
    """

    source: tuple[int, int]
    resize: float
    resized: tuple[int, int]
    crop: tuple[int, int]
    size: tuple[int, int]
    flip: bool = False
    rotation: float = 0.0

    @property
    def ida(self) -> np.ndarray:
        """The [4, 4] float64 matrix from depth-scaled source pixels (u*d, v*d, d, 1) to those of the result.

        As in Liu et al., ICCV 2023, since the variants were trained with it: u' = resize * u - left, without the half
        pixel by which a resize shifts pixel centres, and with the ratio before `resized` was truncated; a flip is
        u'' = width - u'. A rotation leaves the middle, (width, height) / 2, where it is.
        """
        matrix = np.diag([self.resize, self.resize, 1.0, 1.0])
        matrix[:2, 2] = -self.crop[0], -self.crop[1]
        if self.flip:
            matrix[0] = self.size[0] * matrix[2] - matrix[0]
        if self.rotation:
            matrix[:3] = _rotation_about(self.rotation, self.size[0] / 2, self.size[1] / 2) @ matrix[:3]
        return matrix

    @property
    def source2output(self) -> np.ndarray:
        """The [3, 3] matrix from source to result pixel centres (integers), exactly as the resampling places them."""
        scale_x, scale_y = self.resized[0] / self.source[0], self.resized[1] / self.source[1]
        matrix = np.array(
            [
                [scale_x, 0.0, (scale_x - 1) / 2 - self.crop[0]],
                [0.0, scale_y, (scale_y - 1) / 2 - self.crop[1]],
                [0.0, 0.0, 1.0],
            ]
        )
        if self.flip:
            matrix[0] = (self.size[0] - 1) * matrix[2] - matrix[0]
        if self.rotation:
            matrix = _rotation_about(self.rotation, (self.size[0] - 1) / 2, (self.size[1] - 1) / 2) @ matrix
        return matrix


def _rotation_about(degrees: float, x: float, y: float) -> np.ndarray:
    """Return the [3, 3] rotation of homogeneous pixels about (x, y), counter-clockwise as one looks at the image."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))  # y points down in images
    return np.array([[c, s, x - c * x - s * y], [-s, c, y + s * x - c * y], [0.0, 0.0, 1.0]])


def image_transform(source_hw: tuple[int, int], config: ImageConfig) -> ImageTransform:
    """Return the transform for inference with a source image of (height, width).

    The image is resized to cover the input, keeping its aspect ratio; the crop keeps the bottom rows and the middle
    columns.
    """
    height, width = source_hw
    if height <= 0 or width <= 0:
        raise UserError(f"an image of {width}x{height} pixels cannot be resized; check the camera's CameraInfo")
    resize = max(config.height / height, config.width / width)
    # int(width * resize) in integer arithmetic: in floating point, 49 * (1 / 49) is slightly less than 1
    if config.height * width >= config.width * height:
        resized = (width * config.height // height, config.height)
    else:
        resized = (config.width, height * config.width // width)
    crop = ((resized[0] - config.width) // 2, resized[1] - config.height)
    return ImageTransform((width, height), resize, resized, crop, (config.width, config.height))
