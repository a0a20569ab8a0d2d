"""Variants by name: the YAML files of config/models, and the weights that are shipped with some of them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from bev_perception.config import VariantConfig
from bev_perception.families.catalog import FAMILIES
from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.strict import ConfigError, from_dict

#: the variants that come with weights: one that detects, one that gives occupancy on the same encoder
TINY_DETECTOR, TINY_OCCUPANCY = "sparsebev_tiny", "sparseocc_tiny"


def variants_directory() -> Path:
    """Return the directory of the variants' YAML files.

    It lies beside the package in a source tree and an editable install, in share/bev_perception of a ROS 2
    workspace, and inside the package in a wheel.
    """
    package = Path(__file__).resolve().parent.parent
    candidates = [package.parent / "config" / "models", package / "config" / "models"]
    candidates += [up / "share" / "bev_perception" / "config" / "models" for up in package.parents]
    for directory in candidates:
        if directory.is_dir():
            return directory
    raise ConfigError(f"no config/models beside {package}; the installation is incomplete, install the package again")


def weights_directory() -> Path:
    """Return where the weights are that come with the package; it need not exist."""
    return variants_directory().parent / "weights"


def shipped_weights(name: str) -> Path | None:
    """Return the file of weights that comes with the package for the variant `name`, or None if there is none."""
    path = weights_directory() / f"{name}.safetensors"
    return path if path.is_file() else None


def list_variants() -> list[str]:
    """Return the names of all variants that come with the package."""
    return sorted(path.stem for path in variants_directory().glob("*.yaml"))


def load_variant(name: str | Path) -> VariantConfig:
    """Load a variant by its name, or from the path of a YAML file of your own.

    Raises ConfigError for a name that does not exist (naming the nearest) and for any mistake in the file.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = variants_directory() / f"{name}.yaml"
        if not path.is_file():
            known = list_variants()
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown variant {str(name)!r}; {hint}known: {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the variant file {path}: {error}") from error
    config = _variant_from(values, path.name)
    if config.name != path.stem:
        raise ConfigError(f"{path.name}: name is {config.name!r}; it must equal the file's name")
    return config


def _variant_from(values: Any, where: str) -> VariantConfig:
    """Build the variant from plain values; its family decides what its head is made of."""
    family = values.get("family") if isinstance(values, dict) else None
    if family is None:
        return from_dict(VariantConfig, values, where)  # raises: it is missing
    if family not in FAMILIES:
        raise ConfigError(f"{where}: unknown family {family!r}; known: {', '.join(FAMILIES)}")
    head, classes = FAMILIES[family]
    decode = from_dict(DecodeConfig, values.get("decode", {}), f"{where}.decode")
    values = {"class_names": classes, **values, "decode": decode}
    if "head" in values:
        values["head"] = from_dict(head, values["head"], f"{where}.head")
    config: VariantConfig = from_dict(VariantConfig, values, where)
    return config
