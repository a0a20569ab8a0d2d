"""What masks are to be found, and which query is to find which."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.families.sparseocc.losses import mask_dice, mask_entropy
from bev_perception.families.sparseocc.targets import Masks, assign_masks, mask_targets, masks_at
from bev_perception.supervision.samples import NO_INSTANCE, OccupancyTruth

CLASSES = ("road", "car", "wall", "truck", "free")


def grid(*rows):
    return np.array(rows, np.uint8)[:, :, None]


def test_a_class_is_one_mask_and_free_space_is_none():
    semantics = grid([4, 2, 2], [1, 4, 1], [0, 4, 2])
    places, class_ids = mask_targets(semantics, None, CLASSES)
    assert class_ids.tolist() == [0, 1, 2] and class_ids.dtype == np.int64
    assert places[..., 0].tolist() == [[-1, 2, 2], [1, -1, 1], [0, -1, 2]]


def test_objects_are_masks_of_their_own_where_there_are_some():
    semantics = grid([1, 1, 1, 1], [0, 0, 2, 4], [3, 3, 1, 0])
    instances = grid([9, 4, 9, 0], [1, 7, 2, 0], [0, 0, 4, 0])
    places, class_ids = mask_targets(semantics, instances, CLASSES)
    # road: one, whatever its numbers; the cars 4 and 9; the wall; the truck belongs to no object
    assert class_ids.tolist() == [0, 1, 1, 2]
    assert places[..., 0].tolist() == [[2, 1, 2, -1], [0, 0, 3, -1], [-1, -1, 1, 0]]


def test_nothing_there():
    places, class_ids = mask_targets(grid([4, 4]), grid([0, 0]), CLASSES)
    assert class_ids.shape == (0,) and (places == NO_INSTANCE).all()


def test_more_objects_than_a_byte_holds():
    semantics = np.full((20, 20, 1), OCC3D_CLASSES.index("car"), np.uint8)
    instances = np.arange(1, 401, dtype=np.int16).reshape(20, 20, 1)
    places, class_ids = mask_targets(semantics, instances, OCC3D_CLASSES)
    assert len(class_ids) == 400 and places.max() == 399


def test_masks_without_a_kept_voxel_do_not_count():
    instances = torch.tensor([[0, 1, -1], [2, 2, 0]], dtype=torch.int16)[:, :, None]
    visible = torch.tensor([[True, False, True], [True, True, False]])[:, :, None]
    truth = OccupancyTruth(torch.zeros(2, 3, 1), instances, torch.tensor([5, 6, 7]), visible)
    locations = torch.tensor([[1, 0, 0], [0, 2, 0], [1, 2, 0], [1, 1, 0]])
    masks = masks_at(truth, locations, torch.float32)
    assert masks.classes.tolist() == [5, 7]
    assert masks.masks.tolist() == [[0, 0, 1, 0], [1, 0, 0, 1]]
    assert masks.visible.tolist() == [1, 1, 0, 1]


def cost(class_logits, mask_logits, targets, query, mask):
    """The cost of one pair, by the formulas of the losses."""
    p = class_logits[query, targets.classes[mask]].sigmoid().double()
    focal = -0.25 * (1 - p) ** 2 * (p + 1e-12).log() + 0.75 * p**2 * (1 - p + 1e-12).log()
    pair = mask_logits[query : query + 1], targets.masks[mask : mask + 1], targets.visible
    return (4 * focal + 5 * mask_entropy(*pair) + 5 * mask_dice(*pair)).item()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(0, 5), st.booleans(), st.integers(0, 2**31))
def test_no_other_matching_costs_less(queries, n, partly_visible, seed):
    generator = torch.Generator().manual_seed(seed)
    class_logits = torch.randn((queries, 3), generator=generator)
    mask_logits = 2 * torch.randn((queries, 8), generator=generator)
    visible = (torch.rand(8, generator=generator) < 0.6).float() if partly_visible else None
    targets = Masks(
        torch.randint(3, (n,), generator=generator), (torch.rand((n, 8), generator=generator) < 0.4).float(), visible
    )
    rows, columns = assign_masks(class_logits, mask_logits, targets)
    count = min(queries, n)
    assert len(rows) == len(columns) == count == len(set(rows.tolist())) == len(set(columns.tolist()))

    def total(pairs):
        return sum(cost(class_logits, mask_logits, targets, q, m) for q, m in pairs)

    found = total(zip(rows.tolist(), columns.tolist(), strict=True))
    matchings = (
        zip(q, m, strict=True)
        for q in itertools.combinations(range(queries), count)
        for m in itertools.permutations(range(n), count)
    )
    assert found <= min(map(total, matchings)) + 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_do_not_end_the_matching(value):
    """The step's gradients are not finite then, and training says so."""
    targets = Masks(torch.tensor([0]), torch.ones(1, 4), None)
    rows, columns = assign_masks(torch.zeros(2, 3), torch.tensor([[value] * 4, [5.0] * 4]), targets)
    assert (rows.tolist(), columns.tolist()) == ([1], [0])
