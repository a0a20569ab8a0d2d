"""BEVDet and its successors as an entry of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.config import VariantConfig
from bev_perception.families.bevdet.config import BEVDetHeadConfig, CenterPointConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.family import BOXES, OCCUPANCY, Family
from bev_perception.types import Limits, VoxelGrid

if TYPE_CHECKING:
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.supervision.order import Order
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.samples import TrainingData
    from bev_perception.supervision.truths import Truths


def _gives(config: VariantConfig) -> frozenset[str]:
    return frozenset({BOXES} if config.head.occupancy is None else {OCCUPANCY})


def _limits(config: VariantConfig) -> Limits:
    boxes: CenterPointConfig | None = config.head.boxes
    return Limits() if boxes is None else Limits(boxes.score_threshold, boxes.post_max * len(boxes.tasks))


def _grid(config: VariantConfig) -> VoxelGrid | None:
    from bev_perception.families.bevdet.occupancy_head import voxel_grid

    return None if config.head.occupancy is None else voxel_grid(config.head)


def _build(config: VariantConfig) -> Model:
    from bev_perception.families.bevdet.model import BEVDet

    return BEVDet(config)


def _truths(config: VariantConfig, records: Records, labels: str | Path) -> Truths:
    from bev_perception.families.bevdet.truths import DetectionTruths, VoxelTruths

    if config.head.occupancy is None:
        return DetectionTruths(config, records)
    return VoxelTruths(config, records, labels)


def _steps(config: VariantConfig) -> Mapping[str, TrainedPart]:
    from bev_perception.families.bevdet.step import BEVDetStep
    from bev_perception.supervision.parts import TrainedPart

    return {"all": TrainedPart(BEVDetStep)}


def _order(config: VariantConfig, data: TrainingData, slots: int, seed: int) -> Order:
    from bev_perception.families.bevdet.order import training_order

    return training_order(config, data, slots, seed)


BEVDET = Family(
    head=BEVDetHeadConfig,
    recipe=BEVDetRecipe,
    classes=NUSCENES_CLASSES,
    gives=_gives,
    area=lambda config: config.head.grid.range,
    limits=_limits,
    grid=_grid,
    build=_build,
    truths=_truths,
    steps=_steps,
    order=_order,
    only_predicted=0.0,
)
