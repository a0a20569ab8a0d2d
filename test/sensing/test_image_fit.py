"""Pictures of other shapes become inputs that show the world as the training did, and the projection follows."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from bev_perception.config import TrainedCamerasConfig
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, optical_angles, optical_rotation, project
from bev_perception.rig.projection import project_rays
from bev_perception.sensing.image_fit import IMAGE_FITS, fit_view
from bev_perception.sensing.preprocess import Preprocessor, reference2base
from bev_perception.strict import ConfigError
from bev_perception.synth.settings import RIGS, SynthSettings, cameras_of
from bev_perception.types import Calibration, CameraImage, Frame, View

CONFIG = load_variant("sparsebev_tiny")
FISHEYE = ("equidistant", (0.02, -0.005, 0.0, 0.0))


def pose(yaw=0.0, pitch=0.0, roll=0.0, height=0.9):
    return make_transform(optical_rotation(*np.radians((yaw, pitch, roll))), np.array([0.3, 0.1, height]))


def lens(focal, size, model="", d=()):
    k = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]])
    return Calibration(k, *size, model, d)


CAMERAS = {
    "portrait": (lens(520.0, (540, 960)), pose(30.0)),
    "tele": (lens(1860.0, (1280, 720)), pose(-90.0, height=2.6)),
    "barrel": (lens(450.0, (1280, 720), "plumb_bob", (-0.15, 0.02, 0.0, 0.0, 0.0)), pose(180.0, -8.0, 5.0)),
    "fisheye": (lens(386.0, (1280, 960), *FISHEYE), pose(90.0, -10.0)),
}


def test_optical_angles_undo_the_rotation():
    for angles in ((0.3, -0.2, 0.1), (-2.5, 0.4, -0.3), (0.0, 0.0, 0.0)):
        np.testing.assert_allclose(optical_angles(optical_rotation(*angles)), angles, atol=1e-12)
    np.testing.assert_allclose(optical_rotation(0, 0, 0), [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-12)


def test_the_facts_of_the_training_are_those_of_nuscenes():
    trained = TrainedCamerasConfig()
    for camera in synthetic_rig():
        k = camera.calibration.intrinsics
        assert min(abs(k[0, 0] / focal - 1) for focal in trained.focals) < 0.02
        assert abs(camera.sensor2ego[2, 3] - trained.height) < 0.1
        _, pitch, _ = optical_angles(camera.sensor2ego[:3, :3])
        assert abs(k[1, 2] + k[1, 1] * np.tan(pitch) - trained.horizon) < 40


@pytest.mark.parametrize("fit", IMAGE_FITS)
def test_pictures_like_those_of_the_training_stay_as_they_were(fit):
    for camera in synthetic_rig():
        fitted = fit_view(camera.calibration, camera.sensor2ego, CONFIG, fit)
        plain = fit_view(camera.calibration, camera.sensor2ego, CONFIG, "as_trained")
        assert fitted.transform == plain.transform
        assert fitted.turn is None and fitted.sensor2ego is camera.sensor2ego


@pytest.mark.parametrize("name", CAMERAS)
def test_horizon_and_focal_length_come_to_lie_where_the_training_had_them(name):
    calibration, sensor2ego = CAMERAS[name]
    row = 465 * 0.44 - 140  # nuScenes' 1600x900 to 704x256
    for fit in ("horizon", "virtual"):
        fitted = fit_view(calibration, sensor2ego, CONFIG, fit)
        k = fitted.transform.ida[:3, :3] @ fitted.calibration.intrinsics
        yaw, pitch, roll = optical_angles(fitted.sensor2ego[:3, :3])
        assert abs(k[1, 2] + k[1, 1] * np.tan(pitch) - row) <= 0.5
        assert np.isclose(yaw, optical_angles(sensor2ego[:3, :3])[0])
        np.testing.assert_array_equal(fitted.sensor2ego[:3, 3], sensor2ego[:3, 3])
        if fit == "virtual":
            assert k[0, 0] in (pytest.approx(1260 * 0.44), pytest.approx(805 * 0.44))
            assert abs(pitch) < 1e-12 and abs(roll) < 1e-12


@pytest.mark.parametrize("fit", IMAGE_FITS)
@pytest.mark.parametrize("name", CAMERAS)
def test_what_is_seen_lies_where_it_is_projected(name, fit):
    """A bright spot in the picture of the real lens shows in the input at the projection of its place in the world."""
    calibration, sensor2ego = CAMERAS[name]
    yaw = optical_angles(sensor2ego[:3, :3])[0]
    checked = 0
    for bearing, rise in ((0.0, -0.6), (0.12, -0.9), (-0.1, 0.2)):
        a = yaw + bearing
        point = sensor2ego[:3, 3] + np.array([20 * np.cos(a), 20 * np.sin(a), rise])
        in_camera = sensor2ego[:3, :3].T @ (point - sensor2ego[:3, 3])
        pixels, seen = project_rays(calibration, in_camera[None])
        picture = np.zeros((calibration.height, calibration.width, 3), np.uint8)
        if not seen[0]:
            continue
        cv2.circle(picture, np.rint(pixels[0] * 16).astype(int).tolist(), 6 * 16, (255,) * 3, -1, cv2.LINE_AA, 4)
        inputs = prepared(calibration, sensor2ego, picture, fit)
        expected, depth = project(inputs.global2image[0], point[None])
        x, y = expected[0]
        if not (8 < x < 696 and 8 < y < 248) or depth[0] < 1:
            continue
        bright = inputs.images[0].sum(0).numpy()
        bright = np.where(bright > bright.max() - 1.5, 1.0, 0.0)
        rows, columns = np.nonzero(bright)
        assert np.hypot(columns.mean() - x, rows.mean() - y) < 1.5
        checked += 1
    assert checked or fit == "as_trained"  # which may lose all that is near the horizon


def prepared(calibration, sensor2ego, picture, fit):
    data = cv2.imencode(".png", picture)[1]
    view = View(CameraImage("cam", 0, "cam", "png", data), calibration, sensor2ego, np.eye(4))
    preprocess = Preprocessor(CONFIG, "cpu", fit)
    inputs, missing = preprocess(Frame(0, ("cam",), (view,), np.eye(4)))
    preprocess.close()
    assert not missing
    return inputs


def test_what_lies_outside_is_as_gray_as_the_padding():
    calibration, sensor2ego = CAMERAS["portrait"]
    white = np.full((960, 540, 3), 255, np.uint8)
    images = prepared(calibration, sensor2ego, white, "virtual").images[0]
    assert images[:, 128, 0].abs().max() < 0.02 and images[:, 128, 352].min() > 1


def test_a_camera_that_looks_down_is_taken_as_it_is():
    calibration, _ = CAMERAS["tele"]
    fitted = fit_view(calibration, pose(0.0, -80.0), CONFIG, "virtual")
    assert fitted.turn is None


def test_another_word_is_no_fit():
    with pytest.raises(ConfigError, match="image_fit is 'pinhole'; it must be one of as_trained"):
        Preprocessor(CONFIG, "cpu", "pinhole")


def test_the_reference_is_above_the_ground_wherever_base_link_is():
    frame = Frame(0, (), (), np.eye(4))
    on_ground, above = (reference2base(CONFIG, replace(frame, base_height=height)) for height in (0.0, 0.9))
    np.testing.assert_allclose(on_ground[:3, 3] - above[:3, 3], (0, 0, 0.9))


def test_all_rigs_of_nuscenes_in_the_synthetic_world_are_like_the_training():
    settings = SynthSettings()
    for rig in range(len(RIGS)):
        for camera in cameras_of(settings, rig).values():
            assert fit_view(camera.calibration, camera.sensor2ego, CONFIG, "virtual").turn is None
