"""Variants by name: the YAML files in config/models, and the weights that are shipped with some of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bev_perception.config import VariantConfig
from bev_perception.families.catalog import find_family
from bev_perception.strict import ConfigError, change, from_dict, merge, read_yaml

#: the variants that come with weights: a detector, and an occupancy model with the same encoder
TINY_DETECTOR, TINY_OCCUPANCY = "sparsebev_tiny", "sparseocc_tiny"


#: a variant: its name, the path of a YAML file of your own, or its loaded settings
Variant = str | Path | VariantConfig


def variants_directory() -> Path:
    """Return the directory of the variants' YAML files.

    It is next to the package in a source tree and in an editable install, in share/bev_perception in a ROS 2
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
    """Return the directory of the weights that come with the package; it may not exist."""
    return variants_directory().parent / "weights"


def shipped_weights(name: str) -> Path | None:
    """Return the weights file that comes with the package for the variant `name`, or None if there is none."""
    path = weights_directory() / f"{name}.safetensors"
    return path if path.is_file() else None


def list_variants() -> list[str]:
    """Return the names of all variants that come with the package."""
    return sorted(path.stem for path in variants_directory().glob("*.yaml"))


def load_variant(variant: Variant, changes: Sequence[str] = ()) -> VariantConfig:
    """Load a variant.

    variant: its name, or the path of a YAML file of your own; loaded settings are returned unchanged
    changes: settings that override those in the file, as "a.b=value"; see strict.change

    Raises ConfigError for an unknown name (suggesting a similar one) and for any mistake in the file or in a change.
    """
    if isinstance(variant, VariantConfig):
        return variant
    path = _find(variant)
    values = _read(path, ())
    if values.get("name") != path.stem:
        raise ConfigError(f"{path.name}: name is {values.get('name')!r}; it must equal the file's name")
    for text in changes:
        if text.partition("=")[0].strip() in ("name", "extends"):
            raise ConfigError(f"{text!r}: a variant is named and extended in a file of its own, see docs/variants.md")
        change(values, text)
    where = path.name + (f" with {', '.join(changes)}" if changes else "")
    return _variant_from(values, where)


class _PlainDumper(yaml.SafeDumper):
    """Writes repeated values in full instead of as YAML aliases, which are not accepted when reading."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def write_variant(config: VariantConfig, folder: Path) -> Path:
    """Write a variant as a YAML file that load_variant accepts, named after the variant; return its path."""
    path = folder / f"{config.name}.yaml"
    path.write_text(yaml.dump(dataclasses.asdict(config), Dumper=_PlainDumper, sort_keys=False))
    return path


def _find(name: str | Path) -> Path:
    """Return the path of a variant's YAML file."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = variants_directory() / f"{name}.yaml"
    if not path.is_file():
        known = list_variants()
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown variant {str(name)!r}; {hint}known: {', '.join(known)}")
    return path


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the values in a file, merged into those of the variant that it extends, if any.

    seen: files whose `extends` led to this one

    Mappings are merged key by key; anything else is replaced.
    """
    if path.resolve() in seen:
        raise ConfigError(f"{path.name} extends itself: {' -> '.join(p.name for p in (*seen, path))}")
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path.name}: extends is {base!r}; name one variant, or the path of its file")
    beside = path.parent / base  # a path in a file is relative to that file
    parent = beside if beside.suffix in (".yaml", ".yml") else _find(base)
    return merge(_read(parent, (*seen, path.resolve())), values)


def _variant_from(values: dict[str, Any], where: str) -> VariantConfig:
    """Build the variant from plain values; its family decides which dataclasses its head and recipe are."""
    if "family" not in values:
        return from_dict(VariantConfig, values, where)  # raises ConfigError: the family is missing
    family = find_family(values["family"], where)
    values = {"class_names": family.classes, **values}
    if values["class_names"] == []:
        raise ConfigError(f"{where}.class_names must name at least one class; leave it out for the family's own")
    if "head" in values:
        values["head"] = from_dict(family.head, values["head"], f"{where}.head")
    if isinstance(values.get("training"), dict):
        own = from_dict(family.recipe, values["training"].get("family", {}), f"{where}.training.family")
        values["training"] = {**values["training"], "family": own}
    config: VariantConfig = from_dict(VariantConfig, values, where)
    return config
