"""Scenes of the real nuScenes material, against its tables; skipped where it is absent."""

import json
import shutil
import sys

import numpy as np
import pytest

from bev_perception.data.drive import CAMERAS, DriveImage, DrivePose
from bev_perception.data.nuscenes import SPLITS, TABLES, NuScenesError, default_split, only_version, open_scene
from bev_perception.data.rosbag import BagReader, ImageEvent, write_bag
from bev_perception.geometry import rotation_from_quaternion
from bev_perception.synth import settings as synth

SCENE = "scene-0103"
HEADINGS = dict(zip(CAMERAS, (0, -55, 55, 180, 110, -110), strict=True))  # degrees, where the cameras look


@pytest.fixture(scope="module")
def scene(nuscenes_root):
    return open_scene(nuscenes_root, "v1.0-mini", SCENE)


def table(root, name):
    return json.loads((root / "v1.0-mini" / f"{name}.json").read_text())


def test_images_are_the_files_with_their_stamps(scene, nuscenes_root):
    images = [event for event in scene if isinstance(event, DriveImage)]
    expected = {}
    for path in (nuscenes_root / "samples").glob("CAM_*/*.jpg"):
        _, channel, microseconds = path.stem.split("__")
        expected[channel.lower(), int(microseconds) * 1000] = path.read_bytes()
    assert {(i.camera, i.stamp): i.jpeg for i in images} == expected
    assert len(images) == len(expected)


def test_events_are_ordered_and_each_image_has_its_own_pose(scene, nuscenes_root):
    events = list(scene)
    assert len(scene) == len(events)
    assert [e.stamp for e in events] == sorted(e.stamp for e in events)
    truth = {record["timestamp"] * 1000: record for record in table(nuscenes_root, "ego_pose")}
    pose = None
    for event in events:
        if isinstance(event, DrivePose):
            pose = event
            assert pose.ego2global[:3, 3].tolist() == truth[pose.stamp]["translation"]
            rotation = rotation_from_quaternion(*truth[pose.stamp]["rotation"])
            np.testing.assert_allclose(pose.ego2global[:3, :3], rotation, atol=1e-9)
        else:
            assert pose.stamp == event.stamp
    # the lidar's poses between the images are there too, so that tf has no hole where images are missing
    poses = [e.stamp for e in events if isinstance(e, DrivePose)]
    assert max(np.diff(poses)) < 600_000_000


def test_the_rig(scene):
    assert tuple(camera.name for camera in scene.cameras) == CAMERAS
    for camera in scene.cameras:
        axis = camera.sensor2ego[:3, 2]  # where the camera looks
        heading = np.degrees(np.arctan2(axis[1], axis[0]))
        assert abs((heading - HEADINGS[camera.name] + 180) % 360 - 180) < 5
        assert camera.sensor2ego[2, 1] < -0.99  # its y axis points down
        assert (camera.calibration.width, camera.calibration.height) == (1600, 900)
        assert camera.calibration.distortion == ()


def test_a_second_walk_is_the_same(scene):
    first, second = ([(e.stamp, type(e)) for e in scene] for _ in range(2))
    assert first == second


def test_as_a_bag(scene, tmp_path):
    write_bag(scene, tmp_path / "bag", progress=False)
    images = [e.image for e in BagReader(tmp_path / "bag").events() if isinstance(e, ImageEvent)]
    assert [bytes(i.data) for i in images] == [e.jpeg for e in scene if isinstance(e, DriveImage)]


def test_missing_images_are_counted(nuscenes_root, caplog):
    open_scene(nuscenes_root, "v1.0-mini", SCENE)
    assert "210 of 240 images" in caplog.text


@pytest.mark.parametrize(
    ("version", "name", "reason"),
    [
        ("v1.0-mini", "scene-0104", "did you mean scene-0103"),
        ("v1.0-mini", "nothing", "known: scene-0103, scene-0916"),
        ("v1.0-mini", "scene-0916", "none of the 246 images"),
        ("v1.0-trainval", SCENE, "lacks the tables"),
    ],
)
def test_scenes_that_are_not_there(nuscenes_root, version, name, reason):
    with pytest.raises(NuScenesError, match=reason):
        open_scene(nuscenes_root, version, name)


def test_the_only_version_of_a_root_is_found(tmp_path):
    with pytest.raises(NuScenesError, match="holds no tables, such as v1.0-trainval/scene.json; root must be"):
        only_version(tmp_path)
    for version in ("v1.0-synth", "v1.0-mini"):
        (tmp_path / version).mkdir()
        assert version == "v1.0-synth" or only_version(tmp_path) == "v1.0-synth"
        (tmp_path / version / "scene.json").write_text("[]")
    with pytest.raises(NuScenesError, match=r"the tables v1.0-mini and v1.0-synth; say which with --version"):
        only_version(tmp_path)


def test_splits_follow_from_the_version():
    assert default_split("v1.0-trainval", "val") == "val" and default_split("v1.0-mini", "train") == "mini_train"
    assert (SPLITS[synth.VERSION]["train"], SPLITS[synth.VERSION]["val"]) == synth.SPLITS
    with pytest.raises(NuScenesError, match="which split of v1.0-test is meant is not known; say it with --split"):
        default_split("v1.0-test", "val")


def test_a_missing_table_is_named(nuscenes_root, tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    for name in set(TABLES) - {"ego_pose"}:
        shutil.copy(nuscenes_root / "v1.0-mini" / f"{name}.json", tmp_path / "v1.0-mini")
    with pytest.raises(NuScenesError, match="lacks the tables ego_pose;"):
        open_scene(tmp_path, "v1.0-mini", SCENE)


def test_a_broken_table_is_named(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    for name in TABLES:
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text("[")
    pytest.importorskip("nuscenes")
    with pytest.raises(NuScenesError, match="cannot load v1.0-mini"):
        open_scene(tmp_path, "v1.0-mini", SCENE)


def test_without_the_devkit_the_remedy_is_named(tmp_path, monkeypatch):
    (tmp_path / "v1.0-mini").mkdir()
    for name in TABLES:
        (tmp_path / "v1.0-mini" / f"{name}.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(NuScenesError, match=r"pip install bev_perception\[nuscenes\]"):
        open_scene(tmp_path, "v1.0-mini", SCENE)
