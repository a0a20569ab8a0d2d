"""Turn a Frame into a ModelInput: decode, undistort, resize, crop and normalise its images; combine its matrices."""

from __future__ import annotations

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image

from bev_perception.config import ImageConfig, VariantConfig
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw
from bev_perception.sensing.image_fit import FittedView, check_image_fit, fit_view
from bev_perception.sensing.image_transform import ImageTransform
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.lens import OUTSIDE, undistortion_map
from bev_perception.sensing.view_checks import JudgedViews, cut_off_warning
from bev_perception.strict import UserError
from bev_perception.types import Calibration, Cameras, Frame, FrameError, ModelInput, View

#: undistortion maps in the cache; more than any rig has cameras
MAX_LENS_MAPS = 32
#: half width of the bicubic kernel, in pixels of the source or the result, whichever is coarser
BICUBIC_SUPPORT = 2
#: share of the model's image that an undistorted picture fills at least; coefficients that no lens has leave it black
LEAST_SEEN = 0.05
#: how many times as long as the crop a part of the image may be that is resized for it
MAX_SURPLUS = 8
#: the model's channels as indices into BGR
CHANNELS = {"rgb": (2, 1, 0), "bgr": (0, 1, 2)}


class NoUsableViewError(FrameError):
    """No camera of a frame can be used; the message gives the reason for every camera."""

    cause = "no usable view"


