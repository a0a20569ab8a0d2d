"""Find a model's weights in a checkpoint whose names carry a wrapper's prefix, or that holds averages of the weights.

An average of the weights over training steps (EMA) is called by its own entry or by a prefix of its weights' names,
depending on the trainer that wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")

#: entries of checkpoints with weights; the second ones hold averages of them
PLAIN_ENTRIES = ("state_dict", "model")
AVERAGE_ENTRIES = ("ema_state_dict", "state_dict_ema", "model_ema", "ema")
#: how the names of averaged weights begin where they lie beside the weights
_AVERAGED = re.compile(r"(?:module\.)?(?:ema|model_ema|ema_model)[._]")
#: counters that trainers keep beside averages
_COUNTERS = ("steps", "n_averaged", "num_updates", "updates", "decay")


def weights_of(content: Mapping[str, object]) -> tuple[str | None, str]:
    """Return the entry of a checkpoint to take, None for a bare state_dict, and a sentence about it, or ""."""
    averages = [name for name in AVERAGE_ENTRIES if isinstance(content.get(name), Mapping)]
    for name in PLAIN_ENTRIES:
        if name in content:
            return name, f"the averaged weights {', '.join(averages)} beside {name} are not used" if averages else ""
    if averages:
        return averages[0], f"holds averaged weights alone ({averages[0]}), which are used"
    return None, ""


def own_names(state: Mapping[str, Value], expected: Collection[str]) -> tuple[dict[str, Value], list[str]]:
    """Return the weights under the names of a model, as far as wrappers explain the difference.

    state: name -> weight, of a checkpoint
    expected: names of the model's weights

    The second value says in sentences what was left out; the first is `state` itself if nothing explains its names.
    """
    found = {name: value for name, value in state.items() if name not in _COUNTERS or name in expected}
    said = []
    averaged = {name for name in found if name not in expected and _AVERAGED.match(name)}
    if averaged and len(averaged) < len(found):
        found = {name: value for name, value in found.items() if name not in averaged}
        said.append(f"its {len(averaged)} averaged weights, such as {min(averaged)}, are not used")
    elif averaged:
        flat = {"ema_" + name.replace(".", "_"): name for name in expected}
        found = {flat.get(name.removeprefix("module."), name): value for name, value in found.items()}
        said.append("holds averaged weights alone, which are used")
    prefix = _common_prefix(found, expected)
    if prefix:
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        said.append(f"the prefix {prefix!r} of its names is left out")
    return (found, said) if any(name in expected for name in found) else (dict(state), [])


def _common_prefix(names: Collection[str], expected: Collection[str]) -> str:
    """Return what all names begin with, in whole parts, up to a part of the model."""
    parts = {name.partition(".")[0] for name in expected}
    prefix = ""
    while names:
        first = next(iter(names)).removeprefix(prefix).partition(".")
        longer = f"{prefix}{first[0]}."
        if first[0] in parts or not first[1] or not all(name.startswith(longer) for name in names):
            return prefix
        prefix = longer
    return prefix
