"""Training steps of Sparse4D on made-up key frames: memory, resume, losses, anchors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training.kit import settings

from bev_perception.cli import main
from bev_perception.config import ConfigError
from bev_perception.data.anchors import write_anchors
from bev_perception.families.catalog import build_model
from bev_perception.families.sparse4d.carried import Carried
from bev_perception.families.sparse4d.order import order_of
from bev_perception.families.sparse4d.step import InstanceStep, focal_lengths, usable_frames, views_of
from bev_perception.models.checkpoints import save_checkpoint
from bev_perception.models.query_layers import EncodedViews
from bev_perception.strict import UserError
from bev_perception.training.loading import LoadedBatches
from bev_perception.training.state import STATE
from bev_perception.training.train import find_part, train

from .kit import data_of, maps_config, records_of, small_config


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def step_of(config):
    torch.manual_seed(0)
    return InstanceStep(build_model(config), config.training, "fp32").train()


def batches(config, root, count, seed=0):
    data = data_of(config, root)
    rows = order_of(config, data, config.training.batch, seed).epoch(0)[:count]
    return list(LoadedBatches(data, rows, workers=0, pin_memory=False))


def test_steps_with_memory(synthetic_nuscenes):
    """Every loss has its name, and every parameter that learns has a gradient; the memory goes on."""
    config = small_config()
    step, memory = step_of(config), None
    for k, batch in enumerate(batches(config, synthetic_nuscenes, 3)):
        assert batch.images.shape[1] == 1
        losses, memory = step(batch, memory)
        assert losses.keys() == set(step.loss_names)
        assert all(loss.isfinite() for loss in losses.values())
        step.zero_grad()
        sum(losses.values()).backward()
        without = {name for name, p in step.model.named_parameters() if p.requires_grad and p.grad is None}
        assert not without, k
        carried = Carried.from_plain(memory, torch.device("cpu"))
        assert carried.instances.stamps.tolist() == batch.stamps.tolist()
        assert carried.instances.features.shape == (2, config.head.num_temporal, config.head.embed_dims)
        assert carried.denoising.labels.shape[:2] == (2, config.training.family.denoising.remembered)
        assert not carried.instances.features.requires_grad


def test_resume_is_exact(synthetic_nuscenes, tmp_path):
    """A training that was stopped goes on with the same bank, and ends with the same weights, bit for bit."""
    config = small_config(epochs=2)
    data = data_of(config, synthetic_nuscenes)
    whole = train(config, data, settings(tmp_path / "whole"))
    assert whole.finished

    class Stopping:
        """Ends the training in the middle of an epoch."""

        sequences, __len__, read = data.sequences, lambda self: len(data), 0

        def sample(self, *args):
            self.read += 1
            if self.read > 5:
                raise UserError("stopped here")
            return data.sample(*args)

    with pytest.raises(UserError, match="stopped here"):
        train(config, Stopping(), settings(tmp_path / "parts", save_every=1))
    result = train(config, data, settings(tmp_path / "parts", resume=True))
    assert result.finished and result.steps == whole.steps
    ends = [torch.load(tmp_path / name / STATE, weights_only=True) for name in ("whole", "parts")]
    for key in ends[0]["weights"]:
        assert torch.equal(ends[0]["weights"][key], ends[1]["weights"][key]), key
    memories = [end["memories"][0] for end in ends]
    assert torch.equal(memories[0]["anchors"], memories[1]["anchors"])
    assert torch.equal(memories[0]["denoising"]["features"], memories[1]["denoising"]["features"])


def test_the_decoder_alone_learns_on_features_that_are_made_once(synthetic_nuscenes, tmp_path):
    """Also what it remembers; backbone and neck stay as they were."""
    config = small_config()
    start, out = tmp_path / "start.safetensors", tmp_path / "out"
    save_checkpoint(build_model(config), start, {})
    data = data_of(config, synthetic_nuscenes)
    assert train(config, data, settings(out, part="decoder", init=start)).finished
    state = torch.load(out / STATE, weights_only=True)
    before, after = load_file(start), state["weights"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".")[0] for name in moved}
    assert parts == {"head", "depth_branch"} and "head.instance_bank.anchor" in moved
    assert state["memories"][0]["features"].abs().max() > 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) in ([], ["tensorboard"])


def test_without_known_boxes(synthetic_nuscenes):
    """A batch without boxes teaches the classes alone; nothing of its denoising is remembered."""
    config = small_config()
    step = step_of(config)
    (batch,) = batches(config, synthetic_nuscenes, 1)
    _, memory = step(batch, None)
    nothing = tuple(
        dataclasses.replace(truth, boxes=truth.boxes[:0], labels=truth.labels[:0], ids=truth.ids[:0])
        for truth in batch.truths
    )
    losses, memory = step(dataclasses.replace(batch, truths=nothing), memory)
    assert memory["denoising"] is None
    assert not any("_dn_" in name for name in losses)
    assert all(losses[f"loss_box_{k}"] == 0 for k in range(config.head.num_layers))
    assert losses["loss_cls_0"] > 0
    losses, memory = step(batch, memory)
    assert losses.keys() == set(step.loss_names)
    assert memory["denoising"] is not None


def test_version_1(synthetic_nuscenes):
    config = maps_config()
    step = step_of(config)
    losses, memory = step(batches(config, synthetic_nuscenes, 1)[0], None)
    assert memory is None
    assert losses.keys() == set(step.loss_names)
    assert losses["loss_depth"].isfinite() and losses["loss_depth"] > 0
    sum(losses.values()).backward()


def test_denoising_needs_instances_that_go_on():
    config = maps_config()
    recipe = dataclasses.replace(config.training, family=small_config().training.family)
    with pytest.raises(ConfigError, match="must be 0 where"):
        InstanceStep(build_model(config), recipe, "fp32")


def test_past_frames_show_the_world_where_the_current_one_does(synthetic_nuscenes):
    """A point that stands still is in the same pixel by way of each past frame's own reference frame."""
    config = maps_config()
    batch = next(b for b in batches(config, synthetic_nuscenes, 5) if usable_frames(b.time_differences)[:, 1].all())
    shape = batch.reference2image.shape
    levels = [[torch.zeros(shape[0], shape[2], 2, 2, 8)]] * shape[1]
    current, past, *_ = views_of(batch, EncodedViews(levels, batch.reference2image, (64, 160)))
    assert (past.stamps < current.stamps).all()
    current2past = np.linalg.inv(past.reference2global) @ current.reference2global
    assert np.abs(current2past - np.eye(4)).max() > 0.1  # the vehicle moves
    point = np.array([5.0, 20.0, 0.5, 1.0])
    seen = past.reference2image.double().numpy() @ (current2past @ point)[:, None, :, None]
    wanted = batch.reference2image[:, 1].double().numpy() @ point
    np.testing.assert_allclose(seen[..., 0], wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("ages", "usable"),
    [
        ([0.0, 0.5, 1.0, 1.5], 4),
        ([0.0, 0.5, 0.5, 0.5], 2),  # the oldest one repeated
        ([0.0], 1),  # versions 2 and 3 read no others
        ([0.0, 0.0, 0.0, 0.0], 1),  # the current one repeated
        ([0.0, 0.5, torch.inf], 2),
        ([0.0, 4.0, 8.0], 2),
    ],
)
def test_frames_that_are_no_history(ages, usable):
    """Each sample has its own, whatever the others of its batch have."""
    found = usable_frames(torch.tensor([ages, [0.5 * k for k in range(len(ages))]]))
    assert found.tolist() == [[k < usable for k in range(len(ages))], [True] * len(ages)]


