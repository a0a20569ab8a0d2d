"""Denoising instances from frame to frame."""

import torch

from bev_perception.families.sparse4d.denoising import (
    DenoisingDraws,
    denoising_inputs,
    draw_denoising,
    make_denoising,
    recall,
    remember,
)
from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.families.sparse4d.targets import box_rules
from bev_perception.families.sparse4d.truths import InstanceTruth

GROUPS, INSTANCES = 2, 5
RULES = box_rules(Sparse4DRecipe(), ("car", "bus"), torch.zeros(()))


def made(n):
    """Denoising instances of one sample with n boxes on a line; the first group of the two will be remembered."""
    boxes = torch.zeros(n, 9)
    boxes[:, 0], boxes[:, 3:6] = torch.arange(n) * 10.0, 1.0
    truth = InstanceTruth(boxes, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    half = torch.full((1, GROUPS, n, 10), 0.5)
    draws = DenoisingDraws(half, half, half, torch.arange(GROUPS))
    return make_denoising([truth], draws, (1.0,) * 10, RULES)


def remembered(denoising):
    count = denoising.labels.shape[1]
    return remember(denoising, torch.ones(1, count, 8), denoising.anchors, torch.arange(GROUPS), 1)


def recalled(memory, denoising, usable=True):
    inputs = denoising_inputs(denoising, INSTANCES)
    return recall(memory, memory.anchors, inputs, denoising, torch.tensor([usable]))


def test_a_smaller_memory_leaves_places_that_do_not_count():
    inputs, updated = recalled(remembered(made(1)), made(3))
    assert inputs.recalled[0].tolist() == [True] * 6 + [False] * 6
    assert updated.valid[0, :6].tolist() == [True, True] + [False] * 4
    assert updated.labels[0, 2:6].tolist() == [0] * 4
    assert updated.ids[0, 2:6].tolist() == [0] * 4
    assert not inputs.recalled_features[0, 2:6].any()


def test_of_a_larger_memory_what_fits_is_taken():
    small = made(1)
    _, updated = recalled(remembered(made(3)), small)
    assert updated.labels.shape == small.labels.shape
    assert updated.ids[0, :2].tolist() == [0, 1]
    assert updated.labels[0, :2].tolist() == [0, -1]  # the second object is not here any more


def test_a_memory_that_is_too_old_changes_nothing():
    small = made(1)
    inputs, updated = recalled(remembered(made(3)), small, usable=False)
    assert not inputs.recalled.any()
    assert all(
        torch.equal(getattr(updated, name), getattr(small, name)) for name in ("labels", "boxes", "valid", "ids")
    )


def test_groups_attend_to_themselves():
    blocked = denoising_inputs(made(2), INSTANCES).blocked
    assert not blocked[:INSTANCES, :INSTANCES].any()
    assert blocked[:INSTANCES, INSTANCES:].all()
    assert blocked[INSTANCES:, :INSTANCES].all()
    groups = blocked[INSTANCES:, INSTANCES:]
    assert not groups[:4, :4].any()
    assert groups[:4, 4:].all()


def test_padding_is_never_an_object():
    """A sample with fewer boxes than the largest has copies of nothing; those do not count."""
    one, none = (InstanceTruth(torch.ones(n, 9), *(torch.ones(2, n, dtype=torch.int64))) for n in (1, 0))
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    denoising = make_denoising([one, none], draw_denoising(1, GROUPS, generators), (0.1,) * 10, RULES)
    assert (denoising.labels[0] == 1).sum() == GROUPS
    assert denoising.valid[0].all()
    assert not denoising.valid[1].any()
    assert (denoising.labels[1] < 0).all()


def test_draws_follow_from_the_samples_generators():
    def drawn(*seeds):
        return draw_denoising(3, GROUPS, [torch.Generator().manual_seed(seed) for seed in seeds])

    assert torch.equal(drawn(1, 2).noise[1], drawn(3, 2).noise[1])
    assert not torch.equal(drawn(1, 2).noise[0], drawn(1, 2).noise[1])
