"""Bags with planted faults, read for the checks and checked by the command."""

import json
import types
from dataclasses import replace

import cv2
import numpy as np
import pytest

from bev_perception import cli
from bev_perception.data.drive import CAMERAS, Drive, DriveImage, DrivePose
from bev_perception.data.rig_recording import READ, _beginning, read_recording
from bev_perception.data.rosbag import BagReader, ImageEvent, TransformEvent, write_bag
from bev_perception.data.synthetic import synthetic_drive
from bev_perception.geometry import make_transform
from bev_perception.rig.check import check_recording, check_rig
from bev_perception.rig.recording import Picture
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.sensing.view_checks import BODY_FROM_OPTICAL
from bev_perception.types import CameraImage

SETTINGS = SynchronizerSettings(CAMERAS)
TIMES = {"max_stamp_difference": 0.05, "tf_timeout": 0.2}


@pytest.fixture(scope="module")
def drive():
    """A second of the synthetic drive in small pictures, kept in memory."""
    made = synthetic_drive(1.0, seed=3, image_size=(400, 225), rate=6.0)
    events = list(made)
    return Drive(made.name, made.cameras, len(events), lambda: iter(events))


@pytest.fixture(scope="module")
def bag(drive, tmp_path_factory):
    path = tmp_path_factory.mktemp("rig") / "bag"
    write_bag(drive, path, progress=False)
    return path


def test_a_recording_holds_what_the_checks_need(drive, bag):
    recording = read_recording(BagReader(bag), SETTINGS)
    assert [c.name for c in recording.rig.cameras] == [c.name for c in drive.cameras]
    for camera, truth in zip(recording.rig.cameras, drive.cameras, strict=True):
        assert camera.picture_size == (400, 225)
        assert camera.info.size == (400, 225)
        np.testing.assert_allclose(camera.sensor2ego, truth.sensor2ego, atol=1e-9)
        assert len(recording.images[camera.name].stamps) == 6
        assert len(recording.pairs[camera.name]) == 5
    assert list(recording.links) == ["odom -> base_link"]
    poses = [event for event in drive if isinstance(event, DrivePose)]
    np.testing.assert_allclose(recording.poses.at(poses[7].stamp), poses[7].ego2global, atol=1e-9)
    assert recording.poses.at(poses[0].stamp - 1) is None
    assert len(recording.moments) > 2
    assert set(recording.moments[0]) == {c.name for c in drive.cameras}


def test_what_is_right_passes_and_the_command_writes_all_of_it(drive, bag, tmp_path, capsys):
    status = cli.main(["check", "--bag", str(bag), "--no-pictures", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert status == 0, said
    assert " 0 FAIL" in said
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert found["level"] in ("OK", "WARN")
    assert {f["check"] for f in found["findings"]} >= {"optical frame", "coverage", "tf_timeout", "focal length"}
    for camera in drive.cameras:
        assert cv2.imread(str(tmp_path / "out" / f"{camera.name}.jpg")).shape[1] == 1000


def record(drive, path, cameras=None, image=lambda event: event, pictures=False):
    """Write a bag of the drive with changed cameras or images, and return the recording that is read from it."""
    events = [image(event) if isinstance(event, DriveImage) else event for event in drive]
    write_bag(Drive("changed", cameras or drive.cameras, len(events), lambda: iter(events)), path, progress=False)
    return read_recording(BagReader(path), SETTINGS, pictures=pictures)


def failed(findings):
    return {f"{f.about}: {f.check}" for f in findings if f.level == "FAIL"}


def test_a_body_frame_in_a_bag(drive, tmp_path):
    turned = make_transform(BODY_FROM_OPTICAL.T, np.zeros(3))
    first, *others = drive.cameras
    cameras = (replace(first, sensor2ego=first.sensor2ego @ turned), *others)
    recording = record(drive, tmp_path / "bag", cameras)
    assert failed(check_recording(recording, **TIMES)) == {f"{first.name}: optical frame"}


def test_pictures_of_another_size_than_camera_info_says(drive, tmp_path):
    def halved(event):
        if event.camera != "cam_back":
            return event
        picture = cv2.imdecode(np.frombuffer(event.jpeg, np.uint8), cv2.IMREAD_COLOR)
        return replace(event, jpeg=cv2.imencode(".jpg", cv2.resize(picture, None, fx=0.5, fy=0.5))[1].tobytes())

    recording = record(drive, tmp_path / "bag", image=halved, pictures=True)
    assert failed(check_rig(recording.rig)) == {"cam_back: picture size"}
    assert recording.pairs["cam_back"] == []  # nothing can be measured in them
    assert len(recording.pairs["cam_front"]) == 5


@pytest.mark.slow
def test_pictures_of_the_synthetic_drive_agree_with_its_calibrations(bag):
    findings = list(check_recording(read_recording(BagReader(bag), SETTINGS), **TIMES))
    assert failed(findings) == set()
    assert {"neighbours agree", "direction of motion", "scale of motion"} <= {f.check for f in findings}


def test_two_minutes_are_counted_from_the_first_image_on():
    """Not from the first message: converters log /tf_static at time 0."""
    link = TransformEvent("base_link", "cam_front", 0, np.eye(4), True)
    image = ImageEvent(CameraImage("cam_front", 1, "cam_front", "jpeg", b"x"))
    start = 1_800_000_000 * 10**9
    events = [(0, link), (start - 1, link), *((start + at, image) for at in (0, READ, READ + 1))]
    bag = types.SimpleNamespace(logged_events=lambda: iter(events))
    assert list(_beginning(bag)) == events[:-1]


def test_pictures_are_kept_packed():
    gray = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (900, 1600), dtype=np.uint8), (0, 0), 3)
    picture = Picture.of("cam_front", 1, gray)
    assert picture.size == (1600, 900) and len(picture.png) < gray.nbytes
    np.testing.assert_array_equal(picture.gray, gray)


def test_the_settings_of_cameras_count(drive, tmp_path):
    """As in a run: another tf frame, and R and P of rectified images."""
    first, second, *others = drive.cameras
    settings = SynchronizerSettings(CAMERAS, camera_frames={first.name: second.name}, rectified=(second.name,))
    write_bag(drive, tmp_path / "bag", progress=False)
    rig = read_recording(BagReader(tmp_path / "bag"), settings, pictures=False).rig
    found = {camera.name: camera for camera in rig.cameras}
    np.testing.assert_allclose(found[first.name].sensor2ego, second.sensor2ego, atol=1e-6)
    assert found[second.name].calibration.rectified and not found[others[0].name].calibration.rectified
