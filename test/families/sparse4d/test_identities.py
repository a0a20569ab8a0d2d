"""Track ids of single frames: what the book knows, what it gives away, and what it keeps; drives are in test_tracks."""

import numpy as np

from bev_perception.families.sparse4d.config import DecodeConfig
from bev_perception.families.sparse4d.identities import BOOK_SECONDS, NO_TRACK, Identities, Sightings

SECOND = 1_000_000_000
THRESHOLD = DecodeConfig().track_threshold


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
    _, identities = identities.identify(
        np.array([0, -1]), np.array([0.1, 0.9]), sighting((0.5, 0), (0, 0), stamp=0.1), THRESHOLD
    )
    assert sorted(identities.book_ids.tolist()) == [0, 1]
    _, identities = identities.identify(np.array([0]), np.array([0.9]), sighting((0, 0), stamp=0.2), THRESHOLD)
    ids, _ = identities.identify(np.array([0, 1]), np.array([0.1, 0.9]), sighting((9, 0), (0, 0), stamp=0.3), THRESHOLD)
    assert ids.tolist() == [NO_TRACK, 0]


def test_an_object_that_is_missed_keeps_its_id_beside_another():
    identities = known((0, 0), (5, 0))
    ids, _ = identities.identify(
        np.array([0, 1]), np.array([0.1, 0.9]), sighting((0, 0), (0.6, 0), stamp=0.1), THRESHOLD
    )
    assert ids.tolist() == [0, 1]


def test_close_objects_do_not_exchange_ids_when_one_is_missed_and_drifts():
    identities = known((0, 0), (0.8, 0))
    drift, handed = [(-1.2, 0), (-1.2, 0), (-1.2, 0), (0, 0)], np.array([0, 1])
    for index, place in enumerate(drift):
        scores = np.array([0.9 if index == 3 else 0.1, 0.9])
        ids, identities = identities.identify(
            handed, scores, sighting(place, (0.8, 0), stamp=0.1 * (index + 1)), THRESHOLD
        )
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
