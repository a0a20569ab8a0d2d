"""The loop: resuming after signals, several processes, precision, schedule, errors."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_flatten

from bev_perception.classes import OCC3D_CLASSES as CLASSES
from bev_perception.data.folders import FolderError, one_writer
from bev_perception.families.catalog import build_model
from bev_perception.families.sparseocc.targets import mask_targets
from bev_perception.models.checkpoints import CheckpointError, load_checkpoint
from bev_perception.supervision.samples import OccupancyTruth
from bev_perception.training.processes import Processes
from bev_perception.training.state import STATE, WEIGHTS, TrainingError
from bev_perception.training.train import FEATURES, TrainResult, train

from .kit import (
    FAMILIES,
    GRID,
    TRAININGS,
    EncodableMadeUpData,
    MadeUpData,
    MadeUpOccupancy,
    encoder_config,
    failing,
    only,
    recipe,
    settings,
    small_config,
    small_occupancy_config,
)

KIT = "training.kit"
ROOT = Path(__file__).resolve().parents[2]


def no_json(token):
    raise AssertionError(f"{token} is no JSON")


def log(out):
    return [json.loads(line, parse_constant=no_json) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_same_weights(one, other):
    a, b = (load_file(out / WEIGHTS) for out in (one, other))
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def run_kit(*launcher_and_arguments, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "test")])}
    return subprocess.Popen([sys.executable, *launcher_and_arguments], cwd=ROOT, env=environment, **kwargs)


def test_training_lowers_the_loss_and_its_weights_load(tmp_path):
    """The same two samples again and again: the model begins to learn them by heart."""
    config = small_config(epochs=1, color_augmentation=False, grid_mask=False, backbone_lr=1.0)

    class Same(MadeUpData):
        def sample(self, index, rng, augmentation=None):
            return super().sample(index, np.random.default_rng(index % 2))

    result = train(config, Same(samples=60), settings(tmp_path, lr=1e-3))
    assert result == TrainResult(steps=30, finished=True)
    losses = [line["loss"] for line in log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    model = build_model(config)
    info = load_checkpoint(model, tmp_path / WEIGHTS)
    assert info.trained and info.metadata["steps"] == "30"
    stored = torch.load(tmp_path / STATE, weights_only=True)
    assert stored["step"] == 30


def test_frozen_weights_and_statistics_stay_and_all_others_move(tmp_path):
    config = small_config(epochs=1, weight_decay=0.0)
    train(config, MadeUpData(), settings(tmp_path))
    torch.manual_seed(0)
    before, after = build_model(config).state_dict(), load_file(tmp_path / WEIGHTS)
    same = {key for key in before if torch.equal(before[key], after[key])}
    stem = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")
    statistics = ("running_mean", "running_var", "num_batches_tracked", "code_weights")
    assert same == {key for key in before if key.startswith(stem) or key.endswith(statistics)}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_from_scratch_moves_as_a_whole_with_the_statistics_of_its_norms(tmp_path, family):
    make_config, data = FAMILIES[family]
    config = make_config(epochs=1, encoder="scratch", weight_decay=0.0)
    train(config, data(6), settings(tmp_path))  # in the first step blocks are their shortcuts, and learn little
    torch.manual_seed(0)
    before, after = build_model(config).state_dict(), load_file(tmp_path / WEIGHTS)
    encoder = [key for key in before if key.startswith(("img_backbone.", "img_neck."))]
    assert [key for key in encoder if torch.equal(before[key], after[key])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_encoder_is_loaded_with_its_neck_and_stays(tmp_path, family):
    make_config, data = FAMILIES[family]
    config = make_config(epochs=1, encoder="frozen")
    with pytest.raises(
        TrainingError, match="backbone and neck stay as they are; give weights that hold them with init or pretrained"
    ):
        train(config, data(2), settings(tmp_path / "none"))
    torch.manual_seed(5)
    source = build_model(small_config()).state_dict()  # of another family for one of the two
    torch.save(source, tmp_path / "detector.pth")
    train(config, data(2), settings(tmp_path / "out", pretrained=tmp_path / "detector.pth"))
    weights = load_file(tmp_path / "out" / WEIGHTS)
    encoder = {key for key in weights if key.startswith(("img_backbone.", "img_neck."))}
    assert encoder and all(torch.equal(weights[key], source[key]) for key in encoder)
    torch.manual_seed(0)
    drawn = build_model(config).state_dict()
    moved = {key for key in weights.keys() - encoder if not torch.equal(weights[key], drawn[key])}
    assert any(key.startswith("pts_bbox_head.") for key in moved)
    train(config, data(2), settings(tmp_path / "again", init=tmp_path / "out" / WEIGHTS))
    lacking = {key: value for key, value in source.items() if not key.startswith("img_neck.")}
    torch.save(lacking, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="weights of img_neck"):
        train(config, data(2), settings(tmp_path / "lacking", pretrained=tmp_path / "backbone.pth"))


def test_a_perspective_head_is_trained_beside_the_decoder(tmp_path):
    """Its losses are logged, weighted, and reach the images' features, too."""
    weight = {"one": 1.0, "half": 0.5, "none": 0.0}
    logs, weights = {}, {}
    for name, factor in weight.items():
        own = recipe(perspective_weight=factor)
        config = encoder_config(epochs=1, family=own, color_augmentation=False, grid_mask=False)
        train(config, MadeUpData(2), settings(tmp_path / name))
        (logs[name],), weights[name] = log(tmp_path / name), load_file(tmp_path / name / WEIGHTS)
    for loss in ("loss_heat", "loss_codes"):
        assert logs["one"][loss] > 0 and logs["none"][loss] == 0
        assert logs["half"][loss] == pytest.approx(logs["one"][loss] / 2, rel=1e-5)
    key = "img_backbone.layer4.0.downsample.0.weight"
    assert not torch.equal(weights["one"][key], weights["none"][key])


