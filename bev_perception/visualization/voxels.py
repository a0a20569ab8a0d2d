"""Renders solid voxels in perspective with NumPy and OpenCV only.

All faces of a voxel grid lie in a few planes: X + 1 planes across x, and so on. Each plane is a small image, which one
homography maps to the screen, where a depth buffer decides for every pixel which face is visible. So the run time is
bounded by the grid's side lengths, whatever the grid contains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from bev_perception.visualization.canvas import BACKGROUND

NEAR = 0.5  # m, nothing nearer to the viewer is drawn
SHADES = (0.68, 0.84, 1.0)  # brightness of faces across x, y and z
SEAM = 0.6  # brightness of the lines between voxels near the viewer
SEAM_FROM, SEAM_TO = 4.0, 12.0  # pixels, size of a voxel at which the lines become visible, and fully visible


@dataclass(frozen=True)
class Viewpoint:
    """The viewpoint of a picture, in the voxels' frame.

    eye: m
    target: what appears in the middle of the picture, m
    field: horizontal field of view, deg
    """

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    field: float = 75.0

    @property
    def world2camera(self) -> np.ndarray:
        """Rotation [3, 3] from the voxels' frame, where +z is up, to the camera's: x right, y down, z forward."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])


#: behind and above the vehicle, with 40 m to each side in sight
BEHIND_ABOVE = Viewpoint((-50.0, 0.0, 34.0), (0.0, 0.0, -5.0))


