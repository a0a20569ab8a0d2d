"""Documentation page of every key of a variant's YAML file, from the dataclasses and their docstrings.

`python -m bev_perception.families.reference > docs/variants.md` writes the page.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import Any

from bev_perception.config import VariantConfig
from bev_perception.families.catalog import FAMILIES

_HEAD = """# Keys of a variant's YAML file

`python -m bev_perception.families.reference > docs/variants.md` writes this page; a test asserts that it is current.

A variant is a file in `config/models`, or one of your own: `name: mine` in `mine.yaml`, given to `--variant` or to the
node's parameter `variant` by its path. Unknown keys, keys that are given twice, NaN and infinity are refused.

- `extends: NAME` (or the path of a file, relative to this one) starts from another variant: mappings are merged key by
  key, null takes one out, anything else is replaced. For example, `sparsebev_tiny` for another picture:

        name: mine
        extends: sparsebev_tiny
        image: {height: 320, width: 800}

- `--set KEY=VALUE`, on every command that takes `--variant`, changes one key: `--set training.lr=1e-4`.
"""


def variants_reference() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, "## All families\n", *_section(VariantConfig, "", by_family=("class_names",))]
    for name, family in FAMILIES.items():
        parts += [f"## {name}\n", "Classes unless named: " + ", ".join(family.classes) + ".\n"]
        parts += [*_section(family.head, "head"), *_section(family.recipe, "training.family")]
    return "\n".join(parts)


def _section(cls: type, key: str, by_family: tuple[str, ...] = ()) -> list[str]:
    """Return the tables of a dataclass and of the dataclasses nested in it, each below a heading."""
    title = f"### `{key}`\n\n" if key else ""
    summary, described = _docstring(cls)
    hints = typing.get_type_hints(cls)
    rows, inner = [], []
    for field in dataclasses.fields(cls):
        own = f"{key}.{field.name}".lstrip(".")
        nested = _dataclass_in(hints[field.name])
        if field.name in by_family or hints[field.name] is Any:
            default = "by family"
        elif nested is not None:
            default = "see below"
            inner += _section(nested, own)
        else:
            default = _default(field)
        rows.append(f"| `{own}` | {default} | {described[field.name]} |")
    table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])
    return [f"{title}{summary}\n\n{table}\n", *inner]


def _dataclass_in(hint: Any) -> type | None:
    """Return the dataclass in a type hint, which may also allow None; None if there is none."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((member for member in members if dataclasses.is_dataclass(member)), None)  # type: ignore[return-value]


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return {None: "none", "": "empty", True: "`true`", False: "`false`"}.get(_hashable(value), f"`{value}`")


def _hashable(value: Any) -> Any:
    return value if isinstance(value, bool | str) or value is None else repr(value)


def _docstring(cls: type) -> tuple[str, dict[str, str]]:
    """Return the summary of a dataclass and the meaning of each field, from its docstring.

    A field is a line `name: meaning`; the lines after it continue the meaning.
    """
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    names = {field.name for field in dataclasses.fields(cls)}
    summary, described, current = [], dict[str, str](), ""
    for line in lines:
        found = re.match(r"(\w+): (.*)", line)
        if found and found[1] in names:
            current = found[1]
            described[current] = found[2]
        elif current:
            described[current] += f" {line.strip()}"
        else:
            summary.append(line)
    missing = names - described.keys()
    if missing:
        raise TypeError(f"the docstring of {cls.__name__} does not describe {', '.join(sorted(missing))}")
    return "\n".join(summary).strip(), described


if __name__ == "__main__":
    print(variants_reference(), end="")
