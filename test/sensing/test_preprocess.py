"""Where source pixels land, with and without distortion; what a missing or bad view costs; the matrices."""

import resource

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bev_perception.config import ImageConfig
from bev_perception.families.variants import list_variants, load_variant
from bev_perception.geometry import make_transform, project, rotation_from_yaw, transform_points
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.lens import undistortion_map
from bev_perception.sensing.preprocess import (
    NoUsableViewError,
    Preprocessor,
    normalize_images,
    reference2ego,
    resample_image,
)
from bev_perception.types import Calibration, CameraImage, Frame, View

CONFIG = load_variant("r50_nuimg_704x256")
OPTICAL2EGO = make_transform(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([1.5, 0.2, 1.6]))
EGO2GLOBAL = make_transform(rotation_from_yaw(0.7), np.array([1000.0, -400.0, 3.0]))
DISTORTIONS = {
    "plumb_bob": (-0.32, 0.11, 0.002, -0.001, -0.015),
    "rational_polynomial": (0.45, -0.12, 0.001, 0.002, 0.01, 0.78, -0.05, 0.02),
    "equidistant": (0.06, -0.02, 0.01, -0.003),
}
#: with thin prisms, and with a tilted sensor as well
LONG = (*DISTORTIONS["rational_polynomial"], 0.01, -0.02, -0.015, 0.01)
LONGEST = (*LONG, 0.02, -0.03)


def make_calibration(width=1600, height=900, model="", distortion=()):
    intrinsics = np.array([[0.62 * width, 0, 0.51 * width], [0, 0.63 * width, 0.53 * height], [0, 0, 1]])
    return Calibration(intrinsics, width, height, model, distortion)


def make_view(bgr, calibration, camera="CAM", stamp=7):
    height, width = bgr.shape[:2]
    image = CameraImage(camera, stamp, "optical", "bgr8", np.ascontiguousarray(bgr).tobytes(), width, height, 3 * width)
    return View(image, calibration, OPTICAL2EGO, EGO2GLOBAL)


def make_frame(*views, missing=None):
    cameras = tuple(f"CAM_{i}" for i in range(len(views)))
    return Frame(9, cameras, tuple(views), EGO2GLOBAL, missing or {})


@pytest.fixture
def preprocessor():
    p = Preprocessor(CONFIG, "cpu")
    yield p
    p.close()


def smooth_picture(width, height):
    """Blurred noise, [height, width, 3] uint8: as much power in each octave, somewhat sharper than a photograph."""
    noise = np.random.default_rng(0).normal(0, 1, (height, width, 3)).astype(np.float32)
    picture = sum(cv2.GaussianBlur(noise, (0, 0), s) * s for s in (0.7, 1.5, 4, 16))
    return np.clip(128 + 35 * picture / picture.std(), 0, 255).astype(np.uint8)


