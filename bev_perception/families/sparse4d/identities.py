"""Track ids: instances hand them on from frame to frame, new ones get fresh ones.

An instance that goes on keeps its row, so its id. That is all there is to it where every frame continues from the frame
before. Live, frames come faster than the model was trained for: each continues from a frame about half a second
ago, and what was new in between is new again. Such a row first asks a book of the objects seen lately.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

#: lowest class score of an object in the book
BOOK_SCORE = 0.1
#: s; for so long the book holds an object that is not seen
BOOK_SECONDS = 1.0
#: m, between where an object of the book should be and a row that may be the same
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
    """

    next_id: int = 0
    book_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    book: Sightings = field(default_factory=_nothing)

    def forgotten(self) -> Identities:
        """Return the state after a wipe: an empty book, and the same next id."""
        return Identities(self.next_id)

    def name(self, ids: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
        """Give fresh ids to all rows without one, in their order; return the ids and the id that is given next.

        ids: [..., N] int64, -1: none yet
        scores: [..., N], of the best class
        threshold: rows with lower scores get no id
        """
        new = (ids < 0) & (scores >= threshold)
        named = ids.copy()
        count = int(new.sum())
        named[new] = self.next_id + np.arange(count)
        return named, self.next_id + count

    def identify(
        self, ids: np.ndarray, scores: np.ndarray, seen: Sightings, threshold: float
    ) -> tuple[np.ndarray, Identities]:
        """Return the ids [N] of a frame's rows, and the state after the frame.

        ids: [N] int64, handed down from the past frame, -1: none
        scores: [N], of the best class
        seen: the N rows
        threshold: rows with lower scores get no id
        """
        found = self._look_up(ids, scores, seen)
        named, next_id = self.name(found, scores, threshold)
        noted = (scores >= BOOK_SCORE) & (named >= 0)
        now = seen.stamps.max(initial=0)
        old = ~np.isin(self.book_ids, named[noted]) & (now - self.book.stamps <= BOOK_SECONDS * 1e9)
        book_ids = np.concatenate([named[noted], self.book_ids[old]])
        return named, Identities(next_id, book_ids, seen.select(noted).joined(self.book.select(old)))

    def _look_up(self, ids: np.ndarray, scores: np.ndarray, seen: Sightings) -> np.ndarray:
        """Return the ids [N] with those that the book knows; each id of the book is given once, to the nearest row."""
        rows = np.flatnonzero((ids < 0) & (scores >= BOOK_SCORE))
        entries = np.flatnonzero(~np.isin(self.book_ids, ids))
        asking, known = seen.select(rows), self.book.select(entries)
        seconds = (asking.stamps[:, None] - known.stamps).astype(np.float64)[..., None] / 1e9
        apart = asking.centers[:, None] - (known.centers + seconds * known.velocities)  # [rows, entries, 2]
        distances = np.linalg.norm(apart, axis=-1)
        distances[asking.labels[:, None] != known.labels] = np.inf
        near = np.argwhere(distances <= BOOK_DISTANCE)
        found = ids.copy()
        taken: set[int] = set()
        for row, entry in near[np.argsort(distances[tuple(near.T)], kind="stable")].tolist():
            if found[rows[row]] < 0 and entry not in taken:
                found[rows[row]] = self.book_ids[entries[entry]]
                taken.add(entry)
        return found
