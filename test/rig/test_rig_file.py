"""Rigs in YAML files."""

import numpy as np
import pytest
import yaml

from bev_perception.rig.rig_file import read_rig, rig_document
from bev_perception.strict import ConfigError
from rig.kit import nuscenes_like


def written(tmp_path, text):
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    return path


def test_a_camera_is_where_and_what_the_file_says(tmp_path):
    rig = read_rig(
        written(
            tmp_path,
            "base_height: 0.3\n"
            "cameras:\n"
            "  front: {size: [1280, 720], fov: 90, at: [0.3, 0, 0.6]}\n"
            "  left: {size: [1280, 960], fov: 180, at: [0, 0.2, 0.6], yaw: 90, pitch: -10, lens: equidistant}\n",
        )
    )
    front, left = rig.cameras
    assert rig.base_height == 0.3
    assert front.calibration.intrinsics[0, 0] == pytest.approx(640) and not front.calibration.distortion
    np.testing.assert_allclose(front.sensor2ego[:3, 2], (1, 0, 0), atol=1e-12)
    assert left.calibration.intrinsics[0, 0] == pytest.approx(640 / (np.pi / 2))
    assert left.calibration.distortion_model == "equidistant"
    np.testing.assert_allclose(left.sensor2ego[:3, 2], (0, np.cos(np.radians(10)), -np.sin(np.radians(10))), atol=1e-12)


def test_a_document_reads_back_as_the_rig(tmp_path):
    rig = nuscenes_like()
    again = read_rig(written(tmp_path, yaml.safe_dump(rig_document(rig), sort_keys=False)))
    for camera, same in zip(rig.cameras, again.cameras, strict=True):
        np.testing.assert_allclose(same.sensor2ego, camera.sensor2ego, atol=2e-3)  # nuScenes' quaternions are rounded
        np.testing.assert_allclose(same.calibration.intrinsics, camera.calibration.intrinsics)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "`cameras` must give each camera by its name"),
        ("camera: {}", "unknown key 'camera'"),
        ("cameras: {Front: {size: [4, 3], at: [0, 0, 1], fov: 60}}", "'Front' is no name for a camera here"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1]}}", "camera front: give focal"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 60, focal: [3, 3]}}", "give one of fov and focal"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 200}}", "up to 170"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 60, yow: 3}}", "did you mean 'yaw'"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 60, lens: fish}}", "no lens 'fish'"),
        ("cameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 60, distortion: [0.1, 0, 0, 0]}}", "name the lens"),
        ("base_height: high\ncameras: {front: {size: [4, 3], at: [0, 0, 1], fov: 60}}", "base_height is 'high'"),
    ],
)
def test_a_bad_file_is_named_with_what_to_do(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_rig(written(tmp_path, text))
