"""Ground truth of made-up key frames: boxes in base_link, voxels that cameras see, depths of lidar points."""

import types

import numpy as np
import pytest
import torch
from made_up_labels import make_labels
from nuscenes_root import VERSION

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.config import BevAugmentationConfig, ImageConfig
from bev_perception.data.augment import BevDraw
from bev_perception.data.lidar_depth import project_lidar
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, labels_path, write_labels
from bev_perception.data.records import open_records
from bev_perception.families.bevdet.config import DepthConfig, GridConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import NO_DEPTH
from bev_perception.families.bevdet.truths import STRIDE, DetectionTruths, VoxelTruths, lidar_depths
from bev_perception.geometry import intrinsics_4x4, invert_transform, transform_points
from bev_perception.strict import ConfigError
from bev_perception.supervision.truths import Sight

STILL = BevDraw(0.0)
SIZE = (225, 400)  # of the made-up images


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_records(synthetic_nuscenes, VERSION)


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """Labels of the first key frame."""
    folder = tmp_path_factory.mktemp("labels")
    write_labels(labels_path(records.root, records.scenes[0], records.tokens[0], folder), make_labels(records, 0))
    return folder


def config(classes=NUSCENES_CLASSES, scale=(1.0, 1.0), reach=51.2, voxel=0.4, **recipe):
    grid = GridConfig((-reach, -reach, -5.0, reach, reach, 3.0), (reach / 64, reach / 64, 8.0))
    if "free" in classes:
        grid = GridConfig((-40.0, -40.0, -1.0, 40.0, 40.0, 5.4), (voxel, voxel, voxel))
    return types.SimpleNamespace(
        name="some",
        class_names=classes,
        image=ImageConfig(*SIZE),
        head=types.SimpleNamespace(
            grid=grid, depth=DepthConfig(1.0, 60.0, 0.5), occupancy=types.SimpleNamespace(heights=0)
        ),
        training=types.SimpleNamespace(family=BEVDetRecipe(**recipe), bev=BevAugmentationConfig(scale=scale)),
    )


def sight(records, i, world=STILL):
    images = records.images(records.cameras(i))
    ego2image = [
        intrinsics_4x4(image.calibration.intrinsics) @ invert_transform(image.sensor2global) @ records.ego2global(i)
        for image in images
    ]
    return Sight(world, np.stack(ego2image), SIZE)


def test_boxes_are_in_base_link(records):
    annotations = records.annotations(1)
    truth = DetectionTruths(config(reach=200.0), records).read(1, sight(records, 1))
    kept = annotations.valid & np.isin(annotations.names, NUSCENES_CLASSES)
    centers = transform_points(records.lidar2ego(1), annotations.boxes[kept, :3])
    np.testing.assert_allclose(truth.boxes[:, :3], centers, atol=1e-4)
    np.testing.assert_allclose(truth.boxes[:, 3:6], annotations.boxes[kept, 3:6], atol=1e-5)
    assert [NUSCENES_CLASSES[label] for label in truth.labels] == annotations.names[kept].tolist()
    turn = truth.boxes[:, 6].numpy() - annotations.boxes[kept, 6]  # the lidar looks to the side
    lidar2ego = records.lidar2ego(1)
    np.testing.assert_allclose(np.exp(1j * turn), lidar2ego[0, 0] + 1j * lidar2ego[1, 0], atol=1e-4)
    speeds = np.linalg.norm(np.nan_to_num(annotations.velocities[kept]), axis=1)
    np.testing.assert_allclose(truth.boxes[:, 7:9].norm(dim=1), speeds, atol=1e-4)
    assert truth.depths is None


def test_boxes_beyond_the_grid_are_left_out_after_the_world_is_changed(records):
    everything = DetectionTruths(config(reach=200.0), records).read(1, sight(records, 1)).boxes
    reach = float(everything[:, :2].abs().max(dim=1).values.median()) + 0.01
    near = (everything[:, :2].abs() < reach).all(dim=1)
    assert 0 < near.sum() < len(near)
    truths = DetectionTruths(config(reach=reach), records)
    torch.testing.assert_close(truths.read(1, sight(records, 1)).boxes, everything[near])
    flipped = truths.read(1, sight(records, 1, BevDraw(0.0, flip_x=True))).boxes
    torch.testing.assert_close(flipped[:, :2], everything[near][:, :2] * torch.tensor([-1.0, 1.0]))
    larger = truths.read(1, sight(records, 1, BevDraw(0.0, scale=1.05)))
    assert len(larger.boxes) == ((1.05 * everything[:, :2]).abs() < reach).all(dim=1).sum()
    assert DetectionTruths(config(classes=("unicorn",)), records).read(1, sight(records, 1)) is None


