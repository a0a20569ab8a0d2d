"""The networks, one family a file."""

from __future__ import annotations

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.models.sparsebev import SparseBEV
from bev_perception.models.sparseocc import SparseOcc

_FAMILIES: dict[str, type[SparseBEV] | type[SparseOcc]] = {"sparsebev": SparseBEV, "sparseocc": SparseOcc}


def build_model(config: VariantConfig) -> SparseBEV | SparseOcc:
    """Build the model of a variant with fresh weights, in evaluation mode.

    Raises ConfigError for an unknown family and for settings that the family cannot be built with.
    """
    if config.family not in _FAMILIES:
        raise ConfigError(f"{config.name}: unknown family {config.family!r}; known: {', '.join(_FAMILIES)}")
    return _FAMILIES[config.family](config).eval()
