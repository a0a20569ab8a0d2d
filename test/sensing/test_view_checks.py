"""Views that are formally right and hardly meant so are named."""

import numpy as np
import pytest

from bev_perception.config import ImageConfig
from bev_perception.data.rig_recording import rig_of
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.families.variants import load_variant
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.health import Health
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.training import check_training
from bev_perception.sensing.image_transform import image_transform
from bev_perception.sensing.synchronizer import Synchronizer
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings, camera_frames
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.sensing.view_checks import (
    JudgedViews,
    cut_off_warning,
    optical_warning,
    rectified_warning,
    shared_frame_warning,
)
from bev_perception.strict import UserError
from bev_perception.types import Calibration, CameraImage, View

BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
K = np.array([[500.0, 0, 400], [0, 500, 225], [0, 0, 1]])


UNTURNED = np.eye(3)


def pose(rotation=UNTURNED, translation=(0.0, 0.0, 0.0)):
    return make_transform(rotation, np.array(translation, float))


def view(sensor2ego, calibration=None, stamp=1, frame_id="cam_link"):
    image = CameraImage("cam", stamp, frame_id, "jpeg", b"")
    return View(image, calibration or Calibration(K, 800, 450), sensor2ego, np.eye(4))


BODY = pose(rotation_from_yaw(2.0), (1.0, 0.0, 1.6))
OPTICAL = BODY @ pose(BODY_FROM_OPTICAL)
CHILD = {"cam_link": ("base_link", BODY), "cam_optical": ("cam_link", pose(BODY_FROM_OPTICAL))}
SIBLING = {"cam_link": ("base_link", BODY), "cam_optical": ("base_link", OPTICAL), "imu": ("cam_link", np.eye(4))}
FAR = {"cam_link": ("base_link", BODY), "other_optical": ("cam_link", pose(BODY_FROM_OPTICAL, (0, 2, 0)))}


@pytest.mark.parametrize(("links", "meant"), [(CHILD, "cam_optical"), (SIBLING, "cam_optical"), (FAR, ""), ({}, "")])
def test_a_body_frame_is_named_with_the_optical_frame_that_tf_knows(links, meant):
    warning = optical_warning(view(BODY), "cam_link", links)
    assert "cam: the frame of its images, cam_link, is no optical frame" in warning
    assert (f"cam:={meant}" in warning) if meant else ("publish one on /tf_static" in warning)


@pytest.mark.parametrize("pitch", [-60, 0, 40, 60])
def test_optical_frames_are_not_warned_of(pitch):
    c, s = np.cos(np.radians(pitch)), np.sin(np.radians(pitch))
    tilted = OPTICAL @ pose(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]))
    if tilted[2, 2] < 0.8:
        assert optical_warning(view(tilted), "cam_optical", CHILD) == ""
    assert optical_warning(view(OPTICAL), "cam_optical", CHILD) == ""


def synchronizer(**settings):
    tree, health = TransformTree(), Health()
    for child, (parent, child2parent) in CHILD.items():
        tree.set_static(parent, child, child2parent)
    tree.set_static("odom", "base_link", np.eye(4))
    return Synchronizer(SynchronizerSettings(("cam",), **settings), tree, health)


def first_view(sync, calibration, topic=""):
    sync.set_calibration("cam", calibration, topic)
    sync.add(CameraImage("cam", 10**9, "cam_link", "jpeg", b""))
    (frame,) = [*sync.poll(), *sync.finish()]
    return frame.views[0]


def test_the_synchronizer_notices_and_takes_the_frame_that_is_chosen():
    sync = synchronizer()
    np.testing.assert_allclose(first_view(sync, Calibration(K, 800, 450)).sensor2ego, BODY)
    assert sync.health.snapshot().notices == {"no optical frame": 1}
    chosen = synchronizer(camera_frames=camera_frames(["cam:=/cam_optical"]))
    np.testing.assert_allclose(first_view(chosen, Calibration(K, 800, 450)).sensor2ego, OPTICAL)
    assert chosen.health.snapshot().notices == {}


