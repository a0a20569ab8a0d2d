"""The synthetic world through cameras of one's own: any number, size, lens and mounting."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from small_world import SETTINGS

from bev_perception import cli
from bev_perception.data.nuscenes import open_scene
from bev_perception.data.records import open_split
from bev_perception.geometry import transform_points
from bev_perception.rig.projection import project_rays
from bev_perception.rig.rig_file import read_rig
from bev_perception.synth.generate import generate
from bev_perception.synth.pictures import Photographer
from bev_perception.synth.settings import SynthError, SynthSettings, cameras_of

RIG = """
base_height: 0.3
cameras:
  front: {size: [400, 224], fov: 90, at: [0.3, 0, 0.6]}
  rear: {size: [320, 240], fov: 190, at: [-0.3, 0, 0.6], yaw: 180, pitch: -10, lens: equidistant}
  left: {size: [320, 200], fov: 100, at: [0, 0.2, 0.6], yaw: 90, lens: plumb_bob, distortion: [-0.1, 0.01, 0, 0]}
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    path = tmp_path_factory.mktemp("rig") / "rig.yaml"
    path.write_text(RIG)
    return path


def test_a_data_set_has_the_cameras_of_the_file(rig, tmp_path):
    root = tmp_path / "drives"
    command = ["synth", str(root), "--rig", str(rig), "--scenes", "1", "--seconds", "1", "--camera-rate", "2"]
    assert cli.main([*command, "--workers", "1", "--weather", "night", "--no-lidar"]) == 0
    records = open_split(root, "v1.0-synth", "synth_all")
    assert records.camera_names == ("front", "rear", "left")
    for image, wanted in zip(records.images(records.cameras(0)), read_rig(rig).cameras, strict=True):
        assert image.calibration.distortion_model == wanted.calibration.distortion_model
        assert image.calibration.distortion == wanted.calibration.distortion
        np.testing.assert_allclose(image.calibration.intrinsics, wanted.calibration.intrinsics)
        np.testing.assert_allclose(image.sensor2ego, wanted.sensor2ego, atol=1e-9)
        assert image.ego2global[2, 3] == pytest.approx(0.3, abs=0.02)
        picture = cv2.imread(str(root / image.path))
        assert picture.shape[:2] == (wanted.calibration.height, wanted.calibration.width)
        assert picture.std() > 5
    assert not len(records.lidar_points(0))
    np.testing.assert_allclose(records.lidar2ego(0)[:3, 3], (0.94, 0, 1.54))
    drive = open_scene(root, "v1.0-synth", records.scenes[0])
    lenses = {camera.name: camera.calibration.distortion_model for camera in drive.cameras}
    assert lenses == {"front": "", "rear": "equidistant", "left": "plumb_bob"}
    assert "night" in json.loads((root / "v1.0-synth" / "scene.json").read_text())[0]["description"]


def test_objects_show_where_the_lens_projects_them(rig, world):
    """Of a distorted picture, the pixels of an object surround the projection of its middle."""
    settings = replace(SETTINGS, rig=read_rig(rig))
    above = {
        c: replace(camera, sensor2ego=settings.base2ground @ camera.sensor2ego)
        for c, camera in cameras_of(settings).items()
    }
    photographer, checked = Photographer(world, above, np.random.default_rng(0)), 0
    for channel in ("REAR", "LEFT"):
        view, camera = photographer.take(channel, 0.5, with_extent=True), above[channel]
        assert (view.seen <= view.extent).all()
        sensor2global = world.ego2global(0.5) @ camera.sensor2ego
        places = world.places_at(0.5)
        for o in np.flatnonzero((view.seen[:-1] > 60) & (view.seen[:-1] == view.extent[:-1])):
            if not world.things[o].category.startswith("vehicle"):
                continue
            middle = places[o, :3] + (0, 0, world.things[o].box[0][2])
            local = transform_points(np.linalg.inv(sensor2global), middle[None])
            pixel, seen = project_rays(camera.calibration, local)
            rows, columns = np.nonzero(view.owners == o)
            if seen[0] and columns.min() > 0 and columns.max() < camera.calibration.width - 1:
                assert columns.min() - 1 <= pixel[0, 0] <= columns.max() + 1
                assert rows.min() - 1 <= pixel[0, 1] <= rows.max() + 1
                checked += 1
    assert checked >= 3


def test_what_cannot_be_is_named(tmp_path, rig):
    with pytest.raises(SynthError, match=r"no weather 'snow'; choose of day, dusk, rain, night"):
        SynthSettings(weather=("snow",))
    generate(tmp_path / "a", SynthSettings(seconds=1.0, camera_rate=2, image_size=(64, 36)), 1)
    with pytest.raises(SynthError, match="holds scenes made with"):
        generate(tmp_path / "a", SynthSettings(seconds=1.0, camera_rate=2, rig=read_rig(rig)), 1)
