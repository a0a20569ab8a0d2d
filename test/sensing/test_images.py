"""Every encoding against a known picture; damaged data gives an ImageError and nothing else."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bev_perception.sensing.images import COMPRESSED_ENCODINGS, SUPPORTED_ENCODINGS, ImageError, decode_image
from bev_perception.types import CameraImage

RAW_ENCODINGS = [e for e in SUPPORTED_ENCODINGS if e not in COMPRESSED_ENCODINGS]
HEIGHT, WIDTH = 24, 32


def make_image(data, encoding, width=0, height=0, step=0):
    return CameraImage("CAM_TEST", 1, "cam", encoding, data, width, height, step)


def make_picture():
    """A BGR picture [24, 32, 3] of smooth colour, far from symmetric in position or channel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([60 + 4 * x, 200 - 5 * y, 40 + 2 * x + 3 * y], -1).astype(np.uint8)


def to_yuv(bgr):
    """ITU-R BT.601 with the video range, as cameras deliver: planes y, u, v [H, W] float."""
    b, g, r = np.moveaxis(bgr.astype(float), -1, 0)
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    return y, 128 - 0.148 * r - 0.291 * g + 0.439 * b, 128 + 0.439 * r - 0.368 * g - 0.071 * b


def mosaic(bgr, pattern):
    """What a sensor sees whose top left 2x2 pixels are, row by row, of these colours."""
    raw = np.empty(bgr.shape[:2], np.uint8)
    for i, colour in enumerate(pattern):
        raw[i // 2 :: 2, i % 2 :: 2] = bgr[i // 2 :: 2, i % 2 :: 2, "bgr".index(colour)]
    return raw


def encode(bgr, encoding):
    """Return rows [rows, bytes] of the picture in a raw encoding, written from the encodings' definitions."""
    y, u, v = (np.rint(plane).astype(np.uint8) for plane in to_yuv(bgr))
    opaque = np.full((*bgr.shape[:2], 1), 255, np.uint8)
    if encoding in ("bgr8", "8UC3"):
        rows = bgr
    elif encoding == "rgb8":
        rows = bgr[..., ::-1]
    elif encoding == "bgra8":
        rows = np.concatenate([bgr, opaque], -1)
    elif encoding == "rgba8":
        rows = np.concatenate([bgr[..., ::-1], opaque], -1)
    elif encoding in ("mono8", "8UC1"):
        rows = bgr[..., 0]
    elif encoding in ("yuv422", "uyvy"):
        rows = np.stack([u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]], -1)
    elif encoding in ("yuv422_yuy2", "yuyv"):
        rows = np.stack([y[:, ::2], u[:, ::2], y[:, 1::2], v[:, ::2]], -1)
    elif encoding in ("nv12", "nv21"):
        chroma = np.stack([u, v] if encoding == "nv12" else [v, u], -1)[::2, ::2]
        rows = np.concatenate([y, chroma.reshape(len(y) // 2, -1)])
    else:
        rows = mosaic(bgr, encoding.removeprefix("bayer_").removesuffix("8"))
    return rows.reshape(len(rows), -1)


def make_raw(encoding, padding=0):
    rows = encode(make_picture(), encoding)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=123)
    return make_image(rows.tobytes(), encoding, WIDTH, HEIGHT, rows.shape[1])


def make_jpeg(quality=90, **options):
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    for name, value in options.items():
        flags += [getattr(cv2, f"IMWRITE_JPEG_{name.upper()}"), value]
    return cv2.imencode(".jpg", make_picture(), flags)[1].tobytes()


def make_png():
    return cv2.imencode(".png", make_picture())[1].tobytes()


@pytest.mark.parametrize("padding", [0, 1, 16])
@pytest.mark.parametrize("encoding", RAW_ENCODINGS)
def test_raw_encodings(encoding, padding):
    decoded = decode_image(make_raw(encoding, padding))
    expected = make_picture()
    if encoding in ("mono8", "8UC1"):
        expected = np.repeat(expected[..., :1], 3, -1)
    assert decoded.dtype == np.uint8
    assert decoded.shape == (HEIGHT, WIDTH, 3)
    assert decoded.flags.c_contiguous
    difference = np.abs(decoded.astype(int) - expected)
    if encoding.startswith("bayer"):  # interpolated colours; the border has fewer neighbours
        assert difference[2:-2, 2:-2].max() <= 2
    elif encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"):  # rounded, chroma shared
        assert difference.max() <= 12
        assert difference.mean() < 3
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("colour", ["b", "g", "r"])
def test_bayer_pure_colours(pattern, colour):
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[..., "bgr".index(colour)] = 200
    decoded = decode_image(make_image(mosaic(picture, pattern).tobytes(), f"bayer_{pattern}8", 12, 8, 12))
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)])
def test_kinds_of_buffer(wrap):
    for image in (make_raw("bgr8"), make_image(make_png(), "png")):
        wrapped = make_image(wrap(image.data), image.encoding, image.width, image.height, image.step)
        np.testing.assert_array_equal(decode_image(wrapped), make_picture())


