"""Renders the solids and the ground into an image: one pass over the faces with a depth buffer, one over the rest.

Compiled with numba. Depths are stored as 1 / z, which is affine in the pixel coordinates for a flat face, as are u / z
and v / z.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.ground import Ground, edge_distance
from bev_perception.synth.polygons import Camera, Poses, outside_view, project_polygon, row_range, row_span, turned
from bev_perception.synth.roads import KERB
from bev_perception.synth.shading import Light, ground_color, is_hole, mixed, sky_at, surface_color
from bev_perception.synth.shapes import Material
from bev_perception.synth.solids import MAX_CORNERS, MAX_VERTICES, Solids

_NOTHING, _PIERCED = -1, int(Material.LEAVES)
#: sine of the angle below the horizontal at which the ground gives way to the skyline
_HORIZON = 0.0015


class Canvas(NamedTuple):
    """The buffers that an image is drawn into; O objects.

    colors: [H, W, 3] uint8 BGR
    depths: [H, W] float32, 1 / z in 1/m, 0 where nothing is
    owners: [H, W] int16, number of the object, -1 where there is none
    shadows: [H, W] uint8, light that reaches the ground, 255: no shadow
    marks: [H, W] int16, the last object drawn, visible or hidden
    extent: [O] int64, pixels of each object that would be visible if nothing hid it
    """

    colors: np.ndarray
    depths: np.ndarray
    owners: np.ndarray
    shadows: np.ndarray
    marks: np.ndarray
    extent: np.ndarray


def new_canvas(image_size: tuple[int, int], objects: int) -> Canvas:
    """Return an empty canvas.

    image_size: width, height, pixels
    objects: number of objects
    """
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
    """Empty a canvas."""
    canvas.depths.fill(0)
    canvas.owners.fill(_NOTHING)
    canvas.shadows.fill(255)
    canvas.marks.fill(_NOTHING)
    canvas.extent.fill(0)


@hot
def part_in_view(
    solids: Solids,
    poses: Poses,
    p: int,
    camera: Camera,
    rotation: np.ndarray,
    shift: np.ndarray,
    width: int,
    height: int,
) -> bool:
    """Compute a part's pose in the camera's frame; return whether the camera may see the part.

    p: number of the part
    rotation: [3, 3], where the rotation from the object's to the camera's frame is written
    shift: [3], where the translation (m) is written
    width, height: of the image, pixels
    """
    for i in range(3):
        for j in range(3):
            rotation[i, j] = 0.0
            for k in range(3):
                rotation[i, j] += camera.rotation[i, k] * poses.rotations[p, k, j]
    at, eye = poses.translations[p], camera.position
    shift[0], shift[1], shift[2] = turned(camera.rotation, at[0] - eye[0], at[1] - eye[1], at[2] - eye[2])
    middle = solids.part_middle[p]
    x, y, z = turned(rotation, middle[0], middle[1], middle[2])
    return not outside_view(camera, x + shift[0], y + shift[1], z + shift[2], solids.part_radius[p], width, height)


@kernel
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
    """Draw objects from near to far.

    texture: noise, as in Ground
    order: numbers of the objects, the nearest first
    with_extent: whether to fill in marks and extent, too
    """
    height, width = canvas.depths.shape
    rotation, shift, points = np.empty((3, 3)), np.empty(3), np.empty((MAX_VERTICES, 3))
    polygon, pixels = np.empty((MAX_CORNERS, 3)), np.empty((2 * MAX_CORNERS, 2))
    for o in order:
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            if not part_in_view(solids, poses, p, camera, rotation, shift, width, height):
                continue
            first = solids.part_vertices[p]
            for i in range(solids.part_vertices[p + 1] - first):
                vertex = solids.vertices[first + i]
                x, y, z = turned(rotation, vertex[0], vertex[1], vertex[2])
                points[i, 0], points[i, 1], points[i, 2] = x + shift[0], y + shift[1], z + shift[2]
            for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
                plane = solids.planes[f]
                nx, ny, nz = turned(rotation, plane[0], plane[1], plane[2])
                offset = plane[3] + nx * shift[0] + ny * shift[1] + nz * shift[2]
                if offset > -1e-6:  # the camera is behind the face
                    continue
                start = solids.face_corners[f]
                count = solids.face_corners[f + 1] - start
                for i in range(count):
                    corner = solids.corners[start + i] - first
                    for k in range(3):
                        polygon[i, k] = points[corner, k]
                count = project_polygon(camera, polygon, count, pixels)
                if count >= 3:
                    face = (nx / offset, ny / offset, nz / offset)
                    world = turned(poses.rotations[p], plane[0], plane[1], plane[2])
                    _draw_face(
                        solids,
                        f,
                        o,
                        pixels,
                        count,
                        face,
                        world,
                        rotation,
                        shift,
                        camera,
                        light,
                        texture,
                        with_extent,
                        canvas,
                    )


@hot
def _draw_face(
    solids: Solids,
    f: int,
    o: int,
    pixels: np.ndarray,
    count: int,
    face: tuple[float, float, float],
    world: tuple[float, float, float],
    rotation: np.ndarray,
    shift: np.ndarray,
    camera: Camera,
    light: Light,
    texture: np.ndarray,
    with_extent: bool,
    canvas: Canvas,
) -> None:
    """Fill one polygon.

    f, o: numbers of the face and of its object
    pixels: [count, 2] its corners
    face: its plane in the camera's frame, as face * x = 1
    world: its normal in the world
    rotation, shift: as in part_in_view
    """
    height, width = canvas.depths.shape
    depths, owners, marks, colors = canvas.depths, canvas.owners, canvas.marks, canvas.colors
    top, bottom = row_range(pixels, count, height)
    # 1 / z is affine in x and y
    ix, iy = face[0] / camera.fx, face[1] / camera.fy
    i0 = face[2] - ix * camera.cx - iy * camera.cy
    axes = solids.texture_axes
    ux, uy, uz = turned(rotation, axes[f, 0, 0], axes[f, 0, 1], axes[f, 0, 2])
    vx, vy, vz = turned(rotation, axes[f, 1, 0], axes[f, 1, 1], axes[f, 1, 2])
    u_shift = axes[f, 0, 3] + ux * shift[0] + uy * shift[1] + uz * shift[2]
    v_shift = axes[f, 1, 3] + vx * shift[0] + vy * shift[1] + vz * shift[2]
    u_size, v_size = max(solids.texture_size[f, 0], 1e-3), max(solids.texture_size[f, 1], 1e-3)
    own = (float(solids.colors[f, 0]), float(solids.colors[f, 1]), float(solids.colors[f, 2]))
    accent = (float(solids.colors[f, 3]), float(solids.colors[f, 4]), float(solids.colors[f, 5]))
    length = math.sqrt(face[0] ** 2 + face[1] ** 2 + face[2] ** 2)
    normal = (-face[0] / length, -face[1] / length, -face[2] / length)
    facing = max(0.0, world[0] * light.sun[0] + world[1] * light.sun[1] + world[2] * light.sun[2])
    upward = 0.62 + 0.38 * world[2]
    lit = (
        light.sunshine[0] * facing + light.skylight[0] * upward,
        light.sunshine[1] * facing + light.skylight[1] * upward,
        light.sunshine[2] * facing + light.skylight[2] * upward,
    )
    material, extent = solids.materials[f], 0
    pierced = material >= _PIERCED
    for y in range(top, bottom):
        left, right = row_span(pixels, count, y, width)
        ry = (y - camera.cy) / camera.fy
        for x in range(left, right):
            inverse = ix * x + iy * y + i0
            seen = inverse > depths[y, x]
            if not (seen or with_extent):
                continue
            z, rx = 1.0 / inverse, (x - camera.cx) / camera.fx
            u = z * (ux * rx + uy * ry + uz) - u_shift
            v = z * (vx * rx + vy * ry + vz) - v_shift
            if pierced and is_hole(material, u, v, u_size, v_size, z / camera.fx, o, texture):
                continue
            if with_extent and marks[y, x] != o:
                marks[y, x] = o
                extent += 1
            if not seen:
                continue
            depths[y, x], owners[y, x] = inverse, o
            b, g, r, mirror, glow = surface_color(
                material, own, accent, u, v, u_size, v_size, z / camera.fx, o, texture, light.night
            )
            color = (b * lit[0], g * lit[1], r * lit[2])
            length = math.sqrt(rx * rx + ry * ry + 1.0)
            if mirror > 0:
                color = _mirrored(color, mirror, rx / length, ry / length, 1.0 / length, normal, camera, light)
            if glow > 0:
                color = mixed(color, (b, g, r), glow)
            _put(colors, y, x, color, light, z * length)
    if with_extent:
        canvas.extent[o] += extent


@hot
def _mirrored(
    color: tuple[float, float, float],
    mirror: float,
    rx: float,
    ry: float,
    rz: float,
    normal: tuple[float, float, float],
    camera: Camera,
    light: Light,
) -> tuple[float, float, float]:
    """Return a colour mixed with the reflection of sky or ground, stronger at grazing angles (Schlick, 1994)."""
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
    glint = max(0.0, wx * light.sun[0] + wy * light.sun[1] + wz * light.sun[2])
    for _ in range(6):  # to the power of 64
        glint *= glint
    shine = 0.5 * mirror * glint * light.sunshine[2]
    color = mixed(color, image, share)
    return color[0] + shine, color[1] + shine, color[2] + shine


@hot
def _put(colors: np.ndarray, y: int, x: int, color: tuple[float, float, float], light: Light, distance: float) -> None:
    """Write a pixel's colour as it appears through `distance` m of haze."""
    depth = distance * light.haze_density
    clear_share = 1.0 / (1.0 + depth + 0.5 * depth * depth)  # nearly exp(-depth), and faster
    for k in range(3):
        value = color[k] * clear_share + light.haze[k] * (1 - clear_share)
        colors[y, x, k] = int(min(max(255.0 * value, 0.0), 255.0))


