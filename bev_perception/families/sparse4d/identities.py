"""Track ids: instances hand them on from frame to frame, new ones get fresh ones.

An instance that goes on keeps its row, so its id. That is all there is to it where every frame continues from the frame
before. Live, frames come faster than the model was trained for: each continues from a frame about half a second
ago, and what was new in between is new again. Such a row first asks a book of the objects seen lately. Rows that have
not yet been clear are not tracked: they would get another id in each of the frames that others continue from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bev_perception.types import NO_TRACK

#: s; for so long the book holds an object that is not seen
BOOK_SECONDS = 1.0
#: m, between where an object of the book should be and a row that may be the same; half of it for a row with an id
BOOK_DISTANCE = 2.0


@dataclass(frozen=True)
class Sightings:
    """Objects of a frame or of the book, in the global frame.

    labels: [n] int64 classes
    centers: [n, 2], m
    velocities: [n, 2], m/s
    stamps: [n] int64, ns
    """

    labels: np.ndarray
    centers: np.ndarray
    velocities: np.ndarray
    stamps: np.ndarray

    def select(self, keep: np.ndarray) -> Sightings:
        """Return the objects that `keep`, a mask or indices, selects."""
        return Sightings(self.labels[keep], self.centers[keep], self.velocities[keep], self.stamps[keep])

    def joined(self, others: Sightings) -> Sightings:
        """Return these objects and others behind them."""
        mine, theirs = vars(self), vars(others)
        return Sightings(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})


def _nothing() -> Sightings:
    whole, pairs = np.zeros(0, np.int64), np.zeros((0, 2))
    return Sightings(whole, pairs, pairs, whole)


@dataclass(frozen=True)
class Identities:
    """The ids that have been given: state that is carried from frame to frame; immutable.

    next_id: the id that is given next; it only grows, so no id is given twice
    book_ids: [n] int64, ids of the objects in the book
    book: the objects seen lately, each as it was seen last
    met: [n, n] bool, symmetric: which objects of the book have been noted in the same frame, so are not the same
    """

    next_id: int = 0
    book_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    book: Sightings = field(default_factory=_nothing)
    met: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))

    def forgotten(self) -> Identities:
        """Return the state after a wipe: an empty book, and the same next id."""
        return Identities(self.next_id)

    def name(self, ids: np.ndarray, scores: np.ndarray, lowest: float) -> tuple[np.ndarray, int]:
        """Give fresh ids to all rows without one, in their order; return the ids and the id that is given next.

        ids: [..., N] int64, NO_TRACK: none yet
        scores: [..., N], of the best class
        lowest: rows with lower scores get no id

        This alone is the published rule, with 0 as the lowest score.
        """
        new = (ids == NO_TRACK) & (scores >= lowest)
        named = ids.copy()
        count = int(new.sum())
        named[new] = self.next_id + np.arange(count)
        return named, self.next_id + count

    def identify(
        self, ids: np.ndarray, scores: np.ndarray, seen: Sightings, clear_score: float
    ) -> tuple[np.ndarray, Identities]:
        """Return the ids [N] of a frame's rows, and the state after the frame.

        ids: [N] int64, handed down from the past frame, NO_TRACK: none
        scores: [N], of the best class
        seen: the N rows
        clear_score: lowest score of a row that is clear: it gets an id, and is noted in the book
        """
        noted = scores >= clear_score
        named, next_id = self.name(self._look_up(ids, scores, seen, noted), scores, clear_score)
        now = seen.stamps.max(initial=0)
        old = ~np.isin(self.book_ids, named[noted]) & (now - self.book.stamps <= BOOK_SECONDS * 1e9)
        book_ids = np.concatenate([named[noted], self.book_ids[old]])
        book = seen.select(noted).joined(self.book.select(old))
        return named, Identities(next_id, book_ids, book, self._met(book_ids, int(noted.sum())))

    def _met(self, book_ids: np.ndarray, noted: int) -> np.ndarray:
        """Return `met` for the next book, of which the first `noted` objects are those of the current frame."""
        same = book_ids[:, None] == self.book_ids  # [n, entries], at most one entry for each
        met = same @ self.met @ same.T
        met[:noted, :noted] = True
        return met

    def _look_up(self, ids: np.ndarray, scores: np.ndarray, seen: Sightings, clear: np.ndarray) -> np.ndarray:
        """Return the ids [N] with those that the book knows.

        Clear rows ask, best first, and get the nearest id that no clear row has: those without one, then those whose
        own is younger. For frames continue from two past frames by turns, in each of which a new object may have got an
        id. Ids that have been noted in one frame belong to two objects, and are not exchanged; nor is one that has left
        the book, of which this is not known. An id is taken from a row that is not clear, unless that row is where the
        object should be: it is then just missed.
        """
        distances = self._distances(seen)  # [N, entries]
        held = (ids[:, None] == self.book_ids) & (clear[:, None] | (distances <= BOOK_DISTANCE / 2))
        distances[:, held.any(axis=0)] = np.inf
        strangers = {number: ~met for number, met in zip(self.book_ids.tolist(), self.met, strict=True)}
        found = ids.copy()
        for row in np.lexsort((-scores, ids != NO_TRACK)):
            if not clear[row]:
                continue
            limit, away, own = BOOK_DISTANCE, distances[row], int(ids[row])
            if own != NO_TRACK:
                limit = BOOK_DISTANCE / 2
                older = (self.book_ids < own) & strangers.get(own, False)
                away = np.where(older, away, np.inf)
            if len(away) and away.min() <= limit:
                entry = int(away.argmin())
                found[found == self.book_ids[entry]] = NO_TRACK
                found[row] = self.book_ids[entry]
                distances[:, entry] = np.inf
        return found

    def _distances(self, seen: Sightings) -> np.ndarray:
        """Return how far rows are from where the objects of the book should be by now, [N, entries], m.

        Objects of another class are infinitely far.
        """
        seconds = (seen.stamps[:, None] - self.book.stamps).astype(np.float64)[..., None] / 1e9
        away = seen.centers[:, None] - (self.book.centers + seconds * self.book.velocities)  # [N, entries, 2]
        return np.where(seen.labels[:, None] == self.book.labels, np.linalg.norm(away, axis=-1), np.inf)
