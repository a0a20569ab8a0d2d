"""The families by name; no other place lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bev_perception.config import VariantConfig
from bev_perception.families.bevdet.family import BEVDET
from bev_perception.families.family import Family
from bev_perception.families.sparse4d.family import SPARSE4D
from bev_perception.families.sparsebev.family import SPARSEBEV
from bev_perception.families.sparseocc.family import SPARSEOCC
from bev_perception.strict import ConfigError

if TYPE_CHECKING:
    from bev_perception.models.protocol import Model

FAMILIES: dict[str, Family] = {
    "bevdet": BEVDET,
    "sparsebev": SPARSEBEV,
    "sparseocc": SPARSEOCC,
    "sparse4d": SPARSE4D,
}


def find_family(name: Any, where: str) -> Family:
    """Return the family called `name`.

    where: beginning of the error message, such as the file that names the family

    Raises ConfigError for a family that does not exist.
    """
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise ConfigError(f"{where}: unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return family


def family_of(config: VariantConfig) -> Family:
    """Return a variant's family; raise ConfigError if it does not exist or the head settings are another family's."""
    family = find_family(config.family, config.name)
    if not isinstance(config.head, family.head):
        raise ConfigError(
            f"{config.name}: a variant of {config.family} needs the head settings {family.head.__name__}, "
            f"not {type(config.head).__name__}"
        )
    return family


def build_model(config: VariantConfig) -> Model:
    """Build the model of a variant with fresh weights, in evaluation mode.

    Raises ConfigError for an unknown family and for settings that the family cannot be built with.
    """
    return family_of(config).build(config).eval()


def gives(config: VariantConfig) -> frozenset[str]:
    """Return what a variant outputs, a subset of BOXES, TRACKS, OCCUPANCY and INSTANCES."""
    return family_of(config).gives(config)
