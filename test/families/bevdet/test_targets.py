"""Targets of heatmaps, boxes and depths on grids of a few cells."""

import math

import numpy as np
import pytest
import torch

from bev_perception.families.bevdet.config import CenterPointConfig, DepthConfig, GridConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import NO_DEPTH, depth_labels, draw_heatmap, gaussian_radius, task_targets
from bev_perception.strict import ConfigError
from bev_perception.supervision.samples import BoxTruth

GRID = GridConfig((-10.0, -6.0, -5.0, 10.0, 6.0, 3.0), (1.0, 1.0, 8.0))
TASKS = CenterPointConfig(
    (("a",), ("b", "c")),
    nms=("rotate",) * 2,
    nms_threshold=(0.2,) * 2,
    nms_factor=((1.0,), (1.0, 1.0)),
    nms_radius=(0.0,) * 2,
)


def targets(boxes, labels, recipe=None):
    return task_targets(BoxTruth(torch.tensor(boxes), torch.tensor(labels)), TASKS, GRID, recipe or BEVDetRecipe())


def box(x, y, length=2.0, width=1.0):
    return [x, y, 0.5, length, width, 1.5, 0.3, 4.0, -5.0]


def test_each_task_has_its_boxes_class_by_class():
    first, second = targets([box(1.5, 2.5), box(3.25, -1.5), box(-9.5, 5.5), box(0.5, 0.5)], [2, 0, 1, 1])
    assert first.cells.tolist() == [4 * 20 + 13]
    assert first.codes[0].tolist() == pytest.approx(
        [0.25, 0.5, 0.5, math.log(2), 0, math.log(1.5), math.sin(0.3), math.cos(0.3), 4, -5]
    )
    assert second.cells.tolist() == [11 * 20 + 0, 6 * 20 + 10, 8 * 20 + 11]
    assert (second.heatmap == 1).nonzero().tolist() == [[0, 6, 10], [0, 11, 0], [1, 8, 11]]
    assert first.heatmap.shape == (1, 12, 20)


def test_centres_outside_of_the_grid_are_left_out_but_count_as_objects():
    boxes = [box(10.0, 0.0), box(0.0, 0.0), box(5.0, 0.0)]
    assert targets(boxes, [0, 0, 0])[0].cells.tolist() == [6 * 20 + 10, 6 * 20 + 15]
    assert targets(boxes, [0, 0, 0], BEVDetRecipe(max_objects=2))[0].cells.tolist() == [6 * 20 + 10]
    assert targets([box(-10.5, 0.0)], [0])[0].cells.tolist() == [6 * 20]  # truncated towards zero, as in the reference
    assert targets([box(-11.0, 0.0)], [0])[0].cells.tolist() == []


def test_no_boxes():
    none = task_targets(BoxTruth(torch.zeros(0, 9), torch.zeros(0, dtype=torch.int64)), TASKS, GRID, BEVDetRecipe())
    assert all(len(task.cells) == 0 and not task.heatmap.any() and task.codes.shape == (0, 10) for task in none)


def test_blobs():
    heatmap = draw_heatmap(torch.tensor([[3, 0], [5, 0]]), torch.tensor([2, 1]), torch.tensor([0, 0]), (2, 4, 7))
    assert not heatmap[1].any()

    def blob(steps, radius):
        return math.exp(-(steps**2) / (2 * ((2 * radius + 1) / 6) ** 2))

    row = [0, blob(2, 2), blob(1, 2), 1, max(blob(1, 2), blob(1, 1)), 1, blob(1, 1)]
    assert heatmap[0, 0].tolist() == pytest.approx(row)
    assert heatmap[0, 2, 3] == pytest.approx(blob(2, 2))
    assert not heatmap[0, 3].any()  # beyond the squares of both


def test_radius_by_the_published_formula():
    length, width, o = 7.0, 3.0, 0.1
    total, area = length + width, length * width
    roots = [
        (total + math.sqrt(total**2 - 4 * area * (1 - o) / (1 + o))) / 2,
        (2 * total + math.sqrt(4 * total**2 - 16 * (1 - o) * area)) / 2,
        (-2 * o * total + math.sqrt(4 * o**2 * total**2 + 16 * o * (1 - o) * area)) / 2,
    ]
    found = gaussian_radius(torch.tensor([length]), torch.tensor([width]), o)
    assert found.tolist() == pytest.approx([min(roots)])


class TestDepths:
    def labels(self, values, config, stride=2):
        return depth_labels(torch.tensor(values), stride, config).tolist()

    def test_the_nearest_known_depth_of_a_patch(self):
        depths = np.zeros((4, 6), np.float32)
        depths[0, 0], depths[1, 1] = 9.2, 3.7
        depths[3, 5] = 1.0
        found = depth_labels(torch.from_numpy(depths)[None], 2, DepthConfig(1.0, 60.0, 0.5))
        assert found.tolist() == [[[5, NO_DEPTH, NO_DEPTH], [NO_DEPTH, NO_DEPTH, 0]]]

    @pytest.mark.parametrize(("depth", "label"), [(0.9, NO_DEPTH), (1.0, 0), (2.9, 1), (5.9, 4), (6.0, NO_DEPTH)])
    def test_bins(self, depth, label):
        assert self.labels([[depth] * 2] * 2, DepthConfig(1.0, 6.0, 1.0)) == [[label]]

    def test_logarithmic_bins(self):
        config = DepthConfig(1.0, 9.0, 2.0, logarithmic=True)  # 4 depths: 1, 2, 4, 8
        found = [self.labels([[depth] * 2] * 2, config)[0][0] for depth in (0.99, 1.01, 1.99, 2.01, 8.1, 15.9, 16.1)]
        assert found == [NO_DEPTH, 0, 0, 1, 3, 3, NO_DEPTH]


@pytest.mark.parametrize(
    "settings", [{"gaussian_radius": 0}, {"max_objects": 0}, {"gaussian_overlap": 1.0}, {"depth_weight": -1.0}]
)
def test_impossible_recipes(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BEVDetRecipe(**settings)
