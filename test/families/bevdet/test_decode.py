"""From the maps of the CenterPoint head to boxes, on grids of a few cells."""

import math

import numpy as np
import pytest
import torch

from bev_perception.families.bevdet.centerpoint_head import CHANNELS, PRIOR, CenterPointHead, TaskMaps
from bev_perception.families.bevdet.config import CenterPointConfig, GridConfig
from bev_perception.families.bevdet.decode import decode_boxes
from bev_perception.models.protocol import NotFiniteError
from bev_perception.strict import ConfigError

GRID = GridConfig((-8.0, -4.0, -5.0, 8.0, 4.0, 3.0), (2.0, 2.0, 8.0))
ROWS, COLUMNS = 4, 8
BOX = {"reg": (0.25, 0.75), "height": (1.5,), "dim": (math.log(4), math.log(2), 0.0), "rot": (1.0, 0.0), "vel": (3, -1)}


def maps(boxes, classes=2):
    """Maps of one task; boxes: (row, column, class, score, {branch: values})."""
    fields = {name: torch.zeros(1, channels, ROWS, COLUMNS) for name, channels in CHANNELS.items()}
    fields["heatmap"] = torch.full((1, classes, ROWS, COLUMNS), -9.0)
    for row, column, label, score, values in boxes:
        fields["heatmap"][0, label, row, column] = math.log(score / (1 - score))
        for name, value in values.items():
            fields[name][0, :, row, column] = torch.tensor(value)
    return TaskMaps(**fields)


def settings(tasks=(("a", "b"),), **changes):
    """Settings without scales."""
    defaults = {
        "nms": ("rotate",) * len(tasks),
        "nms_threshold": (0.2,) * len(tasks),
        "nms_factor": tuple((1.0,) * len(task) for task in tasks),
        "nms_radius": (0.0,) * len(tasks),
    }
    return CenterPointConfig(tasks, **{**defaults, **changes})


def decode(*tasks, finite=True, config=None, **changes):
    config = config or settings(**changes)
    return decode_boxes(tasks, torch.tensor(finite), config, GRID, tuple("ab"))


def test_a_box():
    found = decode(maps([(1, 3, 1, 0.9, BOX)]))
    assert found.centers.tolist() == [pytest.approx([-8 + 2 * 3.25, -4 + 2 * 1.75, 1.5])]  # z is the box's middle
    assert found.sizes[0] == pytest.approx([4, 2, 1])
    assert found.yaws[0] == pytest.approx(math.pi / 2)
    assert found.velocities[0] == pytest.approx([3, -1])
    assert found.scores[0] == pytest.approx(0.9)
    assert (found.labels[0], found.labels.dtype) == (1, np.int64)


def test_low_scores_and_far_boxes_are_left_out():
    low = (0, 0, 0, 0.1 - 1e-4, BOX)
    high = (2, 5, 0, 0.8, {**BOX, "height": (10.1,)})
    assert len(decode(maps([low, high]))) == 0


def test_neighbours_of_all_classes_of_a_task_suppress_each_other():
    pair = [(1, 3, 0, 0.8, BOX), (1, 4, 1, 0.9, {**BOX, "rot": (0.0, 1.0)})]  # they share 2 of 14 m^2
    assert len(decode(maps(pair), nms_threshold=(0.15,))) == 2
    assert decode(maps(pair), nms_threshold=(0.14,)).labels.tolist() == [1]
    alone = settings((("a",), ("b",)), nms_threshold=(0.14, 0.14))
    found = decode(maps(pair[:1], 1), maps([(1, 4, 0, 0.9, BOX)], 1), config=alone)
    assert found.labels.tolist() == [1, 0]  # best first, over the tasks
    assert found.scores == pytest.approx([0.9, 0.8])


def test_sizes_are_scaled_only_while_they_are_compared():
    pair = [(1, 3, 0, 0.8, BOX), (1, 4, 1, 0.9, BOX)]  # side by side, 2 m apart
    assert len(decode(maps(pair))) == 2
    found = decode(maps(pair), nms_factor=((2.0, 2.0),))
    assert found.labels.tolist() == [1]
    assert found.sizes[0] == pytest.approx([4, 2, 1])
    assert len(decode(maps(pair), nms_factor=((2.0, 0.1),))) == 2


def test_circles_take_the_squared_distance():
    three = [(1, 3, 0, 0.8, BOX), (1, 4, 1, 0.9, BOX), (1, 5, 0, 0.7, BOX)]  # 2 m apart
    for squared, labels in ((3.9, [1, 0, 0]), (4.1, [1])):
        assert decode(maps(three), nms=("circle",), nms_radius=(squared,)).labels.tolist() == labels


def test_limits_on_candidates_and_boxes():
    row = [(1, column, column % 2, 0.9 - column / 100, BOX) for column in range(COLUMNS)]
    assert len(decode(maps(row))) == COLUMNS
    assert decode(maps(row), post_max=3).scores == pytest.approx([0.9, 0.89, 0.88])
    assert len(decode(maps(row), max_num=2)) == 2


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(NotFiniteError, match="features or outputs"):
        decode(maps([(1, 3, 1, 0.9, {**BOX, "vel": (math.nan, 0.0)})]))
    with pytest.raises(NotFiniteError, match="features or outputs"):
        decode(maps([(1, 3, 1, 0.9, BOX)]), finite=False)
    with pytest.raises(NotFiniteError, match="infinitely large"):
        decode(maps([(1, 3, 1, 0.9, {**BOX, "dim": (800.0, 0.0, 0.0)})]))


def test_tasks_name_the_classes_of_the_variant():
    split = settings((("a",), ("b", "c")))
    split.check_classes(("a", "b", "c"))
    for names in (("a", "c", "b"), ("a", "b"), ("a", "b", "c", "d")):
        with pytest.raises(ConfigError, match="in its order"):
            split.check_classes(names)


def test_head():
    torch.manual_seed(0)
    head = CenterPointHead(16, settings((("a",), ("b", "c", "d")), shared_channels=8)).eval()
    found = head(torch.randn(2, 16, 5, 6))
    assert [task.heatmap.shape for task in found] == [(2, 1, 5, 6), (2, 3, 5, 6)]
    assert all(task.codes.shape == (2, 10, 5, 6) for task in found)
    assert torch.sigmoid(head.task_heads[1]["heatmap"][-1].bias).tolist() == pytest.approx([PRIOR] * 3)
    keys = head.state_dict().keys()
    assert {"shared_conv.conv.weight", "shared_conv.bn.bias", "task_heads.1.vel.0.bn.running_var"} <= keys
    assert {"task_heads.0.heatmap.1.bias", "task_heads.0.reg.0.conv.weight"} <= keys