class VoxelView:
    """A picture of voxels: call `add`, as often as needed, then `picture`."""

    def __init__(self, size: tuple[int, int], viewpoint: Viewpoint = BEHIND_ABOVE) -> None:
        """Start with an empty picture.

        size: width, height, pixels
        viewpoint: from where the voxels are seen
        """
        width, height = size
        self._eye = np.array(viewpoint.eye)
        self._rotation = viewpoint.world2camera
        self._focal = width / 2 / math.tan(math.radians(viewpoint.field) / 2)
        self._intrinsics = np.array([[self._focal, 0, width / 2 - 0.5], [0, self._focal, height / 2 - 0.5], [0, 0, 1]])
        self._pixel2ray = self._rotation.T @ np.linalg.inv(self._intrinsics)  # in the voxels' frame, depth 1
        self._nearness = np.zeros((height, width), np.float32)  # 1 / depth (1/m) of the visible face
        self._seen = np.zeros((height, width), np.int32)  # 3 * voxel's number + axis across its face + 1; 0: nothing
        self._size = np.zeros(1, np.float32)  # m, size of each voxel, by number + 1
        self._colors = np.array([BACKGROUND], np.float32)  # BGR, by number + 1

    def add(
        self,
        occupied: np.ndarray,
        colors: np.ndarray,
        origin: tuple[float, float, float],
        steps: tuple[float, float, float],
    ) -> None:
        """Draw voxels; voxel (i, j, k) begins at origin + steps * (i, j, k).

        occupied: [X, Y, Z] bool, which voxels to draw
        colors: [X, Y, Z, 3] BGR
        origin: [3] m
        steps: [3] size of a voxel, m
        """
        numbers = np.full(occupied.shape, -1, np.int32)
        count = int(occupied.sum())
        numbers[occupied] = np.arange(len(self._size) - 1, len(self._size) - 1 + count)
        self._colors = np.concatenate([self._colors, colors[occupied].astype(np.float32)])
        self._size = np.concatenate([self._size, np.full(count, min(steps), np.float32)])
        for axis in range(3):
            self._add_planes(axis, occupied, 3 * numbers + axis + 1, np.array(origin), np.array(steps))

    def _add_planes(
        self, axis: int, occupied: np.ndarray, faces: np.ndarray, origin: np.ndarray, steps: np.ndarray
    ) -> None:
        """Draw the faces across one axis that face the eye and have no neighbour in front of them."""
        solid = np.moveaxis(occupied, axis, 0)
        marks = np.moveaxis(faces, axis, 0)  # [planes, rows, columns]
        empty = np.zeros_like(solid[:1])
        low = solid & ~np.concatenate([empty, solid[:-1]])  # faces at the voxels' lower ends
        high = solid & ~np.concatenate([solid[1:], empty])
        first, second = (a for a in range(3) if a != axis)
        for plane in range(len(solid) + 1):
            offset = origin[axis] + plane * steps[axis] - self._eye[axis]  # m, from the eye
            if offset > 0 and plane < len(solid):
                shown, index = low[plane], plane
            elif offset < 0 and plane > 0:
                shown, index = high[plane - 1], plane - 1
            else:
                continue
            rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
            if not len(rows):
                continue
            part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            corner = origin - self._eye
            corner[axis] = offset
            corner[first] += rows[0] * steps[first]
            corner[second] += columns[0] * steps[second]
            across = np.zeros((2, 3))  # step of one column, step of one row
            across[0, second], across[1, first] = steps[second], steps[first]
            self._put_on_screen(np.where(shown[part], marks[index][part], 0), corner, across, axis)

    def _put_on_screen(self, texture: np.ndarray, corner: np.ndarray, across: np.ndarray, axis: int) -> None:
        """Draw a plane's faces.

        texture: [rows, columns] marks of the faces, 0 where there is none
        corner: [3] of the texture's first cell, relative to the eye, m
        across: [2, 3] step of a column and step of a row, m
        axis: across the plane
        """
        rows, columns = texture.shape
        region = self._screen_region(corner + np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]]) @ across)
        if region is None:
            return
        left, top, right, bottom = region
        # cells (column, row, 1) to depth-scaled pixels; in OpenCV the middle of a cell has integer coordinates
        cell2pixel = self._intrinsics @ self._rotation @ np.stack([*across, corner + across.sum(0) / 2], axis=1)
        shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])
        try:
            pixel2cell = np.linalg.inv(shift @ cell2pixel)
        except np.linalg.LinAlgError:
            return  # seen exactly edge-on
        marks = cv2.warpPerspective(
            texture, pixel2cell, (right - left, bottom - top), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        )
        # a ray meets the plane at depth offset / (its component across the plane): 1 / depth is linear in the pixel
        slope = self._pixel2ray[axis] / corner[axis]
        nearness = (slope[0] * np.arange(left, right) + slope[2]).astype(np.float32)[None]
        nearness = nearness + (slope[1] * np.arange(top, bottom)).astype(np.float32)[:, None]
        at = np.s_[top:bottom, left:right]
        wins = (marks > 0) & (nearness > self._nearness[at]) & (nearness < 1 / NEAR)
        np.copyto(self._nearness[at], nearness, where=wins)
        np.copyto(self._seen[at], marks, where=wins)

    def _screen_region(self, corners: np.ndarray) -> tuple[int, int, int, int] | None:
        """Return the pixels left, top, right, bottom that enclose a polygon; None if it is not visible.

        corners: [n, 3] relative to the eye, m
        """
        local = corners @ self._rotation.T
        depths = local[:, 2]
        if (depths < NEAR).any():  # cut the polygon's edges at the near plane
            ends = np.roll(local, -1, axis=0)
            cut = (depths < NEAR) != (ends[:, 2] < NEAR)
            share = (NEAR - depths[cut]) / (ends[cut, 2] - depths[cut])
            local = np.concatenate([local[depths >= NEAR], local[cut] + share[:, None] * (ends - local)[cut]])
        if not len(local):
            return None
        pixels = local @ self._intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        limits = np.array(self._seen.shape[::-1])
        left, top = np.clip(np.floor(pixels.min(0)), 0, limits).astype(int).tolist()
        right, bottom = np.clip(np.ceil(pixels.max(0)) + 1, 0, limits).astype(int).tolist()
        return (left, top, right, bottom) if left < right and top < bottom else None

    def picture(self) -> np.ndarray:
        """Return the picture [height, width, 3] BGR."""
        number = (self._seen + 2) // 3  # 0: nothing
        shade = np.array([*SHADES, 1.0], np.float32)[np.where(self._seen > 0, (self._seen - 1) % 3, 3)]
        pixels = self._focal * self._size[number] * self._nearness
        strength = np.clip((pixels - SEAM_FROM) / (SEAM_TO - SEAM_FROM), 0, 1)
        shade *= 1 - (1 - SEAM) * strength * self._borders()
        return np.round(self._colors[number] * shade[..., None]).astype(np.uint8)

    def _borders(self) -> np.ndarray:
        """Return where the face to the left or above is a different one, [height, width] bool."""
        borders = np.zeros(self._seen.shape, bool)
        borders[:, 1:] |= self._seen[:, 1:] != self._seen[:, :-1]
        borders[1:] |= self._seen[1:] != self._seen[:-1]
        return borders
