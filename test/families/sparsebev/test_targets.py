"""Assignment and denoising: what the parity case does not show."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bev_perception.families.sparsebev.targets import BOX_NOISE, assign, draw_denoising, encode_boxes, make_denoising
from bev_perception.models.query_layers import decode_centers
from bev_perception.supervision.samples import BoxTruth

PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
ONES = torch.ones(10)


def truth_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand((n, 9), generator=generator) * 4 + 0.5
    boxes[:, :2] = boxes[:, :2] * 20 - 45
    boxes[:, 2] -= 3
    return BoxTruth(boxes, torch.randint(10, (n,), generator=generator))


def draws_of(truths, groups=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [draw_denoising(len(truth.labels), groups, 10, generator) for truth in truths]


def test_encoded_boxes():
    encoded = encode_boxes(torch.tensor([[1.0, 2, 3, math.e, 1, math.e**2, math.pi / 2, 4, 5]]))
    torch.testing.assert_close(encoded, torch.tensor([[1.0, 2, 1, 0, 3, 2, 1, 0, 4, 5]]), atol=1e-6, rtol=1e-6)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**31))
def test_every_box_or_every_query_finds_one_partner(queries, n, seed):
    generator = torch.Generator().manual_seed(seed)
    truth = truth_of(n, seed)
    logits, boxes = (torch.randn((queries, 10), generator=generator) for _ in range(2))
    rows, columns = assign(logits, boxes, truth.labels, encode_boxes(truth.boxes), ONES)
    assert len(rows) == len(columns) == min(queries, n)
    assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows)


def test_queries_get_the_boxes_that_they_predict():
    truth = truth_of(5)
    targets = encode_boxes(truth.boxes)
    order = torch.tensor([3, 0, 4, 1, 2])
    boxes = torch.cat([torch.zeros(2, 10), targets[order]])
    rows, columns = assign(torch.zeros(7, 10), boxes, truth.labels, targets, ONES)
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == {2 + i: int(k) for i, k in enumerate(order)}
    # boxes being equal, the class decides
    same = BoxTruth(targets[:1].expand(2, -1), torch.tensor([4, 7]))
    logits = torch.full((2, 10), -5.0)
    logits[0, 7] = logits[1, 4] = 5.0
    assert assign(logits, torch.zeros(2, 10), same.labels, same.boxes, ONES)[1].tolist() == [1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_the_worst_partners(value):
    truth = truth_of(2)
    targets = encode_boxes(truth.boxes)
    boxes = torch.cat([torch.full((1, 10), value), targets])
    assert assign(torch.zeros(3, 10), boxes, truth.labels, targets, ONES)[0].tolist() == [1, 2]


def test_noise_stays_in_the_box_and_the_rest_is_clean():
    truths = [truth_of(4, seed=0), truth_of(2, seed=5), truth_of(0)]
    groups = 200
    denoising = make_denoising(truths, draws_of(truths, groups), 7, PC_RANGE, velocity_noise=0.0)
    queries = denoising.queries
    assert queries.boxes.shape == (3, groups * 4, 10) and queries.labels.shape == (3, groups * 4)
    used = queries.boxes[denoising.sample, denoising.place]
    shift = (decode_centers(used[:, :3], PC_RANGE) - denoising.boxes[:, :3]).abs() / denoising.boxes[:, 3:6]
    inside = (used[:, :3] > 0) & (used[:, :3] < 1)
    assert shift[inside].max() <= BOX_NOISE / 2 + 1e-4 and shift[inside].max() > 0.9 * BOX_NOISE / 2
    torch.testing.assert_close(used[:, 3:], encode_boxes(denoising.boxes)[:, [2, 3, 5, 6, 7, 8, 9]])
    labels = queries.labels[denoising.sample, denoising.place]
    assert (labels == denoising.labels).float().mean() == pytest.approx(0.5 + 0.05, abs=0.05)
    unused = torch.ones(queries.labels.shape, dtype=torch.bool)
    unused[denoising.sample, denoising.place] = False
    assert (queries.labels[unused] == -1).all() and (queries.boxes[unused] == 0).all()
    assert (queries.labels[~unused] >= 0).all() and len(denoising.labels) == groups * 6


def test_noisy_copies_may_start_with_noisy_velocities():
    truths = [truth_of(40, seed=0), truth_of(20, seed=5)]
    true, noisy = (make_denoising(truths, draws_of(truths), 7, PC_RANGE, velocity_noise=v) for v in (0.0, 1.5))
    assert torch.equal(noisy.queries.boxes[..., :8], true.queries.boxes[..., :8])
    assert torch.equal(noisy.boxes, true.boxes)  # which they should become
    rows = noisy.sample, noisy.place
    told, known = noisy.queries.boxes[rows][:, 8:], noisy.boxes[:, 7:]
    assert torch.equal(true.queries.boxes[rows][:, 8:], known)
    # around half of them only noise is left; that of two draws in three lies within a standard deviation
    stopped = torch.cat([drawn.stop.flatten() < 0.5 for drawn in draws_of(truths)])
    noise = told - torch.where(stopped[:, None], 0.0, known)
    assert 0.4 < stopped.float().mean() < 0.6 and 0.55 < (noise.abs() < 1.5).float().mean() < 0.8
    assert (noisy.queries.boxes[..., 8:][noisy.queries.labels < 0] == 0).all()


def test_who_sees_whom():
    truths = [truth_of(2)]
    blocked = make_denoising(truths, draws_of(truths, groups=2), 3, PC_RANGE, velocity_noise=0.0).queries.blocked
    expected = np.ones((7, 7), bool)
    expected[:2, :2] = expected[2:4, 2:4] = expected[:, 4:] = False
    assert np.array_equal(blocked, expected)


def test_a_sample_is_denoised_alike_in_any_batch():
    truths = [truth_of(3, seed=0), truth_of(3, seed=5)]
    draws = draws_of(truths)
    both = make_denoising(truths, draws, 7, PC_RANGE, velocity_noise=0.0).queries
    for i in range(2):
        alone = make_denoising(truths[i : i + 1], draws[i : i + 1], 7, PC_RANGE, velocity_noise=0.0).queries
        assert torch.equal(both.boxes[i], alone.boxes[0]) and torch.equal(both.labels[i], alone.labels[0])


def test_nothing_to_denoise():
    assert make_denoising([truth_of(0)], draws_of([truth_of(0)]), 7, PC_RANGE, velocity_noise=0.0) is None
    assert make_denoising([truth_of(2)], draws_of([truth_of(2)], groups=0), 7, PC_RANGE, velocity_noise=0.0) is None
