"""Frames to draw."""

import numpy as np
import pytest

from bev_perception.data.drive import CAMERAS
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.health import Health
from bev_perception.pipeline.offline import collect_frames
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.types import CameraImage, Frame, View

SIZE = (400, 225)


@pytest.fixture
def frame_and_images():
    """A frame of nuScenes' rig, and images of one colour each, another for every camera."""
    rig = {camera.name: camera for camera in synthetic_rig(SIZE)}
    views = tuple(
        View(CameraImage(name, 1000, name, "jpeg", b""), rig[name].calibration, rig[name].sensor2ego, np.eye(4))
        for name in CAMERAS
    )
    images = {name: np.full((SIZE[1], SIZE[0], 3), 20 + 10 * k, np.uint8) for k, name in enumerate(CAMERAS)}
    return Frame(1000, CAMERAS, views, np.eye(4)), images


@pytest.fixture(scope="session")
def bag(small_drive, tmp_path_factory):
    """Half a second of the made-up drive as a bag."""
    path = tmp_path_factory.mktemp("visualization") / "drive"
    write_bag(small_drive, path)
    return path


@pytest.fixture(scope="session")
def bag_frames(bag):
    """The frames of the bag."""
    return list(collect_frames(BagReader(bag).events(), SynchronizerSettings(CAMERAS), Health()))