@kernel
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
    """Darken Canvas.shadows where objects block the sunlight.

    sun: [3] unit vector towards the sun
    sun_depth: how much to darken, 0..255
    order: numbers of the objects
    reach: distance from the camera up to which objects cast shadows, m
    """
    height, width = canvas.depths.shape
    polygon, pixels = np.empty((MAX_CORNERS, 3)), np.empty((2 * MAX_CORNERS, 2))
    eye, turn, dark = camera.position, camera.rotation, 255 - sun_depth
    for o in order:
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            rotation, at, middle = poses.rotations[p], poses.translations[p], solids.part_middle[p]
            x, y, z = turned(rotation, middle[0], middle[1], middle[2])
            x, y, z = x + at[0] - eye[0], y + at[1] - eye[1], z + at[2]
            if math.hypot(x, y) > reach:
                continue
            down = z / sun[2]
            fx, fy, fz = turned(turn, x - down * sun[0], y - down * sun[1], -eye[2])
            if outside_view(camera, fx, fy, fz, solids.part_radius[p] / sun[2], width, height):
                continue
            for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
                plane = solids.planes[f]
                nx, ny, nz = turned(rotation, plane[0], plane[1], plane[2])
                if nx * sun[0] + ny * sun[1] + nz * sun[2] <= 0:
                    continue
                start, count = solids.face_corners[f], solids.face_corners[f + 1] - solids.face_corners[f]
                for i in range(count):
                    vertex = solids.vertices[solids.corners[start + i]]
                    x, y, z = turned(rotation, vertex[0], vertex[1], vertex[2])
                    down = max(z + at[2], 0.0) / sun[2]
                    x, y = x + at[0] - down * sun[0] - eye[0], y + at[1] - down * sun[1] - eye[1]
                    polygon[i, 0], polygon[i, 1], polygon[i, 2] = turned(turn, x, y, -eye[2])
                _darken(camera, polygon, count, pixels, dark, canvas.shadows)