def test_png_is_exact_and_16_bit_becomes_8():
    np.testing.assert_array_equal(decode_image(make_image(make_png(), "png")), make_picture())
    wide = cv2.imencode(".png", make_picture().astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_image(make_image(wide, "png")), make_picture())


@pytest.mark.parametrize("options", [{}, {"progressive": 1}, {"rst_interval": 1}, {"optimize": 1}])
def test_jpeg(options):
    decoded = decode_image(make_image(make_jpeg(95, **options), "jpeg"))
    assert np.abs(decoded.astype(int) - make_picture()).mean() < 3


def test_grey_jpeg_has_three_channels():
    data = cv2.imencode(".jpg", make_picture()[..., 0])[1].tobytes()
    assert decode_image(make_image(data, "jpeg")).shape == (HEIGHT, WIDTH, 3)


def test_label_of_compressed_data_may_be_wrong():
    np.testing.assert_array_equal(decode_image(make_image(make_png(), "jpeg")), make_picture())


def test_jpeg_with_padding_after_its_end_is_whole():
    jpeg = make_jpeg()
    for padding in (b"\0", b"\0" * 4096, b"\xff" * 64, b"trailer"):
        np.testing.assert_array_equal(
            decode_image(make_image(jpeg + padding, "jpeg")), decode_image(make_image(jpeg, "jpeg"))
        )


def insert_segment(jpeg, marker, content):
    """Insert a segment right after the start of a JPEG."""
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def test_thumbnail_does_not_hide_a_truncation():
    jpeg = insert_segment(make_jpeg(), 0xE1, b"Exif\0\0" + make_jpeg())  # a whole JPEG inside the headers
    np.testing.assert_array_equal(decode_image(make_image(jpeg, "jpeg")), decode_image(make_image(make_jpeg(), "jpeg")))
    with pytest.raises(ImageError, match="truncated"):
        decode_image(make_image(jpeg[:-20], "jpeg"))


def test_orientation_tag_is_ignored():
    # Exif of one entry, orientation (0x0112) = 6: "rotate by 90 degrees"
    tiff = b"MM\0\x2a\0\0\0\x08" + b"\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    jpeg = insert_segment(make_jpeg(), 0xE1, b"Exif\0\0" + tiff)
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (WIDTH, HEIGHT, 3)  # the tag is read
    assert decode_image(make_image(jpeg, "jpeg")).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("data", [make_jpeg(), make_jpeg(progressive=1), make_png()])
def test_every_truncation_is_noticed(data):
    for length in range(len(data)):
        with pytest.raises(ImageError, match="CAM_TEST"):
            decode_image(make_image(data[:length], "jpeg"))


def test_header_with_absurd_size_is_refused():
    jpeg = bytearray(make_jpeg())
    frame_header = jpeg.index(b"\xff\xc0")
    jpeg[frame_header + 5 : frame_header + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="65535x65535"):
        decode_image(make_image(bytes(jpeg), "jpeg"))


