"""The families by name; the one place that lists them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.config import TrainingConfig, VariantConfig
from bev_perception.families.sparsebev.config import SparseBEVHeadConfig, sparsebev_head
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.strict import ConfigError

if TYPE_CHECKING:  # what only needs the settings starts seconds sooner without torch
    from bev_perception.data.records import Records
    from bev_perception.families.sparsebev.model import SparseBEV
    from bev_perception.families.sparseocc.model import SparseOcc
    from bev_perception.supervision.step import TrainingStep
    from bev_perception.supervision.truths import Truths

HeadConfig = SparseBEVHeadConfig | SparseOccHeadConfig

#: family -> the settings of its head, and the classes that it tells apart unless a variant names others
FAMILIES: dict[str, tuple[type[HeadConfig], tuple[str, ...]]] = {
    "sparsebev": (SparseBEVHeadConfig, NUSCENES_CLASSES),
    "sparseocc": (SparseOccHeadConfig, OCC3D_CLASSES),
}


def build_model(config: VariantConfig) -> SparseBEV | SparseOcc:
    """Build the model of a variant with fresh weights, in evaluation mode.

    Raises ConfigError for an unknown family and for settings that the family cannot be built with.
    """
    from bev_perception.families.sparsebev.model import SparseBEV
    from bev_perception.families.sparseocc.model import SparseOcc

    models: dict[str, type[SparseBEV] | type[SparseOcc]] = {"sparsebev": SparseBEV, "sparseocc": SparseOcc}
    if config.family not in models:
        raise ConfigError(f"{config.name}: unknown family {config.family!r}; known: {', '.join(models)}")
    return models[config.family](config).eval()


def build_step(model: Any, recipe: TrainingConfig, precision: str, encoder_only: bool = False) -> TrainingStep:
    """Return the training step of a model of build_model, or that of its encoder and perspective head alone.

    precision: a key of PRECISIONS.
    """
    from bev_perception.families.sparsebev.proposals.step import PerspectiveStep
    from bev_perception.families.sparsebev.step import DetectionStep
    from bev_perception.families.sparseocc.step import OccupancyStep

    if encoder_only:
        return PerspectiveStep(model, recipe, precision)
    steps: dict[str, type[TrainingStep]] = {"sparsebev": DetectionStep, "sparseocc": OccupancyStep}
    return steps[model.config.family](model, recipe, precision)


def open_truths(config: VariantConfig, recipe: TrainingConfig, records: Records, labels: str | Path) -> Truths:
    """Return the truths that a variant is trained with; labels: the folder of occupancy labels, if it needs them."""
    from bev_perception.families.sparseocc.truths import OccupancyTruths
    from bev_perception.supervision.truths import BoxTruths

    if config.family == "sparseocc":
        return OccupancyTruths(config, recipe, records, labels)
    return BoxTruths(config.class_names, sparsebev_head(config).pc_range, records)
