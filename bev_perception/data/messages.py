"""Convert ROS messages to the types of this package, for the live node (rclpy) and for bags (rosbags).

The messages of both libraries have the same field names, so this module imports neither. Buffers are not copied.
Every function raises UserError, naming cause and remedy, for a message that cannot be used; for an array that is not as
long as its type says, ValueError.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from bev_perception.geometry import transform_from_quaternion
from bev_perception.rig.description import CameraInfo
from bev_perception.strict import UserError
from bev_perception.types import Calibration, CameraImage

JPEG_MAGIC = b"\xff\xd8"
PNG_MAGIC = b"\x89PNG"
#: how a colour filter's encodings are called, such as bayer_rggb8; OpenCV makes 8 bits of 16
_MOSAIC = re.compile(r"(bayer_(?:rggb|bggr|gbrg|grbg))(?:8|16)")
_COMPRESSION = re.compile(r"\bm?(jpe?g|png)\b")
#: encodings of sensor_msgs whose pixels a compressed image holds as colours or as grey
_PLAIN = re.compile(
    r"(?:bgr|rgb|bgra|rgba|mono)(?:8|16)|8uc[134]|16uc[134]|yuv422(?:_yuy2)?|uyvy|yuyv|nv(?:12|21|24)|i420"
)


def stamp_ns(stamp: Any) -> int:
    """Return a builtin_interfaces/Time as integer nanoseconds."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def frame_name(frame_id: str) -> str:
    """Return the name of a frame without the leading slash of ROS 1, which some drivers still write."""
    return frame_id.lstrip("/")


def camera_image(camera: str, msg: Any) -> CameraImage:
    """Return a sensor_msgs/Image or CompressedImage as a CameraImage that shares the message's buffer."""
    stamp, frame_id = stamp_ns(msg.header.stamp), frame_name(msg.header.frame_id)
    data = np.frombuffer(msg.data, np.uint8)
    if hasattr(msg, "format"):
        encoding, mosaic = _compressed_encoding(msg.format, data)
        return CameraImage(camera, stamp, frame_id, encoding, data, mosaic=mosaic)
    return CameraImage(camera, stamp, frame_id, msg.encoding, data, int(msg.width), int(msg.height), int(msg.step))


def _compressed_encoding(image_format: str, data: np.ndarray) -> tuple[str, str]:
    """Return "jpeg" or "png", from the format or else from the bytes, and the encoding of a mosaic, or "".

    image_format: such as "jpeg" or, as compressed_image_transport writes it, "rgb8; jpeg compressed bgr8": the encoding
        of the raw image, the compression, and the encoding of what was compressed, which is the raw image's if missing
    """
    text = image_format.lower()
    if "compresseddepth" in text:
        raise UserError(
            f"CompressedImage of format {image_format!r} is a depth image; remap the topic to the colour camera"
        )
    raw, _, compression = (part.strip() for part in text.partition(";"))
    if _COMPRESSION.search(raw):  # as in image/jpeg; charset=binary
        return _compression(raw, image_format, data), ""
    if not compression and not raw.startswith("bayer"):  # neither compression nor mosaic is named: the bytes say it
        return _compression(raw, image_format, data), ""
    content = compression.partition("compressed")[2].strip() or raw
    encoding = _compression(compression, image_format, data)
    mosaic = _MOSAIC.fullmatch(content)
    if content and mosaic is None and not _PLAIN.fullmatch(content):
        raise UserError(
            f"CompressedImage of format {image_format!r} holds pixels of the encoding {content!r}, which is unknown; "
            "have the driver send bgr8, rgb8, mono8 or a bayer encoding of 8 or 16 bits"
        )
    return encoding, f"{mosaic[1]}8" if mosaic else ""


def _compression(text: str, image_format: str, data: np.ndarray) -> str:
    named = _COMPRESSION.search(text)
    if named:
        return "png" if named[1] == "png" else "jpeg"
    start = data[: len(PNG_MAGIC)].tobytes()
    if start.startswith(JPEG_MAGIC):
        return "jpeg"
    if start == PNG_MAGIC:
        return "png"
    raise UserError(f"CompressedImage of format {image_format!r} is neither jpeg nor png; have the driver send one")


def calibration(msg: Any) -> Calibration:
    """Return a sensor_msgs/CameraInfo as the Calibration of its images.

    K, D and P describe the full sensor; the intrinsics returned include binning and the region of interest.
    """
    intrinsics, projection = np.array(msg.k, np.float64).reshape(3, 3), _left_of(msg.p)
    width, height = int(msg.roi.width or msg.width), int(msg.roi.height or msg.height)
    binning_x, binning_y = max(1, int(msg.binning_x)), max(1, int(msg.binning_y))
    for matrix in (intrinsics, projection):
        matrix[:2, 2] -= (msg.roi.x_offset, msg.roi.y_offset)
        matrix[0] /= binning_x
        matrix[1] /= binning_y
    return Calibration(
        intrinsics,
        width // binning_x,
        height // binning_y,
        msg.distortion_model,
        tuple(float(d) for d in msg.d),
        projection,
        np.array(msg.r, np.float64).reshape(3, 3),
    )


def _left_of(p: Any) -> np.ndarray:
    """Return the left [3, 3] of P [12], which is empty where nothing is known of rectified images."""
    return np.array(p, np.float64).reshape(3, 4)[:, :3].copy()


def camera_info(msg: Any) -> CameraInfo | None:
    """Return the fields of a sensor_msgs/CameraInfo as they were published; None if a matrix has not its length."""
    k, r, p = (np.array(values, np.float64) for values in (msg.k, msg.r, msg.p))
    if (k.size, r.size, p.size) != (9, 9, 12):
        return None
    return CameraInfo(
        (int(msg.width), int(msg.height)),
        k.reshape(3, 3),
        r.reshape(3, 3),
        p.reshape(3, 4),
        (int(msg.binning_x), int(msg.binning_y)),
        (int(msg.roi.x_offset), int(msg.roi.y_offset), int(msg.roi.width), int(msg.roi.height)),
    )


def transform(msg: Any) -> tuple[str, str, int, np.ndarray]:
    """Return a geometry_msgs/TransformStamped as (parent, child, stamp in ns, child2parent [4, 4])."""
    parent, child = frame_name(msg.header.frame_id), frame_name(msg.child_frame_id)
    q, t = msg.transform.rotation, msg.transform.translation
    if not (math.isfinite(t.x) and math.isfinite(t.y) and math.isfinite(t.z)):
        raise UserError(f"tf {parent} -> {child}: the translation ({t.x}, {t.y}, {t.z}) is not finite")
    try:
        child2parent = transform_from_quaternion(q.w, q.x, q.y, q.z, (t.x, t.y, t.z))
    except ValueError as error:
        raise UserError(f"tf {parent} -> {child}: {error}; correct the node that publishes it") from error
    return parent, child, stamp_ns(msg.header.stamp), child2parent
