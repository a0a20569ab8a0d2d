"""The parity cases: what a published reference computes, for weights and inputs that follow from their names alone."""

import importlib.util
import json
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from bev_perception.config import BackboneConfig, EVA02Config, SwinConfig
from bev_perception.models.backbones import eva02
from bev_perception.models.checkpoints import derived_keys

ROOT = Path(os.environ.get("BEV_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))


class Case:
    """One directory of the parity cases."""

    def __init__(self, path):
        self.path = path
        self.name = path.name
        self.info = json.loads((path / "case.json").read_text())
        self.seed = self.info.get("seed", 0)
        self.config = self.info.get("config", {})

    @cached_property
    def keys(self):
        """{key: (shape, dtype)} of the official checkpoint."""
        return {k: (tuple(shape), dtype) for k, (shape, dtype) in json.loads(self._text("keys.json")).items()}

    @cached_property
    def inputs(self):
        return dict(np.load(self.path / "inputs.npz"))

    @cached_property
    def outputs(self):
        """{name: (array, description)}; every array must be described, and every description have its array."""
        assert self.arrays.keys() == self.info["outputs"].keys()
        return {name: (array, self.info["outputs"][name]) for name, array in self.arrays.items()}

    @cached_property
    def arrays(self):
        """{name: array} of the outputs, for cases that describe several of them in one line."""
        return dict(np.load(self.path / "outputs.npz"))

    def _text(self, name):
        return (self.path / name).read_text()

    def fill(self, key, shape):
        return _fill_function()(key, tuple(shape), self.seed)

    def load_weights(self, model, constants=()):
        """Give the model the case's weights, strictly; keys ending in one of `constants` keep the model's values."""
        special_file = self.path / "special.npz"
        special = dict(np.load(special_file)) if special_file.exists() else {}
        own, derived = model.state_dict(), derived_keys(model)
        state = {}
        for key, (shape, _) in self.keys.items():
            if key in derived:
                continue
            if key in special:
                value = special[key]
            elif key.endswith(tuple(constants)) and constants:
                value = own[key].numpy()
            else:
                value = self._override(key, self.fill(key, shape))
            state[key] = torch.from_numpy(np.asarray(value))
        model.load_state_dict(state, strict=True)

    def _override(self, key, value):
        # a case with an override_rule multiplies in float32, others in float64
        kind = np.float32 if "override_rule" in self.info else np.float64
        for rule in self.info["overrides"]:
            if value.ndim >= rule.get("min_ndim", 0) and re.search(rule["pattern"], key):
                scale, shift = (
                    np.asarray(rule.get(name, default), kind) for name, default in (("scale", 1.0), ("shift", 0.0))
                )
                scale, shift = (x.reshape(-1, *[1] * (value.ndim - 1)) if x.ndim else x for x in (scale, shift))
                value = (value.astype(kind) * scale + shift).astype(np.float32)
        return value


_FILL = None


def _fill_function():
    global _FILL
    if _FILL is None:
        spec = importlib.util.spec_from_file_location("parity_fill", ROOT / "fill.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _FILL = module.fill
    return _FILL


def parametrize(reason_to_skip, slow=lambda case: False):
    """Parametrize a test over all cases; reason_to_skip(case) is None for those that it runs.

    Cases for which it returns "" are none of the test's business and are left out; other reasons are shown.
    Of those that it runs, the ones for which slow(case) holds are marked slow.
    """
    if not ROOT.is_dir():
        absent = pytest.mark.skip(reason=f"no parity cases at $BEV_PARITY or {ROOT}")
        return pytest.mark.parametrize("case", [pytest.param(None, marks=absent, id="absent")])
    params = []
    for path in sorted(p.parent for p in ROOT.glob("*/case.json")):
        case = Case(path)
        reason = reason_to_skip(case)
        if reason != "":
            marks = [pytest.mark.skip(reason=f"{case.name}: {reason}")] if reason else []
            marks += [pytest.mark.slow] if not reason and slow(case) else []
            params.append(pytest.param(case, marks=marks, id=case.name))
    return pytest.mark.parametrize("case", params)


def inventory(model):
    """{key: (shape, dtype)} of the weights that a model stores, as `Case.keys`."""
    return {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in model.state_dict().items()}


def assert_official_keys(model, keys):
    """The model has the weights of the official checkpoint, but for those that it derives."""
    derived = derived_keys(model)
    assert derived <= keys.keys()
    assert inventory(model) == {key: entry for key, entry in keys.items() if key not in derived}


def backbone_of(config):
    """The BackboneConfig of a case's description of a backbone, or None for one that does not exist here."""
    if config["type"] == "ResNet":
        return BackboneConfig("resnet", config["depth"])
    if config["type"] == "VoVNet":
        return BackboneConfig("vovnet", int(re.fullmatch(r"V-(\d+)-eSE", config["spec"])[1]))
    if config["type"].startswith("EVA02"):
        return _eva02_of(config)
    if config["type"].startswith("SwinTransformer"):
        return _swin_of(config)
    return None


def _eva02_of(config):
    fixed = {
        "patch_size": eva02.PATCH,
        "mlp_ratio": eva02.MLP_RATIO,
        "pt_hw_seq_len": eva02.ROTARY_GRID,
        "pretrain_img_size": eva02.PRETRAINED_GRID * eva02.PATCH,
        "fpn_out_channels": eva02.OUT_CHANNELS,
        "window_block_indexes": [i for i in range(config["depth"]) if i % eva02.GLOBAL_EVERY != eva02.GLOBAL_EVERY - 1],
    }
    assert {key: config[key] for key in fixed} == fixed
    sizes = [config[key] for key in ("embed_dim", "num_heads", "window_size", "img_size", "drop_path_rate")]
    return BackboneConfig("eva02", config["depth"], eva02=EVA02Config(*sizes))


def _swin_of(config):
    first, *rest = config["out_indices"]
    with_first = config.get("return_stereo_feat", False)
    assert rest == list(range(first + 1, 4)), "maps of other stages"
    assert config["patch_norm"] and config.get("mlp_ratio", 4) == 4 and config.get("qkv_bias", True)
    windows = config["window_size"]
    swin = SwinConfig(
        embed_dim=config["embed_dims"],
        depths=tuple(config["depths"]),
        heads=tuple(config["num_heads"]),
        windows=(windows,) * 4 if isinstance(windows, int) else tuple(windows),
        shifted=config["type"] != "SwinTransformerBEVFT",
        positions=config["use_abs_pos_embed"],
        drop_path=config["drop_path_rate"],
    )
    depth = sum(config["depths"])
    return BackboneConfig("swin", depth, first_level=first, with_first=with_first, swin=swin)


def subsample(array, description):
    """Apply a description's subsample, for example "[:, ::4]; full shape [20, 256]"; without one it is all there."""
    text = description.get("subsample", "none").split(";")[0]
    if text == "none":
        return array
    flat = re.fullmatch(r"flattened \(C order\) values \[(\d+)::(\d+)\]", text)
    if flat:
        return np.asarray(array).reshape(-1)[int(flat[1]) :: int(flat[2])]
    return array[tuple(_index(part.strip()) for part in text.strip("[]").split(","))]


def _index(part):
    if part == "...":
        return Ellipsis
    if ":" not in part:
        return int(part)
    return slice(*(int(number) if number else None for number in part.split(":")))


def numbers(text):
    """All decimal numbers of a text, in order."""
    return [float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def close(found, wanted, atol, rtol):
    """None if they agree, else how far they are apart."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return f"shape {found.shape}, wanted {wanted.shape}"
    error = np.abs(found - wanted)
    if (error <= atol + rtol * np.abs(wanted)).all():
        return None
    return f"max error {error.max():.3g}, median {np.median(error):.3g}"


def mostly_close(found, wanted, share, atol, limit):
    """None if a share of the rows (dimension 0) is within atol and all are within the limit, else how far not."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return f"shape {found.shape}, wanted {wanted.shape}"
    rows = np.abs(found - wanted).reshape(len(wanted), -1).max(axis=1)
    if (rows <= atol).mean() >= share and not (rows > limit).any() and np.isfinite(rows).all():
        return None
    return f"{(rows > atol).sum()} of {len(rows)} rows beyond {atol}, max error {rows.max():.3g}"