@kernel
def draw_contacts(
    solids: Solids, poses: Poses, camera: Camera, order: np.ndarray, reach: float, canvas: Canvas
) -> None:
    """Darken Canvas.shadows where objects block the skylight from the ground beneath them.

    order: numbers of the objects
    reach: distance from the camera up to which objects do so, m
    """
    height, width = canvas.depths.shape
    polygon, pixels = np.empty((MAX_CORNERS, 3)), np.empty((2 * MAX_CORNERS, 2))
    eye, turn = camera.position, camera.rotation
    for o in order:
        p = solids.object_parts[o]
        low, high = solids.object_low[o], solids.object_high[o]
        rotation, at = poses.rotations[p], poses.translations[p]
        x, y, z = turned(turn, at[0] - eye[0], at[1] - eye[1], at[2] - eye[2])
        if math.hypot(x, z) > reach or low[2] > 0.6:
            continue
        if outside_view(camera, x, y, z, solids.object_radius[o] + 0.5, width, height):
            continue
        size = min(high[2], 1.5)
        for ring in range(4):
            wider = size * (0.22 - 0.10 * ring)
            for i in range(4):
                x = high[0] + wider if i in (0, 3) else low[0] - wider
                y = high[1] + wider if i in (0, 1) else low[1] - wider
                x, y, z = turned(rotation, x, y, 0.0)
                polygon[i, 0], polygon[i, 1], polygon[i, 2] = turned(
                    turn, x + at[0] - eye[0], y + at[1] - eye[1], z + at[2] - eye[2]
                )
            _darken(camera, polygon, 4, pixels, 225 - 38 * ring, canvas.shadows)


