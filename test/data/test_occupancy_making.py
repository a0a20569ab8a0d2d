"""Occupancy labels of a made-up scene whose truth is known, and of data sets: resumed, refused, labelled by points."""

import json

import numpy as np
import pytest
from nuscenes_root import VERSION, write_nuscenes

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.folders import FolderError
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, labels_path, read_labels
from bev_perception.data.occupancy_making import FREE, GROUND, PlacedBox, gather, make_labels
from bev_perception.data.occupancy_preparing import prepare_occupancy
from bev_perception.data.records import open_records
from bev_perception.data.scene_scans import UNLABELLED, point_labels, read_scans
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.strict import ConfigError
from bev_perception.types import OCC3D_GRID

CAR = OCC3D_CLASSES.index("car")
VEGETATION = OCC3D_CLASSES.index("vegetation")
SIZE = np.array([4.0, 2.0, 1.6])
UP = make_transform(np.eye(3), np.array([0.0, 0, 1.8]))  # the lidar on the vehicle, which stands at the origin


def voxel(x, y, z):
    return tuple(np.floor((np.array([x, y, z]) - OCC3D_GRID.origin) / OCC3D_GRID.resolution).astype(int))


def car_at(x):
    return PlacedBox(7, CAR, make_transform(rotation_from_yaw(0.2), np.array([x, 6.0, 0.8])), SIZE)


def surface(box, rng):
    """Points [n, 3] on the sides of a box, m in the global frame."""
    local = rng.uniform(-1, 1, (3000, 3))
    axis = rng.integers(0, 2, 3000)
    local[np.arange(3000), axis] = np.sign(local[np.arange(3000), axis])
    return local * box.size / 2 @ box.box2global[:3, :3].T + box.box2global[:3, 3]


@pytest.fixture(scope="module")
def made():
    """Flat ground, a wall 15 m ahead of which half is labelled as vegetation, and a car that drives along."""
    rng = np.random.default_rng(0)
    ground = np.stack([*rng.uniform(-20, 20, (2, 20000)), np.zeros(20000)], axis=1)
    ground = ground[np.abs(ground[:, :2]).max(axis=1) > 3]
    ground = ground[(np.abs(ground[:, 0] - 5) > 0.8) | (np.abs(ground[:, 1] + 5) > 0.8)]  # a gap in it, 1.6 m wide
    wall = np.stack([np.full(6000, 15.0), *rng.uniform((-8, 0), (8, 3), (6000, 2)).T], axis=1)
    scans = []
    for x in (-4.0, 0.0, 4.0):
        points = np.concatenate([ground, wall, surface(car_at(x), rng)]) - (0, 0, 1.8)
        labels = np.full(len(points), UNLABELLED, np.uint8)
        labels[len(ground) : len(ground) + 6000] = np.where(wall[:, 1] > 0, VEGETATION, UNLABELLED)
        scans.append((points.astype(np.float32), labels, UP, np.zeros(3), [car_at(x)]))
    intrinsics = np.array([[800.0, 0, 800], [0, 800, 450], [0, 0, 1]])
    forward = make_transform(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([0.0, 0, 1.5]))
    return make_labels(gather(scans), np.eye(4), [car_at(0.0)], [(intrinsics, forward, (1600, 900))])


def test_what_moves_is_where_it_is_now_and_nowhere_else(made):
    car = np.argwhere(made.semantics == CAR) * OCC3D_GRID.resolution + OCC3D_GRID.origin + 0.2
    local = (car - car_at(0.0).box2global[:3, 3]) @ car_at(0.0).box2global[:3, :3]
    assert len(car) > 60 and (np.abs(local) <= SIZE / 2 + 0.45).all()
    assert (
        np.array_equal(made.instances == 7, made.semantics == CAR) and not made.instances[made.semantics != CAR].any()
    )


def test_ground_is_filled_where_ground_is_near(made):
    x = slice(voxel(-15, 0, 0)[0], voxel(14, 0, 0)[0])
    y = slice(voxel(0, -15, 0)[1], voxel(0, 3, 0)[1])
    columns = (made.semantics[x, y] == GROUND).any(axis=2)
    assert columns[:, :10].all()
    assert made.semantics[voxel(5, -5, 0.1)] == GROUND or made.semantics[voxel(5, -5, -0.1)] == GROUND
    assert (made.semantics[voxel(-30, 0, 0)[:2]] == FREE).all()  # far from any


