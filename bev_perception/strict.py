"""Plain values, as YAML gives them, to dataclasses: an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Hashable
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

#: bytes of the largest YAML file that is read, and how deep its values may lie
MAX_BYTES, MAX_DEPTH = 1_000_000, 20


class UserError(ValueError):
    """An error that the user can mend; its message names the cause and the remedy, and no traceback is needed."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses what YAML allows and no configuration needs: aliases, keys that are given twice, endless nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not taken", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_DEPTH} levels are not taken", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises ConfigError, which names the file, for one that is missing, too large, no YAML or no mapping, for keys that
    are given twice and for aliases.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; give the file of a configuration")
        values = yaml.load(data.decode(), _StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"cannot read {path}: {error}; correct the file") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(values).__name__}; write `key: value` lines")
    return values


def merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` on top: mappings are merged key by key, anything else is replaced."""
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def change(values: dict[str, Any], text: str) -> None:
    """Change plain values in place by a text such as "training.lr=1e-4"; the value is read as YAML.

    Mappings that are not there are made; from_dict refuses keys that do not exist. Raises ConfigError for another text.
    """
    key, equals, value = text.partition("=")
    *path, last = key.strip().split(".")
    if not equals or not all([*path, last]):
        raise ConfigError(f"{text!r} changes nothing; write KEY=VALUE, e.g. training.lr=1e-4")
    for step in path:
        if not isinstance(values.get(step, {}), dict):
            raise ConfigError(f"{text!r}: {step} is no mapping that could hold a key")
        values = values.setdefault(step, {})
    try:
        values[last] = yaml.load(value, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: {value!r} is no value ({error})") from error


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from plain values, strictly.

    Raises ConfigError for an unknown key (naming the nearest), a missing key, a value of a wrong type and for numbers
    that are NaN or infinite.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return value  # built already: the settings of a family
    if typing.get_origin(hint) in (UnionType, typing.Union):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        value = _number(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is no finite number")
    return value


def _number(value: int | str) -> float | int | str:
    """Return the number that a text is, since YAML 1.1 reads 1e-4 (without a point) as a text."""
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{where}: expected {len(items)} values, got {len(value)}")
    return tuple(_convert(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))
