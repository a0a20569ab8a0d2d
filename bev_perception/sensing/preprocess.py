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
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.lens import OUTSIDE, undistortion_map
from bev_perception.sensing.view_checks import cut_off_warning
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


def resample_image(
    bgr: np.ndarray, transform: ImageTransform, lens_map: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Undistort, resize, crop, flip and rotate an image; return [h, w, 3] uint8.

    bgr: [H, W, 3] uint8
    transform: resize, crop, flip and rotation
    lens_map: from undistortion_map for the same transform; None for an image without distortion

    Without a map this is Pillow's antialiased bicubic resize, which the variants were trained with: bit for bit for the
    usual sizes, up to rounding of single values for others. With a map, the image is low-pass filtered with the same
    kernel and sampled once, which differs by rounding and interpolation (about 0.3 grey levels on average).
    """
    if bgr.shape[1::-1] != transform.source:
        raise ValueError(f"an image of {bgr.shape[1::-1]} pixels does not fit a transform for {transform.source}")
    if lens_map is None:
        output = _resize_and_crop(bgr, transform)
        if transform.flip:
            output = output[:, ::-1]
        if transform.rotation:  # by the nearest pixel, black outside, as the variants were trained
            output = np.asarray(Image.fromarray(output).rotate(transform.rotation))
        return np.ascontiguousarray(output)
    kernels = [_bicubic_kernel(n / of) for n, of in zip(transform.resized, transform.source, strict=True)]
    smooth = cv2.sepFilter2D(bgr, -1, kernels[0], kernels[1], borderType=cv2.BORDER_REPLICATE)
    return cv2.remap(smooth, lens_map[0], lens_map[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _resize_and_crop(bgr: np.ndarray, transform: ImageTransform) -> np.ndarray:
    columns, rows = (
        _Span.of(*axis)
        for axis in zip(transform.source, transform.resized, transform.crop, transform.size, strict=True)
    )
    output = np.zeros((transform.size[1], transform.size[0], 3), np.uint8)
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


def reference2ego(config: VariantConfig) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to base_link, as the variant defines it."""
    frame = config.reference_frame
    return make_transform(rotation_from_yaw(frame.yaw), np.array(frame.translation))


def reference2base(config: VariantConfig, frame: Frame) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to base_link at the frame's stamp."""
    if frame.lidar2global is not None and config.reference_frame.is_lidar:
        return invert_transform(frame.ego2global) @ frame.lidar2global
    return reference2ego(config)


def reference2global(config: VariantConfig, frame: Frame) -> np.ndarray:
    """Return the [4, 4] transform from the model's reference frame to the global frame at the frame's stamp."""
    if frame.lidar2global is not None and config.reference_frame.is_lidar:
        return frame.lidar2global
    return frame.ego2global @ reference2ego(config)


class Preprocessor:
    """Turns frames into inputs of one variant's model on `device`; the cameras are processed in parallel threads."""

    def __init__(self, config: VariantConfig, device: torch.device | str) -> None:
        """Start the thread pool; `close` ends it."""
        self._config = config
        self._device = torch.device(device)
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
        """Return camera -> sentence for each view of which the model does not get what matters."""
        size = self._config.image
        found = {}
        for view in frame.views:
            if view is None:
                continue
            transform = image_transform((view.calibration.height, view.calibration.width), size)
            warning = cut_off_warning(view, transform.source2output, (size.height, size.width))
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
            transform = image_transform((calibration.height, calibration.width), self._config.image)
            bgr = decode_image(view.image, transform.source)
            pixels[:] = resample_image(bgr, transform, self._find_lens_map(calibration, transform))
        except ImageError as error:
            return str(error)
        except (cv2.error, np.linalg.LinAlgError, ValueError, ArithmeticError, MemoryError) as error:
            return (
                f"its image cannot be undistorted and resized with K, D and size of its CameraInfo ({error}); "
                "recalibrate the camera"
            )
        cameras.intrinsics[i], cameras.source2image[i] = calibration.intrinsics, transform.ida
        cameras.sensor2ego[i], cameras.ego2global[i] = view.sensor2ego, view.ego2global
        return None

    def _find_lens_map(
        self, calibration: Calibration, transform: ImageTransform
    ) -> tuple[np.ndarray, np.ndarray] | None:
        if not calibration.distortion:
            return None
        k = tuple(calibration.intrinsics.ravel().tolist())
        x, y = self._lens_map(k, calibration.distortion_model, calibration.distortion, transform)
        if not len(x):
            raise UserError(f"D bends the picture so far that less than {LEAST_SEEN:.0%} of the model's image are left")
        return x, y


def _lens_map(
    intrinsics: tuple[float, ...], model: str, distortion: tuple[float, ...], transform: ImageTransform
) -> tuple[np.ndarray, np.ndarray]:
    """Compute undistortion_map from hashable arguments, so that it can be cached; empty where it sees LEAST_SEEN."""
    k = np.array(intrinsics).reshape(3, 3)
    source_hw = transform.source[::-1]
    x, y = undistortion_map(k, model, distortion, source_hw, transform.source2output, transform.size)
    if (x != OUTSIDE).mean() < LEAST_SEEN:  # not an error, which the cache would not keep
        return np.empty(0), np.empty(0)
    return x, y
