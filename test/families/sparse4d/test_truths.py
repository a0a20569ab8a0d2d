"""Objects and depths of made-up key frames, and the order in which training reads them."""

import dataclasses
import itertools

import numpy as np
import pytest

from bev_perception.data.augment import BevDraw, augment_matrices
from bev_perception.data.queues import stored_cameras
from bev_perception.data.records import Annotations
from bev_perception.families.sparse4d.order import order_of
from bev_perception.families.sparse4d.truths import InstanceTruths, training_objects
from bev_perception.supervision.order import Shuffled
from bev_perception.supervision.truths import Sight

from .kit import data_of, maps_config, records_of, small_config

CLASSES = ("car", "pedestrian")
STILL = BevDraw(0.0)


def annotations(**changes):
    values = {
        "boxes": np.array([[10.0, 0, 0, 4, 2, 1.5, 4.0], [0, 50.0, 0, 1, 1, 2, 0], [3.0, 3, 0, 1, 1, 1, 0]]),
        "velocities": np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 0.0]]),
        "names": np.array(["car", "pedestrian", "animal"]),
        "lidar_points": np.array([5, 1, 9]),
        "radar_points": np.array([0, 0, 0]),
        "instances": np.array([7, 8, 9]),
    }
    return Annotations(**values | changes)


def test_objects():
    boxes, labels, ids = training_objects(annotations(), CLASSES, 55.0, STILL)
    assert labels.tolist() == [0, 1]
    assert ids.tolist() == [7, 8]
    assert boxes[1, 7:].tolist() == [0.0, 0.0]  # unknown
    assert boxes[0, 6] == pytest.approx(4.0 - 2 * np.pi)


def test_objects_without_lidar_points_and_far_ones_are_left_out():
    assert training_objects(annotations(), CLASSES, 49.0, STILL)[2].tolist() == [7]
    unseen = annotations(lidar_points=np.array([0, 1, 9]), radar_points=np.array([3, 0, 0]))
    assert training_objects(unseen, CLASSES, 55.0, STILL)[2].tolist() == [8]


def sight_of(records, index, world=STILL):
    cameras = stored_cameras(records, [records.cameras(index)])
    return Sight(world, cameras.global2image[0] @ records.lidar2global(index), (900, 1600))


def test_depths_are_of_the_image_and_do_not_follow_the_world(synthetic_nuscenes):
    records = records_of(synthetic_nuscenes)
    truths = InstanceTruths(small_config(), records)
    plain, turned = (truths.read(1, sight_of(records, 1, BevDraw(rotation))) for rotation in (0.0, 0.3))
    strides = [8, 16, 32]  # the encoder begins at 1/8
    assert [tuple(level.shape) for level in plain.depths] == [(6, 900 // s, 1600 // s) for s in strides]
    for a, b in zip(plain.depths, turned.depths, strict=True):
        assert np.array_equal(a, b)
    assert not np.allclose(plain.boxes[:, :2], turned.boxes[:, :2])
    image = sight_of(records, 1).reference2image
    moved = augment_matrices(image, BevDraw(0.3))
    middle = [np.c_[t.boxes[:, :3], np.ones(len(t.boxes))].T for t in (plain, turned)]
    np.testing.assert_allclose(moved @ middle[1], image @ middle[0], atol=1e-2)


def test_frames_without_boxes_stay_in_their_sequence(synthetic_nuscenes):
    records = records_of(synthetic_nuscenes)
    near = {"max_distance": 0.1}
    empty = InstanceTruths(small_config(head=near), records).read(0, sight_of(records, 0))
    assert empty.boxes.shape == (0, 9)
    config = maps_config()
    config = dataclasses.replace(config, head=dataclasses.replace(config.head, **near))
    assert InstanceTruths(config, records).read(0, sight_of(records, 0)) is None


def test_the_order_follows_from_the_seed(synthetic_nuscenes):
    """Epochs in any order are the same; a slot goes on where it was; a sequence is changed alike."""
    config = small_config()
    data = data_of(config, synthetic_nuscenes)
    order = order_of(config, data, slots=2, seed=3)
    assert len(order) == len(data) // 2
    epochs = [order.epoch(epoch) for epoch in range(4)]
    again = order_of(config, data, slots=2, seed=3)
    assert [again.epoch(epoch) for epoch in (3, 2, 1, 0)] == epochs[::-1]
    assert order_of(config, data, slots=2, seed=4).epoch(0) != epochs[0]
    draws = [row[0] for epoch in epochs for row in epoch]
    assert len({draw.seed for draw in draws}) == len(draws)
    scene = {frame: k for k, frames in enumerate(data.sequences()) for frame in frames}
    for a, b in itertools.pairwise(draws):
        if a.augmentation == b.augmentation:
            assert scene[a.index] == scene[b.index] and a.index != b.index


def test_version_1_takes_frames_in_random_order(synthetic_nuscenes):
    config = maps_config()
    data = data_of(config, synthetic_nuscenes)
    assert isinstance(order_of(config, data, 2, 0), Shuffled)