def test_focal_lengths_follow_the_resize_alone(synthetic_nuscenes):
    config = small_config(image_rotation=5.0)
    (batch,) = batches(config, synthetic_nuscenes, 1)
    width = records_of(synthetic_nuscenes).images(records_of(synthetic_nuscenes).cameras(0))[0].calibration.width
    resize = focal_lengths(batch.geometry) / batch.geometry.intrinsics[:, 0, :, 0, 0]  # [B, N]
    low, high = (ratio * 1600 / width for ratio in config.training.resize)
    assert ((resize > low) & (resize < high)).all()
    torch.testing.assert_close(resize, resize[:, :1].expand(-1, 6))  # one for all cameras of a sample
    assert resize[0, 0] != resize[1, 0]


def test_anchors_from_a_file(tmp_path):
    """A fresh network takes the recipe's anchors; one that was loaded keeps its own."""
    path = tmp_path / "anchors.npy"
    anchors = np.random.default_rng(0).normal(size=(24, 11)).astype(np.float32)
    write_anchors(anchors, path)
    config = small_config(family={"anchors": str(path)})
    step = step_of(config)
    assert not np.array_equal(step.model.head.instance_bank.anchor.detach(), anchors)  # as when it is resumed
    step.begin()
    assert np.array_equal(step.model.head.instance_bank.anchor.detach(), anchors)
    model = build_model(config)
    model.head.instance_bank.anchor.data += 1
    before = model.head.instance_bank.anchor.detach().clone()
    InstanceStep(model, config.training, "fp32").begin()
    assert torch.equal(model.head.instance_bank.anchor, before)
    with pytest.raises(UserError, match="cannot be read"):
        step_of(small_config(family={"anchors": str(tmp_path / "none.npy")})).begin()


def test_activations_computed_twice_change_nothing(synthetic_nuscenes):
    config = small_config()
    found = []
    for twice in (False, True):
        step = step_of(config)
        if twice:
            step.compute_twice()
        losses, _ = step(batches(config, synthetic_nuscenes, 1)[0], None)
        sum(losses.values()).backward()
        found.append({name: p.grad for name, p in step.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_the_shipped_tiny_variant_can_be_trained(synthetic_nuscenes, tmp_path):
    """Two steps by the command, on small images; it reads no past frames."""
    out = tmp_path / "out"
    arguments = ["--data", str(synthetic_nuscenes), "--split", "mini_val", "--out", str(out), "--device", "cpu"]
    arguments += ["--precision", "fp32", "--workers", "0"]
    for change in ("batch=5", "epochs=1", "resize=[0.1, 0.12]"):
        arguments += ["--set", f"training.{change}"]
    arguments += ["--set", "image.height=64", "--set", "image.width=160"]
    assert main(["train", "--variant", "sparse4d_tiny", *arguments]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss_dense_depth"] > 0
    assert find_part(small_config(), "all").newest_only
