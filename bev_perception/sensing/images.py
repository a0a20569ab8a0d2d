"""Decode a CameraImage, raw or compressed, to BGR pixels; any fault in it raises ImageError."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from bev_perception.sensing.compressed import MAX_PIXELS, CompressedError, still_picture
from bev_perception.strict import UserError
from bev_perception.types import CameraImage


class ImageError(UserError):
    """An image that cannot be used; the message names the camera, the cause and the remedy."""


class _Layout(NamedTuple):
    """Memory layout of a raw encoding.

    channels: bytes per pixel in a row
    code: cv2.cvtColor code to BGR; None if the encoding is BGR
    even_width: whether 2 neighbouring pixels of a row share their chroma
    chroma_plane: whether 2 neighbouring rows also share their chroma, which is then stored after the rows of the
        picture in half as many further rows
    """

    channels: int
    code: int | None
    even_width: bool = False
    chroma_plane: bool = False


# OpenCV names a Bayer pattern after the second and third pixels of the second row; sensor_msgs names it after the first
# two pixels of the first row and of the second row. So bayer_rggb8 has red at the top left and is BayerBG in OpenCV.
_LAYOUTS = {
    "bgr8": _Layout(3, None),
    "8UC3": _Layout(3, None),
    "rgb8": _Layout(3, cv2.COLOR_RGB2BGR),
    "bgra8": _Layout(4, cv2.COLOR_BGRA2BGR),
    "rgba8": _Layout(4, cv2.COLOR_RGBA2BGR),
    "mono8": _Layout(1, cv2.COLOR_GRAY2BGR),
    "8UC1": _Layout(1, cv2.COLOR_GRAY2BGR),
    "yuv422": _Layout(2, cv2.COLOR_YUV2BGR_UYVY, even_width=True),
    "uyvy": _Layout(2, cv2.COLOR_YUV2BGR_UYVY, even_width=True),
    "yuv422_yuy2": _Layout(2, cv2.COLOR_YUV2BGR_YUY2, even_width=True),
    "yuyv": _Layout(2, cv2.COLOR_YUV2BGR_YUY2, even_width=True),
    "nv12": _Layout(1, cv2.COLOR_YUV2BGR_NV12, even_width=True, chroma_plane=True),
    "nv21": _Layout(1, cv2.COLOR_YUV2BGR_NV21, even_width=True, chroma_plane=True),
    "bayer_rggb8": _Layout(1, cv2.COLOR_BayerBG2BGR),
    "bayer_bggr8": _Layout(1, cv2.COLOR_BayerRG2BGR),
    "bayer_gbrg8": _Layout(1, cv2.COLOR_BayerGR2BGR),
    "bayer_grbg8": _Layout(1, cv2.COLOR_BayerGB2BGR),
}
COMPRESSED_ENCODINGS = ("jpeg", "png")
#: encodings that decode_image reads without cv_bridge
SUPPORTED_ENCODINGS = (*_LAYOUTS, *COMPRESSED_ENCODINGS)


def decode_image(image: CameraImage, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the pixels of an image, [H, W, 3] uint8 BGR, contiguous; for bgr8 possibly a read-only view of the data.

    image: as received
    size: width and height that the image must have, pixels, as its camera_info says; None takes any up to MAX_PIXELS

    An encoding outside SUPPORTED_ENCODINGS is passed to cv_bridge if that is installed. Whether a compressed image is
    JPEG or PNG is decided by its bytes, since drivers mislabel the two. It is checked before it is decoded, see
    sensing/compressed.py, so that memory and time are bounded by `size`. A JPEG's orientation tag is ignored: the
    calibration belongs to the pixels as the sensor delivers them.

    Raises ImageError for anything that is not one complete picture of that size: no data, a truncated or damaged file,
    a length that does not fit the size, an unknown encoding, an animation. A JPEG has no checksum, so damage within its
    pixel data is not detected.
    """
    try:
        data = np.frombuffer(image.data, np.uint8) if len(image.data) else np.empty(0, np.uint8)
    except (ValueError, BufferError) as error:
        raise _error(image, f"its data is no contiguous buffer of bytes ({error})", "pass bytes or uint8") from error
    if data.size == 0:
        raise _error(image, "it holds no data", "check the camera driver and its cable")
    try:
        if image.encoding in COMPRESSED_ENCODINGS:
            return _decode_compressed(image, data, size)
        _check_size(image, (image.width, image.height), size)
        if image.encoding in _LAYOUTS:
            return _decode_raw(image, data, _LAYOUTS[image.encoding])
    except cv2.error as error:
        raise _error(image, f"OpenCV cannot decode it ({error.err})", "check the camera driver") from error
    return _decode_with_cv_bridge(image)


