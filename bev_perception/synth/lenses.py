"""Pictures of real lenses: the world is drawn as one or several pinholes see it, and resampled where the lens bends."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from bev_perception.rig.projection import rays_of
from bev_perception.types import Calibration

#: tangent of the angle off the axis up to which one pinhole draws a picture; a wider one is drawn on a cube's faces
_WIDEST = 2.2
#: pixels by which a pinhole's picture reaches beyond what is sampled
_MARGIN = 2
#: position of a pixel that a pinhole does not show
_NOWHERE = -16.0
#: the cube's faces, ahead first: rows are the axes x (right), y (down) and z (forward) of each in the camera's frame
_CUBE = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, -1), (0, 1, 0), (1, 0, 0)),
    ((0, 0, 1), (0, 1, 0), (-1, 0, 0)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
)


class Pinhole(NamedTuple):
    """A picture to draw.

    turn: [3, 3], camera's frame to that of the pinhole
    k: [3, 3], pixels
    size: width, height, pixels
    maps: x and y [H, W] float32, where the pixels of the lens's picture lie in this one; _NOWHERE for those of other
        pinholes; None if this is the lens's picture
    """

    turn: np.ndarray
    k: np.ndarray
    size: tuple[int, int]
    maps: tuple[np.ndarray, np.ndarray] | None = None


def pinholes_of(calibration: Calibration) -> list[Pinhole]:
    """Return what to draw for a lens's picture."""
    size = (calibration.width, calibration.height)
    if not calibration.distortion:
        return [Pinhole(np.eye(3), calibration.intrinsics, size)]
    u, v = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    rays = rays_of(calibration, np.stack([u.ravel(), v.ravel()], 1)).reshape(size[1], size[0], 3)
    rays[~np.isfinite(rays).all(-1)] = 0.0  # shows nothing
    focal = float(max(calibration.intrinsics[0, 0], calibration.intrinsics[1, 1]))
    with np.errstate(all="ignore"):
        flat = rays[..., :2] / rays[..., 2:]
    if (rays[..., 2] > 0).all() and np.abs(flat).max() < _WIDEST:
        return [_pinhole(np.eye(3), focal, flat, np.ones(flat.shape[:2], bool))]
    found = []
    turned = np.stack([rays @ np.array(turn, np.float64).T for turn in _CUBE])  # [6, H, W, 3]
    nearest = np.where(rays.any(-1), np.argmax(turned[..., 2], 0), -1)
    for face, turn in enumerate(_CUBE):
        mine = nearest == face
        if mine.any():
            with np.errstate(all="ignore"):
                flat = turned[face][..., :2] / turned[face][..., 2:]
            found.append(_pinhole(np.array(turn, np.float64), focal, flat, mine))
    return found


def _pinhole(turn: np.ndarray, focal: float, flat: np.ndarray, mine: np.ndarray) -> Pinhole:
    """Return the pinhole that shows the pixels `mine` [H, W], which lie at `flat` [H, W, 2] at distance 1."""
    low, high = flat[mine].min(0), flat[mine].max(0)
    center = _MARGIN - low * focal
    width, height = (math.ceil(length) + 2 * _MARGIN + 1 for length in (high - low) * focal)
    maps = np.full((2, *mine.shape), _NOWHERE, np.float32)
    maps[:, mine] = (flat[mine] * focal + center).T
    k = np.array([[focal, 0, center[0]], [0, focal, center[1]], [0, 0, 1.0]])
    return Pinhole(turn, k, (width, height), (maps[0], maps[1]))


def sample(pinhole: Pinhole, drawn: np.ndarray, picture: np.ndarray, nearest: bool = False) -> None:
    """Put what a pinhole's picture shows into the lens's picture; both [height, width] or [height, width, 3]."""
    assert pinhole.maps is not None, "the lens's picture is the pinhole's"
    mine = pinhole.maps[0] != _NOWHERE
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    picture[mine] = cv2.remap(drawn, *pinhole.maps, how, borderMode=cv2.BORDER_REPLICATE)[mine]
