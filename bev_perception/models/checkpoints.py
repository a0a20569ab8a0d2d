"""Load checkpoints (model weights) strictly from files, and save them to files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bev_perception.files import whole_file
from bev_perception.models.checkpoint_names import own_names, weights_of
from bev_perception.models.torch_files import MAX_NAME, ForeignError, StoredTensor, TorchFileError, read_torch_file
from bev_perception.strict import NotAFileError, UserError, check_regular

LOG = logging.getLogger(__name__)

#: the version entry of checkpoints from before mmdet3d 1.0, whose boxes follow another convention
LEGACY_VERSION = "v0.17.1"
#: an error message lists at most _MAX_LISTED weights; if there are more, _MAX_OF_PART of each part of the model
_MAX_LISTED = 20
_MAX_OF_PART = 3

#: a weight in a file, read or only described
Stored = Tensor | StoredTensor


class CheckpointError(UserError):
    """Weights that cannot be used; the message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a model's weights come from.

    path: the checkpoint file
    trained: False for initial weights that `save_checkpoint` marked with "trained": "false"
    version: the version entry of the checkpoint; None if it has none
    metadata: other metadata of the checkpoint
    """

    path: Path
    trained: bool
    version: str | None
    metadata: dict[str, str]


def load_checkpoint(model: nn.Module, path: str | Path) -> CheckpointInfo:
    """Load all weights of `model` from a checkpoint, which must hold exactly the model's weights.

    model: gets the weights; if it has an attribute legacy_boxes, that is set according to the checkpoint's version
    path: a .safetensors file, or a .pth / .pt file with a state_dict, bare or as the entry "state_dict" (or "model")
        beside "meta" and "version"

    Redundant entries of official checkpoints, see `derived_keys`, are allowed and ignored. A prefix of all names, such
    as the "module." of distributed training, is taken off; averages of weights are used where they are alone; the log
    says so.

    Raises CheckpointError for a file that is missing, damaged or not a checkpoint, that holds more than plain tensors,
    or whose weights are not exactly the model's or are NaN or infinite. The model is then unchanged.
    """
    path = Path(path)
    stored, version, metadata = _read(path)
    own, derived = model.state_dict(), derived_keys(model)
    named, said = own_names(stored, own.keys() | derived)
    for sentence in said:
        LOG.info("%s: %s", path.name, sentence)
    weights = {key: value for key, value in named.items() if key not in derived}
    state = _load(weights, own, path, getattr(model, "explain_weights", None))
    model.load_state_dict(state)
    if hasattr(model, "legacy_boxes"):
        setattr(model, "legacy_boxes", version == LEGACY_VERSION)  # noqa: B010 (mypy: nn.Module has no such bool)
    return CheckpointInfo(path, metadata.get("trained") != "false", version, metadata)


def derived_keys(model: nn.Module) -> set[str]:
    """Return the keys of official checkpoints whose tensors the model computes itself instead of storing them.

    A module lists its keys, relative to itself, in an attribute derived_keys. Such tensors follow from the
    configuration (and may be laid out for another image size), so they are neither required nor read.
    """
    return {
        f"{prefix}.{key}".lstrip(".")
        for prefix, module in model.named_modules()
        for key in getattr(module, "derived_keys", ())
    }


def load_pretrained(model: nn.Module, path: str | Path, part: str) -> None:
    """Initialise one part of a model with pretrained weights before training; the other parts stay as they are.

    model: gets the weights
    path: a checkpoint of another model, of the part alone or of a classifier; its names may start with "backbone.",
        "encoders.camera.backbone." or the part's own name, or with none of these: the reading that matches the most
        weights is used
    part: name of the submodule to fill completely, such as "img_backbone"

    Weights that do not belong to the part are ignored: those of another model's decoder may fit by chance. A module can
    bring weights of other origins into its own form with a method adapt_pretrained(state), and name weights that no
    pretraining has in an attribute not_pretrained; these stay as they are where the file lacks them.

    Raises CheckpointError for a file that cannot be read, as load_checkpoint does, and for one that lacks weights of
    the part or whose weights of it are NaN or infinite. The model is then unchanged.
    """
    path = Path(path)
    stored, _, _ = _read(path)
    module = model.get_submodule(part)
    own = module.state_dict()
    adapt = getattr(module, "adapt_pretrained", None)
    prefixes = (f"{part}.", "", "backbone.", "encoders.camera.backbone.")
    state, _ = own_names(stored, {prefix + key for prefix in prefixes for key in own})
    found: dict[str, Stored] = {}
    for prefix in prefixes:
        named = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if adapt is not None:
            named = adapt({key: _tensor(value, key, path) for key, value in named.items()})
        fitting = {k: v for k, v in named.items() if k in own and own[k].shape == torch.Size(v.shape)}
        found = max(found, fitting, key=len)
    optional = tuple(getattr(module, "not_pretrained", ()))
    wanted = [key for key in own if not key.endswith(("num_batches_tracked", *optional))]
    missing = [f"{part}.{key}" for key in wanted if key not in found]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of the {len(wanted)} weights of {part}; "
            f"give the pretraining that the variant names.{_listing(missing)}"
        )
    named = {f"{part}.{key}": value for key, value in found.items()}
    loaded = _load(named, {f"{part}.{key}": own[key] for key in found}, path)
    module.load_state_dict({**own, **{key.removeprefix(f"{part}."): value for key, value in loaded.items()}})


def load_fitting(model: nn.Module, path: str | Path) -> list[str]:
    """Start a model from another one's checkpoint: load the weights whose names and shapes fit; the others stay.

    model: gets the weights
    path: a checkpoint as of load_checkpoint

    Returns the names of the model's weights that were left as they are, which the log lists, too. Raises
    CheckpointError as load_checkpoint does for a file that cannot be read, and for one that has no weight that fits.
    """
    path = Path(path)
    stored, _, _ = _read(path)
    own = model.state_dict()
    named, _ = own_names(stored, own.keys())
    fitting = {k: v for k, v in named.items() if k in own and own[k].shape == torch.Size(v.shape)}
    if not fitting:
        raise CheckpointError(f"{path} has no weight whose name and shape fit; give a checkpoint of a related variant")
    loaded = _load(fitting, {key: own[key] for key in fitting}, path)
    model.load_state_dict({**own, **loaded})
    skipped = [key for key in own if key not in fitting]
    LOG.warning(
        "%s: %d of %d weights fit; the others start afresh%s",
        *(path.name, len(fitting), len(own), _listing(skipped) if skipped else ""),
    )
    return skipped


def save_checkpoint(
    model: nn.Module, path: str | Path, metadata: dict[str, str], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Save a model's weights and the metadata as safetensors; an existing file is replaced atomically.

    weights: to save in place of the model's own, for example their average

    Raises CheckpointError for a file that cannot be written; what was there before stays.
    """
    path = Path(path)
    if getattr(model, "legacy_boxes", False):
        metadata = {**metadata, "version": LEGACY_VERSION}
    tensors = {key: value.contiguous() for key, value in (weights or model.state_dict()).items()}
    try:
        with whole_file(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode  # as the umask says; safetensors would let the owner alone read the file
            save_file(tensors, partial, metadata)
            partial.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}); make room, or choose another place") from error