def test_what_nobody_labels_is_unknown_and_the_rest_has_its_label(made):
    assert made.semantics[voxel(15.05, -4, 1.5)] == UNKNOWN_LABEL
    assert made.semantics[voxel(15.05, 4, 1.5)] == VEGETATION


def test_masks_tell_free_from_unseen(made):
    before, behind = voxel(12, -2, 1.2), voxel(18, -2, 1.2)
    assert made.semantics[before] == FREE and made.mask_lidar[before] and made.mask_camera[before]
    assert not made.mask_lidar[behind] and not made.mask_camera[behind]
    back = voxel(-10, -2, 0.7)
    assert made.mask_lidar[back] and not made.mask_camera[back]  # the camera looks ahead


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_nuscenes(tmp_path_factory.mktemp("nuscenes"), key_frames=2, image_size=(80, 45))


def test_a_data_set_is_labelled_and_resumed(root, tmp_path, capsys):
    out = tmp_path / "gts"
    command = ["prepare", "occupancy", "--data", str(root), "--out", str(out), "--workers", "1"]
    assert cli.main(command) == 0
    assert "labels of 4 key frames from 4 scans" in capsys.readouterr().out
    records = open_records(root, VERSION)
    path = labels_path(out, records.scenes[1], records.tokens[1], "")
    labels = read_labels(path)
    assert (labels.semantics == GROUND).sum() > 100 and labels.mask_lidar.any() and labels.mask_camera.any()
    before = path.read_bytes()
    path.unlink()
    (path.parent / "labels.1.part.npz").write_bytes(b"half")
    assert cli.main(command) == 0
    assert "1 key frames from 2 scans, 3 were there already" in capsys.readouterr().out
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    own = tmp_path / "own.yaml"
    own.write_text("labels: own/{name}.bin\nclasses: {0: car}\n")
    with pytest.raises(FolderError, match="other settings"):
        prepare_occupancy(root, VERSION, out, str(own))


def test_labels_of_others_are_not_mixed_with(root, tmp_path):
    (tmp_path / "scene" / "token").mkdir(parents=True)
    (tmp_path / "scene" / "token" / "labels.npz").touch()
    with pytest.raises(FolderError, match="not made by this command"):
        prepare_occupancy(root, VERSION, tmp_path, "boxes")


def test_points_are_labelled_by_files_of_ones_own(root, tmp_path):
    scans = read_scans(root, VERSION)
    scan = scans["scene-0103"][0]
    file = tmp_path / "own.yaml"
    file.write_text("labels: own/{name}.bin\nclasses: {3: vegetation, 4: null}\n")
    (root / "own").mkdir()
    name = scan.path.rsplit("/", 1)[1].split(".")[0]
    np.array([3, 4, 9], np.uint8).tofile(root / "own" / f"{name}.bin")
    labels = point_labels(root, VERSION, str(file))
    assert labels(scan, 3).tolist() == [VEGETATION, UNLABELLED, UNLABELLED]
    with pytest.raises(NuScenesError, match="3 labels for 5 points"):
        labels(scan, 5)
    file.write_text("labels: own/{name}.bin\nclasses: {3: tree}\n")
    with pytest.raises(ConfigError, match="class 3 is 'tree'"):
        point_labels(root, VERSION, str(file))
    with pytest.raises(NuScenesError, match=r"lidarseg\.json is missing"):
        point_labels(root, VERSION, "lidarseg")


def test_lidarseg_is_read_by_its_table(root, tmp_path):
    scan = read_scans(root, VERSION)["scene-0103"][0]
    tables = tmp_path / VERSION
    tables.mkdir()
    (tables / "lidarseg.json").write_text(json.dumps([{"sample_data_token": scan.token, "filename": "a.bin"}]))
    categories = [("noise", 0), ("vehicle.car", 17), ("static.vegetation", 30)]
    (tables / "category.json").write_text(json.dumps([{"name": n, "index": k} for n, k in categories]))
    np.array([0, 17, 30], np.uint8).tofile(tmp_path / "a.bin")
    assert point_labels(tmp_path, VERSION, "lidarseg")(scan, 3).tolist() == [UNLABELLED, CAR, VEGETATION]