def test_rules_and_cameras_that_there_are_not_are_refused():
    for rule in ("cam", "cam:=", ":=frame", "cam=frame"):
        with pytest.raises(UserError, match="CAMERA:=FRAME"):
            camera_frames([rule])
    for wrong in ({"camera_frames": {"rear": "f"}}, {"rectified": ("rear",)}):
        with pytest.raises(UserError, match="rear, none of the cameras"):
            SynchronizerSettings(("cam",), **wrong)


def raw(r=UNTURNED, p=K * [[0.8], [0.8], [1]], d=(-0.3, 0.1, 0, 0, 0)):
    return Calibration(K, 800, 450, "plumb_bob", d, np.array(p, float), np.array(r, float))


def test_p_and_r_count_where_images_are_rectified():
    turn = rotation_from_yaw(0.02)
    settings = {"camera_frames": {"cam": "cam_optical"}, "rectified": ("*",)}
    sync = synchronizer(**settings)
    seen = first_view(sync, raw(r=turn), "/cam/image_rect/compressed")
    assert seen.calibration.intrinsics.tolist() == raw().projection.tolist() and seen.calibration.distortion == ()
    np.testing.assert_allclose(seen.sensor2ego, OPTICAL @ pose(turn.T))
    assert sync.health.snapshot().notices == {}
    plain = synchronizer(**{**settings, "rectified": ()})
    seen = first_view(plain, raw(r=turn), "/cam/image_rect/compressed")
    assert seen.calibration.intrinsics.tolist() == K.tolist() and len(seen.calibration.distortion) > 0
    np.testing.assert_allclose(seen.sensor2ego, OPTICAL)
    assert plain.health.snapshot().notices == {"rectified images": 1}


@pytest.mark.parametrize(
    "broken", [{"p": np.zeros((3, 3))}, {"r": np.full((3, 3), np.nan)}, {"r": 2 * np.eye(3)}, {"r": -np.eye(3)}]
)
def test_rectified_images_without_p_or_with_a_broken_r_are_refused(broken):
    with pytest.raises(UserError, match="of CameraInfo"):
        raw(**broken).of_rectified()


def test_an_empty_r_is_no_rotation():
    """Drivers that leave R out mean the identity."""
    assert raw(r=np.zeros((3, 3))).of_rectified().rectification.tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(
    ("topic", "d", "warned"),
    [
        ("/sensing/cam/image_rect_color/compressed", 0.1, True),
        ("/cam/image_rect", 0.1, True),
        ("/cam/rectified/image", 0.1, True),
        ("/cam/image_rect", 0.0, False),
        ("/cam/image_raw", 0.1, False),
        ("/direct/correct/image", 0.1, False),
    ],
)
def test_rectified_images_with_the_raw_cameras_info_are_warned_of(topic, d, warned):
    warning = rectified_warning(topic, raw(d=(d, 0.0, 0.0, 0.0, 0.0)))
    assert warned == ("undistorted twice" in warning and topic in warning)


@pytest.mark.parametrize(
    ("width", "height", "cy", "cut"),
    [
        (1600, 900, 491, False),
        (800, 450, 245, False),
        (800, 1056, 528, True),
        (600, 450, 225, True),
        (640, 480, 400, False),
    ],
)
def test_a_crop_without_the_horizon_is_named(width, height, cy, cut):
    calibration = Calibration(np.array([[500.0, 0, width / 2], [0, 500, cy], [0, 0, 1]]), width, height)
    config = ImageConfig(height=256, width=704)
    transform = image_transform((height, width), config)
    warning = cut_off_warning(view(OPTICAL, calibration), transform.source2output, (256, 704))
    assert cut == bool(warning)
    if cut:
        assert f"{width}x{height} pixels" in warning and f"horizon (row {cy})" in warning and "% are cut off" in warning


def test_cameras_that_look_up_or_down_have_no_horizon_to_lose():
    calibration = Calibration(np.array([[500.0, 0, 400], [0, 500, 528], [0, 0, 1]]), 800, 1056)
    transform = image_transform((1056, 800), ImageConfig(height=256, width=704))
    down = pose(np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]]))
    assert cut_off_warning(view(down, calibration), transform.source2output, (256, 704)) == ""


