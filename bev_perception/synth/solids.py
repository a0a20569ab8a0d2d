"""The hulls of a scene as flat arrays, the form that the compiled kernels use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.shapes import Hull, Part, Shape

#: largest hull that compiled code can process: corners of a face, including those that clipping adds; vertices; faces
MAX_CORNERS, MAX_VERTICES, MAX_FACES = 32, 128, 128


class Solids(NamedTuple):
    """All hulls of a scene: V vertices, P parts (one hull each), F faces, O objects.

    Vertices and planes are in the frame of their object.

    vertices: [V, 3] float64, m
    part_vertices: [P + 1] where each part's vertices begin
    part_faces: [P + 1] where each part's faces begin
    part_object: [P] number of each part's object
    part_middle: [P, 3] m
    part_radius: [P] around part_middle, m
    face_corners: [F + 1] where each face's corners begin in `corners`
    corners: numbers of vertices
    planes: [F, 4] outward normal and offset (n * x <= offset inside)
    texture_axes: [F, 2, 4] axis and offset of u and v (u, v in m = axis * x - offset)
    texture_size: [F, 2] m
    materials: [F]
    colors: [F, 6] float32, colour and accent
    reflectances: [F] float32
    object_parts: [O + 1] where each object's parts begin
    object_radius: [O] around its origin, m
    object_low, object_high: [O, 3] m
    classes: [O] of Occ3D
    """

    vertices: np.ndarray
    part_vertices: np.ndarray
    part_faces: np.ndarray
    part_object: np.ndarray
    part_middle: np.ndarray
    part_radius: np.ndarray
    face_corners: np.ndarray
    corners: np.ndarray
    planes: np.ndarray
    texture_axes: np.ndarray
    texture_size: np.ndarray
    materials: np.ndarray
    colors: np.ndarray
    reflectances: np.ndarray
    object_parts: np.ndarray
    object_radius: np.ndarray
    object_low: np.ndarray
    object_high: np.ndarray
    classes: np.ndarray


class Swings(NamedTuple):
    """How parts swing.

    parts: [n] numbers of the parts
    pivots: [n, 3] m
    amplitudes: [n] rad
    phases: [n] rad
    """

    parts: np.ndarray
    pivots: np.ndarray
    amplitudes: np.ndarray
    phases: np.ndarray


def flatten(shapes: Sequence[Shape]) -> tuple[Solids, Swings]:
    """Return the hulls of all objects, and how parts of them swing.

    shapes: one per object

    Raises ValueError for a hull that is too complex.
    """
    parts = [part for shape in shapes for part in shape.parts]
    hulls = [part.hull for part in parts]
    _check(hulls)
    faces = [face for hull in hulls for face in hull.faces]
    surfaces = [surface for hull in hulls for surface in hull.surfaces]
    vertex_start = _starts([len(hull.vertices) for hull in hulls])
    middles = np.array([hull.vertices.mean(axis=0) for hull in hulls])
    radii = [np.linalg.norm(h.vertices - m, axis=1).max() for h, m in zip(hulls, middles, strict=True)]
    corners = [np.array(face) + start for hull, start in zip(hulls, vertex_start, strict=False) for face in hull.faces]
    vertices = np.concatenate([hull.vertices for hull in hulls])
    face_corners = _starts([len(face) for face in faces])
    planes, axes, sizes = _face_geometry(vertices, face_corners, np.concatenate(corners))
    low, high = np.array([shape.low for shape in shapes]), np.array([shape.high for shape in shapes])
    solids = Solids(
        vertices=vertices,
        part_vertices=vertex_start,
        part_faces=_starts([len(hull.faces) for hull in hulls]),
        part_object=np.repeat(np.arange(len(shapes)), [len(shape.parts) for shape in shapes]),
        part_middle=middles,
        part_radius=np.array(radii),
        face_corners=face_corners,
        corners=np.concatenate(corners),
        planes=planes,
        texture_axes=axes,
        texture_size=sizes,
        materials=np.array([int(surface.material) for surface in surfaces]),
        colors=np.array([surface.color + surface.accent for surface in surfaces], np.float32),
        reflectances=np.array([surface.reflectance for surface in surfaces], np.float32),
        object_parts=_starts([len(shape.parts) for shape in shapes]),
        object_radius=np.linalg.norm(np.maximum(np.abs(low), np.abs(high)), axis=1),
        object_low=low,
        object_high=high,
        classes=np.array([shape.occupancy for shape in shapes], np.uint8),
    )
    return solids, _swings(parts)


def _check(hulls: Sequence[Hull]) -> None:
    limits = {"vertices": MAX_VERTICES, "faces": MAX_FACES, "corners of a face": MAX_CORNERS - 4}
    for hull in hulls:
        counts = len(hull.vertices), len(hull.faces), max(len(face) for face in hull.faces)
        for (what, limit), count in zip(limits.items(), counts, strict=True):
            if count > limit:
                raise ValueError(f"a hull has {count} {what}, at most {limit} are possible; make it of simpler parts")


def _starts(counts: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _swings(parts: Sequence[Part]) -> Swings:
    moving = [i for i, part in enumerate(parts) if part.swing]
    return Swings(
        np.array(moving, np.int64),
        np.array([parts[i].pivot for i in moving]).reshape(-1, 3),
        np.array([parts[i].swing for i in moving]),
        np.array([parts[i].phase for i in moving]),
    )


@hot
def _point(vertices: np.ndarray, i: int) -> tuple[float, float, float]:
    return vertices[i, 0], vertices[i, 1], vertices[i, 2]


@kernel
def _face_geometry(
    vertices: np.ndarray, face_corners: np.ndarray, corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return planes, texture_axes and texture_size of all faces, as in Solids."""
    count = len(face_corners) - 1
    planes, axes, sizes = np.zeros((count, 4)), np.zeros((count, 2, 4)), np.zeros((count, 2))
    for f in range(count):
        start, end = face_corners[f], face_corners[f + 1]
        nx, ny, nz, mx, my, mz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(start, end):  # Newell's normal of a polygon
            a, b = corners[i], corners[i + 1 if i + 1 < end else start]
            ax, ay, az = _point(vertices, a)
            bx, by, bz = _point(vertices, b)
            nx, ny, nz = nx + ay * bz - az * by, ny + az * bx - ax * bz, nz + ax * by - ay * bx
            mx, my, mz = mx + ax / (end - start), my + ay / (end - start), mz + az / (end - start)
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        nx, ny, nz = nx / length, ny / length, nz / length
        planes[f, 0], planes[f, 1], planes[f, 2], planes[f, 3] = nx, ny, nz, nx * mx + ny * my + nz * mz
        # u is horizontal unless the face is nearly horizontal itself; v goes up
        ux, uy, uz = (-ny, nx, 0.0) if abs(nz) < 0.9 else (-nx * ny, 1.0 - ny * ny, -nz * ny)
        length = math.sqrt(ux * ux + uy * uy + uz * uz)
        ux, uy, uz = ux / length, uy / length, uz / length
        vx, vy, vz = ny * uz - nz * uy, nz * ux - nx * uz, nx * uy - ny * ux
        axes[f, 0, 0], axes[f, 0, 1], axes[f, 0, 2], axes[f, 1, 0], axes[f, 1, 1], axes[f, 1, 2] = (
            ux,
            uy,
            uz,
            vx,
            vy,
            vz,
        )
        for k in range(2):
            low, high = 1e9, -1e9
            for i in range(start, end):
                x, y, z = _point(vertices, corners[i])
                place = x * axes[f, k, 0] + y * axes[f, k, 1] + z * axes[f, k, 2]
                low, high = min(low, place), max(high, place)
            axes[f, k, 3], sizes[f, k] = low, high - low
    return planes, axes, sizes
