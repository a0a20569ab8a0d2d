"""The merging of masks into voxels against plain loops, and the grid that comes of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import OCC3D_CLASSES, THINGS
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.sparseocc.decode import decode_occupancy, merge_panoptic, merge_semantics
from bev_perception.models.protocol import NotFiniteError
from bev_perception.types import OCC3D_GRID

FREE = 17
CAR, ROAD, TREE = (OCC3D_CLASSES.index(name) for name in ("car", "driveable_surface", "vegetation"))
SURE = 6.0  # a logit


def queries(*classes):
    """Class logits [Q, 17] of queries that are sure of a class each, or, with None, of none."""
    logits = torch.full((len(classes), FREE), -SURE)
    for query, label in enumerate(classes):
        if label is not None:
            logits[query, label] = SURE
    return logits


def masks(*rows):
    """Mask logits [Q, N] of probabilities."""
    return torch.tensor(rows).logit(eps=1e-6)


def panoptic(classes, probabilities, overlap=0.8):
    labels, ids = merge_panoptic(queries(*classes), masks(*probabilities), OCC3D_CLASSES, 0.3, overlap)
    return labels.tolist(), ids.tolist()


def test_the_things_are_classes_of_both_label_sets():
    assert set(OCC3D_CLASSES) > THINGS and len(THINGS) == 8


def test_semantics_add_up_over_the_masks():
    """Two weaker masks of a class outweigh a stronger one of another; what no mask covers is free."""
    labels = merge_semantics(
        queries(CAR, ROAD, CAR, None), masks([0.5, 0.9, 0.001], [0.7, 0.6, 0.002], [0.4, 0.2, 0.001], [1, 1, 1.0]), 0.3
    )
    assert labels.tolist() == [CAR, CAR, FREE]


def test_every_object_gets_a_number_of_its_own():
    found = panoptic([CAR, ROAD, CAR], [[0.9, 0.1, 0.1, 0.1], [0.1, 0.9, 0.1, 0.2], [0.2, 0.1, 0.9, 0.3]])
    assert found == ([CAR, ROAD, CAR, FREE], [1, 2, 3, 0])


def test_further_masks_of_stuff_join_the_first_without_a_label():
    """As the published numbers were computed: such voxels count as free."""
    classes = [CAR, ROAD, TREE, ROAD, ROAD]
    found = panoptic(classes, np.eye(5, dtype=np.float32).tolist())
    assert found == ([CAR, ROAD, TREE, FREE, FREE], [1, 2, 3, 2, 2])


def test_a_mask_that_others_have_taken_drops_out():
    """Of the second mask's five voxels four are left to it, of the third's three one: below 0.8 it goes, not at 0.8."""
    first = [0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1]
    second = [0.8, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8, 0.1]
    third = [0.1, 0.8, 0.8, 0.1, 0.1, 0.1, 0.1, 0.8]
    assert panoptic([CAR, CAR, CAR], [first, second, third]) == (
        [CAR, CAR, CAR, CAR, CAR, CAR, CAR, FREE],
        [1, 1, 1, 2, 2, 2, 2, 0],
    )


def test_without_a_sure_query_all_is_free():
    logits, shapes = queries(None, None), masks([0.9, 0.9], [0.9, 0.9])
    assert merge_semantics(logits, shapes, 0.3).tolist() == [FREE, FREE]
    labels, ids = merge_panoptic(logits, shapes, OCC3D_CLASSES, 0.3, 0.8)
    assert (labels.tolist(), ids.tolist()) == ([FREE, FREE], [0, 0])


def naive_semantics(scores, shapes, threshold):
    labels = []
    for n in range(shapes.shape[1]):
        total = np.zeros(FREE)
        for q in range(len(scores)):
            if scores[q].max() > threshold:
                total += scores[q] * shapes[q, n]
        labels.append(int(total.argmax()) if total.max() >= 0.01 else FREE)
    return labels


def naive_panoptic(scores, shapes, threshold, overlap):
    count = shapes.shape[1]
    labels, ids = np.full(count, FREE), np.zeros(count, int)
    kept = [q for q in range(len(scores)) if scores[q].max() > threshold]
    if not kept:
        return labels.tolist(), ids.tolist()
    winner = np.array(kept)[np.array([scores[q].max() * shapes[q] for q in kept]).argmax(axis=0)]
    number, first = 0, {}
    for q in kept:
        won, whole = winner == q, shapes[q] >= 0.5
        both = won & whole
        if not both.any() or won.sum() / whole.sum() < overlap:
            continue
        label = int(scores[q].argmax())
        if OCC3D_CLASSES[label] not in THINGS and label in first:
            ids[both] = first[label]
            continue
        number += 1
        first[label] = number
        labels[both], ids[both] = label, number
    return labels.tolist(), ids.tolist()


@given(
    st.integers(0, 2**31),
    st.integers(1, 14),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.sampled_from([0.0, 0.5, 0.8, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_merging_is_what_it_says(seed, count, voxels, threshold, overlap):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, FREE, generator=generator, dtype=torch.float64) - 3
    logits[:, ::2] -= 3  # few classes, so that queries share them
    shapes = 3 * torch.randn(count, voxels, generator=generator, dtype=torch.float64)
    probabilities = logits.sigmoid().numpy(), shapes.sigmoid().numpy()
    assert merge_semantics(logits, shapes, threshold).tolist() == naive_semantics(*probabilities, threshold)
    labels, ids = merge_panoptic(logits, shapes, OCC3D_CLASSES, threshold, overlap)
    assert (labels.tolist(), ids.tolist()) == naive_panoptic(*probabilities, threshold, overlap)


def output(locations, classes, probabilities, finite=True):
    """The last predictions, after others that do not count."""
    last = torch.stack([torch.zeros(len(classes), FREE), queries(*classes)])[:, None]
    shapes = torch.stack([torch.zeros(len(classes), len(locations)), masks(*probabilities)])[:, None]
    return SimpleNamespace(
        stages=(None, SimpleNamespace(locations=torch.tensor([locations]))),
        class_logits=last,
        mask_logits=shapes,
        finite=torch.tensor(finite),
    )


@pytest.mark.parametrize("with_instances", [False, True])
def test_the_grid_is_free_but_for_the_kept_voxels(with_instances):
    made = output([[199, 0, 15], [3, 150, 7]], [CAR, TREE], [[0.9, 0.1], [0.1, 0.9]])
    occupancy = decode_occupancy(made, SparseOccHeadConfig(panoptic=with_instances), OCC3D_CLASSES)
    assert occupancy.grid == OCC3D_GRID and occupancy.class_names == OCC3D_CLASSES
    assert occupancy.semantics.shape == OCC3D_GRID.shape and occupancy.semantics.dtype == np.uint8
    assert occupancy.occupied.sum() == 2
    assert (occupancy.semantics[199, 0, 15], occupancy.semantics[3, 150, 7]) == (CAR, TREE)
    if not with_instances:
        assert occupancy.instances is None
        return
    assert occupancy.instances.dtype == np.int16 and (occupancy.instances > 0).sum() == 2
    assert (occupancy.instances[199, 0, 15], occupancy.instances[3, 150, 7]) == (1, 2)


@pytest.mark.parametrize("with_instances", [False, True])
def test_what_is_not_finite_is_no_free_space(with_instances):
    made = output([[199, 0, 15]], [CAR], [[0.9]], finite=False)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        decode_occupancy(made, SparseOccHeadConfig(panoptic=with_instances), OCC3D_CLASSES)