def _check_size(image: CameraImage, found: tuple[int, int], wanted: tuple[int, int] | None) -> None:
    if wanted is not None and found != wanted:
        raise _error(
            image,
            f"it has {found[0]}x{found[1]} pixels, its CameraInfo says {wanted[0]}x{wanted[1]}",
            "publish the CameraInfo of the stream in use",
        )


def _decode_raw(image: CameraImage, data: np.ndarray, layout: _Layout) -> np.ndarray:
    height, width, step = image.height, image.width, image.step
    size = f"{width}x{height} {image.encoding}"
    if width <= 0 or height <= 0:
        raise _error(image, f"its size is {width}x{height}", "let the driver fill in width and height")
    if (layout.even_width and width % 2) or (layout.chroma_plane and height % 2):
        raise _error(image, f"{size} has an odd size", "choose an even width and height in the driver")
    row_bytes = width * layout.channels
    if step < row_bytes:
        raise _error(image, f"{size} has step {step}, a row takes {row_bytes} bytes", "let the driver fill in step")
    rows = height * 3 // 2 if layout.chroma_plane else height
    if data.size != rows * step:
        raise _error(
            image,
            f"{size} with step {step} takes {rows * step} bytes, its data has {data.size}",
            "check that the driver's encoding, size and step describe what it sends",
        )
    pixels = np.ascontiguousarray(data.reshape(rows, step)[:, :row_bytes])
    if layout.channels > 1:
        pixels = pixels.reshape(rows, width, layout.channels)
    return pixels if layout.code is None else cv2.cvtColor(pixels, layout.code)


def _decode_compressed(image: CameraImage, data: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    try:
        picture = still_picture(data.tobytes())
    except CompressedError as error:
        raise _error(image, error.cause, error.remedy) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _error(image, f"its header says {width}x{height} pixels", "the header is damaged; check the transport")
    _check_size(image, picture.size, size)
    # a mosaic is stored as a grey picture; one with colours has been interpolated already, whatever its label says
    mosaic = image.mosaic if picture.grey else ""
    flags = cv2.IMREAD_GRAYSCALE if mosaic else cv2.IMREAD_COLOR
    pixels = cv2.imdecode(np.frombuffer(picture.content, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise _error(image, "the compressed data is damaged", "check the camera's cable and the transport")
    code = _LAYOUTS[mosaic].code if mosaic else None
    return pixels if code is None else cv2.cvtColor(pixels, code)


def _decode_with_cv_bridge(image: CameraImage) -> np.ndarray:
    """Let cv_bridge convert an encoding outside SUPPORTED_ENCODINGS; it comes with ROS 2 and is optional."""
    try:
        from cv_bridge import CvBridge
        from sensor_msgs.msg import Image
    except ImportError as error:
        raise _error(
            image,
            f"the encoding {image.encoding!r} is unknown here",
            f"install cv_bridge, or publish one of: {', '.join(SUPPORTED_ENCODINGS)}",
        ) from error
    try:
        message = Image(
            height=image.height, width=image.width, step=image.step, encoding=image.encoding, data=bytes(image.data)
        )
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(message, "bgr8"))
    except (TypeError, ValueError, AssertionError, LookupError, RuntimeError, cv2.error) as error:  # whatever it raises
        raise _error(
            image,
            f"cv_bridge cannot convert the encoding {image.encoding!r} to bgr8 ({error})",
            f"publish one of: {', '.join(SUPPORTED_ENCODINGS)}",
        ) from error


def _error(image: CameraImage, cause: str, remedy: str) -> ImageError:
    return ImageError(f"image of camera {image.camera!r}: {cause}; {remedy}")
