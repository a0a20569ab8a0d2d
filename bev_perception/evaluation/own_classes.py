"""Teach nuscenes-devkit the classes of one's own data sets, which it scores as it scores its own ten."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bev_perception.data.indexing import CLASS_OF
from bev_perception.data.own_dataset import VERSION

#: m from the car up to which a class of one's own counts, as nuScenes' vehicles do
OWN_RANGE = 50.0


def own_classes(devkit: Any) -> list[str]:
    """Return the classes of a data set that are none of nuScenes', which only data sets of one's own have."""
    if devkit.version != VERSION:
        return []
    return [category["name"] for category in devkit.category if category["name"] not in CLASS_OF]


@contextmanager
def known_to_devkit(names: Collection[str]) -> Iterator[None]:
    """Let the devkit's detection task know further classes for the duration of the context.

    It keeps its classes in lists and tables of its modules; these are extended, and restored in the end.
    """
    from nuscenes.eval.common import loaders
    from nuscenes.eval.detection import constants

    if not names:
        yield
        return
    of_devkit = loaders.category_to_detection_name
    known, labels, colors = constants.DETECTION_NAMES, constants.PRETTY_DETECTION_NAMES, constants.DETECTION_COLORS
    before = list(known), dict(labels), dict(colors)
    try:
        known += names
        labels.update({name: name for name in names})
        colors.update({name: f"C{k % 10}" for k, name in enumerate(names)})
        loaders.category_to_detection_name = lambda category: category if category in names else of_devkit(category)
        yield
    finally:
        loaders.category_to_detection_name = of_devkit
        known[:], _, _ = before
        for table, old in ((labels, before[1]), (colors, before[2])):
            table.clear()
            table.update(old)
