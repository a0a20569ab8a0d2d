"""Track ids over planted detections: a world of moving objects stands in for the network, whatever the frame rate."""

import dataclasses

import numpy as np
import pytest

from bev_perception.families.sparse4d.config import DecodeConfig
from bev_perception.families.sparse4d.identities import BOOK_SECONDS, NO_TRACK, Identities, Sightings
from bev_perception.families.sparse4d.model import SHORTEST_STEP
from bev_perception.models.memory import Memory
from bev_perception.pipeline.continuity import COMMIT_SLACK

SECOND = 1_000_000_000
ROWS, KEPT = 60, 40
CLEAR = 0.3  # score above which a detection counts
THRESHOLD = DecodeConfig().track_threshold


class World:
    """Objects that come, move and go; detections of them are noisy, at times missed, and some are false."""

    def __init__(self, seed, objects=30, seconds=20.0):
        self.rng = np.random.default_rng(seed)
        self.starts = self.rng.uniform(0, seconds / 2, objects)
        self.ends = self.starts + self.rng.uniform(4, 12, objects)
        self.places = self.rng.uniform(-40, 40, (objects, 2))
        self.velocities = self.rng.normal(0, 5, (objects, 2))
        self.labels = self.rng.integers(0, 3, objects)
        self.seconds = seconds

    def positions(self, seconds):
        return self.places + self.velocities * (seconds - self.starts)[:, None]

    def alive(self, seconds):
        return (self.starts <= seconds) & (seconds < self.ends)


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a frame hands on: which object each row is (-1: none), where it is, its class, id and confidence."""

    truths: np.ndarray
    centers: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    confidences: np.ndarray
    stamp: int
    tensors: tuple = ()


def frame_of(world, past, stamp):
    """Rows of a frame: those of the past frame first, then what is new. (objects, scores, sightings)."""
    rng, seconds = world.rng, stamp / SECOND
    alive = np.flatnonzero(world.alive(seconds))
    known = np.full(0, -1) if past is None else past.truths
    new = np.setdiff1d(alive, known)
    rng.shuffle(new)
    truths = np.full(ROWS, -1)
    truths[: len(known)] = np.where(np.isin(known, alive), known, -1)
    truths[len(known) : len(known) + len(new)] = new
    missed = rng.random(ROWS) < 0.1
    scores = np.where((truths >= 0) & ~missed, rng.uniform(0.4, 0.9, ROWS), rng.uniform(0, 0.15, ROWS))
    false = (truths < 0) & (rng.random(ROWS) < 0.02)
    scores[false] = rng.uniform(0.2, 0.5, false.sum())
    anywhere, kinds = rng.uniform(-40, 40, (ROWS, 2)), rng.integers(0, 3, ROWS)
    if past is not None:  # false ones stay where they are
        anywhere[:KEPT], kinds[:KEPT] = past.centers, past.labels
    noise = rng.normal(0, 0.2, (2, ROWS, 2))
    centers = np.where((truths >= 0)[:, None], world.positions(seconds)[truths] + noise[0], anywhere)
    velocities = np.where((truths >= 0)[:, None], world.velocities[truths] + 2 * noise[1], 0.0)
    labels = np.where(truths >= 0, world.labels[truths], kinds)
    return truths, scores, Sightings(labels, centers, velocities, np.full(ROWS, stamp))


def drive(seed, rate, wipes=(), book=True):
    """Ids of every object over a drive: the list of (object, id) of each frame, and the ids of each stretch."""
    world, memory, identities = World(seed), Memory(1, 0.5, 4), Identities()
    committed, seen, stretches = None, [], [set()]
    for index in range(int(world.seconds * rate)):
        stamp = round(index / rate * SECOND)
        if index in wipes:
            memory, committed = memory.wiped(), None
            stretches.append(set())
        past = memory.history(stamp)[0]
        if past is None or not book:
            identities = identities.forgotten()
        elif stamp - past.stamp < SHORTEST_STEP * SECOND / 2:
            past = None
        truths, scores, sightings = frame_of(world, past, stamp)
        handed = np.full(ROWS, -1)
        if past is not None:
            handed[:KEPT] = past.ids
        ids, identities = identities.identify(handed, scores, sightings, THRESHOLD)
        tracked = ids[ids != NO_TRACK]
        assert len(np.unique(tracked)) == len(tracked) and (ids[scores >= CLEAR] != NO_TRACK).all()
        stretches[-1].update(tracked.tolist())
        confidences = scores.copy()
        if past is not None:
            confidences[:KEPT] = np.maximum(scores[:KEPT], 0.6 * past.confidences)
        best = np.argsort(-confidences, kind="stable")[:KEPT]
        due = committed is None or stamp - committed >= (1 - COMMIT_SLACK) * 0.25 * SECOND
        kept = Kept(truths[best], sightings.centers[best], sightings.labels[best], ids[best], confidences[best], stamp)
        memory = memory.after(kept, identities, due)
        committed = stamp if due else committed
        clear = (truths >= 0) & (scores >= CLEAR)
        seen.append(list(zip(truths[clear].tolist(), ids[clear].tolist(), strict=True)))
    return seen, stretches


def switches(seen):
    """How often an object has another id than when it was seen before."""
    last, count = {}, 0
    for frame in seen:
        for thing, number in frame:
            count += last.get(thing, number) != number
            last[thing] = number
    return count


@pytest.mark.parametrize("rate", [2, 12])
def test_objects_keep_their_ids_at_any_rate(rate):
    drives = [drive(seed, rate)[0] for seed in range(2)]
    assert sum(len(frame) for seen in drives for frame in seen) > 250 * rate  # there is something to switch
    assert sum(switches(seen) for seen in drives) <= 2


def test_without_the_book_a_fast_camera_makes_ids_flicker():
    assert switches(drive(0, 12, book=False)[0]) > 500


def test_no_id_is_given_again_after_a_wipe():
    _, stretches = drive(0, 12, wipes=(60, 61, 150))
    assert len(stretches) == 4
    assert all(a.isdisjoint(b) for i, a in enumerate(stretches) for b in stretches[:i])


def sighting(*places, stamp=0.0, velocity=(0.0, 0.0), label=1):
    count = len(places)
    return Sightings(
        np.full(count, label),
        np.array(places, np.float64).reshape(count, 2),
        np.tile(np.array(velocity, np.float64), (count, 1)),
        np.full(count, round(stamp * SECOND)),
    )


def known(*places, **about):
    """Identities that have seen objects at these places, with ids from 0 on."""
    count = len(places)
    return Identities().identify(np.full(count, -1), np.full(count, 0.9), sighting(*places, **about), THRESHOLD)[1]


def ask(identities, *places, scores=None, **about):
    count = len(places)
    scores = np.full(count, 0.9) if scores is None else np.array(scores)
    return identities.identify(np.full(count, -1), scores, sighting(*places, **about), THRESHOLD)[0].tolist()


def test_the_book_knows_an_object_where_it_has_moved_to():
    assert ask(known((0, 0), velocity=(10, 0)), (5, 0), (0, 0), stamp=0.5) == [0, 1]


def test_the_best_row_gets_the_nearest_id_of_the_book():
    places = (0.1, 0), (0.2, 0), (2.5, 0)
    assert ask(known((0, 0), (3, 0)), *places, scores=[0.5, 0.9, 0.8]) == [2, 0, 1]


def test_other_classes_low_scores_and_old_sightings_are_strangers():
    identities = known((0, 0))
    assert ask(identities, (0, 0), label=2) == [1]
    assert ask(identities, (0, 0), scores=[0.05]) == [NO_TRACK]
    assert ask(identities, (3, 0)) == [1]
    late = identities.identify(np.full(1, -1), np.zeros(1), sighting((9, 9), stamp=BOOK_SECONDS + 0.1), THRESHOLD)[1]
    assert ask(late, (0, 0), stamp=BOOK_SECONDS + 0.2) == [1]


def test_an_id_that_a_row_has_is_not_given_to_another():
    identities = known((0, 0))
    ids, _ = identities.identify(np.array([-1, 0]), np.array([0.9, 0.9]), sighting((0, 0), (0.5, 0)), THRESHOLD)
    assert ids.tolist() == [1, 0]


def test_two_ids_of_one_object_become_one_again():
    """Frames that continue from two past ones by turns: in one, a row that is not clear has held the id back."""
    identities = known((0, 0))
    _, identities = identities.identify(np.array([0, -1]), np.array([0.1, 0.9]), sighting((0.5, 0), (0, 0), stamp=0.1), THRESHOLD)
    assert sorted(identities.book_ids.tolist()) == [0, 1]
    _, identities = identities.identify(np.array([0]), np.array([0.9]), sighting((0, 0), stamp=0.2), THRESHOLD)
    ids, _ = identities.identify(np.array([0, 1]), np.array([0.1, 0.9]), sighting((9, 0), (0, 0), stamp=0.3), THRESHOLD)
    assert ids.tolist() == [NO_TRACK, 0]


def test_an_object_that_is_missed_keeps_its_id_beside_another():
    identities = known((0, 0), (5, 0))
    ids, _ = identities.identify(np.array([0, 1]), np.array([0.1, 0.9]), sighting((0, 0), (0.6, 0), stamp=0.1), THRESHOLD)
    assert ids.tolist() == [0, 1]


def test_close_objects_do_not_exchange_ids_when_one_is_missed_and_drifts():
    identities = known((0, 0), (0.8, 0))
    drift, handed = [(-1.2, 0), (-1.2, 0), (-1.2, 0), (0, 0)], np.array([0, 1])
    for index, place in enumerate(drift):
        scores = np.array([0.9 if index == 3 else 0.1, 0.9])
        ids, identities = identities.identify(handed, scores, sighting(place, (0.8, 0), stamp=0.1 * (index + 1)), THRESHOLD)
        assert ids.tolist() == [0, 1]
        handed = ids


def test_rows_that_are_not_clear_are_not_tracked():
    scores = np.array([0.05, 0.5, 0.4])
    ids, identities = Identities().identify(np.full(3, NO_TRACK), scores, sighting((0, 0), (9, 0), (0, 9)), THRESHOLD)
    assert ids.tolist() == [NO_TRACK, 0, 1] and identities.next_id == 2


def test_the_published_rule_names_all_rows_above_a_threshold():
    ids, next_id = Identities(7).name(np.array([[-1, 3], [-1, -1]]), np.array([[0.1, 0.1], [0.0, 0.5]]), 0.1)
    assert ids.tolist() == [[7, 3], [-1, 8]] and next_id == 9


def test_nothing_is_changed_in_place():
    identities = known((0, 0))
    before = {name: value.copy() for name, value in vars(identities.book).items()}
    ask(identities, (0, 0), (5, 5))
    assert all(np.array_equal(value, before[name]) for name, value in vars(identities.book).items())
    assert identities.next_id == 1
