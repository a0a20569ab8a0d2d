"""What the house asks of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bev_perception.config import VariantConfig
from bev_perception.types import Limits, VoxelGrid

if TYPE_CHECKING:  # what only needs the settings starts seconds sooner without torch
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.models.sampling_trace import SamplingTrace
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.truths import Truths

#: what a variant may give: boxes, occupancy, and occupancy whose objects are told apart
BOXES, OCCUPANCY, INSTANCES = "boxes", "occupancy", "instances"


@dataclass(frozen=True)
class Family:
    """One family; light to import: what needs torch is imported inside of the functions.

    head: the dataclass of a variant's `head`, which checks itself
    recipe: the dataclass of `training.family`, which checks itself
    classes: the classes that a variant tells apart unless it names others
    gives: what a variant gives, of BOXES, OCCUPANCY and INSTANCES
    area: x, y, z low, then high, m, in the reference frame, in which a variant sees
    limits: the lowest score and the most boxes that a variant hands out by itself; None for those without boxes
    grid: the voxels of a variant that gives occupancy; None for others
    build: the network of a variant, with fresh weights
    truths: what key frames of records teach a variant; the path is the folder of occupancy labels
    steps: the parts of a variant that can be trained, by name; "all" comes first
    record: for a family whose queries sample images: inside of the context, every run of the model adds where
    """

    head: type
    recipe: type
    classes: tuple[str, ...]
    gives: Callable[[VariantConfig], frozenset[str]]
    area: Callable[[VariantConfig], tuple[float, ...]]
    limits: Callable[[VariantConfig], Limits]
    grid: Callable[[VariantConfig], VoxelGrid | None]
    build: Callable[[VariantConfig], Model]
    truths: Callable[[VariantConfig, Records, str | Path], Truths]
    steps: Callable[[VariantConfig], Mapping[str, TrainedPart]]
    record: Callable[[Any], AbstractContextManager[list[SamplingTrace]]] | None = None
