"""Read YAML and JSON strictly, build dataclasses from them, and keep names in data inside of folders."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import stat
import typing
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import UnionType
from typing import IO, Any

import yaml

#: largest YAML file that is read, bytes, deepest nesting of its values, longest single value, and most values
MAX_BYTES, MAX_DEPTH, MAX_LENGTH, MAX_VALUES = 1_000_000, 20, 4_000, 10_000
#: what values of YAML may be, beside mappings and lists
_PLAIN = (str, int, float, bool, type(None))


class UserError(ValueError):
    """An error that the user can fix; its message names the cause and the remedy, so that no traceback is needed."""


class ConfigError(UserError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


class NotAFileError(OSError, UserError):
    """A pipe, a device or a directory where a file is read: reading it might never end."""


#: what is no regular file -> how it is called
_OTHERS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path) -> None:
    """Raise NotAFileError for a path, or what it links to, that exists and is no regular file."""
    if path.exists():
        _check_mode(path.stat().st_mode, path)


def open_regular(path: Path) -> IO[bytes]:
    """Return a file opened for reading bytes; raise OSError if it is missing, and NotAFileError as check_regular."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # to open a pipe would wait for a writer
    try:
        _check_mode(os.fstat(handle).st_mode, path)
    except NotAFileError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: Path) -> bytes:
    """Return the content of a file; raise OSError and NotAFileError as open_regular."""
    with open_regular(path) as file:
        return file.read()


def _check_mode(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _OTHERS if is_kind(mode)), "no file")
        raise NotAFileError(f"{path} is {kind}; give a regular file")


_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _StrictLoader(yaml.SafeLoader):
    """A loader that refuses YAML features which no configuration needs.

    These are aliases, duplicate keys, deep nesting, long values, and other types than words, numbers and truth values.
    """

    depth = 0
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not taken", event.start_mark)
        self.depth += 1
        self.values += 1
        if self.values > MAX_VALUES:
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_VALUES} values are not taken", mark)
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_DEPTH} levels are not taken", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MAX_LENGTH:
            raise yaml.constructor.ConstructorError(
                None, None, f"values of more than {MAX_LENGTH} characters are not taken", node.start_mark
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(node, yaml.ScalarNode) and not isinstance(value, _PLAIN):
            raise yaml.constructor.ConstructorError(
                None, None, f"a {type(value).__name__} is not taken; put text into quotes", node.start_mark
            )
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
            raise yaml.constructor.ConstructorError(None, None, f"{node.tag} is not taken", node.start_mark)
        return value

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
    """Return the mapping in a YAML file.

    Raises ConfigError, naming the file, if it is missing, too large, not valid YAML or not a mapping, or if it contains
    duplicate keys or aliases.
    """
    path = Path(path)
    values = read_yaml_values(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(values).__name__}; write `key: value` lines")
    return values


def read_yaml_values(path: Path) -> Any:
    """Return the values in a YAML file, None for an empty one; raise ConfigError as read_yaml, but for no mapping."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes; give the file of a configuration")
        return _parse(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 ({error}); save it as UTF-8") from error
    except NotAFileError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}; correct the file") from error
    except _NotYamlError as error:
        raise ConfigError(f"cannot read {path}: {error}; correct the file") from error


class _NotYamlError(Exception):
    """Text that cannot be parsed."""


def _parse(text: str) -> Any:
    """Return the plain values of a YAML text; raise _NotYamlError for anything else."""
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        # dates, numbers and explicit tags that mean nothing can meet the constructors anywhere
        raise _NotYamlError(str(error)) from error


class JsonError(UserError):
    """Text that is no JSON, or JSON that no program of ours reads; the message says what is wrong."""


def parse_json(data: bytes | str) -> Any:
    """Return the values in a JSON text; raise JsonError for anything else.

    NaN and infinity, which Python's own reader takes, are no JSON. Numbers too large for a float are refused, and so
    are whole numbers of more than 64 bits, which NumPy cannot hold as such.
    """
    try:
        return json.loads(data, parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise JsonError("its values are nested too deeply") from error
    except ValueError as error:
        raise JsonError(str(error)) from error


def _no_number(name: str) -> float:
    raise JsonError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{text[:40]} is too large for a number")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not -(1 << 63) <= value < 1 << 63:
        raise JsonError(f"{text[:40]} is too large for a whole number")
    return value


def inside(root: Path, *names: str) -> Path:
    """Return the path of what data calls `names` below a folder.

    root: the folder
    names: relative paths from the data, such as file names in tables, which may hold slashes

    Raises UserError for names that would lead out of the folder.
    """
    for name in names:
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts or any(c in name for c in "\0\\"):
            raise UserError(f"{name!r} does not name a file inside of {root}; the data is damaged or hostile")
    return root.joinpath(*names)


def merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` on top.

    Mappings are merged key by key, null takes a mapping out, and anything else is replaced.
    """
    merged = dict(base)
    for key, value in values.items():
        old = merged.get(key)
        if isinstance(old, dict) and value is None:
            del merged[key]
        else:
            merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def change(values: dict[str, Any], text: str) -> None:
    """Set one key of nested mappings in place, as `text` says, e.g. "training.lr=1e-4".

    values: nested mappings as read_yaml returns them; missing mappings on the way to the key are created, and
        from_dict refuses keys that do not exist
    text: KEY=VALUE, with dots in KEY between the levels; VALUE is parsed as YAML

    Raises ConfigError if `text` does not have this form, if a level above the key is not a mapping, or if VALUE is not
    valid YAML.
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
        values[last] = _parse(value)
    except _NotYamlError as error:
        raise ConfigError(f"{text!r}: {value!r} is no value ({error})") from error


def check_positive(settings: Any, where: str, names: Sequence[str]) -> None:
    """Raise ConfigError, naming the key, for settings called `names` that are not positive."""
    for name in names:
        if getattr(settings, name) <= 0:
            raise ConfigError(f"{where}.{name} ({getattr(settings, name)}) must be positive")


def check_share(where: str, value: float) -> None:
    """Raise ConfigError, naming the key, for a share outside of 0..1, or of 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{where} ({value}) must lie in 0..1, below 1")


def check_box(where: str, box: Sequence[float]) -> None:
    """Raise ConfigError, naming the key, for x, y, z low, then high, that leave no room between them."""
    if not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
        raise ConfigError(f"{where} {tuple(box)} is empty; give x, y, z low, then high")


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a mapping of plain values, strictly.

    cls: the dataclass; its fields may be dataclasses too
    values: field name -> value, nested as the fields are
    where: key of `values` in the configuration, for error messages; empty at the top

    Raises ConfigError for an unknown key (suggesting the nearest valid one), a missing key, a value of the wrong type,
    and numbers that are NaN or infinite.
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
        return value  # the family's own settings, which are built already
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
    """Convert a value to float if possible; YAML 1.1 reads 1e-4, without a decimal point, as a string."""
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
