"""Draws the solids and the ground into a picture: one pass over the faces with a depth buffer, one over the rest.

Compiled with numba. Depths are kept as 1 / z, which is affine in the picture for a flat face, as are u / z and v / z.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from bev_perception.synth.ground import Ground, edge_distance
from bev_perception.synth.roads import KERB
from bev_perception.synth.shading import Light, ground_color, mixed, sky_at, surface_color
from bev_perception.synth.solids import Solids

#: m, the clipping plane before a camera
NEAR = 0.15
#: m beyond which objects are not drawn
FAR = 220.0
_MAX_CORNERS = 48
_NOTHING = -1


class Camera(NamedTuple):
    """A camera in the world.  rotation: [3, 3] world to camera.  position: [3].  focal, cx, cy: pixels."""

    rotation: np.ndarray
    position: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float


class Poses(NamedTuple):
    """Where the parts of Solids are: rotations [P, 3, 3] and translations [P, 3], object to world."""

    rotations: np.ndarray
    translations: np.ndarray


class Canvas(NamedTuple):
    """What is drawn into.  colors: [H, W, 3] uint8 BGR.  depths: [H, W] float32, 1 / z, 0 where nothing is.

    owners: [H, W] int16, number of the object, -1 where there is none.  shadows: [H, W] uint8, 255: none.
    marks: [H, W] int16, the last object drawn whether seen or hidden.  extent: [O] int64 pixels of each object if
    nothing hid it.
    """

    colors: np.ndarray
    depths: np.ndarray
    owners: np.ndarray
    shadows: np.ndarray
    marks: np.ndarray
    extent: np.ndarray


def new_canvas(image_size: tuple[int, int], objects: int) -> Canvas:
    """Return an empty canvas for pictures of width, height."""
    width, height = image_size
    return Canvas(
        np.zeros((height, width, 3), np.uint8),
        np.zeros((height, width), np.float32),
        np.full((height, width), _NOTHING, np.int16),
        np.full((height, width), 255, np.uint8),
        np.full((height, width), _NOTHING, np.int16),
        np.zeros(objects, np.int64),
    )


def clear(canvas: Canvas) -> None:
    """Make a canvas empty again."""
    canvas.depths.fill(0)
    canvas.owners.fill(_NOTHING)
    canvas.shadows.fill(255)
    canvas.marks.fill(_NOTHING)
    canvas.extent.fill(0)


@njit(cache=True)
def outside_view(camera: Camera, x: float, y: float, z: float, radius: float, width: int, height: int) -> bool:
    """Whether a ball, its middle in the camera frame, is out of the picture for certain."""
    if z < -radius or z > FAR + radius:
        return True
    tx = max(camera.cx, width - camera.cx) / camera.fx
    ty = max(camera.cy, height - camera.cy) / camera.fy
    return abs(x) - tx * z > radius * math.sqrt(1 + tx * tx) or abs(y) - ty * z > radius * math.sqrt(1 + ty * ty)


@njit(cache=True)
def project_polygon(camera: Camera, polygon: np.ndarray, count: int, pixels: np.ndarray) -> int:
    """Clip a polygon [count, 3] of the camera frame at the near plane; write its corners' pixels, return their number.

    Sutherland and Hodgman, CACM 1974, for one plane.
    """
    kept = 0
    for i in range(count):
        j = (i + 1) % count
        za, zb = polygon[i, 2], polygon[j, 2]
        if za >= NEAR:
            pixels[kept, 0] = camera.fx * polygon[i, 0] / za + camera.cx
            pixels[kept, 1] = camera.fy * polygon[i, 1] / za + camera.cy
            kept += 1
        if (za >= NEAR) != (zb >= NEAR):
            t = (NEAR - za) / (zb - za)
            pixels[kept, 0] = camera.fx * (polygon[i, 0] + t * (polygon[j, 0] - polygon[i, 0])) / NEAR + camera.cx
            pixels[kept, 1] = camera.fy * (polygon[i, 1] + t * (polygon[j, 1] - polygon[i, 1])) / NEAR + camera.cy
            kept += 1
    return kept


@njit(cache=True)
def row_span(pixels: np.ndarray, count: int, y: int, width: int) -> tuple[int, int]:
    """Return the first pixel and the one after the last of a convex polygon in row y."""
    low, high = 1e9, -1e9
    for i in range(count):
        j = (i + 1) % count
        ya, yb = pixels[i, 1], pixels[j, 1]
        if (ya <= y) != (yb <= y):
            x = pixels[i, 0] + (y - ya) * (pixels[j, 0] - pixels[i, 0]) / (yb - ya)
            low, high = min(low, x), max(high, x)
    if high < low:
        return 0, 0
    return int(max(0.0, math.ceil(low))), int(min(float(width), math.ceil(high)))


@njit(cache=True)
def row_range(pixels: np.ndarray, count: int, height: int) -> tuple[int, int]:
    """Return the first row of a polygon and the one after the last."""
    low, high = 1e9, -1e9
    for i in range(count):
        low, high = min(low, pixels[i, 1]), max(high, pixels[i, 1])
    return int(max(0.0, math.ceil(low))), int(min(float(height), math.ceil(high)))


@njit(cache=True)
def draw_objects(
    solids: Solids,
    poses: Poses,
    camera: Camera,
    light: Light,
    texture: np.ndarray,
    order: np.ndarray,
    with_extent: bool,
    canvas: Canvas,
) -> None:
    """Draw objects in the given order, from near to far.  with_extent: fill in marks and extent too."""
    height, width = canvas.depths.shape
    for o in order:
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            rotation = camera.rotation @ poses.rotations[p]
            shift = camera.rotation @ (poses.translations[p] - camera.position)
            middle = rotation @ solids.part_middle[p] + shift
            if outside_view(camera, middle[0], middle[1], middle[2], solids.part_radius[p], width, height):
                continue
            first, end = solids.part_vertices[p], solids.part_vertices[p + 1]
            points = np.empty((end - first, 3))
            for i in range(end - first):
                for k in range(3):
                    v = solids.vertices[first + i]
                    points[i, k] = rotation[k, 0] * v[0] + rotation[k, 1] * v[1] + rotation[k, 2] * v[2] + shift[k]
            for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
                _draw_face(
                    solids,
                    f,
                    o,
                    points,
                    first,
                    rotation,
                    shift,
                    poses.rotations[p],
                    camera,
                    light,
                    texture,
                    with_extent,
                    canvas,
                )


@njit(cache=True)
def _draw_face(
    solids: Solids,
    f: int,
    o: int,
    points: np.ndarray,
    first: int,
    rotation: np.ndarray,
    shift: np.ndarray,
    to_world: np.ndarray,
    camera: Camera,
    light: Light,
    texture: np.ndarray,
    with_extent: bool,
    canvas: Canvas,
) -> None:
    height, width = canvas.depths.shape
    normal = rotation @ solids.planes[f, :3]
    offset = solids.planes[f, 3] + normal @ shift
    if offset > -1e-6:  # the camera is behind the face
        return
    start, count = solids.face_corners[f], solids.face_corners[f + 1] - solids.face_corners[f]
    polygon, pixels = np.empty((_MAX_CORNERS, 3)), np.empty((2 * _MAX_CORNERS, 2))
    for i in range(count):
        polygon[i] = points[solids.corners[start + i] - first]
    count = project_polygon(camera, polygon, count, pixels)
    if count < 3:
        return
    top, bottom = row_range(pixels, count, height)
    if bottom <= top:
        return
    # 1 / z and the texture's coordinates over z are affine in x and y
    ix, iy = normal[0] / (camera.fx * offset), normal[1] / (camera.fy * offset)
    i0 = normal[2] / offset - ix * camera.cx - iy * camera.cy
    axes = solids.texture_axes[f]
    eu, ev = rotation @ axes[0, :3], rotation @ axes[1, :3]
    u_shift, v_shift = axes[0, 3] + eu @ shift, axes[1, 3] + ev @ shift
    world_normal = to_world @ solids.planes[f, :3]
    facing = max(0.0, world_normal @ light.sun)
    upward = 0.62 + 0.38 * world_normal[2]
    material = solids.materials[f]
    for y in range(top, bottom):
        left, right = row_span(pixels, count, y, width)
        for x in range(left, right):
            inverse = ix * x + iy * y + i0
            if with_extent and canvas.marks[y, x] != o:
                canvas.marks[y, x] = o
                canvas.extent[o] += 1
            if inverse <= canvas.depths[y, x]:
                continue
            z = 1.0 / inverse
            canvas.depths[y, x], canvas.owners[y, x] = inverse, o
            rx, ry = (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy
            u = z * (eu[0] * rx + eu[1] * ry + eu[2]) - u_shift
            v = z * (ev[0] * rx + ev[1] * ry + ev[2]) - v_shift
            b, g, r, mirror, glow = surface_color(
                material, solids.colors[f], u, v, solids.texture_size[f], z / camera.fx, o, texture, light.night
            )
            color = (
                b * (light.sunshine[0] * facing + light.skylight[0] * upward),
                g * (light.sunshine[1] * facing + light.skylight[1] * upward),
                r * (light.sunshine[2] * facing + light.skylight[2] * upward),
            )
            length = math.sqrt(rx * rx + ry * ry + 1.0)
            if mirror > 0:
                color = _mirrored(color, mirror, rx / length, ry / length, 1.0 / length, normal, camera, light)
            color = mixed(color, (b, g, r), glow)
            _put(canvas.colors, y, x, color, light, z * length)


@njit(cache=True)
def _mirrored(
    color: tuple[float, float, float],
    mirror: float,
    rx: float,
    ry: float,
    rz: float,
    normal: np.ndarray,
    camera: Camera,
    light: Light,
) -> tuple[float, float, float]:
    """Return a colour with the sky's or the ground's reflection, stronger at a grazing view (Schlick, 1994)."""
    cosine = rx * normal[0] + ry * normal[1] + rz * normal[2]
    mx, my, mz = rx - 2 * cosine * normal[0], ry - 2 * cosine * normal[1], rz - 2 * cosine * normal[2]
    rotation = camera.rotation
    wx = rotation[0, 0] * mx + rotation[1, 0] * my + rotation[2, 0] * mz
    wy = rotation[0, 1] * mx + rotation[1, 1] * my + rotation[2, 1] * mz
    wz = rotation[0, 2] * mx + rotation[1, 2] * my + rotation[2, 2] * mz
    share = mirror * (0.35 + 0.65 * (1 + cosine) ** 3)
    if wz > 0.02:
        image = sky_at(light.panorama, wx, wy, wz)
    else:
        s = light.skylight
        image = (0.28 * s[0], 0.29 * s[1], 0.30 * s[2])
    glint = max(0.0, wx * light.sun[0] + wy * light.sun[1] + wz * light.sun[2]) ** 60
    shine = 0.5 * mirror * glint * light.sunshine[2]
    color = mixed(color, image, share)
    return color[0] + shine, color[1] + shine, color[2] + shine


@njit(cache=True)
def _put(colors: np.ndarray, y: int, x: int, color: tuple[float, float, float], light: Light, distance: float) -> None:
    """Write a colour as it looks through `distance` m of air."""
    clear_share = math.exp(-distance * light.haze_density)
    for k in range(3):
        value = color[k] * clear_share + light.haze[k] * (1 - clear_share)
        colors[y, x, k] = int(min(max(255.0 * value, 0.0), 255.0))


@njit(cache=True)
def draw_shadows(
    solids: Solids,
    poses: Poses,
    camera: Camera,
    sun: np.ndarray,
    sun_depth: int,
    order: np.ndarray,
    reach: float,
    canvas: Canvas,
) -> None:
    """Darken Canvas.shadows where objects keep the sun off the ground.  sun_depth: by how much, 0..255."""
    height, width = canvas.depths.shape
    polygon, pixels = np.empty((_MAX_CORNERS, 3)), np.empty((2 * _MAX_CORNERS, 2))
    dark = 255 - sun_depth
    for o in order:
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            middle = poses.rotations[p] @ solids.part_middle[p] + poses.translations[p]
            if np.hypot(middle[0] - camera.position[0], middle[1] - camera.position[1]) > reach:
                continue
            down = (middle[2] - 0.5 * KERB) / sun[2]
            fallen = camera.rotation @ (middle - down * sun - camera.position)
            radius = solids.part_radius[p] / sun[2]
            if outside_view(camera, fallen[0], fallen[1], fallen[2], radius, width, height):
                continue
            for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
                if (poses.rotations[p] @ solids.planes[f, :3]) @ sun <= 0:
                    continue
                start, count = solids.face_corners[f], solids.face_corners[f + 1] - solids.face_corners[f]
                for i in range(count):
                    v = poses.rotations[p] @ solids.vertices[solids.corners[start + i]] + poses.translations[p]
                    polygon[i] = camera.rotation @ (v - max(v[2], 0.0) / sun[2] * sun - camera.position)
                _darken(camera, polygon, count, pixels, dark, canvas.shadows)


@njit(cache=True)
def draw_contacts(
    solids: Solids, poses: Poses, camera: Camera, order: np.ndarray, reach: float, canvas: Canvas
) -> None:
    """Darken Canvas.shadows where objects keep the sky's light off the ground beneath them."""
    height, width = canvas.depths.shape
    polygon, pixels = np.empty((_MAX_CORNERS, 3)), np.empty((2 * _MAX_CORNERS, 2))
    for o in order:
        p = solids.object_parts[o]
        low, high = solids.object_low[o], solids.object_high[o]
        rotation, shift = poses.rotations[p], poses.translations[p]
        at = camera.rotation @ (shift - camera.position)
        if math.hypot(at[0], at[2]) > reach or low[2] > 0.6:
            continue
        if outside_view(camera, at[0], at[1], at[2], solids.object_radius[o] + 0.5, width, height):
            continue
        size = min(high[2], 1.5)
        for ring in range(4):
            wider = size * (0.22 - 0.10 * ring)
            for i in range(4):
                x = high[0] + wider if i in (0, 3) else low[0] - wider
                y = high[1] + wider if i in (0, 1) else low[1] - wider
                v = rotation @ np.array([x, y, 0.0]) + shift
                polygon[i] = camera.rotation @ (v - camera.position)
            _darken(camera, polygon, 4, pixels, 225 - 38 * ring, canvas.shadows)


