"""Message fields to types, with the two libraries' real messages and with wild values."""

import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from bev_perception.data import messages
from bev_perception.geometry import quaternion_from_rotation

TYPES = get_typestore(Stores.ROS2_JAZZY).types


def make(name, **fields):
    package, kind = name.split("/")
    return TYPES[f"{package}/msg/{kind}"](**fields)


def header(stamp=5, frame_id="/cam_front"):
    time = make("builtin_interfaces/Time", sec=stamp // 10**9, nanosec=stamp % 10**9)
    return make("std_msgs/Header", stamp=time, frame_id=frame_id)


def compressed(image_format, data=b"\xff\xd8\xff\xe0"):
    return make("sensor_msgs/CompressedImage", header=header(), format=image_format, data=np.frombuffer(data, np.uint8))


def camera_info(width=1600, height=900, model="plumb_bob", d=(0.0,) * 5, binning=(0, 0), roi=(0, 0, 0, 0), k=None):
    x, y, w, h = roi
    k = np.array([1260.0, 0, 800, 0, 1250, 450, 0, 0, 1]) if k is None else np.array(k, np.float64)
    return make(
        "sensor_msgs/CameraInfo",
        header=header(),
        width=width,
        height=height,
        distortion_model=model,
        d=np.array(d),
        k=k,
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=binning[0],
        binning_y=binning[1],
        roi=make("sensor_msgs/RegionOfInterest", x_offset=x, y_offset=y, width=w, height=h, do_rectify=False),
    )


def transform_stamped(translation, quaternion, parent="/odom", child="/base_link", stamp=7_000_000_009):
    w, x, y, z = quaternion
    tx, ty, tz = translation
    return make(
        "geometry_msgs/TransformStamped",
        header=header(stamp, parent),
        child_frame_id=child,
        transform=make(
            "geometry_msgs/Transform",
            translation=make("geometry_msgs/Vector3", x=tx, y=ty, z=tz),
            rotation=make("geometry_msgs/Quaternion", x=x, y=y, z=z, w=w),
        ),
    )


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamp(stamp):
    assert messages.stamp_ns(header(stamp).stamp) == stamp


@pytest.mark.parametrize(
    ("image_format", "data", "encoding"),
    [
        ("jpeg", b"", "jpeg"),
        ("JPG", b"", "jpeg"),
        ("rgb8; jpeg compressed bgr8", b"", "jpeg"),
        ("bgr8; png compressed bgr8", b"", "png"),
        ("png", b"", "png"),
        ("", b"\xff\xd8\xff", "jpeg"),
        ("camera", b"\x89PNG\r\n\x1a\n", "png"),
        ("mjpeg", b"", "jpeg"),
        ("image/jpeg; charset=binary", b"", "jpeg"),
        ("jpeg;", b"", "jpeg"),
        ("; jpeg compressed ", b"", "jpeg"),
        ("mono8; jpeg compressed ", b"", "jpeg"),
        ("rgb16; png compressed bgr16", b"", "png"),
        ("rgb8;jpeg compressed rgb8", b"", "jpeg"),
        ("strange; jpeg compressed bgr8", b"", "jpeg"),
        ("bayer_rggb8; jpeg compressed bgr8", b"", "jpeg"),
        ("bgr8; compressed", b"\xff\xd8\xff", "jpeg"),
    ],
)
def test_format_of_compressed_images(image_format, data, encoding):
    image = messages.camera_image("c", compressed(image_format, data))
    assert (image.encoding, image.mosaic) == (encoding, "")


@pytest.mark.parametrize("order", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize(
    "image_format",
    [
        "bayer_{}8; jpeg compressed ",
        "bayer_{}8;jpeg compressed bayer_{}8",
        "Bayer_{}16; PNG compressed",
        "bayer_{}8; jpeg",
        "bayer_{}8",
    ],
)
def test_mosaics_in_compressed_images(image_format, order):
    assert messages.camera_image("c", compressed(image_format.format(order, order))).mosaic == f"bayer_{order}8"


@pytest.mark.parametrize(
    "content", ["bayer_rggb12; jpeg compressed ", "bgr8; jpeg compressed hsv8", "x1; png compressed", "bayer_rgb8"]
)
def test_unknown_content_is_refused_by_name(content):
    name = content.split()[-1] if "hsv8" in content else content.split(";")[0]
    with pytest.raises(ValueError, match=f"encoding '{name}', which is unknown"):
        messages.camera_image("c", compressed(content))


@pytest.mark.parametrize(
    "image_format",
    [
        "16UC1; compressedDepth",
        "32FC1; compressedDepth png",
        "h264",
        "",
        "rgb8; jpegxl compressed",
        "bgr8; tiff compressed",
    ],
)
def test_formats_that_are_refused(image_format):
    with pytest.raises(ValueError, match="CompressedImage of format"):
        messages.camera_image("c", compressed(image_format, b"\x00\x01"))


def test_images_share_the_message_buffer():
    class RclpyCompressedImage:  # rclpy's data is an array.array
        header = header(3_000_000_001)
        format = "jpeg"
        data = array.array("B", b"\xff\xd8abc")

    image = messages.camera_image("left", RclpyCompressedImage())
    assert (image.camera, image.stamp, image.frame_id) == ("left", 3_000_000_001, "cam_front")
    RclpyCompressedImage.data[4] = 7
    assert bytes(image.data) == b"\xff\xd8ab\x07"


def test_raw_image():
    pixels = np.arange(24, dtype=np.uint8)
    raw = make(
        "sensor_msgs/Image", header=header(), height=2, width=3, encoding="bgr8", is_bigendian=0, step=12, data=pixels
    )
    image = messages.camera_image("c", raw)
    assert (image.width, image.height, image.step, image.encoding) == (3, 2, 12, "bgr8")
    assert np.shares_memory(image.data, pixels)


def test_calibration():
    calibration = messages.calibration(camera_info(model="rational_polynomial", d=np.arange(1, 9) / 100))
    assert (calibration.width, calibration.height) == (1600, 900)
    assert calibration.intrinsics.tolist() == [[1260, 0, 800], [0, 1250, 450], [0, 0, 1]]
    assert calibration.distortion == tuple(np.arange(1, 9) / 100)


@given(
    st.integers(0, 400), st.integers(0, 300), st.integers(1, 4), st.integers(1, 4), st.floats(-3, 3), st.floats(-2, 2)
)
def test_binning_and_region_keep_rays(x, y, binning_x, binning_y, ray_x, ray_y):
    full = messages.calibration(camera_info())
    part = messages.calibration(camera_info(binning=(binning_x, binning_y), roi=(x, y, 800, 400)))
    u, v, _ = full.intrinsics @ (ray_x, ray_y, 1)
    expected = ((u - x) / binning_x, (v - y) / binning_y)
    assert part.intrinsics @ (ray_x, ray_y, 1) == pytest.approx((*expected, 1))
    assert (part.width, part.height) == (800 // binning_x, 400 // binning_y)


@pytest.mark.parametrize(
    "fields", [{"k": np.zeros(9)}, {"k": np.full(9, np.nan)}, {"width": 0}, {"model": "fancy", "d": (1.0,)}]
)
def test_calibrations_that_are_refused(fields):
    with pytest.raises(ValueError, match=r"CameraInfo|distortion"):
        messages.calibration(camera_info(**fields))


unit = st.floats(-1, 1)


@given(
    st.tuples(*[st.floats(-1e6, 1e6)] * 3),
    st.tuples(unit, unit, unit, unit).filter(lambda q: np.linalg.norm(q) > 0.1),
)
def test_transform(translation, quaternion):
    parent, child, stamp, child2parent = messages.transform(transform_stamped(translation, quaternion))
    assert (parent, child, stamp) == ("odom", "base_link", 7_000_000_009)
    assert child2parent[:3, 3].tolist() == list(translation)
    q = np.array(quaternion) / np.linalg.norm(quaternion)
    assert abs(quaternion_from_rotation(child2parent[:3, :3]) @ q) == pytest.approx(1)


@pytest.mark.parametrize(
    ("translation", "quaternion"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0)),
        ((np.nan, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
        ((np.inf, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_transforms_that_are_refused_name_their_frames(translation, quaternion):
    with pytest.raises(ValueError, match="odom -> base_link"):
        messages.transform(transform_stamped(translation, quaternion))