# --- the transform ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source_hw", "resize", "resized", "crop"),
    [
        ((900, 1600), 0.44, (704, 396), (0, 140)),
        ((1080, 1920), 704 / 1920, (704, 396), (0, 140)),
        ((480, 640), 1.1, (704, 528), (0, 272)),
        ((1024, 1280), 0.55, (704, 563), (0, 307)),
        ((400, 2000), 0.64, (1280, 256), (288, 0)),  # wider than the network: columns go
        ((256, 704), 1.0, (704, 256), (0, 0)),
    ],
)
def test_image_transform(source_hw, resize, resized, crop):
    transform = image_transform(source_hw, ImageConfig(256, 704))
    assert transform.resize == pytest.approx(resize, abs=1e-12)
    assert (transform.resized, transform.crop, transform.size) == (resized, crop, (704, 256))
    expected = [[resize, 0, -crop[0], 0], [0, resize, -crop[1], 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(transform.ida, expected, atol=1e-12)


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    fh=st.integers(1, 1000),
    fw=st.integers(1, 2000),
)
@settings(max_examples=500, deadline=None)
def test_image_transform_always_covers_the_input(height, width, fh, fw):
    t = image_transform((height, width), ImageConfig(fh, fw))
    assert fw <= t.resized[0] and fh <= t.resized[1]
    assert fw == t.resized[0] or fh == t.resized[1]
    assert t.crop[1] + fh == t.resized[1]
    assert t.crop[0] >= 0 and t.crop[0] + fw <= t.resized[0]
    for truncated, exact in zip(t.resized, (width * t.resize, height * t.resize), strict=True):
        assert truncated - 1e-6 <= exact < truncated + 1 + 1e-6


@pytest.mark.parametrize("size", [(0, 640), (480, 0), (-1, 5)])
def test_image_transform_refuses_an_empty_source(size):
    with pytest.raises(ValueError, match="cannot be resized"):
        image_transform(size, ImageConfig(256, 704))


# --- resampling ------------------------------------------------------------------------------------------------------


def whole_resize_and_crop(bgr, t):
    """The definition: resize everything, then crop."""
    whole = Image.fromarray(bgr).resize(t.resized, Image.Resampling.BICUBIC)
    left, top = t.crop
    return np.asarray(whole.crop((left, top, left + t.size[0], top + t.size[1])))


@given(
    source=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    resized=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    crop=st.tuples(st.integers(-60, 300), st.integers(-60, 300)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
@example(source=(195, 112), resized=(130, 39), crop=(0, 0), size=(2, 27))
@settings(max_examples=300, deadline=None)
def test_resize_of_the_needed_part_equals_resize_of_the_whole(source, resized, crop, size):
    """On noise that cannot overshoot: Pillow keeps 8 bits between its two passes, and clips what lies beyond."""
    bgr = np.random.default_rng(1).integers(64, 192, (source[1], source[0], 3), dtype=np.uint8)
    t = ImageTransform(source, resized[0] / source[0], resized, crop, size)
    # Pillow computes the kernel's place in floating point, where ties of the two 8-bit passes may round differently
    np.testing.assert_allclose(resample_image(bgr, t).astype(int), whole_resize_and_crop(bgr, t), atol=3)


@pytest.mark.parametrize("source_hw", [(900, 1600), (1080, 1920), (480, 640), (1024, 1280), (450, 800)])
@pytest.mark.parametrize("input_hw", [(256, 704), (128, 352), (640, 1600)])
def test_usual_sizes_equal_resize_of_the_whole(source_hw, input_hw):
    bgr = smooth_picture(source_hw[1], source_hw[0])
    t = image_transform(source_hw, ImageConfig(*input_hw))
    np.testing.assert_array_equal(resample_image(bgr, t), whole_resize_and_crop(bgr, t))


@pytest.mark.parametrize("source_hw", [(1, 60000), (3, 32749), (32749, 3), (7, 5003), (65535, 16)])
def test_extreme_shapes_take_little_memory(source_hw):
    """Of the last but one, the whole, resized, would be 183,000 pixels wide, and no border of two pixels coincides."""
    t = image_transform(source_hw, ImageConfig(256, 704))
    ramp = np.broadcast_to(np.linspace(0, 250, max(source_hw)).astype(np.uint8), (min(source_hw), max(source_hw)))
    bgr = np.repeat((ramp if source_hw[1] > source_hw[0] else ramp.T)[..., None], 3, -1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output = resample_image(np.ascontiguousarray(bgr), t)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    u, v = np.meshgrid(np.arange(704), np.arange(256))
    expected = (np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(t.source2output).T)[
        ..., np.argmax(source_hw[::-1])
    ]
    np.testing.assert_allclose(output[..., 0], 250 / (max(source_hw) - 1) * expected, atol=1.6)


def test_a_part_that_is_resized_alone_shows_what_the_whole_would():
    bgr = np.random.default_rng(2).integers(64, 192, (13, 997, 3), dtype=np.uint8)
    t = image_transform((13, 997), ImageConfig(64, 176))  # 64 high, 4908 wide, of which 176 are kept
    np.testing.assert_allclose(resample_image(bgr, t).astype(int), whole_resize_and_crop(bgr, t), atol=3)


def test_resample_refuses_an_image_of_another_size():
    with pytest.raises(ValueError, match="does not fit"):
        resample_image(np.zeros((10, 10, 3), np.uint8), image_transform((10, 11), ImageConfig(4, 4)))


@given(height=st.integers(60, 1200), width=st.integers(60, 1200), fh=st.integers(64, 320), fw=st.integers(64, 320))
@settings(max_examples=60, deadline=None)
def test_every_pixel_shows_what_the_matrix_says(height, width, fh, fw):
    """In a picture whose colour is its position, each output pixel's colour is where ida takes it from.

    Apart from the half pixel between the conventions, and the truncated part of a pixel at the far border.
    """
    position = np.stack(np.broadcast_arrays(np.arange(width)[None, :], np.arange(height)[:, None]), -1)
    span = max(width, height)
    bgr = np.zeros((height, width, 3), np.uint8)
    bgr[..., :2] = np.rint(position * 255 / span)
    t = image_transform((height, width), ImageConfig(fh, fw))
    output = resample_image(bgr, t)

    y, x = np.mgrid[:fh, :fw].astype(float)
    pixels = np.stack([x, y, np.ones_like(x)], -1)
    source = (pixels @ np.linalg.inv(t.ida[:3, :3]).T)[..., :2]
    half_pixel = abs(0.5 / t.resize - 0.5)
    tolerance = half_pixel + 1 / t.resize + 1.5 * span / 255  # truncation; the colours' steps
    interior = (slice(3, -3), slice(3, -3))
    difference = np.abs(output[..., :2].astype(float) * span / 255 - source)
    assert difference[interior].max() <= tolerance


@pytest.mark.parametrize("source_hw", [(900, 1600), (480, 640), (1024, 1280)])
@pytest.mark.parametrize("model", list(DISTORTIONS))
def test_vanishing_distortion_approaches_the_plain_resize(source_hw, model):
    height, width = source_hw
    calibration = make_calibration(width, height)
    t = image_transform(source_hw, ImageConfig(256, 704))
    bgr = smooth_picture(width, height)
    k = calibration.intrinsics
    # an equidistant lens is never a pinhole: these coefficients are the series of tan(theta)/theta
    tiny = (
        (1 / 3, 2 / 15, 17 / 315, 62 / 2835)
        if model == "equidistant"
        else (1e-9,) + (0.0,) * (len(DISTORTIONS[model]) - 1)
    )
    maps = undistortion_map(k, model, tiny, source_hw, t.source2output, t.size)
    plain = resample_image(bgr, t).astype(float)
    remapped = resample_image(bgr, t, maps).astype(float)
    keep = np.s_[:, 200:-200] if model == "equidistant" else np.s_[:, :]  # where the series has converged
    difference = np.abs(plain - remapped)[keep].mean()
    assert difference < 1.5  # without the low-pass 2 to 4, where the image shrinks
    for axis in (0, 1):  # and nothing is shifted: by even a quarter of a pixel it would fit worse
        for sign in (-1, 1):
            shifted = 0.75 * remapped + 0.25 * np.roll(remapped, sign, axis)
            assert np.abs(plain - shifted)[keep][2:-2, 2:-2].mean() > difference


def distort(calibration, points):
    """Project points [n, 3] of the optical frame into the distorted image, [n, 2], with OpenCV's forward models."""
    k, d = calibration.intrinsics, np.array(calibration.distortion)
    zero = np.zeros(3)
    if calibration.distortion_model == "equidistant":
        return cv2.fisheye.projectPoints(points[:, None], zero, zero, k, d)[0][:, 0]
    return cv2.projectPoints(points[:, None], zero, zero, k, d)[0][:, 0]


def find_dot(output, expected, reach=9):
    """Return the centre of brightness around a pixel, or None if nothing bright is there."""
    x, y = np.rint(expected).astype(int)
    window = output[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].astype(float)
    if window.max() < 20:
        return None
    v, u = np.mgrid[: window.shape[0], : window.shape[1]]
    centre = np.array([(window * u).sum(), (window * v).sum()]) / window.sum()
    return centre + np.array([max(0, x - reach), max(0, y - reach)])


@pytest.mark.parametrize(
    ("size", "model", "coefficients"),
    [
        *[(s, m, DISTORTIONS.get(m, ())) for s in [(1600, 900), (1280, 720), (640, 480)] for m in ["", *DISTORTIONS]],
        ((1280, 720), "rational_polynomial", LONG),
        ((1280, 720), "plumb_bob", LONGEST),
        ((1280, 720), "equidistant", (*DISTORTIONS["equidistant"], 0.0)),
        ((1280, 720), "rational_polynomial", (*DISTORTIONS["rational_polynomial"], *[0.0] * 6)),
    ],
)
def test_points_land_where_the_matrix_projects_them(preprocessor, size, model, coefficients):
    """Dots painted where the real lens sees points of the world must appear where global2image puts the points."""
    calibration = make_calibration(*size, model, coefficients)
    rays = np.stack(np.meshgrid(np.linspace(-0.7, 0.7, 11), np.linspace(-0.25, 0.35, 7)), -1).reshape(-1, 2)
    depth = np.random.default_rng(2).uniform(4, 40, len(rays))
    points = np.c_[rays, np.ones(len(rays))] * depth[:, None]  # [77, 3], optical frame
    seen = distort(calibration, points) if model else project(_pinhole(calibration), points)[0]

    bgr = np.zeros((size[1], size[0], 3), np.uint8)
    shift = 6  # cv2 draws with fractions of 1 / 64 pixel
    for u, v in seen:
        if 8 < u < size[0] - 8 and 8 < v < size[1] - 8:
            at = (round(u * 2**shift), round(v * 2**shift))
            cv2.circle(bgr, at, round(3.0 * 2**shift), (255, 255, 255), -1, cv2.LINE_AA, shift)
    view = make_view(bgr, calibration)
    inputs, missing = preprocessor(make_frame(view))
    assert missing == {}

    points_global = transform_points(view.ego2global @ view.sensor2ego, points)
    expected, projected_depth = project(inputs.global2image[0], points_global)
    np.testing.assert_allclose(projected_depth, depth, rtol=1e-9)
    output = inputs.images[0, 1].numpy() * CONFIG.image.std[1] + CONFIG.image.mean[1]  # [H, W], 0..255
    found = 0
    errors = []
    for pixel in expected:
        if not (12 < pixel[0] < 704 - 12 and 12 < pixel[1] < 256 - 12):
            continue
        centre = find_dot(output, pixel)
        if centre is not None:
            found += 1
            errors.append(centre - pixel)
    assert found >= 25
    # a resize shifts pixel centres by (r - 1) / 2, which the matrix leaves out on purpose
    offset = (image_transform(size[::-1], CONFIG.image).resize - 1) / 2
    errors = np.abs(np.array(errors) - offset)
    assert errors.max() < 0.5
    assert errors.mean() < 0.15


def _pinhole(calibration):
    matrix = np.eye(4)
    matrix[:3, :3] = calibration.intrinsics
    return matrix


@pytest.mark.parametrize(
    ("model", "d", "turning"),
    [
        ("plumb_bob", (-0.6, 0.0, 0.0, 0.0), (1 / 1.8) ** (1 / 2)),  # r (1 - 0.6 r^2)
        ("plumb_bob", (0.0, 0.0, 0.0, 0.0, -0.4), (1 / 2.8) ** (1 / 6)),  # r (1 - 0.4 r^6)
        ("rational_polynomial", (0.0,) * 6 + (1.0, 0.0), (1 / 3) ** (1 / 4)),  # r / (1 + r^4)
        ("equidistant", (-0.6, 0.0, 0.0, 0.0), np.tan((1 / 1.8) ** (1 / 2))),  # theta (1 - 0.6 theta^2)
    ],
)
def test_nothing_is_shown_twice_beyond_a_polynomials_turning_point(model, d, turning):
    """A strong barrel polynomial turns back at some angle; the picture beyond it must be black, not repeated."""
    k = np.array([[500.0, 0, 800], [0, 500, 450], [0, 0, 1]])
    t = image_transform((900, 1600), ImageConfig(256, 704))
    map_x, map_y = undistortion_map(k, model, d, (900, 1600), t.source2output, t.size)
    y, x = np.mgrid[:256, :704]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(t.source2output @ k).T
    radius = np.hypot(rays[..., 0], rays[..., 1])
    assert (radius > turning + 0.01).any()
    assert (map_x[radius > turning + 0.01] < -1).all()
    assert (map_x[radius < turning - 0.01] >= 0).all()
    output = resample_image(np.full((900, 1600, 3), 200, np.uint8), t, (map_x, map_y))
    assert output[radius > turning + 0.01].max() == 0
    assert output[radius < turning - 0.01].min() >= 199


def test_beyond_the_real_image_is_black():
    """A pincushion lens does not see the corners of the undistorted image."""
    t = image_transform((900, 1600), ImageConfig(256, 704))
    k = make_calibration().intrinsics
    maps = undistortion_map(k, "plumb_bob", (0.3, 0.0, 0.0, 0.0), (900, 1600), t.source2output, t.size)
    output = resample_image(np.full((900, 1600, 3), 200, np.uint8), t, maps)
    assert output[-1, 0].max() == 0 and output[-1, -1].max() == 0
    assert output[128, 352].min() >= 199
    assert set(np.unique(output)) <= {0, 199, 200}  # nor is the border dimmed


# --- normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [-20.0, 5.4])
@pytest.mark.parametrize("flip", [False, True])
def test_a_rotated_image_shows_a_dot_where_the_matrices_say(rotation, flip):
    transform = ImageTransform((400, 300), 0.5, (200, 150), (10, 20), (170, 120), flip, rotation)
    picture = np.zeros((300, 400, 3), np.uint8)
    cv2.circle(picture, (230, 190), 8, (255, 255, 255), -1)
    rows, columns = np.nonzero(resample_image(picture, transform)[..., 0] > 127)
    found = np.array([columns.mean(), rows.mean()])
    np.testing.assert_allclose(found, (transform.source2output @ [230, 190, 1])[:2], atol=0.3)
    # corners of pixels, in place of their middles, but for the half pixel that the published matrix leaves out
    corner = transform.ida @ [230.5, 190.5, 1, 1]
    np.testing.assert_allclose(found + 0.5, corner[:2], atol=0.3)
    assert transform.ida[2:].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalize(order):
    config = ImageConfig(5, 7, mean=(10.0, 20.0, 30.0), std=(1.0, 2.0, 4.0), channel_order=order, pad=8)
    pixels = torch.tensor([50, 60, 70], dtype=torch.uint8).expand(2, 5, 7, 3)
    images = normalize_images(pixels, config)
    b, g, r = 50, 60, 70
    channels = (r, g, b) if order == "rgb" else (b, g, r)
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    for i, (value, mean, std) in enumerate(zip(channels, config.mean, config.std, strict=True)):
        assert (images[:, i, :5, :7] == (value - mean) / std).all()
    assert (images[:, :, 5:] == 0).all() and (images[:, :, :, 7:] == 0).all()


# --- the Preprocessor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_variants())
def test_one_camera_of_every_variant(name):
    config = load_variant(name)
    p = Preprocessor(config, "cpu")
    calibration = make_calibration(640, 480)
    view = make_view(smooth_picture(640, 480), calibration)
    inputs, missing = p(make_frame(view))
    p.close()
    pad = config.image.pad
    assert inputs.images.shape[:2] == (1, 3)
    assert inputs.images.shape[2] - config.image.height in range(pad) and inputs.images.shape[2] % pad == 0
    assert inputs.images.shape[3] - config.image.width in range(pad) and inputs.images.shape[3] % pad == 0
    assert inputs.images.dtype == torch.float32 and inputs.global2image.dtype == np.float64
    assert inputs.present.tolist() == [True] and missing == {}
    assert inputs.stamps.tolist() == [7] and inputs.stamp == 9
    np.testing.assert_allclose(inputs.reference2global, EGO2GLOBAL @ reference2ego(config))


def test_reference_frame_of_nuscenes():
    """The lidar's x points right of the vehicle, its y forward; it sits on the roof."""
    forward, right = transform_points(reference2ego(CONFIG), np.array([[0.0, 10, 0], [10.0, 0, 0]]))
    np.testing.assert_allclose(forward, [10.94, 0, 1.84], atol=1e-9)
    np.testing.assert_allclose(right, [0.94, -10, 1.84], atol=1e-9)


def test_images_keep_their_cameras_and_equal_the_steps_by_hand(preprocessor):
    calibrations = [make_calibration(), make_calibration(640, 480), make_calibration(1280, 720)]
    pictures = [np.full((c.height, c.width, 3), 40 * (i + 1), np.uint8) for i, c in enumerate(calibrations)]
    frame = make_frame(*[make_view(p, c, stamp=i) for i, (p, c) in enumerate(zip(pictures, calibrations, strict=True))])
    inputs, _ = preprocessor(frame)
    assert inputs.stamps.tolist() == [0, 1, 2]
    for i in range(3):
        by_hand = normalize_images(torch.full((1, 256, 704, 3), 40 * (i + 1), dtype=torch.uint8), CONFIG.image)
        assert torch.equal(inputs.images[i : i + 1], by_hand)


def test_every_bad_view_costs_itself_only(preprocessor):
    calibration = make_calibration(64, 48)
    picture = np.full((48, 64, 3), 90, np.uint8)
    good = make_view(picture, calibration)
    truncated = CameraImage("CAM_2", 1, "f", "jpeg", cv2.imencode(".jpg", picture)[1].tobytes()[:-60])
    lost = EGO2GLOBAL.copy()
    lost[0, 3] = np.nan
    frame = make_frame(
        good,
        None,
        View(truncated, calibration, OPTICAL2EGO, EGO2GLOBAL),
        make_view(picture, make_calibration(128, 96)),
        View(good.image, calibration, OPTICAL2EGO, lost),
        None,
        missing={"CAM_1": "no image within 0.1 s"},
    )
    inputs, missing = preprocessor(frame)
    assert inputs.present.tolist() == [True, False, False, False, False, False]
    assert list(missing) == ["CAM_1", "CAM_2", "CAM_3", "CAM_4", "CAM_5"]
    assert missing["CAM_1"] == "no image within 0.1 s"
    assert "JPEG" in missing["CAM_2"]
    assert "64x48" in missing["CAM_3"] and "128x96" in missing["CAM_3"]
    assert "NaN" in missing["CAM_4"]
    assert "no image" in missing["CAM_5"]
    assert (inputs.images[1:] == 0).all() and (inputs.images[0, :, 100, 100] != 0).all()
    assert (inputs.global2image[1:] == 0).all() and np.isfinite(inputs.global2image).all()
    assert inputs.stamps.tolist() == [7, 9, 1, 7, 7, 9]
    assert frame.missing == {"CAM_1": "no image within 0.1 s"}  # the frame itself is left as it was


WILD = (5e-324, -1e308, 1e20, 1e308)


@pytest.mark.parametrize(
    ("width", "height", "model", "d"),
    [
        (16, 65535, "plumb_bob", WILD),  # longer than cv2.remap takes
        (40000, 2, "plumb_bob", (0.1, 0.0, 0.0, 0.0)),
        (16, 65535, "equidistant", WILD),
    ],
)
def test_a_calibration_that_opencv_cannot_use_costs_its_view_only(preprocessor, width, height, model, d):
    k = np.array([[800.0, 0, 8], [0, 800, 4.5], [0, 0, 1]])
    odd = make_view(np.zeros((height, width, 3), np.uint8), Calibration(k, width, height, model, d))
    good = make_view(np.full((48, 64, 3), 90, np.uint8), make_calibration(64, 48))
    inputs, missing = preprocessor(make_frame(good, odd))
    assert inputs.present.tolist() == [True, False]
    assert "cannot be undistorted and resized" in missing["CAM_1"] and "recalibrate" in missing["CAM_1"]


@pytest.mark.parametrize(
    ("model", "d"),
    [
        ("plumb_bob", WILD),
        ("equidistant", WILD),
        ("plumb_bob", (1e200,) * 5),
        ("plumb_bob", (1e7, 0, 0, 0, 0)),
        ("equidistant", (1e9, 0, 0, 0)),
        ("rational_polynomial", (0, 0, 0, 0, 0, -1e9, 0, 0)),
    ],
)
def test_wild_coefficients_cost_their_view_and_end_nothing(preprocessor, model, d):
    """They would leave a black picture, which says that nothing is there."""
    view = make_view(np.full((48, 64, 3), 90, np.uint8), make_calibration(64, 48, model, d))
    good = make_view(np.zeros((48, 64, 3), np.uint8), make_calibration(64, 48))
    inputs, missing = preprocessor(make_frame(view, good))
    assert torch.isfinite(inputs.images).all()
    assert inputs.present.tolist() == [False, True]
    assert "D bends the picture so far" in missing["CAM_0"] and "recalibrate" in missing["CAM_0"]


def test_no_usable_view_names_every_reason(preprocessor):
    empty = CameraImage("CAM_0", 1, "f", "jpeg", b"")
    frame = make_frame(View(empty, make_calibration(), OPTICAL2EGO, EGO2GLOBAL), None, missing={"CAM_1": "unplugged"})
    with pytest.raises(NoUsableViewError, match=r"CAM_1: unplugged; CAM_0: .*no data"):
        preprocessor(frame)
    # and the next frame is not affected
    inputs, missing = preprocessor(make_frame(make_view(np.zeros((900, 1600, 3), np.uint8), make_calibration())))
    assert inputs.present.all() and not missing


def test_lens_maps_are_computed_once_and_bounded(preprocessor, monkeypatch):
    import bev_perception.sensing.preprocess as module

    calls = []
    monkeypatch.setattr(module, "undistortion_map", lambda *a: calls.append(a) or undistortion_map(*a))
    picture = np.zeros((48, 64, 3), np.uint8)
    for _ in range(3):
        for k1 in (-0.1, -0.2):
            view = make_view(picture, make_calibration(64, 48, "plumb_bob", (k1, 0, 0, 0, 0)))
            preprocessor(make_frame(view))
    assert len(calls) == 2
    for k1 in np.linspace(0.01, 0.2, module.MAX_LENS_MAPS + 5):  # a calibration that drifts does not fill the memory
        preprocessor(make_frame(make_view(picture, make_calibration(64, 48, "plumb_bob", (k1, 0, 0, 0, 0)))))
    assert preprocessor._lens_map.cache_info().currsize == module.MAX_LENS_MAPS


def test_results_do_not_share_memory(preprocessor):
    calibration = make_calibration(64, 48)
    first, _ = preprocessor(make_frame(make_view(np.full((48, 64, 3), 10, np.uint8), calibration)))
    kept = first.images.clone()
    preprocessor(make_frame(make_view(np.full((48, 64, 3), 200, np.uint8), calibration)))
    assert torch.equal(first.images, kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(preprocessor):
    frame = make_frame(make_view(smooth_picture(1600, 900), make_calibration()), None)
    on_cuda = Preprocessor(CONFIG, "cuda")
    expected, result = preprocessor(frame)[0], on_cuda(frame)[0]
    on_cuda.close()
    assert result.images.is_cuda
    torch.testing.assert_close(result.images.cpu(), expected.images, atol=1e-6, rtol=0)