def test_size_is_compared_before_anything_is_decoded(monkeypatch):
    for image in (make_image(make_jpeg(), "jpeg"), make_image(make_png(), "png"), make_raw("bgr8")):
        assert decode_image(image, (WIDTH, HEIGHT)).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(cv2, "imdecode", None)
    for image in (make_image(make_jpeg(), "jpeg"), make_image(make_png(), "png"), make_raw("bgr8")):
        with pytest.raises(ImageError, match="32x24 pixels, its CameraInfo says 64x48"):
            decode_image(image, (64, 48))


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_compressed_mosaics_are_interpolated(pattern, kind):
    raw = mosaic(make_picture(), pattern)
    data = cv2.imencode(kind, raw, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    decoded = decode_image(CameraImage("CAM_TEST", 1, "cam", "jpeg", data, mosaic=f"bayer_{pattern}8"))
    assert np.abs(decoded.astype(int) - make_picture())[2:-2, 2:-2].max() <= (2 if kind == ".png" else 12)
    wide = cv2.imencode(".png", raw.astype(np.uint16) * 257)[1].tobytes()
    decoded = decode_image(CameraImage("CAM_TEST", 1, "cam", "png", wide, mosaic=f"bayer_{pattern}8"))
    assert np.abs(decoded.astype(int) - make_picture())[2:-2, 2:-2].max() <= 2


def test_a_picture_with_colours_is_no_mosaic():
    image = CameraImage("CAM_TEST", 1, "cam", "png", make_png(), mosaic="bayer_rggb8")
    np.testing.assert_array_equal(decode_image(image), make_picture())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (make_image(b"", "jpeg"), "no data"),
        (make_image(b"", "bgr8", 4, 4, 12), "no data"),
        (make_image(b"BM" + b"\0" * 60, "jpeg"), "neither JPEG nor PNG"),
        (make_image(b"\0" * 48, "bgr8", 4, 0, 12), "size is 4x0"),
        (make_image(b"\0" * 48, "bgr8", -4, 4, 12), "size is -4x4"),
        (make_image(b"\0" * 48, "bgr8", 4, 4, 0), "step 0"),
        (make_image(b"\0" * 48, "bgr8", 4, 4, 11), "step 11, a row takes 12"),
        (make_image(b"\0" * 47, "bgr8", 4, 4, 12), "takes 48 bytes, its data has 47"),
        (make_image(b"\0" * 64, "rgb8", 4, 4, 12), "takes 48 bytes, its data has 64"),
        (make_image(b"\0" * 40, "yuv422", 5, 4, 10), "odd"),
        (make_image(b"\0" * 28, "nv12", 4, 5, 4), "odd"),
        (make_image(np.zeros(96, np.uint8)[::2], "bgr8", 4, 4, 12), "contiguous"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(ImageError, match=message) as caught:
        decode_image(image)
    assert "CAM_TEST" in str(caught.value)


@pytest.mark.parametrize("encoding", ["", "rgb16", "bayer_rggb12", "h264", "BGR8"])
def test_unknown_encoding_without_cv_bridge(encoding):
    try:
        import cv_bridge  # noqa: F401
    except ImportError:
        with pytest.raises(ImageError, match="install cv_bridge, or publish one of: bgr8"):
            decode_image(make_image(b"\0" * 48, encoding, 4, 4, 12))
    else:
        pytest.skip("cv_bridge is installed")


def test_encodings_of_cv_bridge():
    pytest.importorskip("cv_bridge", reason="cv_bridge is not installed: other encodings are not tested")
    data = np.repeat(make_picture()[..., :1], 3, -1)
    wide = data[..., 0].astype(np.uint16) * 257
    image = make_image(wide.tobytes(), "mono16", WIDTH, HEIGHT, 2 * WIDTH)
    assert np.abs(decode_image(image).astype(int) - data).max() <= 1
    with pytest.raises(ImageError, match="cv_bridge cannot convert"):
        decode_image(make_image(b"\0" * 48, "no_such_encoding", 4, 4, 12))


def decodes_or_reports(image):
    """Decode: either a whole picture or an ImageError; another exception fails the test."""
    try:
        decoded = decode_image(image)
    except ImageError as error:
        assert "CAM_TEST" in str(error)
    else:
        assert decoded.ndim == 3
        assert decoded.shape[2] == 3
        assert decoded.dtype == np.uint8


@given(
    encoding=st.sampled_from(RAW_ENCODINGS),
    width=st.integers(-1, 12),
    height=st.integers(-1, 12),
    padding=st.integers(-2, 5),
    surplus=st.sampled_from([0, 0, 0, -1, 1, 7]),
)
@settings(max_examples=400, deadline=None)
def test_raw_sizes_of_any_kind(encoding, width, height, padding, surplus):
    bytes_per_pixel = {"8UC3": 3, "bgr8": 3, "rgb8": 3, "bgra8": 4, "rgba8": 4}.get(encoding, 1)
    bytes_per_pixel = 2 if encoding in ("yuv422", "uyvy", "yuv422_yuy2", "yuyv") else bytes_per_pixel
    rows = height * 3 // 2 if encoding.startswith("nv") else height
    step = width * bytes_per_pixel + padding
    decodes_or_reports(make_image(bytes(max(0, rows * step + surplus)), encoding, width, height, step))


@given(encoding=st.sampled_from(SUPPORTED_ENCODINGS), data=st.binary(max_size=300), size=st.integers(0, 20))
@example("jpeg", b"\xff\xd8\xff\xda\xff\xd9", 0)
@example("jpeg", b"\xff\xd8\xff\xe0\0\0\xff\xda\0\0\xff\xd9", 0)
@example("png", b"\x89PNG\r\n\x1a\nIEND", 0)
@settings(max_examples=300, deadline=None)
def test_random_bytes(encoding, data, size):
    decodes_or_reports(make_image(data, encoding, size, size, size))


@given(
    data=st.sampled_from([make_jpeg(), make_jpeg(progressive=1), make_jpeg(rst_interval=1), make_png()]),
    changes=st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_damaged_files(data, changes):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    decodes_or_reports(make_image(bytes(damaged), "jpeg"))
