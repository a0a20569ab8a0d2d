"""How pictures of another shape, focal length or inclination than the training's become the network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from bev_perception.config import VariantConfig
from bev_perception.geometry import make_transform, optical_angles, optical_rotation
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.strict import ConfigError
from bev_perception.types import Calibration

#: the values of `image_fit`
IMAGE_FITS = ("as_trained", "horizon", "virtual")
#: the default of `image_fit`, wherever it can be set
IMAGE_FIT = "virtual"
#: a picture is taken as it is if its focal length is within this ratio of one of the training, its horizon within this
#: share of the input's height, and its roll within these rad
_FOCAL_RATIO, _HORIZON_SHIFT, _ROLL = 1.05, 0.125, math.radians(3.0)
#: rad above or below the horizon from which a camera looks at the sky or the ground, and is taken as it is
_STEEP = math.radians(60.0)


def check_image_fit(image_fit: str) -> None:
    """Raise ConfigError for a value that `image_fit` cannot have."""
    if image_fit not in IMAGE_FITS:
        raise ConfigError(f"image_fit is {image_fit!r}; it must be one of {', '.join(IMAGE_FITS)}")


@dataclass(frozen=True)
class FittedView:
    """The camera that the network is told of, and the way from the picture to the network's input.

    calibration: intrinsics and size of that camera's pictures, before they are resized and cropped
    sensor2ego: [4, 4], its optical frame to base_link
    transform: from its pictures to the input
    turn: [3, 3], optical frame of the real camera to that of this one; None if it is the real one
    """

    calibration: Calibration
    sensor2ego: np.ndarray
    transform: ImageTransform
    turn: np.ndarray | None = None


def fit_view(
    calibration: Calibration, sensor2ego: np.ndarray, config: VariantConfig, image_fit: str = IMAGE_FIT
) -> FittedView:
    """Return how a camera's picture becomes the input of a variant.

    calibration: of the camera
    sensor2ego: [4, 4], its optical frame to base_link
    config: says what the input is, and how the cameras of the training saw
    image_fit: "as_trained": resized to cover the input, which gets its bottom, as in training; "horizon": as large,
        but the input gets the rows that have the horizon where the training had it; "virtual": as a level camera with a
        focal length and horizon of the training would have taken it, at the same place and with the same heading

    Pictures that are like those of the training are taken as in training, whatever `image_fit` says.
    """
    plain = FittedView(calibration, sensor2ego, image_transform((calibration.height, calibration.width), config.image))
    yaw, pitch, roll = optical_angles(sensor2ego[:3, :3])
    if image_fit == "as_trained" or abs(pitch) > _STEEP:
        return plain
    trained, k = config.trained_cameras, calibration.intrinsics
    of_training = image_transform(trained.size[::-1], config.image)
    trained_row = trained.horizon * of_training.resize - of_training.crop[1]
    row = (k[1, 2] + k[1, 1] * math.tan(pitch)) * plain.transform.resize  # before the crop
    focal = k[0, 0] * plain.transform.resize
    ratio = min(max(f * of_training.resize / focal, focal / (f * of_training.resize)) for f in trained.focals)
    away = abs(row - plain.transform.crop[1] - trained_row) / config.image.height
    if ratio < _FOCAL_RATIO and away < _HORIZON_SHIFT and abs(roll) < _ROLL:
        return plain
    if image_fit == "horizon":
        crop = (plain.transform.crop[0], round(row - trained_row))
        return replace(plain, transform=replace(plain.transform, crop=crop))
    width, height = trained.size
    own = k[0, 0] / calibration.width  # of the focal lengths of the training, the one that sees about as much
    focal = min(trained.focals, key=lambda f: abs(math.log(f / width / own)))
    camera = np.array([[focal, 0, width / 2], [0, focal, trained.horizon], [0, 0, 1.0]])
    level = optical_rotation(yaw, 0.0, 0.0)
    return FittedView(
        Calibration(camera, width, height),
        make_transform(level, sensor2ego[:3, 3]),
        of_training,
        level.T @ sensor2ego[:3, :3],
    )
