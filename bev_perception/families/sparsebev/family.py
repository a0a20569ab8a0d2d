"""SparseBEV as an entry of the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.config import VariantConfig
from bev_perception.families.family import BOXES, Family
from bev_perception.families.sparsebev.config import SparseBEVHeadConfig, SparseBEVRecipe
from bev_perception.types import Limits

if TYPE_CHECKING:
    from bev_perception.data.records import Records
    from bev_perception.models.protocol import Model
    from bev_perception.models.sampling_trace import SamplingTrace
    from bev_perception.supervision.parts import TrainedPart
    from bev_perception.supervision.truths import Truths


def _build(config: VariantConfig) -> Model:
    from bev_perception.families.sparsebev.model import SparseBEV

    return SparseBEV(config)


def _truths(config: VariantConfig, records: Records, labels: str | Path) -> Truths:
    from bev_perception.supervision.truths import BoxTruths

    return BoxTruths(config.class_names, config.head.pc_range, records)


def _steps(config: VariantConfig) -> Mapping[str, TrainedPart]:
    from bev_perception.families.sparsebev.proposals.step import PerspectiveStep
    from bev_perception.families.sparsebev.step import DetectionStep
    from bev_perception.supervision.parts import TrainedPart

    perspective = config.head.proposals.perspective
    parts = {
        "all": TrainedPart(DetectionStep),
        "decoder": TrainedPart(DetectionStep, kept=("perspective_head",) if perspective else (), encoded_once=True),
    }
    if perspective and (config.training is None or config.training.encoder != "frozen"):
        parts["encoder"] = TrainedPart(PerspectiveStep, kept=("pts_bbox_head",), newest_only=True, leaves_out=True)
    return parts


def _record(model: Any) -> AbstractContextManager[list[SamplingTrace]]:
    from bev_perception.families.sparsebev.recording import record_sampling

    return record_sampling(model)


SPARSEBEV = Family(
    head=SparseBEVHeadConfig,
    recipe=SparseBEVRecipe,
    classes=NUSCENES_CLASSES,
    gives=lambda config: frozenset({BOXES}),
    area=lambda config: config.head.pc_range,
    limits=lambda config: Limits(config.head.decode.score_threshold, config.head.decode.max_num),
    grid=lambda config: None,
    build=_build,
    truths=_truths,
    steps=_steps,
    record=_record,
)