def resample_image(
    bgr: np.ndarray,
    transform: ImageTransform,
    lens_map: tuple[np.ndarray, np.ndarray] | None = None,
    outside: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Undistort, resize, crop, flip and rotate an image; return [h, w, 3] uint8.

    bgr: [H, W, 3] uint8
    transform: resize, crop, flip and rotation
    lens_map: from undistortion_map for the same transform; None for an image without distortion
    outside: BGR of the pixels that the image does not show

    Without a map this is Pillow's antialiased bicubic resize, which the variants were trained with: bit for bit for the
    usual sizes, up to rounding of single values for others. With a map, the image is low-pass filtered with the same
    kernel and sampled once, which differs by rounding and interpolation (about 0.3 grey levels on average).
    """
    if bgr.shape[1::-1] != transform.source:
        raise ValueError(f"an image of {bgr.shape[1::-1]} pixels does not fit a transform for {transform.source}")
    if lens_map is None:
        output = _resize_and_crop(bgr, transform, outside)
        if transform.flip:
            output = output[:, ::-1]
        if transform.rotation:  # by the nearest pixel, black outside, as the variants were trained
            output = np.asarray(Image.fromarray(output).rotate(transform.rotation))
        return np.ascontiguousarray(output)
    scale = transform.resized[0] / transform.source[0], transform.resized[1] / transform.source[1]
    return _sample(bgr, lens_map, scale, outside)


def _sample(
    bgr: np.ndarray,
    lens_map: tuple[np.ndarray, np.ndarray],
    scale: tuple[float, float],
    outside: tuple[int, int, int],
) -> np.ndarray:
    """Low-pass filter an image for a resize by `scale`, along x and y, and sample it once at the places of a map."""
    smooth = cv2.sepFilter2D(
        bgr, -1, _bicubic_kernel(scale[0]), _bicubic_kernel(scale[1]), borderType=cv2.BORDER_REPLICATE
    )
    return cv2.remap(
        smooth, lens_map[0], lens_map[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=outside
    )


def _resize_and_crop(bgr: np.ndarray, transform: ImageTransform, outside: tuple[int, int, int]) -> np.ndarray:
    columns, rows = (
        _Span.of(*axis)
        for axis in zip(transform.source, transform.resized, transform.crop, transform.size, strict=True)
    )
    output = np.full((transform.size[1], transform.size[0], 3), outside, np.uint8)
    if not columns.size or not rows.size:
        return output
    part = bgr[rows.source_start : rows.source_stop, columns.source_start : columns.source_stop]
    if transform.resized != transform.source:
        # Pillow takes the channels for R, G and B; the resize treats them all alike
        part = np.asarray(
            Image.fromarray(part).resize(
                (columns.resized, rows.resized),
                Image.Resampling.BICUBIC,
                box=(columns.box[0], rows.box[0], columns.box[1], rows.box[1]),
            )
        )
    output[
        rows.output_start : rows.output_start + rows.size, columns.output_start : columns.output_start + columns.size
    ] = part[rows.skip : rows.skip + rows.size, columns.skip : columns.skip + columns.size]
    return output


@dataclass(frozen=True)
class _Span:
    """Along one axis, the part of a source image that a crop of the resized image shows; all in pixels.

    source_start: first source pixel of the part
    source_stop: source pixel after the part
    box: start and end in the part of what is resized; beyond it are pixels that the kernel also needs
    resized: length of the box after the resize
    skip: number of its resized pixels that lie before the crop
    output_start: position in the crop of the first pixel kept
    size: number of pixels kept

    The part begins and ends where the border of a source pixel coincides with the border of a resized pixel. So
    resizing the part gives the same pixels as resizing the whole image, without the work for what is cropped away.
    Where such borders are so far apart that the part is MAX_SURPLUS times as long as the crop, only the crop itself is
    resized, from a box whose borders Pillow keeps as float32.
    """

    source_start: int
    source_stop: int
    box: tuple[float, float]
    resized: int
    skip: int
    output_start: int
    size: int

    @classmethod
    def of(cls, source: int, resized: int, crop: int, length: int) -> _Span:
        first, last = max(crop, 0), min(crop + length, resized)
        size = max(0, last - first)
        periods = math.gcd(source, resized)
        source_period, resized_period = source // periods, resized // periods
        margin = BICUBIC_SUPPORT * max(1.0, source / resized) + 1  # source pixels under the kernel's half width
        start = max(0, math.floor((first * source / resized - margin) / source_period))
        stop = min(periods, math.ceil((last * source / resized + margin) / source_period))
        if size and (stop - start) * resized_period > MAX_SURPLUS * length:
            box = first * source / resized, last * source / resized
            source_start, source_stop = max(0, math.floor(box[0] - margin)), min(source, math.ceil(box[1] + margin))
            return cls(
                source_start=source_start,
                source_stop=source_stop,
                box=(box[0] - source_start, min(box[1], source) - source_start),
                resized=size,
                skip=0,
                output_start=first - crop,
                size=size,
            )
        return cls(
            source_start=start * source_period,
            source_stop=stop * source_period,
            box=(0, (stop - start) * source_period),
            resized=(stop - start) * resized_period,
            skip=first - start * resized_period,
            output_start=first - crop,
            size=size,
        )


def _bicubic_kernel(scale: float) -> np.ndarray:
    """Return the cubic kernel (Keys, 1981, a = -1/2) for an antialiased resize by `scale`, sampled at source pixels."""
    if scale >= 1:
        return np.ones(1, np.float32)
    reach = int(BICUBIC_SUPPORT / scale)
    x = np.abs(np.arange(-reach, reach + 1) * scale)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return (kernel / kernel.sum()).astype(np.float32)


def padded_size(config: ImageConfig, height: int, width: int) -> tuple[int, int]:
    """Return height and width (pixels) padded to multiples of config.pad."""
    return (-(-height // config.pad) * config.pad, -(-width // config.pad) * config.pad)


def normalize_images(pixels: torch.Tensor, config: ImageConfig) -> torch.Tensor:
    """Return normalised images [N, 3, H, W] float32, on the same device.

    pixels: [N, h, w, 3] BGR, uint8, or float in 0..255
    config: channel order, mean, std and padding

    The channels are in the model's order, minus the mean, divided by std. The images are then padded with zeros at the
    right and bottom to multiples of config.pad.
    """
    n, height, width, _ = pixels.shape
    images = torch.zeros((n, 3, *padded_size(config, height, width)), dtype=torch.float32, device=pixels.device)
    for channel, source in enumerate(CHANNELS[config.channel_order]):
        plane = images[:, channel, :height, :width]
        plane.copy_(pixels[..., source]).sub_(config.mean[channel]).div_(config.std[channel])
    return images


def above_ground(frame: Frame) -> np.ndarray:
    """Return the [4, 4] transform from the point on the ground below base_link, as in training, to base_link."""
    return make_transform(np.eye(3), np.array([0.0, 0.0, -frame.base_height]))


def reference2ego(config: VariantConfig) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to a base_link on the ground, as in training."""
    frame = config.reference_frame
    return make_transform(rotation_from_yaw(frame.yaw), np.array(frame.translation))


def reference2base(config: VariantConfig, frame: Frame) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to base_link at the frame's stamp."""
    if frame.lidar2global is not None and config.reference_frame.is_lidar:
        return invert_transform(frame.ego2global) @ frame.lidar2global
    return above_ground(frame) @ reference2ego(config)


def reference2global(config: VariantConfig, frame: Frame) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to the global frame at the frame's stamp."""
    if frame.lidar2global is not None and config.reference_frame.is_lidar:
        return frame.lidar2global
    return frame.ego2global @ reference2base(config, frame)


class Preprocessor:
    """Turns frames into inputs of one variant's model on `device`; the cameras are processed in parallel threads."""

    def __init__(self, config: VariantConfig, device: torch.device | str, image_fit: str = "as_trained") -> None:
        """Start the thread pool; `close` ends it.

        config: of the variant
        device: for the inputs
        image_fit: how pictures unlike those of the training become inputs, one of IMAGE_FITS

        Raises ConfigError for another image_fit.
        """
        check_image_fit(image_fit)
        self._config = config
        self._device = torch.device(device)
        self._image_fit = image_fit
        mean = dict(zip(CHANNELS[config.image.channel_order], config.image.mean, strict=True))
        self._gray = (round(mean[0]), round(mean[1]), round(mean[2]))  # normalised nearly the zeros of the padding
        self._judged = JudgedViews()
        self._lens_map = functools.lru_cache(MAX_LENS_MAPS)(_lens_map)
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="preprocess")

    def close(self) -> None:
        """End the threads; the Preprocessor cannot be called afterwards."""
        self._threads.shutdown()

    def __call__(self, frame: Frame) -> tuple[ModelInput, dict[str, str]]:
        """Return the model's input, and for each camera that is not used its name and the reason.

        A camera is not used if the frame has no view of it, if its image cannot be decoded or does not have the size
        in the calibration, if its pose is not finite, or if it cannot be undistorted and resized. Its image and its
        global2image are then all zeros, so that every point has depth 0 and counts as not visible.

        Raises NoUsableViewError if no camera is left.
        """
        size = self._config.image
        n = len(frame.cameras)
        pixels = torch.zeros((n, size.height, size.width, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        cameras = Cameras.identities(n)
        reasons = list(self._threads.map(self._prepare_view, frame.views, pixels.numpy(), [cameras] * n, range(n)))
        missing = dict(frame.missing)
        for camera, view, reason in zip(frame.cameras, frame.views, reasons, strict=True):
            if view is None:
                missing.setdefault(camera, "the frame has no image of it")
            elif reason is not None:
                missing[camera] = reason
        present = np.array([view is not None and r is None for view, r in zip(frame.views, reasons, strict=True)])
        if not present.any():
            raise NoUsableViewError(
                "no camera of this frame can be used: " + "; ".join(f"{c}: {why}" for c, why in missing.items())
            )

        images = normalize_images(pixels.to(self._device, non_blocking=True), size)
        for i in np.flatnonzero(~present):
            images[i] = 0.0  # a black image would not be zero after normalisation
        stamps = [frame.stamp if view is None else view.image.stamp for view in frame.views]
        inputs = ModelInput(
            images=images,
            cameras=cameras,
            reference2global=reference2global(self._config, frame),
            present=present,
            stamps=np.array(stamps, np.int64),
            stamp=frame.stamp,
        )
        return inputs, missing

    def warnings(self, frame: Frame) -> dict[str, str]:
        """Return camera -> sentence for each view of which the model does not get what matters.

        A view is judged once, and again where its calibration or its pose on the vehicle has changed.
        """
        size = self._config.image
        found = {}
        for view in frame.views:
            if view is None or not self._judged.is_new(view):
                continue
            fitted = fit_view(view.calibration, view.sensor2ego, self._config, self._image_fit)
            if fitted.turn is not None:  # level, with a horizon like the training's
                continue
            warning = cut_off_warning(view, fitted.transform.source2output, (size.height, size.width))
            if warning:
                found[view.image.camera] = warning
        return found

    def _prepare_view(self, view: View | None, pixels: np.ndarray, cameras: Cameras, i: int) -> str | None:
        """Fill in camera i's pixels [h, w, 3] and matrices; return the reason if that is impossible, or None."""
        if view is None:
            return None
        calibration = view.calibration
        if not np.isfinite(view.ego2global @ view.sensor2ego).all():
            return "its pose holds NaN or infinity; check what publishes tf"
        try:
            fitted = fit_view(calibration, view.sensor2ego, self._config, self._image_fit)
            bgr = decode_image(view.image, (calibration.width, calibration.height))
            pixels[:] = self._resample(bgr, calibration, fitted)
        except ImageError as error:
            return str(error)
        except (cv2.error, np.linalg.LinAlgError, ValueError, ArithmeticError, MemoryError) as error:
            return (
                f"its image cannot be undistorted and resized with K, D and size of its CameraInfo ({error}); "
                "recalibrate the camera"
            )
        cameras.intrinsics[i], cameras.source2image[i] = fitted.calibration.intrinsics, fitted.transform.ida
        cameras.sensor2ego[i], cameras.ego2global[i] = fitted.sensor2ego, view.ego2global
        return None

    def _resample(self, bgr: np.ndarray, calibration: Calibration, fitted: FittedView) -> np.ndarray:
        """Return the input's pixels [h, w, 3]; with a fit, what the picture does not show is gray, else black."""
        outside = (0, 0, 0) if self._image_fit == "as_trained" else self._gray
        if not calibration.distortion and fitted.turn is None:
            return resample_image(bgr, fitted.transform, outside=outside)
        k, turn = _plain(calibration.intrinsics), None if fitted.turn is None else _plain(fitted.turn)
        source_hw = (calibration.height, calibration.width)
        lens = (k, calibration.distortion_model, calibration.distortion, source_hw)
        maps = self._lens_map(lens, _plain(fitted.calibration.intrinsics), turn, fitted.transform)
        if not len(maps[0]):
            raise UserError(
                f"of the model's image, less than {LEAST_SEEN:.0%} are left, as D bends the picture so far or it shows "
                "too little around the horizon"
            )
        resized, source = fitted.transform.resized, fitted.transform.source
        focals = np.diag(fitted.calibration.intrinsics)[:2] / np.diag(calibration.intrinsics)[:2]
        return _sample(bgr, maps, (resized[0] / source[0] * focals[0], resized[1] / source[1] * focals[1]), outside)


def _plain(matrix: np.ndarray) -> tuple[float, ...]:
    """Return a matrix as a key of a cache."""
    return tuple(matrix.ravel().tolist())


def _lens_map(
    lens: tuple[tuple[float, ...], str, tuple[float, ...], tuple[int, int]],
    camera: tuple[float, ...],
    turn: tuple[float, ...] | None,
    transform: ImageTransform,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute undistortion_map from hashable arguments, so that it can be cached; empty where it sees LEAST_SEEN.

    lens: intrinsics, distortion model and coefficients, and the size (height, width) of the picture
    camera: intrinsics of the camera that the network is told of
    turn: optical frame of the picture to that of this camera, if it is another one
    transform: from the pictures of this camera to the input
    """
    k, own = np.array(lens[0]).reshape(3, 3), np.array(camera).reshape(3, 3)
    turned = None if turn is None else np.array(turn).reshape(3, 3)
    x, y = undistortion_map(k, *lens[1:], transform.source2output, transform.size, own, turned)
    if (x != OUTSIDE).mean() < LEAST_SEEN:  # not an error, which the cache would not keep
        return np.empty(0), np.empty(0)
    return x, y
