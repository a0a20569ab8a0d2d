"""What a training may go on from."""

import dataclasses
from dataclasses import field, make_dataclass

import pytest
import torch

from bev_perception.config import BevAugmentationConfig, Provenance, digest
from bev_perception.training.state import STATE, Identity, TrainingError, load_state, save_state

from .kit import recipe, small_config, small_occupancy_config

IDENTITY = Identity("all", "0" * 12, seed=0, samples=1, batch=1, epochs=1, lr=1e-3, precision="fp32")


@pytest.mark.parametrize("make", [small_config, small_occupancy_config])
@pytest.mark.parametrize("part", ["training", "head", "backbone", "image"])
def test_a_new_field_at_its_default_is_the_same_training(make, part):
    config = make()
    value = getattr(config, part)
    own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    grown = make_dataclass("Grown", [("new_setting", float, field(default=0.5))], bases=(type(value),), frozen=True)
    assert digest(dataclasses.replace(config, **{part: grown(**own)})) == digest(config)
    assert digest(dataclasses.replace(config, **{part: grown(**own, new_setting=1.0)})) != digest(config)


def test_every_other_setting_counts_but_not_where_the_variant_comes_from():
    config = small_config()
    others = [
        small_config(family=recipe(moving_weight=3.0)),
        small_config(bev=BevAugmentationConfig(flip=True)),
        dataclasses.replace(config, class_names=config.class_names[::-1]),
        dataclasses.replace(config, head=dataclasses.replace(config.head, num_query=25)),
    ]
    assert len({digest(other) for other in [config, *others]}) == 5
    assert digest(dataclasses.replace(config, provenance=Provenance(note="mine"))) == digest(config)


def saved(out):
    model = torch.nn.Linear(1, 1)
    model.config = small_config()
    optimizer, scaler = torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    save_state(out, IDENTITY, 3, model, optimizer, scaler, None, [{"bank": torch.ones(2)}])
    return model, optimizer, scaler, None


@pytest.mark.parametrize("change", ["no format", "another format", "a field less", "a field more", "no identity"])
def test_the_state_of_another_version_is_said_to_be_one(tmp_path, change):
    whole = saved(tmp_path)
    steps, (memory,) = load_state(tmp_path, IDENTITY, *whole)
    assert steps == 3 and memory["bank"].tolist() == [1, 1]
    content = torch.load(tmp_path / STATE, weights_only=True)
    if change == "no format":
        del content["format"]
    elif change == "another format":
        content["format"] += 1
    elif change == "a field less":
        del content["identity"]["seed"]
    elif change == "a field more":
        content["identity"]["new"] = 1
    else:
        del content["identity"]
    torch.save(content, tmp_path / STATE)
    with pytest.raises(TrainingError, match=r"was written by another version of bev_perception; .*init"):
        load_state(tmp_path, IDENTITY, *whole)


def test_a_state_that_cannot_be_written_is_named_and_the_one_before_stays(tmp_path, monkeypatch):
    (tmp_path / STATE).write_bytes(b"the state before")

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("bev_perception.training.state.torch.save", full)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    identity = Identity("part", "config", 0, 1, 1, 1, 1.0, "fp32")
    with pytest.raises(TrainingError, match=r"state.pt cannot be written .*make room and resume from the state saved"):
        save_state(tmp_path, identity, 1, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), None, [None])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the state before"]
