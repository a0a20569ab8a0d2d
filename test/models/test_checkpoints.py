import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bev_perception.models.checkpoints import (
    LEGACY_VERSION,
    CheckpointError,
    load_checkpoint,
    load_pretrained,
    save_checkpoint,
)


class Small(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = torch.nn.Linear(width, 2)
        self.norm = torch.nn.BatchNorm2d(4)
        self.legacy_boxes = False


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Small()


def weights(seed=1, width=3):
    torch.manual_seed(seed)
    state = Small(width).state_dict()
    state["norm.num_batches_tracked"] = torch.tensor(7)
    return state


def assert_unchanged_by(model, path, match):
    """Loading fails with a CheckpointError that matches and leaves the model as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.legacy_boxes is False
    return str(caught.value)


def assert_loaded(model, state):
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_saved_weights_come_back(model, tmp_path):
    source = Small()
    source.load_state_dict(weights())
    path = tmp_path / "weights.safetensors"
    save_checkpoint(source, path, {"trained": "false", "seed": "4"})
    info = load_checkpoint(model, str(path))
    assert_loaded(model, weights())
    assert model.norm.num_batches_tracked == 7
    assert (info.path, info.trained, info.version) == (path, False, None)
    assert info.metadata == {"trained": "false", "seed": "4"}
    assert os.listdir(tmp_path) == ["weights.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_file_can_be_read_by_whom_the_umask_says(model, tmp_path, umask, mode):
    path = tmp_path / "a.safetensors"
    before = os.umask(umask)
    try:
        save_checkpoint(model, path, {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_named(model, tmp_path, bad, dtype):
    state = weights()
    state["linear.weight"][1, 2] = bad
    torch.save(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()},
        tmp_path / "a.pth",
    )
    assert_unchanged_by(model, tmp_path / "a.pth", r"a.pth holds weights that are not finite: linear.weight \(1 of 6\)")
    with pytest.raises(CheckpointError, match=r"not finite: linear.weight \(1 of 6\).*saved before"):
        load_pretrained(model, tmp_path / "a.pth", "linear")
    load_pretrained(model, tmp_path / "a.pth", "norm")  # what is not taken does not matter


def test_channels_last_weights_can_be_saved(tmp_path):
    conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    save_checkpoint(conv, tmp_path / "conv.safetensors", {})
    other = torch.nn.Conv2d(3, 4, 3)
    load_checkpoint(other, tmp_path / "conv.safetensors")
    assert torch.equal(conv.weight, other.weight)


def test_trained_unless_it_says_otherwise(model, tmp_path):
    save_checkpoint(model, tmp_path / "a.safetensors", {})
    assert load_checkpoint(model, tmp_path / "a.safetensors").trained


def test_the_legacy_version_survives_saving(model, tmp_path):
    model.legacy_boxes = True
    save_checkpoint(model, tmp_path / "a.safetensors", {})
    other = Small()
    assert load_checkpoint(other, tmp_path / "a.safetensors").version == LEGACY_VERSION
    assert other.legacy_boxes is True


@pytest.mark.parametrize("version, legacy", [(None, False), ("v0.17.1", True), ("v1.0.0", False)])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_an_official_checkpoint(model, tmp_path, version, legacy, suffix):
    model.legacy_boxes = not legacy
    path = tmp_path / f"weights{suffix}"
    content = {"meta": {"epoch": 24, "time": "today", "hooks": {"x": [1]}}, "state_dict": OrderedDict(weights())}
    torch.save(content | ({"version": version} if version else {}), path)
    info = load_checkpoint(model, path)
    assert_loaded(model, weights())
    assert (info.trained, info.version, model.legacy_boxes) == (True, version, legacy)
    assert info.metadata == {"epoch": "24", "time": "today"}


def test_a_bare_state_dict(model, tmp_path):
    torch.save(weights(), tmp_path / "weights.pth")
    assert load_checkpoint(model, tmp_path / "weights.pth").version is None
    assert_loaded(model, weights())


def test_a_file_of_the_old_format(model, tmp_path):
    torch.save(weights(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(model, tmp_path / "weights.pth")
    assert_loaded(model, weights())


def write(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_every_wrong_key_is_named(model, tmp_path, name):
    state = weights(width=5)
    del state["linear.bias"], state["norm.running_var"]
    state["extra.weight"] = torch.zeros(2)
    path = tmp_path / name
    write(path, state)
    message = assert_unchanged_by(model, path, "does not belong to this variant")
    assert "2 missing:\n  linear.bias\n  norm.running_var" in message
    assert "1 unexpected:\n  extra.weight" in message
    assert "1 of another shape:\n  linear.weight [2, 5] instead of [2, 3]" in message


def test_long_lists_are_counted_by_part(model, tmp_path):
    state = weights() | {f"backbone.layer{i % 2}.{i}": torch.zeros(1) for i in range(120)}
    path = tmp_path / "weights.safetensors"
    write(path, state)
    message = assert_unchanged_by(model, path, "120 unexpected")
    assert "backbone.layer1.103\n  and 57 more under backbone.layer1" in message
    assert len(message.splitlines()) < 30


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "network.", "ema.", "ema_model.module."])
def test_prefixes_of_all_names_are_taken_off(model, tmp_path, caplog, name, prefix):
    path = tmp_path / name
    write(path, {f"{prefix}{key}": value for key, value in weights().items()})
    with caplog.at_level("INFO"):
        load_checkpoint(model, path)
    assert_loaded(model, weights())
    assert f"the prefix '{prefix}' of its names is left out" in caplog.text


def test_a_prefix_of_some_names_is_a_mismatch(model, tmp_path):
    path = tmp_path / "weights.pth"
    write(path, {f"module.{key}" if "norm" in key else key: value for key, value in weights().items()})
    assert_unchanged_by(model, path, "module.norm.weight")
    write(path, {f"module.head.{key}": value for key, value in weights().items() if "norm" not in key})
    assert_unchanged_by(model, path, "does not belong to this variant")


@pytest.mark.parametrize("entry", ["ema_state_dict", "state_dict_ema", "model_ema"])
def test_averages_are_used_where_they_are_alone_and_named_where_not(model, tmp_path, caplog, entry):
    average = {f"module.{key}": value for key, value in weights(5).items()} | {"steps": torch.tensor(3)}
    path = tmp_path / "a.pth"
    torch.save({"state_dict": weights(), entry: average}, path)
    with caplog.at_level("INFO"):
        load_checkpoint(model, path)
    assert_loaded(model, weights())
    assert entry in caplog.text
    torch.save({entry: average, "meta": {}}, path)
    load_checkpoint(model, path)
    assert_loaded(model, weights(5))


def test_averages_among_the_weights(model, tmp_path, caplog):
    averaged = {f"ema_{key.replace('.', '_')}": value for key, value in weights(5).items()}
    path = tmp_path / "a.pth"
    torch.save(weights() | averaged, path)
    with caplog.at_level("INFO"):
        load_checkpoint(model, path)
    assert_loaded(model, weights())
    assert "its 7 averaged weights, such as ema_linear_bias, are not used" in caplog.text
    torch.save({f"module.{key}": value for key, value in averaged.items()}, path)
    load_checkpoint(model, path)
    assert_loaded(model, weights(5))
    state = averaged | {"ema_linear_weight": torch.full((2, 3), torch.nan)}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="not finite: linear.weight"):
        load_checkpoint(model, path)


def test_metadata_of_numpy_is_passed_over(model, tmp_path):
    meta = {"epoch": 3, "mAP": np.float64(0.4), "palette": np.zeros((3, 3)), "classes": {"car"}, "long": 1 << 20000}
    torch.save({"state_dict": weights(), "meta": meta}, tmp_path / "a.pth")
    assert load_checkpoint(model, tmp_path / "a.pth").metadata == {"epoch": "3"}
    assert_loaded(model, weights())


def test_pretraining_with_a_prefix(model, tmp_path):
    state = {f"module.backbone.{k.removeprefix('norm.')}": v for k, v in weights().items() if k.startswith("norm.")}
    torch.save(state, tmp_path / "a.pth")
    load_pretrained(model, tmp_path / "a.pth", "norm")
    assert torch.equal(model.norm.running_var, weights()["norm.running_var"])


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin", "."])
def test_a_missing_file(model, tmp_path, name):
    assert_unchanged_by(model, tmp_path / name, "no checkpoint at")


def test_an_unknown_suffix(model, tmp_path):
    path = tmp_path / "weights.bin"
    torch.save(weights(), path)
    assert_unchanged_by(model, path, r"\.safetensors, \.pth or \.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.99])
def test_a_file_cut_off(model, tmp_path, name, share):
    path = tmp_path / name
    write(path, weights())
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert_unchanged_by(model, path, "download it again")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>not found</html>", b"\x00" * 5000, os.urandom(5000)])
def test_something_else(model, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert_unchanged_by(model, path, "download it again")


class Payload:
    """What an attacker would put into a pickle."""

    def __reduce__(self):
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize("dump", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))])
def test_foreign_objects_are_not_unpickled(model, tmp_path, monkeypatch, dump):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    dump({"state_dict": weights() if dump is torch.save else {}, "meta": Payload()}, path)
    assert_unchanged_by(model, path, r"mkdir.*save it once more")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content, says",
    [
        ({"network": {"a": torch.zeros(1)}, "optimizer": {}}, "'network'"),
        ({"state_dict": {"epoch": 3}}, "'epoch'"),
        ({"state_dict": None}, "state_dict"),
        ([torch.zeros(1)], "list"),
        (torch.zeros(3), "Tensor"),
        ({}, "state_dict"),
        ({3: torch.zeros(1)}, "3"),
    ],
)
def test_what_is_no_state_dict(model, tmp_path, content, says):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert_unchanged_by(model, path, says)


@pytest.mark.parametrize(
    ("replaced", "says"),
    [
        (torch.eye(2, 3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(2, 3, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.zeros(2, 3, device="meta"), "_rebuild_meta_tensor"),
        (torch.zeros(1).expand(2, 3), "claims more numbers than the 1 of its storage"),
        (torch.zeros(2, 3, dtype=torch.int64), "torch.int64 instead of torch.float32"),
        (torch.full((2, 3), 1e300, dtype=torch.float64), r"not finite: linear.weight \(6 of 6\)"),
    ],
)
def test_tensors_that_are_no_plain_weights_leave_the_model_as_it_was(model, tmp_path, replaced, says):
    torch.save({**weights(), "linear.weight": replaced}, tmp_path / "a.pth")
    assert_unchanged_by(model, tmp_path / "a.pth", says)


def test_half_precision_weights_are_widened(model, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights().items()}
    torch.save(half, tmp_path / "weights.pth")
    load_checkpoint(model, tmp_path / "weights.pth")
    assert model.linear.weight.dtype == torch.float32
    torch.testing.assert_close(model.linear.weight, half["linear.weight"].float())


def test_another_variant_says_which_shapes_differ(tmp_path):
    from bev_perception.families.catalog import build_model
    from bev_perception.families.variants import load_variant

    tiny = build_model(load_variant("sparsebev_tiny"))
    path = tmp_path / "weights.safetensors"
    save_checkpoint(build_model(load_variant("r50_nuimg_704x256_400q_36ep")), path, {})
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny, path)
    message = str(caught.value)
    assert "of another shape" in message and "[400, 10] instead of [64, 10]" in message
    assert len(message.splitlines()) < 100


@pytest.mark.parametrize("entry", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "norm.", "backbone."])
def test_a_part_starts_from_pretraining_under_whichever_names(model, tmp_path, prefix, entry):
    """The rest of the model keeps its values, what the file has beside is left out."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    source = weights()
    state = {
        prefix + key.removeprefix("norm."): value
        for key, value in source.items()
        if key.startswith("norm.") and not key.endswith("num_batches_tracked")  # old files lack it
    }
    others = next(key for key in source if not key.startswith("norm."))  # fits, but is none of the part's
    state |= {"fc.weight": torch.zeros(2), "roi_head.bias": torch.zeros(2), others: source[others]}
    path = tmp_path / "pretrained.pth"
    torch.save(state if entry is None else {entry: state, "meta": {"epoch": 3}}, path)
    load_pretrained(model, path, "norm")
    for key, value in model.state_dict().items():
        loaded = key.startswith("norm.") and not key.endswith("num_batches_tracked")
        assert torch.equal(value, (source if loaded else before)[key])


def test_pretraining_that_lacks_weights_is_refused(model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key.removeprefix("norm."): value for key, value in weights().items() if "weight" not in key}
    torch.save(state, tmp_path / "pretrained.pth")
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 4 weights of norm; .*\n  norm.weight"):
        load_pretrained(model, tmp_path / "pretrained.pth", "norm")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_pretrained(model, tmp_path / "none.pth", "norm")


def test_a_disk_that_is_full_is_named_and_what_was_there_stays(model, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(model, path, {})
    before = path.read_bytes()

    def full(*_):
        raise SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr("bev_perception.models.checkpoints.save_file", full)
    with pytest.raises(CheckpointError, match=r"a.safetensors cannot be written \(I/O error.*make room"):
        save_checkpoint(model, path, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
