"""Objects from boxes: what the parity case does not show, and the command that writes them for a whole split."""

import numpy as np
import pytest
from made_up_labels import make_labels, write_all_labels
from nuscenes_root import VERSION

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import labels_path, read_labels
from bev_perception.data.panoptic import instances_from_boxes, prepare_panoptic
from bev_perception.data.records import open_split
from bev_perception.types import OCC3D_GRID

FREE = OCC3D_CLASSES.index("free")
CAR, CONE, ROAD = (OCC3D_CLASSES.index(name) for name in ("car", "traffic_cone", "driveable_surface"))


def grid_with(*voxels):
    """Free space, but for (i, j, k, class)."""
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    for i, j, k, label in voxels:
        semantics[i, j, k] = label
    return semantics


def middle(i, j, k):
    return (np.array([i, j, k]) + 0.5) * 0.4 + np.array(OCC3D_GRID.origin)


def box_at(i, j, k, size=0.5):
    return [*middle(i, j, k), size, size, size, 0.0]


def instances(semantics, boxes, names):
    return instances_from_boxes(semantics, np.array(boxes, float).reshape(-1, 7), names, np.eye(4))


def test_earlier_boxes_come_first_and_only_boxes_with_voxels_get_a_number():
    semantics = grid_with((10, 10, 5, CAR), (20, 10, 5, CAR))
    boxes = [box_at(50, 50, 5), box_at(20, 10, 5), box_at(10, 10, 5), box_at(20, 10, 5)]
    found = instances(semantics, boxes, ["car"] * 4)
    assert found[20, 10, 5] == 1 and found[10, 10, 5] == 2 and found.max() == 2
    assert np.count_nonzero(found) == 2


def test_a_box_takes_its_own_class_alone_and_stuff_is_one_object_a_class():
    semantics = grid_with((10, 10, 5, ROAD), (90, 90, 5, ROAD), (11, 10, 5, CAR))
    found = instances(semantics, [box_at(10, 10, 5, 2.0)], ["car"])
    assert found[11, 10, 5] == 1 and found[10, 10, 5] == found[90, 90, 5] == 2
    assert instances(semantics, [box_at(10, 10, 5, 2.0)], ["animal"])[11, 10, 5] == 0


def test_voxels_beside_a_box_belong_to_the_nearest_one_of_their_class():
    row = [(i, 10, 5, CAR) for i in range(10, 15)]
    found = instances(grid_with(*row), [box_at(10, 10, 5), box_at(14, 10, 5)], ["car", "car"])
    assert found[10:15, 10, 5].tolist() == [1, 1, 0, 2, 2]  # the middle one is out of both, even enlarged
    near = instances(grid_with(*row[:3]), [box_at(10, 10, 5), box_at(12, 10, 5)], ["car", "car"])
    assert near[10:13, 10, 5].tolist() == [1, 1, 2]  # a tie: the earlier
    other = instances(grid_with(*row[:2]), [box_at(10, 10, 5)], ["traffic_cone"])
    assert not other.any()


def test_a_box_without_voxels_takes_none_when_it_is_enlarged():
    semantics = grid_with((12, 10, 5, CONE))
    assert not instances(semantics, [box_at(11, 10, 5, 0.3)], ["traffic_cone"]).any()


def test_a_turned_box_in_a_tilted_lidar():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    axes *= np.linalg.det(axes)
    lidar2ego = np.eye(4)
    lidar2ego[:3, :3], lidar2ego[:3, 3] = axes, (1, 2, 0.5)
    semantics = np.full(OCC3D_GRID.shape, CAR, np.uint8)
    box = np.array([1.0, 2, 1, 5, 2, 1.5, 0.7])
    found = instances_from_boxes(semantics, box[None], ["car"], lidar2ego)
    voxels = np.argwhere(found)
    local = np.array([middle(*v) for v in voxels])
    local = (local - lidar2ego[:3, 3]) @ axes - box[:3]  # in the lidar frame, from the box's middle
    c, s = np.cos(box[6]), np.sin(box[6])
    along = local @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    reach = np.abs(along).max(axis=0)
    half = box[3:6] / 2 + 0.4  # it is offered what lies 0.4 m around it, too
    assert (reach <= half + 1e-4).all() and (reach > half - 0.3).all()


def test_more_objects_than_a_byte_holds():
    voxels = [(i, j, 5, CAR) for i in range(0, 200, 10) for j in range(0, 200, 10)][:300]
    found = instances(grid_with(*voxels), [box_at(*v[:3]) for v in voxels], ["car"] * 300)
    assert found.max() == 300 and found.dtype == np.int16
    assert instances(grid_with(voxels[0]), [box_at(*voxels[0][:3])], ["car"]).dtype == np.uint8


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, VERSION, "mini_val").of_scenes(["scene-0103"])


@pytest.fixture(scope="module")
def labels(records, tmp_path_factory):
    return write_all_labels(records, tmp_path_factory.mktemp("labels"))


def test_a_split_is_prepared_and_what_is_there_is_kept(records, labels, tmp_path, caplog):
    assert prepare_panoptic(records, labels, tmp_path, threads=2) == len(records)
    path = labels_path(tmp_path, records.scenes[2], records.tokens[2], "")
    found, source = read_labels(path), make_labels(records, 2)
    annotations = records.annotations(2)
    wanted = instances_from_boxes(source.semantics, annotations.boxes, annotations.names.tolist(), records.lidar2ego(2))
    np.testing.assert_array_equal(found.instances, wanted)
    np.testing.assert_array_equal(found.semantics, source.semantics)
    np.testing.assert_array_equal(found.mask_camera, source.mask_camera)
    assert len(np.unique(wanted)) > 5 and (wanted[source.semantics == FREE] == 0).all()

    whole = path.read_bytes()
    other = labels_path(tmp_path, records.scenes[3], records.tokens[3], "")
    stamp = other.stat().st_mtime_ns
    path.write_bytes(whole[:-30])  # what another program may have left
    assert prepare_panoptic(records, labels, tmp_path, threads=1) == 1
    assert path.read_bytes() == whole and other.stat().st_mtime_ns == stamp


def test_missing_labels_are_named_after_the_others_are_written(records, labels, tmp_path):
    few = tmp_path / "few"
    for i in (0, 4):
        target = labels_path(few, records.scenes[i], records.tokens[i], "")
        target.parent.mkdir(parents=True)
        target.write_bytes(labels_path(labels, records.scenes[i], records.tokens[i], "").read_bytes())
    with pytest.raises(NuScenesError, match=r"3 of 5 key frames .* \(2 were written\), .*no occupancy labels at"):
        prepare_panoptic(records, few, tmp_path / "out", threads=1)
    assert len(list((tmp_path / "out").glob("*/*/labels.npz"))) == 2


def test_command(records, labels, tmp_path, capsys):
    arguments = ["--data", records.root, "--version", VERSION, "--split", "mini_val", "--labels", labels]
    command = ["prepare", "panoptic-occ", *arguments, "--out", tmp_path / "out", "--threads", "1"]
    assert cli.main([str(a) for a in command]) == 1  # the labels are of one of the two scenes
    assert "5 of 10 key frames have no panoptic labels now (5 were written)" in capsys.readouterr().err
    write_all_labels(open_split(records.root, VERSION, "mini_val").of_scenes(["scene-0916"]), labels)
    assert cli.main([str(a) for a in command]) == 0
    assert "wrote 5 files of labels" in capsys.readouterr().out