@pytest.mark.slow
def test_the_encoder_alone_learns_and_the_decoder_stays(tmp_path):
    config, data = encoder_config(epochs=8, encoder="scratch"), MadeUpData(2)
    train(config, data, settings(tmp_path / "encoder", part="encoder"))
    first, *_, last = log(tmp_path / "encoder")
    assert last["loss"] == pytest.approx(last["loss_heat"] + last["loss_codes"], rel=1e-5)
    assert last["loss"] < first["loss"]
    torch.manual_seed(settings(tmp_path).seed)
    before, after = build_model(config).state_dict(), load_file(tmp_path / "encoder" / WEIGHTS)
    stayed = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert {key for key in before if key.startswith("pts_bbox_head")} <= stayed
    assert "perspective_head.heat.2.weight" not in stayed and "img_neck.lateral_convs.0.conv.weight" not in stayed
    train(config, data, settings(tmp_path / "whole", init=tmp_path / "encoder" / WEIGHTS))
    with pytest.raises(TrainingError, match="no part 'encoder' that can be trained; it has all, decoder"):
        train(small_config(), data, settings(tmp_path / "no", part="encoder"))


def test_the_decoder_alone_learns_on_features_that_are_made_once(tmp_path):
    config, data = encoder_config(epochs=8, encoder="scratch"), EncodableMadeUpData(2)
    changes = only("decoder", tmp_path / "out")
    train(config, data, settings(tmp_path / "out", **changes))
    first, *_, last = log(tmp_path / "out")
    assert last["loss"] < first["loss"] and "loss_heat" not in last
    before, after = torch.load(changes["init"], weights_only=True), load_file(tmp_path / "out" / WEIGHTS)
    stayed = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert {key for key in before if not key.startswith("pts_bbox_head")} <= stayed
    assert "pts_bbox_head.init_query_bbox.weight" not in stayed
    assert not (tmp_path / "out" / FEATURES).exists()
    with pytest.raises(TrainingError, match="give weights that hold them with init"):
        train(config, data, settings(tmp_path / "no", part="decoder"))
    with pytest.raises(TrainingError, match="give whole weights with init"):
        train(config, data, settings(tmp_path / "no", part="decoder", pretrained=changes["init"]))
    with pytest.raises(TrainingError, match="cannot be encoded beforehand"):
        train(config, MadeUpData(2), settings(tmp_path / "no", **changes))