def test_depths_of_lidar_points(records):
    seen = sight(records, 1, BevDraw(0.3))  # a change of the world leaves the images as they are
    lidar2image = seen.reference2image @ records.lidar2ego(1)
    depths = lidar_depths(records.lidar_points(1), lidar2image, SIZE, DepthConfig(1.0, 40.0, 0.5))
    assert (depths > 0).sum() > 20 and depths.max() < 40
    u, v, distance = project_lidar(records.lidar_points(1), lidar2image)
    for camera, row, column in np.argwhere(depths > 0):
        here = (np.rint(u[camera]) == column) & (np.rint(v[camera]) == row) & (distance[camera] >= 1)
        assert distance[camera][here].min() == pytest.approx(depths[camera, row, column])
    bins = DetectionTruths(config(depth_weight=3.0), records).read(1, seen).depths
    assert bins.shape == (6, 256 // STRIDE, 416 // STRIDE)  # of the padded images
    cells = np.argwhere(depths > 0) // [1, STRIDE, STRIDE]
    assert (bins[tuple(cells.T)] != NO_DEPTH).all()
    assert (bins != NO_DEPTH).sum() >= len(np.unique(cells, axis=0))


class TestVoxels:
    def test_labels_are_mirrored_with_the_world(self, records, folder):
        labels = make_labels(records, 0)
        truths = VoxelTruths(config(OCC3D_CLASSES, depth_weight=0.05), records, folder)
        still = truths.read(0, sight(records, 0))
        np.testing.assert_array_equal(still.semantics, labels.semantics)
        np.testing.assert_array_equal(still.counted, labels.mask_camera)
        assert (still.depths >= 0).any()
        flipped = truths.read(0, sight(records, 0, BevDraw(0.0, flip_x=True)))
        np.testing.assert_array_equal(flipped.semantics, labels.semantics[::-1])
        flipped = truths.read(0, sight(records, 0, BevDraw(0.0, flip_y=True)))
        np.testing.assert_array_equal(flipped.semantics, labels.semantics[:, ::-1])
        np.testing.assert_array_equal(flipped.counted, labels.mask_camera[:, ::-1])

    def test_what_nobody_knows_does_not_count(self, records, tmp_path):
        labels = make_labels(records, 0)
        labels.semantics[30, 30] = UNKNOWN_LABEL
        path = labels_path(records.root, records.scenes[0], records.tokens[0], tmp_path)
        write_labels(path, labels)
        counted = VoxelTruths(config(OCC3D_CLASSES), records, tmp_path).read(0, sight(records, 0)).counted
        assert not counted[30, 30].any() and counted[31, 30].all() and not counted[0].any()
        everything = VoxelTruths(config(OCC3D_CLASSES, camera_mask=False), records, tmp_path)
        assert everything.read(0, sight(records, 0)).counted.sum() == labels.semantics.size - 16

    def test_labels_without_a_mask(self, records, tmp_path):
        path = labels_path(records.root, records.scenes[0], records.tokens[0], tmp_path)
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, semantics=make_labels(records, 0).semantics)
        with pytest.raises(ConfigError, match="holds no mask_camera"):
            VoxelTruths(config(OCC3D_CLASSES), records, tmp_path).read(0, sight(records, 0))

    def test_grids_differ(self, records, folder):
        with pytest.raises(ConfigError, match=r"change head\.grid"):
            VoxelTruths(config(OCC3D_CLASSES, voxel=0.8), records, folder)

    def test_voxels_cannot_be_scaled(self, records, folder):
        with pytest.raises(ConfigError, match=r"training\.bev\.scale"):
            VoxelTruths(config(OCC3D_CLASSES, scale=(0.9, 1.1)), records, folder)
