"""The tracker: properties of any input, then the synthetic traffic with errors, at two frame rates."""

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.synthetic import START, World
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw
from bev_perception.results.boxes import to_ego
from bev_perception.tracking.tracker import LIMITS, MAX_AGE, Tracks, follow
from bev_perception.types import Boxes3D

SECOND = 10**9
CAR, PEDESTRIAN = NUSCENES_CLASSES.index("car"), NUSCENES_CLASSES.index("pedestrian")


def boxes_at(centers, velocities=None, labels=None, scores=None):
    n = len(centers)
    return Boxes3D(
        np.c_[np.array(centers, float).reshape(n, 2), np.zeros(n)],
        np.ones((n, 3)),
        np.zeros(n),
        np.zeros((n, 2)) if velocities is None else np.array(velocities, float).reshape(n, 2),
        np.full(n, 0.5) if scores is None else np.array(scores, float),
        np.zeros(n, np.int64) if labels is None else np.array(labels, np.int64),
        NUSCENES_CLASSES,
    )


def run(frames, tracks=None, step=0.5):
    """Follow boxes in the global frame, `step` s apart; return the ids of each frame."""
    tracks, found = tracks or Tracks(), []
    for k, boxes in enumerate(frames):
        tracks, ids = follow(tracks, boxes, np.eye(4), round((k + 1) * step * SECOND))
        found.append(ids)
    return found


# ---------------------------------------------------------------- properties


