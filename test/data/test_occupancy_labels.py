"""Files of occupancy labels: the real one, our own, and damaged ones."""

import resource

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import (
    OccupancyLabels,
    check_classes,
    labels_path,
    read_labels,
    unknown_as_free,
    write_labels,
)
from bev_perception.strict import ConfigError
from bev_perception.types import OCC3D_GRID


def random_labels(seed=0, instances=True):
    rng = np.random.default_rng(seed)
    semantics = rng.integers(18, size=OCC3D_GRID.shape, dtype=np.uint8)
    masks = (rng.random((2, *OCC3D_GRID.shape)) < 0.5) if instances else (None, None)
    ids = rng.integers(300, size=OCC3D_GRID.shape).astype(np.int16) if instances else None
    return OccupancyLabels(semantics, *masks, ids)


@pytest.mark.parametrize("instances", [True, False])
def test_what_is_written_is_read(tmp_path, instances):
    labels = random_labels(instances=instances)
    path = labels_path(tmp_path, "scene-0001", "abc", "mine")
    assert path == tmp_path / "mine" / "scene-0001" / "abc" / "labels.npz"
    write_labels(path, labels)
    found = read_labels(path)
    assert [p.name for p in path.parent.iterdir()] == ["labels.npz"]
    for name, array in vars(labels).items():
        other = getattr(found, name)
        assert (array is None) == (other is None)
        assert array is None or (array.dtype == other.dtype and np.array_equal(array, other))


def test_a_folder_of_its_own_need_not_be_under_the_dataroot(tmp_path):
    assert labels_path(tmp_path / "root", "s", "t", tmp_path / "x") == tmp_path / "x" / "s" / "t" / "labels.npz"
    assert labels_path(tmp_path, "s", "t") == tmp_path / "gts" / "s" / "t" / "labels.npz"


def test_the_real_file(nuscenes_root):
    files = sorted(nuscenes_root.glob("gts/*/*/labels.npz"))
    if not files:
        pytest.skip(f"no occupancy labels under {nuscenes_root}/gts")
    for file in files:
        labels = read_labels(file)
        assert labels.semantics.dtype == np.uint8 and labels.semantics.max() == len(OCC3D_CLASSES) - 1
        assert labels.mask_camera.dtype == labels.mask_lidar.dtype == bool
        assert 0.01 < labels.mask_camera.mean() < labels.mask_lidar.mean() < 0.5
        assert labels.instances is None
        occupied = labels.semantics != 17
        road = labels.semantics == OCC3D_CLASSES.index("driveable_surface")
        assert road[100:].any() and road.any((0, 1)).argmax() < occupied.any((0, 1)).nonzero()[0].mean()  # x, y, z


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK garbage", "is damaged"),
        (b"", "is damaged"),
        ({"mask_lidar": np.zeros(OCC3D_GRID.shape)}, "no array 'semantics' but mask_lidar"),
        ({"semantics": np.zeros((4, 4, 4), np.uint8)}, r"semantics is uint8 of shape \(4, 4, 4\)"),
        ({"semantics": np.zeros(OCC3D_GRID.shape)}, "semantics is float64"),
        ({"semantics": np.ones(OCC3D_GRID.shape, bool)}, "semantics is bool"),  # a mask in its place
        ({"semantics": np.full(OCC3D_GRID.shape, 300)}, "semantics holds values from 300 to 300; .* 0 to 255"),
        ({"semantics": np.full(OCC3D_GRID.shape, -1)}, "semantics holds values from -1 to -1; .* 0 to 255"),
        ({"semantics": np.array([{}], object)}, "is damaged"),  # would have to be unpickled
        (
            {"semantics": np.zeros(OCC3D_GRID.shape, np.uint8), "mask_camera": np.full(OCC3D_GRID.shape, 256)},
            "mask_camera holds values from 256 to 256; .* 0 to 1",
        ),
        (
            {"semantics": np.zeros(OCC3D_GRID.shape, np.uint8), "instances": np.full(OCC3D_GRID.shape, 1 << 40)},
            "instances holds values .* 0 to 32767",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "labels.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(NuScenesError, match=message):
        read_labels(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 18, 17), r"gts hold the classes 0, 17, 18, but .* 18 classes, the last of which \(17, free\)"),
        ((4, 16), r"gts hold the classes 4, 16, but"),  # OpenOcc's, where 16 is free
        ((254, 17), "gts hold the classes 17, 254, but"),
        ((255, 16), "gts hold the classes 16, but"),
    ],
)
def test_labels_of_other_classes_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        check_classes(np.array(values, np.uint8), OCC3D_CLASSES, "gts")


@pytest.mark.parametrize("values", [(17,), (0, 17), (255, 17, 3), (255,)])
def test_unknown_voxels_belong_to_the_labels(values):
    semantics = np.array(values, np.uint8)
    check_classes(semantics, OCC3D_CLASSES, "gts")
    assert unknown_as_free(semantics, OCC3D_CLASSES).tolist() == [17 if v == 255 else v for v in values]
    assert semantics.tolist() == list(values)


def test_a_truncated_file_and_a_bare_array_are_damaged(tmp_path):
    path = tmp_path / "labels.npz"
    write_labels(path, random_labels())
    whole = path.read_bytes()
    for share in (0.2, 0.6, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(NuScenesError, match="is damaged"):
            read_labels(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(NuScenesError, match="is damaged"):
        read_labels(path)


def test_bytes_flipped_inside_an_array_are_found(tmp_path):
    path = tmp_path / "labels.npz"
    write_labels(path, random_labels())
    content = bytearray(path.read_bytes())
    for at in range(2000, 2100):
        content[at] ^= 0x5A
    path.write_bytes(bytes(content))
    with pytest.raises(NuScenesError, match="is damaged"):
        read_labels(path)


def test_missing_files_are_named_with_the_remedy(tmp_path):
    with pytest.raises(NuScenesError, match=r"no occupancy labels at .*labels.npz; unpack the labels"):
        read_labels(tmp_path / "labels.npz")


def test_what_is_not_asked_for_is_not_unpacked(tmp_path):
    path = tmp_path / "labels.npz"
    semantics = random_labels().semantics
    np.savez_compressed(path, semantics=semantics, flow=np.zeros((200, 200, 16, 200), np.float16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.testing.assert_array_equal(read_labels(path).semantics, semantics)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; flow has 256,000