def test_a_training_that_fails_leaves_no_features_behind(tmp_path, monkeypatch):
    config, data = encoder_config(epochs=1, encoder="scratch"), EncodableMadeUpData(2)
    made = []

    def fail(*_, **__):
        made.append((tmp_path / "out" / FEATURES).exists())
        raise OSError("the disk is gone")

    monkeypatch.setattr("bev_perception.training.train.LoadedBatches", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        train(config, data, settings(tmp_path / "out", **only("decoder", tmp_path / "out")))
    assert made == [True] and not (tmp_path / "out" / FEATURES).exists()


class StoppingEncodable(EncodableMadeUpData):
    """Asks the training to stop when the fifth sample with features is read."""

    def encoded(self, *arguments):
        data = super().encoded(*arguments)
        sample, reads = data.sample, itertools.count(1)

        def stopping(index, *chance):
            if next(reads) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return sample(index, *chance)

        data.sample = stopping
        return data


@pytest.mark.slow
def test_a_decoder_that_was_interrupted_goes_on_with_the_features_of_its_own_encoder(tmp_path):
    config = encoder_config(epochs=2, encoder="scratch")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = only("decoder", whole)
    assert train(config, EncodableMadeUpData(8), settings(whole, **changes)) == TrainResult(8, True)
    assert train(config, StoppingEncodable(8), settings(cut, **changes)) == TrainResult(3, False)
    again = settings(cut, resume=True, part="decoder")
    assert train(config, EncodableMadeUpData(8), again) == TrainResult(8, True)
    assert_same_weights(whole, cut)


def test_a_signal_while_images_are_encoded_ends_the_training(tmp_path):
    config, data = encoder_config(epochs=1, encoder="scratch"), EncodableMadeUpData(2)
    sample = data.sample

    def signalled(index, *chance):
        os.kill(os.getpid(), signal.SIGTERM)
        return sample(index, *chance)

    data.sample = signalled
    with pytest.raises(TrainingError, match="while images were encoded; start it again"):
        train(config, data, settings(tmp_path / "out", **only("decoder", tmp_path / "out")))
    assert not (tmp_path / "out" / FEATURES).exists()


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on_to_the_same_weights(tmp_path):
    config, data = small_config(), MadeUpData(samples=12)
    arguments = "-m", KIT, str(tmp_path / "cut"), "sparsebev", str(tmp_path / "marker")
    process = run_kit(*arguments, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "marker").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as a batch system does: what reads ahead is told, too
    assert process.wait(60) == 0
    done = torch.load(tmp_path / "cut" / STATE, weights_only=True)["step"]
    assert 1 <= done < 12
    train(config, data, settings(tmp_path / "whole"))
    assert train(config, data, settings(tmp_path / "cut", resume=True)) == TrainResult(12, True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = log(tmp_path / "whole"), log(tmp_path / "cut")
    assert whole == cut and [line["step"] for line in cut] == list(range(1, 13))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_as_one_with_the_same_batch(tmp_path, name):
    alone, two = tmp_path / "alone", tmp_path / "two"
    changes = only(name, alone)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = run_kit(*torchrun, "-m", KIT, str(two), name)
    make_config, data = TRAININGS[name]
    config = make_config(epochs=1, color_augmentation=False, grid_mask=False)
    train(config, data(), settings(alone, **changes))
    assert process.wait(200) == 0
    one, both = log(alone), log(two)
    assert [line["step"] for line in both] == list(range(1, 5))
    for a, b in zip(one, both, strict=True):
        assert a.keys() == b.keys()
        if name != "sparseocc" or a["step"] == 1:
            assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
        else:  # weights now differ in their last bits, which is enough for queries to look at other voxels
            assert b["loss"] == pytest.approx(a["loss"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparse4d", "bevdet"])
def test_two_processes_go_on_exactly(tmp_path, name):
    """One remembers what sequences have shown, the other one balances classes and averages weights."""

    def run(out, *how):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return run_kit(*torchrun, "-m", KIT, str(tmp_path / out), name, *how).wait(200)

    assert run("whole") == 0
    assert run("cut", "cut") != 0
    assert torch.load(tmp_path / "cut" / STATE, weights_only=True)["step"] == 2
    assert run("cut", "resume") == 0
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    states = [torch.load(tmp_path / out / STATE, weights_only=True) for out in ("whole", "cut")]
    assert states[0]["step"] == states[1]["step"] > 2
    for part in ("memories", "average", "weights"):
        one, other = (tree_flatten(state[part])[0] for state in states)
        assert len(one) == len(other)
        assert all(
            a is b or torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True)
        )
    if name == "sparse4d":
        first, second = (tree_flatten(memory)[0] for memory in states[0]["memories"])
        assert first and not torch.equal(first[0], second[0])  # each process its own
    else:
        averaged = states[0]["average"]
        assert any(not torch.equal(value, averaged[key]) for key, value in states[0]["weights"].items())


@pytest.mark.slow
def test_norms_are_synchronised_from_the_epoch_of_the_recipe(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(Processes, "synchronize_norms", lambda _, step: begun.append(step.epoch) or step)
    config = small_config(epochs=3, sync_norms_from=1)
    train(config, MadeUpData(2), settings(tmp_path / "whole"))
    assert begun == [1]
    out = tmp_path / "cut"
    with pytest.raises(OSError, match="the disk is gone"):
        train(config, failing(MadeUpData(2), reads=5), settings(out))  # in the third epoch
    train(config, MadeUpData(2), settings(out, resume=True))
    assert begun == [1, 1, 2]  # those of a model that is built anew are plain ones
    train(small_config(epochs=3), MadeUpData(2), settings(tmp_path / "never"))
    assert begun == [1, 1, 2]


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"precision": "fp16"}, {"recompute": True}, {"workers": 2}])
def test_other_ways_to_compute_give_nearly_the_same(tmp_path, changes):
    config = small_config(epochs=1)
    train(config, MadeUpData(4), settings(tmp_path / "plain"))
    train(config, MadeUpData(4), settings(tmp_path / "other", **changes))
    plain, other = log(tmp_path / "plain"), log(tmp_path / "other")
    if "precision" in changes:
        assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in plain], rel=0.05)
    else:
        assert [line["loss"] for line in other] == [line["loss"] for line in plain]
        assert_same_weights(tmp_path / "plain", tmp_path / "other")