def _read(path: Path) -> tuple[dict[str, Stored], str | None, dict[str, str]]:
    """Return the weights, the version and the other metadata of the file at `path`."""
    try:
        check_regular(path)
    except NotAFileError as error:
        raise CheckpointError(f"no checkpoint at {path}: {error}, ending in .safetensors, .pth or .pt") from error
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; download the variant's weights and give their path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _read_pickle(path)
    raise CheckpointError(f"{path} is no checkpoint by its name; it must end in .safetensors, .pth or .pt")


def _read_safetensors(path: Path) -> tuple[dict[str, Stored], str | None, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Stored] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
            metadata = dict(file.metadata() or {})
    except Exception as error:  # damaged bytes can meet the reader, and PyTorch behind it, anywhere
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it is damaged or cut off: download it again"
        ) from error
    return state, metadata.get("version"), metadata


def _read_pickle(path: Path) -> tuple[dict[str, Stored], str | None, dict[str, str]]:
    content = _read_content(path)
    entry, sentence = weights_of(content) if isinstance(content, dict) else (None, "")
    if sentence:
        LOG.info("%s: %s", path.name, sentence)
    state = content if entry is None else content[entry]
    if not isinstance(state, Mapping) or not state:
        found = f"the entries {_names(content)}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} holds {found} where a state_dict of tensors is needed; save model.state_dict()")
    strangers = [key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, StoredTensor)]
    if strangers:
        raise CheckpointError(f"{path} is no state_dict: {_names(strangers)} are no tensors; save model.state_dict()")
    if entry is None:
        return dict(state), None, {}
    meta, version = content.get("meta"), content.get("version")
    plain = (
        {str(k): str(v) for k, v in meta.items() if isinstance(v, (str, float)) or _is_short(v)}
        if isinstance(meta, dict)
        else {}
    )
    return dict(state), version if isinstance(version, str) else None, plain


