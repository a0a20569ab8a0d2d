"""Suppression of boxes: the kernel against the reference, and the reference against clipped polygons."""

import math

import numpy as np
import pytest
import shapely
import torch

from bev_perception.geometry import box_corners
from bev_perception.ops import rotated_nms as module
from bev_perception.ops.rotated_nms import circle_nms, rotated_iou, rotated_nms, suppress_reference


@pytest.fixture
def without_kernel(monkeypatch):
    """As where numba is missing."""
    monkeypatch.setattr(module, "_compiled_kernel", lambda: None)


def random_boxes(seed, n, spread=6.0):
    """[n, 5] float64, some of them along the axes, some with a corner or an edge in common."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(-spread, spread, (n, 2)), rng.uniform(0.1, 5, (n, 2)), rng.uniform(-7, 7, (n, 1))], axis=1
    )
    boxes[::5, 4] = rng.integers(-4, 5, len(boxes[::5])) * math.pi / 2
    boxes[1::7] = np.rint(boxes[1::7])
    boxes[1::7, 2:4] = np.maximum(boxes[1::7, 2:4], 1)
    return torch.from_numpy(boxes)


def polygons(boxes):
    boxes = boxes.numpy()
    n = len(boxes)
    corners = box_corners(np.c_[boxes[:, :2], np.zeros(n)], np.c_[boxes[:, 2:4], np.ones(n)], boxes[:, 4])
    return shapely.polygons(corners[:, :4, :2])


def clipped_iou(boxes, others):
    a, b = polygons(boxes)[:, None], polygons(others)[None]
    intersection = shapely.area(shapely.intersection(a, b))
    return intersection / (shapely.area(a) + shapely.area(b) - intersection)


class TestKernelAgainstReference:
    @pytest.mark.parametrize("threshold", [0.05, 0.125, 0.2, 0.5])
    @pytest.mark.parametrize("most", [3, 500])
    def test_keeps_the_same(self, monkeypatch, threshold, most):
        for seed in range(5):
            boxes = random_boxes(seed, 150)
            scores = torch.rand(150, generator=torch.Generator().manual_seed(seed))
            fast = rotated_nms(boxes, scores, threshold, most)
            with monkeypatch.context() as patch:
                patch.setattr(module, "_compiled_kernel", lambda: None)
                slow = rotated_nms(boxes, scores, threshold, most)
            assert fast.tolist() == slow.tolist()
            assert 0 < len(fast) <= most
            assert len(fast) < 150

    def test_no_boxes(self):
        assert rotated_nms(torch.zeros(0, 5), torch.zeros(0), 0.2, 5).tolist() == []

    def test_copies_and_boxes_without_area(self):
        boxes = torch.tensor([[1.0, 2, 4, 2, 0.3], [1, 2, 4, 2, 0.3], [1, 2, 4, 2, 0.3 + math.pi], [1, 2, 0, 0, 0]])
        assert rotated_nms(boxes, torch.tensor([0.1, 0.9, 0.5, 0.2]), 0.99, 5).tolist() == [1, 3]


class TestReference:
    def test_overlaps_of_clipped_polygons(self):
        boxes, others = random_boxes(1, 120), random_boxes(2, 90)
        found = rotated_iou(boxes, others)
        assert (found > 0).double().mean() > 0.15
        np.testing.assert_allclose(found, clipped_iou(boxes, others), atol=1e-9, rtol=0)

    def test_far_from_the_origin_and_nearly_alike(self):
        boxes = random_boxes(3, 40)
        other = boxes + 1e-7 * torch.from_numpy(np.random.default_rng(0).normal(size=boxes.shape))
        for shift in (0.0, 50.0):
            offset = torch.tensor([shift, -shift, 0, 0, 0], dtype=torch.float64)
            np.testing.assert_allclose(
                rotated_iou(boxes + offset, other + offset), clipped_iou(boxes + offset, other + offset), atol=1e-9
            )

    def test_by_hand(self):
        box = torch.tensor([[0.0, 0.0, 4.0, 2.0, 0.0]])
        others = torch.tensor(
            [
                [0, 0, 4, 2, 0],
                [0, 0, 4, 2, math.pi / 2],
                [2, 0, 4, 2, 0],
                [4, 0, 4, 2, 0],
                [0, 0, 0, 0, 0],
                [0, 0, 1, 1, 9],
            ]
        )
        wanted = [1, 4 / 12, 4 / 12, 0, 0, 1 / 8]
        np.testing.assert_allclose(rotated_iou(box, others)[0], wanted, atol=1e-7)
        assert rotated_iou(others[4:5], others[4:5]).tolist() == [[0.0]]

    def test_symmetric(self):
        boxes = random_boxes(4, 60)
        found = rotated_iou(boxes, boxes)
        torch.testing.assert_close(found, found.T, atol=1e-12, rtol=0)
        torch.testing.assert_close(found.diag(), torch.ones(60, dtype=torch.float64))

    def test_a_dropped_box_drops_nothing(self):
        conflicts = torch.eye(4, dtype=torch.bool)
        conflicts[0, 1] = conflicts[1, 0] = conflicts[1, 2] = conflicts[2, 1] = True
        assert suppress_reference(conflicts, 4).tolist() == [0, 2, 3]
        assert suppress_reference(conflicts, 2).tolist() == [0, 2]

    def test_order_of_equal_scores(self, without_kernel):
        boxes = torch.tensor([[0.0, 0, 2, 2, 0], [0.1, 0, 2, 2, 0], [9, 0, 2, 2, 0]])
        assert rotated_nms(boxes, torch.ones(3), 0.2, 5).tolist() == [0, 2]


class TestCircles:
    def test_at_most_the_radius(self):
        centers = torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 1.01]])
        scores = torch.tensor([0.5, 0.9, 0.4, 0.3])
        assert circle_nms(centers, scores, 1.0, 5).tolist() == [1, 3]
        assert circle_nms(centers, scores, 0.99, 3).tolist() == [1, 0, 2]

    def test_no_centers(self):
        assert circle_nms(torch.zeros(0, 2), torch.zeros(0), 1.0, 5).tolist() == []