def test_frames_without_gradient_give_the_same_losses_and_other_gradients(tmp_path):
    outs = tmp_path / "all", tmp_path / "one"
    for out, frames in zip(outs, (0, 1), strict=True):
        config = small_config(epochs=1, frames_with_gradient=frames, color_augmentation=False, grid_mask=False)
        train(config, MadeUpData(2), settings(out))
    (a,), (b,) = map(log, outs)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["grad_norm"] != pytest.approx(b["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("groups", [0, 2])
def test_a_batch_without_boxes_trains(tmp_path, groups):
    train(small_config(epochs=1, family=recipe(groups)), MadeUpData(2, boxes=0), settings(tmp_path))
    (line,) = log(tmp_path)
    assert line["loss_bbox"] == 0 and line["loss_cls"] > 0
    assert ("loss_cls_dn" in line) == (groups > 0)


def test_mistakes_are_named(tmp_path):
    config, data = small_config(epochs=1), MadeUpData(2)
    with pytest.raises(TrainingError, match="says nothing of its training"):
        train(dataclasses.replace(config, training=None), data, settings(tmp_path))
    with pytest.raises(TrainingError, match="precision is 'half'"):
        train(config, data, settings(tmp_path, precision="half"))
    with pytest.raises(TrainingError, match="to resume from"):
        train(config, data, settings(tmp_path, resume=True))
    train(config, data, settings(tmp_path))
    with pytest.raises(TrainingError, match="holds a training already"):
        train(config, data, settings(tmp_path))
    with pytest.raises(TrainingError, match="leave out init"):
        train(config, data, settings(tmp_path, resume=True, init=tmp_path / WEIGHTS))
    with pytest.raises(TrainingError, match=r"seed 0, now 1; resume with the same settings"):
        train(config, data, settings(tmp_path, resume=True, seed=1))
    with pytest.raises(TrainingError, match=r"config '\w+', now '\w+'; resume"):
        train(small_config(epochs=1, family=recipe(moving_weight=3.0)), data, settings(tmp_path, resume=True))
    for changes in ({"epochs": 0}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}, {"batch": -1}):
        with pytest.raises(TrainingError, match="epochs, lr and batch must be positive"):
            train(config, data, settings(tmp_path / "new", **changes))
    (tmp_path / STATE).write_bytes(b"PK garbage")
    with pytest.raises(TrainingError, match="cannot be read"):
        train(config, data, settings(tmp_path, resume=True))


def test_a_second_training_into_one_folder_is_refused_and_leftovers_of_a_killed_one_removed(tmp_path):
    config, data = small_config(epochs=1), MadeUpData(2)
    with one_writer(tmp_path), pytest.raises(FolderError, match="another process is writing"):
        train(config, data, settings(tmp_path))
    (tmp_path / "state.123.part.pt").write_bytes(b"half")
    train(config, data, settings(tmp_path))
    assert not list(tmp_path.glob("*.part.*")) and (tmp_path / STATE).is_file()


def test_the_batch_must_divide(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with pytest.raises(TrainingError, match="batch of 3 cannot be divided among 2 processes"):
        train(small_config(batch=3), MadeUpData(), settings(tmp_path))


def test_training_starts_from_a_checkpoint_or_a_pretrained_backbone(tmp_path):
    config = small_config(epochs=1, lr=1e-9)
    torch.manual_seed(5)
    source = build_model(config)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "detector.pth")
    torch.save(source.img_backbone.state_dict() | {"fc.weight": torch.zeros(3)}, tmp_path / "classifier.pth")
    train(config, MadeUpData(2), settings(tmp_path / "a", init=tmp_path / "detector.pth"))
    train(config, MadeUpData(2), settings(tmp_path / "b", pretrained=tmp_path / "classifier.pth"))
    a, b = (load_file(tmp_path / out / WEIGHTS) for out in "ab")
    key = "pts_bbox_head.label_enc.weight"
    torch.testing.assert_close(a[key], source.state_dict()[key], atol=1e-6, rtol=0)
    assert (b[key] - source.state_dict()[key]).abs().max() > 0.1
    key = "img_backbone.layer4.0.conv1.weight"
    for weights in (a, b):
        torch.testing.assert_close(weights[key], source.state_dict()[key], atol=1e-6, rtol=0)


def test_of_both_the_pretraining_gives_the_backbone_alone(tmp_path):
    """A decoder that was trained moves to another encoder."""
    sources = {}
    for seed, name in enumerate(("init", "pretrained")):
        torch.manual_seed(5 + seed)
        sources[name] = build_model(small_config()).state_dict()
        torch.save(sources[name], tmp_path / f"{name}.pth")
    files = {name: tmp_path / f"{name}.pth" for name in sources}
    train(small_config(epochs=1, lr=1e-9), MadeUpData(2), settings(tmp_path / "out", **files))
    weights = load_file(tmp_path / "out" / WEIGHTS)
    for key, source in (
        ("img_backbone.layer4.0.conv1.weight", "pretrained"),
        ("img_neck.lateral_convs.0.conv.weight", "init"),
        ("pts_bbox_head.label_enc.weight", "init"),
    ):
        torch.testing.assert_close(weights[key], sources[source][key], atol=1e-6, rtol=0)


def test_gradients_that_are_not_finite_end_the_training(tmp_path):
    class Broken(MadeUpData):
        def sample(self, index, rng, augmentation=None):
            sample = super().sample(index, rng)
            return dataclasses.replace(sample, time_differences=sample.time_differences * np.nan)

    with pytest.raises(TrainingError, match="gradients of step 0 are not finite"):
        train(small_config(), Broken(), settings(tmp_path))


class Stopping(MadeUpOccupancy):
    """The same sample again and again; asks the training to stop when it has been read so many times."""

    def __init__(self, stop_after=10**9):
        super().__init__(samples=12)
        self.stop_after, self.read = stop_after, 0

    def sample(self, index, rng, augmentation=None):
        self.read += 1
        if self.read == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().sample(index, np.random.default_rng(0))


@pytest.mark.slow
def test_occupancy_is_learnt_by_heart_and_resumed_exactly(tmp_path):
    config = small_occupancy_config(
        epochs=1, batch=1, lr=5e-3, lr_drop_epochs=(), color_augmentation=False, dropout=0.1, panoptic=True
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(config, Stopping(), settings(whole)) == TrainResult(12, True)
    losses = [line["loss"] for line in log(whole)]
    assert np.mean(losses[-3:]) < 0.65 * np.mean(losses[:3])
    assert train(config, Stopping(stop_after=5), settings(cut)) == TrainResult(5, False)
    assert train(config, Stopping(), settings(cut, resume=True)) == TrainResult(12, True)
    assert_same_weights(whole, cut)
    assert log(whole) == log(cut)
    model = build_model(config)
    assert load_checkpoint(model, whole / WEIGHTS).metadata["steps"] == "12"


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"recompute": True}])
def test_occupancy_in_other_ways(tmp_path, changes):
    config = small_occupancy_config(dropout=0.1, epochs=1)
    train(config, MadeUpOccupancy(4), settings(tmp_path / "plain"))
    train(config, MadeUpOccupancy(4), settings(tmp_path / "other", **changes))
    plain, other = log(tmp_path / "plain"), log(tmp_path / "other")
    if "precision" in changes:  # the masks' losses follow from which voxels are looked at, and so may jump
        voxels = [name for name in plain[0] if name.startswith(("loss_sem", "loss_geo"))]
        for a, b in zip(plain, other, strict=True):
            assert [b[name] for name in voxels] == pytest.approx([a[name] for name in voxels], rel=0.05)
            assert np.isfinite(b["loss"])
    else:
        assert other == plain
        assert_same_weights(tmp_path / "plain", tmp_path / "other")


def test_occupancy_without_anything_to_find_trains(tmp_path):
    class Empty(MadeUpOccupancy):
        def truth(self, rng):
            free = np.full(GRID, 17, np.uint8)
            return OccupancyTruth(*map(torch.from_numpy, (free, *mask_targets(free, None, CLASSES))))

    train(small_occupancy_config(epochs=1), Empty(2), settings(tmp_path))
    (line,) = log(tmp_path)
    assert line["loss_mask_2"] == line["loss_dice_mask_2"] == line["loss_geo_scal_0"] == 0
    assert line["loss_class_2"] > 0 and np.isfinite(line["loss"])