def test_cameras_of_one_frame_are_named():
    assert shared_frame_warning({"left": "l", "right": "r"}) == "" == shared_frame_warning({})
    warning = shared_frame_warning({"left": "camera", "front": "f", "right": "camera"})
    assert warning.startswith("left, right have the one frame camera: they seem to look the same way")


def test_the_synchronizer_notices_cameras_of_one_frame():
    tree, health = TransformTree(), Health()
    tree.set_static("base_link", "camera", OPTICAL)
    tree.set_static("odom", "base_link", np.eye(4))
    sync = Synchronizer(SynchronizerSettings(("left", "right")), tree, health)
    for camera in ("left", "right"):
        sync.set_calibration(camera, Calibration(K, 800, 450))
        sync.add(CameraImage(camera, 10**9, "camera", "jpeg", b""))
    assert len([*sync.poll(), *sync.finish()]) == 1
    assert health.snapshot().notices == {"cameras share a frame": 1}


def test_sizes_that_no_camera_has_are_refused():
    """What is computed of a picture, as its border, is bounded by them."""
    with pytest.raises(UserError, match="1x4294967295 pixels, which no camera has"):
        Calibration(K, 1, 2**32 - 1)


def test_a_view_is_judged_once_and_again_where_it_has_changed():
    judged, first = JudgedViews(), view(OPTICAL)
    assert [judged.is_new(v) for v in (first, first, view(OPTICAL, Calibration(K.copy(), 800, 450)))] == [1, 0, 0]
    assert not judged.is_new(view(OPTICAL @ pose(translation=(0.001, 0, 0))))
    assert judged.is_new(view(OPTICAL @ pose(translation=(0.1, 0, 0))))
    assert judged.is_new(view(OPTICAL, Calibration(1.1 * K / [[1], [1], [1.1]], 800, 450)))
    assert judged.is_new(view(OPTICAL), known="more links")


def test_the_synchronizer_judges_a_camera_once(monkeypatch):
    """Not every frame, and not every camera_info."""
    asked = []
    for name in ("optical_warning", "rectified_warning"):
        monkeypatch.setattr(f"bev_perception.sensing.synchronizer.{name}", lambda *_, name=name: asked.append(name))
    sync, frames = synchronizer(), []
    for k in range(1, 5):
        sync.set_calibration("cam", raw(), "/cam/image_rect")
        sync.add(CameraImage("cam", k * 10**8, "cam_link", "jpeg", b""))
        frames += sync.poll()
    assert len(frames) > 1 and sorted(asked) == ["optical_warning", "rectified_warning"]


def test_a_pair_of_cameras_is_told_apart_by_the_nearer_optical_frame():
    right = pose(translation=(0.0, -0.12, 0.0))
    links = {
        "a_right_optical": ("base_link", BODY @ right @ pose(BODY_FROM_OPTICAL)),
        "cam_link": ("base_link", BODY),
        "b_left_optical": ("cam_link", pose(BODY_FROM_OPTICAL)),
    }
    assert "cam:=b_left_optical" in optical_warning(view(BODY), "cam_link", links)


@pytest.mark.parametrize("height", [450, 533, 800, 1056])
def test_check_and_run_agree_on_horizons_that_are_cut_off(height):
    config = load_variant("sparsebev_tiny")
    calibration = Calibration(np.array([[500.0, 0, 400], [0, 500, height / 2], [0, 0, 1]]), 800, height)
    transform = image_transform((height, 800), config.image)
    warned = cut_off_warning(
        view(OPTICAL, calibration), transform.source2output, (config.image.height, config.image.width)
    )
    rig = Rig((RigCamera("cam", calibration=calibration, sensor2ego=OPTICAL),))
    (finding,) = (f for f in check_training(rig, rig_of(synthetic_rig()), config, "as_trained") if f.check == "horizon")
    assert ("keeps the bottom of the picture" in finding.remedy) == bool(warned)
