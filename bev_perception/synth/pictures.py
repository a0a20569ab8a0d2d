"""Camera images of a scene: rendered, then changed by lens, exposure, noise and raindrops."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bev_perception.data.drive import NUSCENES_IMAGE_SIZE, CameraRig
from bev_perception.geometry import invert_transform
from bev_perception.synth.compiled import kernel
from bev_perception.synth.lenses import Pinhole, pinholes_of, sample
from bev_perception.synth.polygons import Camera, Poses
from bev_perception.synth.rasterizer import (
    Canvas,
    clear,
    draw_background,
    draw_contacts,
    draw_objects,
    draw_shadows,
    new_canvas,
)
from bev_perception.synth.solids import Solids
from bev_perception.synth.world import World

#: m from the camera up to which objects cast shadows, and darken the ground beneath them
_SHADOW_REACH, _CONTACT_REACH = 75.0, 55.0
_NOISE_SHAPE = (256, 512)


@dataclass(frozen=True)
class View:
    """What one camera sees; O objects.

    image: [H, W, 3] uint8 BGR
    owners: [H, W] int16, number of the object at each pixel, -1 for ground and sky; overwritten by the next image
    seen: [O] visible pixels of each object (0 unless asked for)
    extent: [O] pixels of each object that would be visible if nothing hid it (0 unless asked for)
    """

    image: np.ndarray
    owners: np.ndarray
    seen: np.ndarray
    extent: np.ndarray


class Photographer:
    """Takes a scene's images with one rig."""

    def __init__(
        self, world: World, cameras: dict[str, CameraRig], rng: np.random.Generator, tail: bool = False
    ) -> None:
        """Prepare what does not depend on time: exposure, noise, vignette, drops on the lenses.

        world: the scene
        cameras: by channel, with their poses above the point on the ground that the world moves
        rng: source of all random choices
        tail: whether the car's own tail shows in CAM_BACK
        """
        self._world, self._cameras = world, cameras
        self._pinholes = {channel: pinholes_of(camera.calibration) for channel, camera in cameras.items()}
        self._canvases: dict[tuple[int, int], Canvas] = {}
        sizes = {channel: (c.calibration.width, c.calibration.height) for channel, c in cameras.items()}
        self._vignettes = {size: _vignette(size) for size in sizes.values()}
        width = max(size[0] for size in sizes.values())
        channels = list(cameras)
        gains = {channel: 256 * rng.uniform(0.94, 1.06) * rng.uniform(0.98, 1.02, 3) for channel in channels}
        self._gains = {channel: gain.astype(np.int32) for channel, gain in gains.items()}
        self._curve = np.rint(255 * np.linspace(0, 1, 256) ** rng.uniform(0.66, 0.86)).astype(np.int32)
        strength = 2.0 + 3.5 * world.light.night
        rows, columns = _NOISE_SHAPE
        grain = 0.75 * rng.normal(0, strength, (rows, columns + width, 1)) + 0.5 * rng.normal(
            0, strength, (rows, columns + width, 3)
        )
        self._noise = np.rint(grain).astype(np.int8)  # [rows, columns + W, 3]
        self._drops = {channel: _drops(rng, sizes[channel]) if world.weather == "rain" else () for channel in channels}
        self._bonnet = {"CAM_BACK": _bonnet(sizes["CAM_BACK"])} if tail else {}

    def camera(self, channel: str, ego2global: np.ndarray) -> Camera:
        """Return a camera at its position in the world, as it is drawn: the part ahead of it, without distortion.

        channel: name of the camera
        ego2global: [4, 4]
        """
        return self._drawing(self._cameras[channel], self._pinholes[channel][0], ego2global)

    def _drawing(self, camera: CameraRig, pinhole: Pinhole, ego2global: np.ndarray) -> Camera:
        turned = camera.sensor2ego.copy()
        turned[:3, :3] = camera.sensor2ego[:3, :3] @ pinhole.turn.T
        global2sensor, k = invert_transform(ego2global @ turned), pinhole.k
        position = np.ascontiguousarray(-global2sensor[:3, :3].T @ global2sensor[:3, 3])
        return Camera(np.ascontiguousarray(global2sensor[:3, :3]), position, k[0, 0], k[1, 1], k[0, 2], k[1, 2])

    def take(self, channel: str, time: float, with_extent: bool = False) -> View:
        """Take an image.

        channel: name of the camera
        time: s from the scene's start
        with_extent: whether to count the visible and the hidden pixels of each object
        """
        world, mounted = self._world, self._cameras[channel]
        lens, objects = mounted.calibration, len(self._world.solids.classes)
        colors = np.zeros((lens.height, lens.width, 3), np.uint8)
        owners = np.full((lens.height, lens.width), -1, np.int16)
        extent, drawn = np.zeros(objects, np.int64), np.zeros(objects, np.int64)
        solids, poses, ego2global = world.solids_at(time), world.poses_at(time), world.ego2global(time)
        for pinhole in self._pinholes[channel]:
            canvas = self._canvas(pinhole.size)
            draw(world, solids, poses, self._drawing(mounted, pinhole, ego2global), canvas, with_extent)
            if pinhole.maps is None:
                colors, owners = canvas.colors, canvas.owners
            else:
                sample(pinhole, canvas.colors, colors)
                sample(pinhole, canvas.owners, owners, nearest=True)
            extent += canvas.extent
            drawn += _pixels_of(canvas.owners, objects)
        seen = _pixels_of(owners, objects) if with_extent else np.zeros(objects, np.int64)
        # what is drawn has other pixels than the picture where the lens bends: the share that is visible counts
        bent = self._pinholes[channel][0].maps is not None
        whole = np.where(drawn > 0, extent * seen // np.maximum(drawn, 1), extent) if bent else extent
        return View(self._develop(colors, channel, time), owners, seen, whole)

    def _canvas(self, size: tuple[int, int]) -> Canvas:
        if size not in self._canvases:
            self._canvases[size] = new_canvas(size, len(self._world.solids.classes))
        return self._canvases[size]

    def _develop(self, colors: np.ndarray, channel: str, time: float) -> np.ndarray:
        """Return the image as it comes out of the camera."""
        height, width = colors.shape[:2]
        image = cv2.GaussianBlur(colors, (3, 3), 0.55 * width / NUSCENES_IMAGE_SIZE[0] + 0.05)
        for x, y, radius in self._drops[channel]:
            _blur_drop(image, x, y, radius)
        if channel in self._bonnet:
            mask, color = self._bonnet[channel]
            tone = np.clip(color * self._world.light.skylight * 1.25, 0, 1) * 255
            image[mask] = tone.astype(np.uint8)
        jump = 7919 * round(time * 1e6) % (1 << 20)  # another part of the noise for every image
        _expose(image, self._curve, self._vignettes[width, height], self._gains[channel], self._noise, jump)
        return image


def _pixels_of(owners: np.ndarray, objects: int) -> np.ndarray:
    """Return the number of pixels of each object."""
    return np.bincount(owners[owners >= 0], minlength=objects)


def _vignette(size: tuple[int, int]) -> np.ndarray:
    """Return how bright a picture's pixels are, [height, width] in 1 / 256."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    r = np.hypot((x - width / 2) / (width / 2), (y - height / 2) / (width / 2))
    return (256 * (1 - 0.16 * np.clip(r, 0, 1.2) ** 2.5)).astype(np.int32)


def draw(world: World, solids: Solids, poses: Poses, camera: Camera, canvas: Canvas, with_extent: bool = False) -> None:
    """Render a scene into a canvas; of the ego car, which is the last object, only the shadow is drawn."""
    clear(canvas)
    starts = solids.object_parts[:-1]
    distance = np.linalg.norm(poses.translations[starts] - camera.position, axis=1)
    order = np.argsort(distance, kind="stable")
    light, others = world.light, order[order != len(starts) - 1]
    sun_share = float(
        light.sunshine.mean() * light.sun[2] / (light.sunshine.mean() * light.sun[2] + light.skylight.mean())
    )
    if sun_share > 0.05:
        draw_shadows(solids, poses, camera, light.sun, 165, order, _SHADOW_REACH, canvas)
    draw_contacts(solids, poses, camera, order, _CONTACT_REACH, canvas)
    cv2.blur(canvas.shadows, (5, 5), dst=canvas.shadows)
    draw_objects(solids, poses, camera, light, world.ground.texture, others, with_extent, canvas)
    draw_background(world.ground, camera, light, canvas)


@kernel
def _expose(
    image: np.ndarray, curve: np.ndarray, vignette: np.ndarray, gain: np.ndarray, noise: np.ndarray, jump: int
) -> None:
    """Apply tone curve, vignette and gain to an image, and add noise, in place.

    image: [H, W, 3] uint8
    curve: [256] tone curve
    vignette: [H, W] in 1 / 256
    gain: [3] in 1 / 256
    noise: [rows, columns + W, 3]
    jump: offset into the noise
    """
    rows, columns = noise.shape[0], noise.shape[1] - image.shape[1]
    for y in range(image.shape[0]):
        grain, first = noise[(y + jump) % rows], (jump + 97 * y) % columns
        for x in range(image.shape[1]):
            for k in range(3):
                value = (curve[image[y, x, k]] * vignette[y, x] * gain[k] >> 16) + grain[first + x, k]
                image[y, x, k] = min(max(value, 0), 255)


def _drops(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    """Return x, y, radius (pixels) of the drops on a lens."""
    width, height = image_size
    count = int(rng.integers(3, 14))
    radii = rng.uniform(0.010, 0.035, count) * width
    return tuple((int(rng.integers(width)), int(rng.integers(height)), max(2, int(radius))) for radius in radii)


def _blur_drop(image: np.ndarray, x: int, y: int, radius: int) -> None:
    """Draw a drop in place: what is behind it appears blurred and upside down."""
    height, width = image.shape[:2]
    x0, x1, y0, y1 = max(x - radius, 0), min(x + radius, width), max(y - radius, 0), min(y + radius, height)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return
    patch = image[y0:y1, x0:x1]
    seen = cv2.blur(patch[::-1], (2 * (radius // 3) + 1,) * 2).astype(np.float32) * 0.6 + cv2.blur(patch, (9, 9)) * 0.42
    v, u = np.mgrid[y0:y1, x0:x1]
    share = np.clip((1 - np.hypot(u - x, v - y) / radius) * 2.5, 0, 0.9)[..., None]
    image[y0:y1, x0:x1] = np.clip(patch * (1 - share) + seen * share, 0, 255).astype(np.uint8)


def _bonnet(image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask [H, W] bool of the car's own tail in the back camera, and its colours [n, 3] there."""
    width, height = image_size
    y, x = np.mgrid[0:height, 0:width]
    u = (x - width / 2) / (width / 2)
    edge = height * (0.965 + 0.03 * u**2 + 0.05 * np.clip(np.abs(u) - 0.75, 0, 1) * 4)
    mask = y > edge
    depth = ((y - edge) / (0.05 * height))[mask]
    tone = 0.62 + 0.25 * np.exp(-((depth - 0.25) ** 2) * 18)
    return mask, tone[:, None] * np.array([1.0, 0.99, 0.98])


def visibility(seen: float, extent: float) -> str:
    """Return the nuScenes visibility token of an object.

    seen: visible pixels
    extent: pixels that would be visible if nothing hid the object
    """
    share = seen / extent if extent > 0 else 0.0
    return "1" if share < 0.4 else "2" if share < 0.6 else "3" if share < 0.8 else "4"