@st.composite
def a_drive(draw):
    """A few frames of boxes, close enough together to be mixed up, and pauses of less than the age limit or more."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames, stamp = [], 0
    for _ in range(draw(st.integers(1, 6))):
        n = draw(st.integers(0, 12))
        stamp += round(rng.choice([0.08, 0.5, 1.0, 2.0]) * SECOND)
        places, labels = rng.uniform(-6, 6, (n, 2)), rng.choice([CAR, PEDESTRIAN, 9], n)
        scores = rng.choice([0.2, 0.5, 0.9], n)  # many are equal
        frames.append((stamp, boxes_at(places, rng.normal(0, 2, (n, 2)), labels, scores)))
    return frames, rng


@given(a_drive())
@settings(deadline=None)
def test_ids_are_unique_and_states_are_immutable(drive):
    frames, _ = drive
    tracks, given_before, last_seen = Tracks(), set(), {}
    for stamp, boxes in frames:
        before = copy.deepcopy(tracks)
        after, ids = follow(tracks, boxes, np.eye(4), stamp)
        for name in ("ids", "labels", "centers", "stamps"):
            np.testing.assert_array_equal(getattr(tracks, name), getattr(before, name))
        assert len(set(ids.tolist())) == len(boxes) and (ids >= 1).all()
        assert set(ids.tolist()) <= set(after.ids.tolist()) and (np.diff(after.ids) > 0).all()
        for track, label in zip(ids.tolist(), boxes.labels.tolist(), strict=True):
            if track in given_before:  # it was followed until now, and is of the same class
                seen, of_class = last_seen[track]
                assert stamp - seen <= MAX_AGE * SECOND and of_class == label
            last_seen[track] = (stamp, label)
        new = set(ids.tolist()) - given_before
        assert new == set(range(tracks.next_id, after.next_id))
        given_before |= new
        tracks = after


@given(a_drive())
@settings(deadline=None)
def test_the_order_of_the_boxes_does_not_matter(drive):
    frames, rng = drive
    tracks = shuffled = Tracks()
    for stamp, boxes in frames:
        order = rng.permutation(len(boxes))
        tracks, ids = follow(tracks, boxes, np.eye(4), stamp)
        shuffled, ids_of_shuffled = follow(shuffled, boxes.select(order), np.eye(4), stamp)
        np.testing.assert_array_equal(ids_of_shuffled, ids[order])


@given(a_drive(), st.floats(-3, 3), st.floats(-1000, 1000))
@settings(deadline=None)
def test_the_place_of_the_car_does_not_matter(drive, yaw, x):
    """Boxes in base_link with its pose are the same as boxes in the global frame."""
    frames, _ = drive
    tracks = moved = Tracks()
    ego2global = make_transform(rotation_from_yaw(yaw), np.array([x, 2 * x, 0.0]))
    for stamp, boxes in frames:
        tracks, ids = follow(tracks, boxes, np.eye(4), stamp)
        moved, ids_in_ego = follow(moved, to_ego(boxes, invert_transform(ego2global)), ego2global, stamp)
        np.testing.assert_array_equal(ids_in_ego, ids)


# ---------------------------------------------------------------- worked out by hand


def test_boxes_are_moved_back_by_their_velocity():
    """Two cars meet and pass each other: where one is, the other was half a second before."""
    first = boxes_at([[0, 0], [10, 0]], [[20, 0], [-20, 0]])
    second = boxes_at([[0, 0], [10, 0]], [[-20, 0], [20, 0]])
    assert [ids.tolist() for ids in run([first, second])] == [[1, 2], [2, 1]]


def test_the_surer_box_takes_the_track():
    near, far = [0.5, 0], [1.0, 0]
    first, ids = run([boxes_at([[0, 0]]), boxes_at([near, far], scores=[0.3, 0.9])])
    assert first.tolist() == [1] and ids.tolist() == [2, 1]
    _, ids = run([boxes_at([[0, 0]]), boxes_at([near, far], scores=[0.9, 0.3])])
    assert ids.tolist() == [1, 2]


def test_a_track_is_of_one_class():
    _, ids = run([boxes_at([[0, 0]], labels=[CAR]), boxes_at([[0, 0]], labels=[PEDESTRIAN])])
    assert ids.tolist() == [2]


@pytest.mark.parametrize("name", NUSCENES_CLASSES)
@pytest.mark.parametrize(("step", "share"), [(1 / 12, 1.0), (0.5, 1.0), (1.0, 2.0), (1.5, 3.0)])
def test_the_limit_is_that_of_the_class_and_grows_with_time_beyond_half_a_second(name, step, share):
    label = [NUSCENES_CLASSES.index(name)]
    for distance, kept in ((0.99, True), (1.01, False)):
        moved = boxes_at([[distance * share * LIMITS[name], 0]], labels=label)
        assert (run([boxes_at([[0, 0]], labels=label), moved], step=step)[1] == 1) == kept


def test_classes_of_other_data_sets_have_a_limit_too():
    van = dataclasses.replace(boxes_at([[0, 0]]), class_names=("van",))
    assert [ids.tolist() for ids in run([van, van])] == [[1], [1]]


def test_a_track_lives_for_its_age_and_not_for_frames():
    nothing = boxes_at(np.zeros((0, 2)))
    box = boxes_at([[0, 0]])
    for step in (0.1, 0.5):
        gap = round(MAX_AGE / step) - 1
        assert run([box, *gap * [nothing], box], step=step)[-1].tolist() == [1]
        assert run([box, *(gap + 1) * [nothing], box], step=step)[-1].tolist() == [2]


def test_after_a_reset_ids_are_new():
    tracks, _ = follow(Tracks(), boxes_at([[0, 0], [9, 0]]), np.eye(4), SECOND)
    assert len(tracks) == 2 and len(tracks.cleared()) == 0
    _, ids = follow(tracks.cleared(), boxes_at([[0, 0]]), np.eye(4), 0)
    assert ids.tolist() == [3]


def test_time_only_runs_forwards():
    tracks, _ = follow(Tracks(), boxes_at([[0, 0]]), np.eye(4), SECOND)
    with pytest.raises(ValueError, match="clear the tracks first"):
        follow(tracks, boxes_at([[0, 0]]), np.eye(4), SECOND)


def test_the_module_is_free_of_torch_and_ros():
    code = "import sys, bev_perception.tracking.tracker, bev_perception.tracking.trails; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "rclpy"} & set(done.stdout.split())


# ---------------------------------------------------------------- synthetic traffic

RATES = {2: 20, 12: 120}  # Hz -> frames of 10 s


def drive_around(rate, place=0.0, speed=0.0, miss=0.0, ghosts=0.0, seed=0):
    """Follow what a detector with errors sees of the synthetic traffic; return switches and sightings of objects.

    place, speed: standard deviations, m and m/s.  miss: share of boxes.  ghosts: false boxes a frame.
    """
    rng, world, tracks = np.random.default_rng(seed), World(seed), Tracks()
    owner, switches, sightings = {}, 0, 0
    for k in range(RATES[rate]):
        stamp = START + round(k / rate * SECOND)
        truth, ego = world.boxes(stamp), world.ego2global(stamp)
        near = np.flatnonzero(np.linalg.norm(truth.centers[:, :2] - ego[:2, 3], axis=1) < 50)
        seen = near[rng.random(len(near)) >= miss]
        boxes = truth.select(seen)
        n, false = len(boxes), rng.poisson(ghosts)
        noise = np.c_[rng.normal(0, place, (n, 2)), np.zeros(n)]
        boxes = dataclasses.replace(
            boxes,
            centers=boxes.centers + noise,
            velocities=boxes.velocities + rng.normal(0, speed, (n, 2)),
            scores=rng.uniform(0.5, 1, n),
        )
        wrong = boxes_at(ego[:2, 3] + rng.uniform(-50, 50, (false, 2)), labels=rng.choice([0, 1, 8], false))
        wrong = dataclasses.replace(wrong, scores=rng.uniform(0.1, 0.5, false))
        names = ("centers", "sizes", "yaws", "velocities", "scores", "labels")
        both = dataclasses.replace(boxes, **{m: np.concatenate([getattr(boxes, m), getattr(wrong, m)]) for m in names})
        tracks, ids = follow(tracks, to_ego(both, invert_transform(ego)), ego, stamp)
        for thing, track in zip(seen.tolist(), ids.tolist(), strict=False):
            switches += owner.get(thing, track) != track
            owner[thing] = track
            sightings += 1
    return switches, sightings


@pytest.mark.parametrize("rate", RATES)
def test_exact_boxes_keep_their_ids(rate):
    switches, sightings = drive_around(rate)
    assert switches == 0 and sightings > 10 * RATES[rate]


@pytest.mark.parametrize("rate", RATES)
def test_a_detector_with_errors_keeps_most_ids(rate):
    """15 cm and half a metre a second off, one box in ten missing, five false ones a frame."""
    switches, sightings = drive_around(rate, place=0.15, speed=0.5, miss=0.1, ghosts=5)
    assert switches < 0.015 * sightings
