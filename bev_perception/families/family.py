"""The interface of a family of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bev_perception.config import VariantConfig
from bev_perception.types import Limits, VoxelGrid

if TYPE_CHECKING:  # code that only needs the settings starts seconds sooner without torch
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.models.sampling_trace import SamplingTrace
    from bev_perception.supervision.order import Order
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.samples import TrainingData
    from bev_perception.supervision.truths import Truths

#: what a variant may output: boxes, track ids of these boxes, semantic occupancy, and the object instances of a
#: (panoptic) occupancy
BOXES, TRACKS, OCCUPANCY, INSTANCES = "boxes", "tracks", "occupancy", "instances"


@dataclass(frozen=True)
class Family:
    """One family. It is fast to import, since its functions import torch only when they are called.

    head: dataclass of a variant's `head`; it validates itself
    recipe: dataclass of `training.family`; it validates itself
    classes: names of the classes, unless a variant names others
    gives: returns what a variant outputs, a subset of BOXES, TRACKS, OCCUPANCY and INSTANCES
    area: returns the range that a variant covers: x, y, z low, then high, m, in the reference frame
    limits: returns the lowest score and the most boxes that a variant outputs by itself; None for those without boxes
    grid: returns the voxel grid of a variant that predicts occupancy; None for others
    build: returns the network of a variant with fresh weights
    truths: returns the labels of the records' key frames for training; the path is the folder of occupancy labels
    steps: returns the parts of a variant that can be trained, by name; "all" comes first
    order: returns the order of the samples of a variant's training, for data, the samples of a step (those of all
        processes together) and a seed; None: shuffled
    only_predicted: IoU over voxels, in the publication's mIoU, of a class that is predicted but nowhere in the truth;
        NaN leaves it out of the mean
    record: for a family whose queries sample images: a context manager in which each run of the model appends where it
        sampled to the list; None for other families
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
    order: Callable[[VariantConfig, TrainingData, int, int], Order] | None = None
    only_predicted: float = math.nan
    record: Callable[[Any], AbstractContextManager[list[SamplingTrace]]] | None = None