@njit(cache=True)
def _darken(
    camera: Camera, polygon: np.ndarray, count: int, pixels: np.ndarray, dark: int, shadows: np.ndarray
) -> None:
    count = project_polygon(camera, polygon, count, pixels)
    if count < 3:
        return
    height, width = shadows.shape
    top, bottom = row_range(pixels, count, height)
    for y in range(top, bottom):
        left, right = row_span(pixels, count, y, width)
        for x in range(left, right):
            shadows[y, x] = min(shadows[y, x], dark)


@njit(cache=True)
def draw_background(ground: Ground, camera: Camera, light: Light, canvas: Canvas) -> None:
    """Draw ground and sky where no object is."""
    height, width = canvas.depths.shape
    rotation, eye = camera.rotation, camera.position
    for y in range(height):
        for x in range(width):
            if canvas.owners[y, x] >= 0:
                continue
            rx, ry = (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy
            dx = rotation[0, 0] * rx + rotation[1, 0] * ry + rotation[2, 0]
            dy = rotation[0, 1] * rx + rotation[1, 1] * ry + rotation[2, 1]
            dz = rotation[0, 2] * rx + rotation[1, 2] * ry + rotation[2, 2]
            length = math.sqrt(dx * dx + dy * dy + dz * dz)
            if dz > -0.0015 * length:
                color = sky_at(light.panorama, dx / length, dy / length, dz / length)
                for k in range(3):
                    canvas.colors[y, x, k] = int(min(255.0 * color[k], 255.0))
                continue
            t_road, t_kerb = -eye[2] / dz, (KERB - eye[2]) / dz
            px, py = eye[0] + t_kerb * dx, eye[1] + t_kerb * dy
            edge, t, face = edge_distance(ground, px, py), t_kerb, False
            if edge < 0:
                t = t_road
                px, py = eye[0] + t * dx, eye[1] + t * dy
                edge = edge_distance(ground, px, py)
                face = edge >= 0
            level = math.sqrt(dx * dx + dy * dy)
            near = t * length / camera.fx
            far = near * length / -dz
            if face:
                color = (0.46, 0.48, 0.49)
            else:
                color = ground_color(ground, light, px, py, edge, dx / level, dy / level, min(far, 50.0), near)
            lit = canvas.shadows[y, x] / 255.0
            up = max(light.sun[2], 0.0)
            sun = max(0.0, (lit - 0.35) / 0.65)
            soft = 0.45 + 0.55 * lit
            color = (
                color[0] * (light.sunshine[0] * up * sun + light.skylight[0] * soft),
                color[1] * (light.sunshine[1] * up * sun + light.skylight[1] * soft),
                color[2] * (light.sunshine[2] * up * sun + light.skylight[2] * soft),
            )
            if light.wet > 0:  # darker, and the sky shows in it at a flat angle
                grazing = (1 + dz / length) ** 4
                sky = sky_at(light.panorama, dx / length, dy / length, -dz / length)
                color = mixed(
                    (0.62 * color[0], 0.62 * color[1], 0.62 * color[2]), sky, light.wet * (0.08 + 0.5 * grazing)
                )
            _put(canvas.colors, y, x, color, light, t * length)
