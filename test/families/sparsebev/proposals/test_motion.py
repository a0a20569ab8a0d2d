"""How objects move that were seen in several frames, each by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.families.sparsebev.proposals.motion import MAX_SPEED, MAX_SPEEDS, follow, max_speeds

CAR, PEDESTRIAN, BARRIER = (NUSCENES_CLASSES.index(name) for name in ("car", "pedestrian", "barrier"))
LIMITS = max_speeds(NUSCENES_CLASSES)
PAST = (0.5, 1.0, 1.5)


def lifted(*places, yaw=0.0):
    """Lifted objects [1, K, 8] of a car's size at (x, y)."""
    boxes = torch.zeros(1, len(places), 8)
    boxes[0, :, :2] = torch.tensor(places)
    boxes[0, :, 3:6] = torch.tensor([4.5, 1.9, 1.6]).log()
    boxes[0, :, 6], boxes[0, :, 7] = np.sin(yaw), np.cos(yaw)
    return boxes


def labels(boxes, label=CAR):
    return torch.full(boxes.shape[:2], label)


def moved(now, *older, times=PAST, label=CAR):
    """The velocities [K, 2] of objects of one class."""
    others = [(boxes, labels(boxes, label)) for boxes in older]
    return follow(now, labels(now, label), others, torch.tensor([times]), LIMITS)[0]


def driven(places, velocities, times=PAST, yaw=0.0):
    """Where objects are, and were so many seconds ago."""
    return [lifted(*(np.array(places) - t * np.array(velocities)).tolist(), yaw=yaw) for t in (0, *times)]


def test_every_class_has_a_limit():
    assert set(MAX_SPEEDS) <= set(NUSCENES_CLASSES)
    assert LIMITS[CAR] == MAX_SPEED and LIMITS[PEDESTRIAN] == 3 and LIMITS[BARRIER] == 0


@pytest.mark.parametrize("times", [PAST, (0.5, 1.0, -0.5), (-0.5, -1.0, -1.5)])
def test_what_all_frames_agree_on_is_the_velocity(times):
    velocities = [[8.0, 0.0], [0, 0], [-5.0, 0.3]]
    found = moved(*driven([[10.0, 0], [30, 5], [-20, 5]], velocities, times), times=times)
    torch.testing.assert_close(found, torch.tensor(velocities), atol=1e-4, rtol=0)


def test_errors_of_single_frames_are_evened_out():
    """The least squares through the places, (0, 0) among them."""
    now, *older = driven([[20.0, 0.0]], [[6.0, 0.0]])
    errors = (0.3, -0.2, 0.1)
    for boxes, error in zip(older, errors, strict=True):
        boxes[..., 0] += error
    wanted = 6.0 - np.dot(PAST, errors) / np.dot(PAST, PAST)
    torch.testing.assert_close(
        moved(now, *older), torch.tensor([[wanted, 0.0]], dtype=torch.float32), atol=1e-4, rtol=0
    )


def test_a_frame_that_has_not_seen_it_takes_no_part():
    now, first, second, third = driven([[20.0, 0.0]], [[6.0, 0.0]])
    second[..., 0] = 60.0
    torch.testing.assert_close(moved(now, first, second, third), torch.tensor([[6.0, 0.0]]), atol=1e-4, rtol=0)


def test_parked_cars_are_not_one_that_drives_along_the_row():
    row = [[6.0 * k, 4.0] for k in range(-4, 5)]
    assert not moved(*driven(row, np.zeros((9, 2)))).any()


def test_one_frame_is_no_proof_of_motion():
    now, older = driven([[20.0, 0.0]], [[6.0, 0.0]], times=(0.5,))
    assert not moved(now, older, times=(0.5,)).any()
    # a history that is too short repeats its oldest frame
    assert not moved(now, older, older, older, times=(0.5, 0.5, 0.5)).any()


def test_memory_wiped_is_at_rest():
    now, _, _, older = driven([[20.0, 0.0]], [[6.0, 0.0]])
    assert not moved(now, older, older, older, times=(0.0, 0.0, 0.0)).any()


def test_a_car_does_not_move_sideways():
    """Of two that it may have been, equally far away."""
    for yaw, wanted in ((0.0, [8.0, 0.0]), (np.pi / 2, [0.0, 8.0])):
        along, across = (driven([[12.0, 12.0]], [velocity], yaw=yaw) for velocity in ([8.0, 0.0], [0.0, 8.0]))
        both = [torch.cat(pair, dim=1) for pair in zip(along, across, strict=True)]
        found = moved(along[0], *both[1:])
        torch.testing.assert_close(found, torch.tensor([wanted]), atol=1e-4, rtol=0)


def test_nobody_is_faster_than_the_class():
    drive = driven([[10.0, 0.0]], [[4.0, 0.0]])
    assert moved(*drive)[0, 0] == pytest.approx(4.0)
    assert not moved(*drive, label=PEDESTRIAN).any() and not moved(*drive, label=BARRIER).any()
    assert not moved(*driven([[10.0, 0.0]], [[21.0, 0.0]])).any()


def test_objects_of_other_classes_do_not_count():
    now, *older = driven([[10.0, 0.0]], [[6.0, 0.0]])
    others = [(boxes, labels(boxes, PEDESTRIAN)) for boxes in older]
    assert not follow(now, labels(now), others, torch.tensor([PAST]), LIMITS).any()


@pytest.mark.parametrize("place", [(20.0, 0.0), (0.0, 20.0), (-12.0, 16.0)])
def test_what_errors_of_depth_explain_is_no_motion(place):
    away = np.array(place) / 20
    heading = {"yaw": np.arctan2(away[1], away[0])}
    assert not moved(*driven([place], [0.8 * away], **heading)).any()
    assert moved(*driven([place], [3.0 * away], **heading)).any()
    aside = {"yaw": heading["yaw"] + np.pi / 2}  # to the side, less of it is an error
    assert moved(*driven([place], [1.5 * np.array([-away[1], away[0]])], **aside)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 4))
def test_any_places_give_velocities_that_are_possible(seed, count, frames):
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.randn(2, count, 8, generator=generator) * 20 for _ in range(frames + 1)]
    classes = [torch.randint(10, (2, count), generator=generator) for _ in range(frames + 1)]
    times = 0.5 * torch.arange(1, frames + 1).expand(2, -1)
    older = list(zip(boxes[1:], classes[1:], strict=True))
    found = follow(boxes[0], classes[0], older, times, LIMITS)
    assert found.shape == (2, count, 2) and found.isfinite().all()
    one = follow(boxes[0][1:], classes[0][1:], [(b[1:], c[1:]) for b, c in older], times[1:], LIMITS)
    torch.testing.assert_close(found[1:], one, atol=1e-4, rtol=1e-4)
