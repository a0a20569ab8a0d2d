"""nuScenes tables to records, queues, matrices and boxes against every case with the schema of sparsebev_data."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bev_perception.config import FramesConfig
from bev_perception.data.drive import CAMERAS
from bev_perception.data.indexing import TABLES
from bev_perception.data.queues import evaluation_queue, previous_sets, reference2image, training_boxes, training_queue
from bev_perception.data.records import open_records
from bev_perception.geometry import invert_transform, make_transform, rotation_from_quaternion

PARITY = Path(os.environ.get("BEV_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))
CHANNELS = tuple(camera.upper() for camera in CAMERAS)
PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
NUMBERS = {"rtol": 1e-6, "atol": 1e-6}


def find_cases():
    files = ("tables.json", "infos.json", "queues.json", "outputs.npz")
    return sorted(path.parent for path in PARITY.glob("*/case.json") if all((path.parent / f).exists() for f in files))


CASES = find_cases()
pytestmark = pytest.mark.skipif(not CASES, reason=f"no data case in $BEV_PARITY or {PARITY}")


class DataCase:
    def __init__(self, directory, root):
        def load(name):
            return json.loads((directory / name).read_text())

        (root / "v1.0-case").mkdir()
        tables = load("tables.json")
        for name in TABLES:
            (root / "v1.0-case" / f"{name}.json").write_text(json.dumps(tables[name]))
        self.records = open_records(root, "v1.0-case")
        self.infos = load("infos.json")
        self.queues = load("queues.json")
        self.matrices = dict(np.load(directory / "outputs.npz"))
        self.classes = load("case.json")["classes"]


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.name)
def case(request, tmp_path_factory):
    return DataCase(request.param, tmp_path_factory.mktemp("nuscenes"))


def check_image(image, wanted):
    assert image.path == wanted["data_path"] and image.stamp == wanted["timestamp"]
    np.testing.assert_allclose(image.calibration.intrinsics, wanted["cam_intrinsic"], **NUMBERS)
    # the reference keeps the transposed rotation
    np.testing.assert_allclose(image.sensor2global[:3, :3].T, wanted["sensor2global_rotation"], **NUMBERS)
    np.testing.assert_allclose(image.sensor2global[:3, 3], wanted["sensor2global_translation"], **NUMBERS)


def test_key_frames(case):
    records = case.records
    assert records.tokens == [info["token"] for info in case.infos]
    assert records.stamps == [info["timestamp"] for info in case.infos]
    for i, info in enumerate(case.infos):
        for name, found in (("lidar2ego", records.lidar2ego(i)), ("ego2global", records.ego2global(i))):
            rotation = rotation_from_quaternion(*info[f"{name}_rotation"])
            wanted = make_transform(rotation, np.array(info[f"{name}_translation"]))
            np.testing.assert_allclose(found, wanted, **NUMBERS)
        assert list(info["cams"]) == list(CHANNELS)
        for image, wanted in zip(records.images(records.cameras(i)), info["cams"].values(), strict=True):
            check_image(image, wanted)
            sensor2lidar = invert_transform(records.lidar2global(i)) @ image.sensor2global
            np.testing.assert_allclose(sensor2lidar[:3, :3], wanted["sensor2lidar_rotation"], **NUMBERS)
            np.testing.assert_allclose(sensor2lidar[:3, 3], wanted["sensor2lidar_translation"], **NUMBERS)


def test_sweeps(case):
    for i, info in enumerate(case.infos):
        sweeps = case.records.sweeps(i)
        assert len(sweeps) == len(info["sweeps"])
        for image_set, wanted in zip(sweeps, info["sweeps"], strict=True):
            for channel, image in zip(CHANNELS, case.records.images(image_set), strict=True):
                check_image(image, wanted[channel])


def test_annotations(case):
    for i, info in enumerate(case.infos):
        found = case.records.annotations(i)
        assert found.names.tolist() == info["gt_names"]
        assert found.valid.tolist() == info["valid_flag"]
        assert found.lidar_points.tolist() == info["num_lidar_pts"]
        assert found.radar_points.tolist() == info["num_radar_pts"]
        np.testing.assert_allclose(found.boxes, np.reshape(info["gt_boxes"], (-1, 7)), **NUMBERS)
        np.testing.assert_allclose(np.nan_to_num(found.velocities), np.reshape(info["gt_velocity"], (-1, 2)), **NUMBERS)


class FixedDraw:
    """A generator that gives one recorded interval, after checking the range that it is drawn from."""

    def __init__(self, bounds, choose):
        self.bounds, self.choose, self.asked = bounds, choose, False

    def integers(self, low, high):
        self.asked = True
        assert [[low, high]] == self.bounds
        return self.choose(low, high)


def frames_config(name):
    interleaved = "interleave" in name
    return FramesConfig(
        7, 7 if interleaved or "next" in name else 0, order="interleaved" if interleaved else "sequential"
    )


def queue(case, name, i, recorded):
    """The queue of the loader that a recorded name stands for."""
    records = case.records
    bounds = recorded.get("interval_draw")
    if name.startswith("test_"):
        return evaluation_queue(records, i, frames_config(name))
    choose = {"min": lambda low, high: low, "max": lambda low, high: high - 1, "5": lambda low, high: 5}
    draw = FixedDraw(bounds, choose[name.rsplit("_", 1)[1]])
    found = training_queue(records, i, frames_config(name), draw)
    assert draw.asked == bool(bounds)
    return found


def test_queues(case):
    loaders = set()
    for key, recorded in case.queues["queues"].items():
        name, i = key.rsplit(".", 1)
        loaders.add(name)
        frames = queue(case, name, int(i), recorded)
        assert [case.records.paths(frame) for frame in frames] == recorded["files"], key
        stamps = [[image.stamp / 1e6 for image in case.records.images(frame)] for frame in frames]
        np.testing.assert_allclose(np.ravel(stamps), np.ravel(recorded["timestamps"]), rtol=0, atol=1e-6)
        if key in case.matrices:
            found = reference2image(case.records, int(i), frames).reshape(-1, 4, 4)
            np.testing.assert_allclose(found, case.matrices[key], rtol=1e-5, atol=1e-4, err_msg=key)
    assert len(loaders) >= 6


def test_every_sixth_set_is_a_key_frame(case):
    records = case.records
    for i in range(len(records)):
        for k, image_set in enumerate(previous_sets(records, i)[5::6]):
            assert image_set.tolist() == records.cameras(i - k - 1).tolist()


def test_training_boxes(case):
    for i, wanted in case.queues["annotations"].items():
        boxes, labels = training_boxes(case.records, int(i), case.classes, PC_RANGE)
        bottom = boxes.copy()
        bottom[:, 2] -= boxes[:, 5] / 2
        assert labels.tolist() == wanted["labels"]
        np.testing.assert_allclose(bottom, np.reshape(wanted["boxes"], (-1, 9)), rtol=1e-6, atol=1e-5)
