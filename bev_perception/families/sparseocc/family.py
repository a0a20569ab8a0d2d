"""SparseOcc as an entry of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import VariantConfig
from bev_perception.families.family import INSTANCES, OCCUPANCY, Family
from bev_perception.families.sparseocc.config import SparseOccHeadConfig, SparseOccRecipe
from bev_perception.types import Limits, VoxelGrid

if TYPE_CHECKING:
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.truths import Truths


def _gives(config: VariantConfig) -> frozenset[str]:
    return frozenset({OCCUPANCY, INSTANCES} if config.head.panoptic else {OCCUPANCY})


def _grid(config: VariantConfig) -> VoxelGrid:
    return VoxelGrid(config.head.occ_range[:3], config.head.resolution, config.head.occ_size)


def _build(config: VariantConfig) -> Model:
    from bev_perception.families.sparseocc.model import SparseOcc

    return SparseOcc(config)


def _truths(config: VariantConfig, records: Records, labels: str | Path) -> Truths:
    from bev_perception.families.sparseocc.truths import OccupancyTruths

    return OccupancyTruths(config, records, labels)


def _steps(config: VariantConfig) -> Mapping[str, TrainedPart]:
    from bev_perception.families.sparseocc.step import OccupancyStep
    from bev_perception.supervision.parts import TrainedPart

    return {"all": TrainedPart(OccupancyStep), "decoder": TrainedPart(OccupancyStep, encoded_once=True)}


SPARSEOCC = Family(
    head=SparseOccHeadConfig,
    recipe=SparseOccRecipe,
    classes=OCC3D_CLASSES,
    gives=_gives,
    area=lambda config: config.head.occ_range,
    limits=lambda config: Limits(),
    grid=_grid,
    build=_build,
    truths=_truths,
    steps=_steps,
)