def _is_short(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 1 << 64


def _read_content(path: Path) -> Any:
    try:
        return read_torch_file(path)
    except ForeignError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values ({error.name}), and to load that could run foreign code. "
            "If you trust its origin, save it once more without: c = torch.load(path, weights_only=False); "
            "torch.save({'state_dict': c['state_dict'], 'version': c.get('version')}, path)"
        ) from error
    except (TorchFileError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({error}); "
            "it is damaged, cut off or something else: download it again"
        ) from error


#: returns lines that tell from weights which settings they belong to; a model may have one as `explain_weights`
Explain = Callable[[Mapping[str, Stored]], Sequence[str]]


def _load(
    state: Mapping[str, Stored], own: Mapping[str, Tensor], path: Path, explain: Explain | None = None
) -> dict[str, Tensor]:
    """Return the tensors of `state` in the number types of the model's own; raise CheckpointError if one cannot be.

    own: the model's weights, which must be those of `state`
    explain: may say more of weights that do not fit
    """
    _check_weights(own, state, path, explain)
    loaded = {}
    for key, stored in state.items():
        tensor = _tensor(stored, key, path)
        if tensor.is_floating_point() != own[key].is_floating_point() or tensor.is_complex():
            raise CheckpointError(
                f"{path}: {key} holds numbers of type {tensor.dtype} instead of {own[key].dtype}; save the weights anew"
            )
        loaded[key] = tensor.to(own[key].dtype)
    _check_finite(loaded, path)
    return loaded


def _tensor(stored: Stored, key: str, path: Path) -> Tensor:
    """Return a weight, read from the file; raise CheckpointError for damaged bytes."""
    try:
        return stored if isinstance(stored, Tensor) else stored.read()
    except Exception as error:  # damaged bytes can meet the reader anywhere
        raise CheckpointError(f"{path} is damaged: {key} cannot be read ({error}); download it again") from error


def _check_weights(
    expected: Mapping[str, Tensor], found: Mapping[str, Stored], path: Path, explain: Explain | None
) -> None:
    """Raise CheckpointError, naming all weights that are missing, unexpected or of another shape; see _load."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    reshaped = [
        f"{key} {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in found and torch.Size(found[key].shape) != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}:{_listing(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if problems:
        lines = "\n".join([*(explain(found) if explain else ()), *problems])
        raise CheckpointError(
            f"{path} does not belong to this variant ({len(expected)} weights expected, {len(found)} found); "
            f"choose the variant that it was trained with, or the weights of this one.\n{lines}"
        )


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, naming the tensors, for weights that are NaN or infinite."""
    bad = {key: int((~value.isfinite()).sum()) for key, value in state.items() if value.is_floating_point()}
    named = [f"{key} ({count} of {state[key].numel()})" for key, count in bad.items() if count]
    if named:
        raise CheckpointError(
            f"{path} holds weights that are not finite: {_shorten(named)}; the training that wrote them has diverged: "
            "take weights that were saved before"
        )


def _listing(lines: Sequence[str]) -> str:
    """Return the lines indented; if there are many, only the first ones of each part of the model and a count."""
    parts: dict[str, list[str]] = {}
    for line in lines:
        parts.setdefault(".".join(line.split(".")[:2]), []).append(line)
    limit = len(lines) if len(lines) <= _MAX_LISTED else _MAX_OF_PART
    shown = []
    for part, members in parts.items():
        shown += members[:limit]
        if len(members) > limit:
            shown.append(f"and {len(members) - limit} more under {part}")
    return "".join(f"\n  {line}" for line in shown)


def _names(keys: Iterable[Any]) -> str:
    return _shorten([repr(key)[:MAX_NAME] for key in keys])


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"