@hot
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


@kernel
def draw_background(ground: Ground, camera: Camera, light: Light, canvas: Canvas) -> None:
    """Draw ground and sky in all pixels without an object."""
    height, width = canvas.depths.shape
    owners, colors, shadows, r = canvas.owners, canvas.colors, canvas.shadows, camera.rotation
    blue = green = red = 0
    for y in range(height):
        ry, sky_until, edge = (y - camera.cy) / camera.fy, -1, 0.0
        for x in range(width):
            if owners[y, x] >= 0:
                edge = 0.0
                continue
            rx = (x - camera.cx) / camera.fx
            dz = r[0, 2] * rx + r[1, 2] * ry + r[2, 2]
            if dz > 0 and x <= sky_until:  # the sky is so smooth that four pixels share a colour
                colors[y, x, 0], colors[y, x, 1], colors[y, x, 2] = blue, green, red
                continue
            dx = r[0, 0] * rx + r[1, 0] * ry + r[2, 0]
            dy = r[0, 1] * rx + r[1, 1] * ry + r[2, 1]
            length = math.sqrt(rx * rx + ry * ry + 1.0)
            if dz > -_HORIZON * length:
                b, g, r_ = sky_at(light.panorama, dx / length, dy / length, dz / length)
                blue, green, red = int(min(255.0 * b, 255.0)), int(min(255.0 * g, 255.0)), int(min(255.0 * r_, 255.0))
                colors[y, x, 0], colors[y, x, 1], colors[y, x, 2] = blue, green, red
                sky_until = x + 3
                continue
            color, distance, edge = _ground_pixel(
                ground, camera, light, dx, dy, dz, length, shadows[y, x] / 255.0, edge
            )
            _put(colors, y, x, color, light, distance)


@hot
def _ground_pixel(
    ground: Ground,
    camera: Camera,
    light: Light,
    dx: float,
    dy: float,
    dz: float,
    length: float,
    clear_share: float,
    edge: float,
) -> tuple[tuple[float, float, float], float, float]:
    """Return the colour of a pixel of the ground, its distance (m) and its distance from the road's edge (m).

    dx, dy, dz: direction of sight in the world
    length: of that direction
    clear_share: share of the light that shadows leave
    edge: distance of the previous pixel in the row from the road's edge, m
    """
    eye = camera.position
    on_road = edge < -2.0  # neighbouring pixels of a row are less than 2 m apart
    if not on_road:
        t = (KERB - eye[2]) / dz
        edge = edge_distance(ground, eye[0] + t * dx, eye[1] + t * dy)
        on_road = edge < 0
    if on_road:
        t = -eye[2] / dz
        edge = edge_distance(ground, eye[0] + t * dx, eye[1] + t * dy)
    level = math.sqrt(dx * dx + dy * dy)
    near = t * length / camera.fx
    if on_road and edge >= 0:  # between the heights of road and pavement: the kerb's vertical face
        color = (0.46, 0.48, 0.49)
    else:
        far = min(near * length / -dz, 50.0)
        color = ground_color(ground, eye[0] + t * dx, eye[1] + t * dy, edge, dx / level, dy / level, far, near)
    sun = max(0.0, (clear_share - 0.35) / 0.65) * max(light.sun[2], 0.0)
    soft = 0.45 + 0.55 * clear_share
    color = (
        color[0] * (light.sunshine[0] * sun + light.skylight[0] * soft),
        color[1] * (light.sunshine[1] * sun + light.skylight[1] * soft),
        color[2] * (light.sunshine[2] * sun + light.skylight[2] * soft),
    )
    if light.wet > 0:  # wet ground is darker, and reflects the sky at grazing angles
        grazing = (1 + dz / length) ** 4
        sky = sky_at(light.panorama, dx / length, dy / length, -dz / length)
        color = mixed((0.62 * color[0], 0.62 * color[1], 0.62 * color[2]), sky, light.wet * (0.08 + 0.5 * grazing))
    return color, t * length, edge
