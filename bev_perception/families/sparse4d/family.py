"""Sparse4D as an entry of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.config import VariantConfig
from bev_perception.families.family import BOXES, TRACKS, Family
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.types import Limits

if TYPE_CHECKING:
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.supervision.order import Order
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.samples import TrainingData
    from bev_perception.supervision.truths import Truths

#: m, of centres of boxes above and below the lidar
LOWEST, HIGHEST = -5.0, 3.0


def _gives(config: VariantConfig) -> frozenset[str]:
    return frozenset({BOXES, TRACKS} if config.head.track_ids else {BOXES})


def _area(config: VariantConfig) -> tuple[float, ...]:
    reach = config.head.max_distance
    return (-reach, -reach, LOWEST, reach, reach, HIGHEST)


def _build(config: VariantConfig) -> Model:
    from bev_perception.families.sparse4d.model import Sparse4D

    return Sparse4D(config)


def _truths(config: VariantConfig, records: Records, labels: str | Path) -> Truths:
    from bev_perception.families.sparse4d.truths import InstanceTruths

    return InstanceTruths(config, records)


def _steps(config: VariantConfig) -> Mapping[str, TrainedPart]:
    from bev_perception.families.sparse4d.step import InstanceStep
    from bev_perception.supervision.parts import TrainedPart

    newest_only = config.head.recurrent
    return {
        "all": TrainedPart(InstanceStep, newest_only=newest_only),
        "decoder": TrainedPart(InstanceStep, newest_only=newest_only, encoded_once=True),
    }


def _order(config: VariantConfig, data: TrainingData, slots: int, seed: int) -> Order:
    from bev_perception.families.sparse4d.order import order_of

    return order_of(config, data, slots, seed)


SPARSE4D = Family(
    head=Sparse4DHeadConfig,
    recipe=Sparse4DRecipe,
    classes=NUSCENES_CLASSES,
    gives=_gives,
    area=_area,
    limits=lambda config: Limits(config.head.decode.score_threshold, config.head.decode.max_num),
    grid=lambda config: None,
    build=_build,
    truths=_truths,
    steps=_steps,
    order=_order,
)
