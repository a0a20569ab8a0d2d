"""Losses, assignment and denoising of Sparse4D against the published reference, for given predictions."""

import json
import re
from functools import cached_property

import pytest
import torch

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.families.sparse4d.denoising import (
    DenoisingDraws,
    denoising_inputs,
    make_denoising,
    recall,
    remember,
)
from bev_perception.families.sparse4d.losses import (
    box_losses,
    denoising_losses,
    dense_depth_loss,
    divisors,
    stage_losses,
)
from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.families.sparse4d.targets import assign_stage, box_rules, encode_boxes
from bev_perception.families.sparse4d.truths import InstanceTruth

from .cases import close, numbers, parametrize

#: names of a denoising part's fields here and in the cases
FIELDS = {"boxes": "reg_target", "labels": "cls_target", "valid": "valid", "ids": "id"}
REMEMBERED = {"labels": "dn_cls_target", "valid": "valid_mask", "ids": "dn_id_target"}


def recipe_of(case):
    """The recipe of the published config that a case follows."""
    version = re.search(r"sparse4dv(\d)", case.config["reference_config"])
    if version is None:
        return Sparse4DRecipe(
            matching_weights=(2.0,) * 3 + (1.0,) * 7,
            cone_weights=(1.0,) * 6 + (0.0, 0.0, 1.0, 1.0),
            symmetric_classes=(),
        )
    return Sparse4DRecipe() if version[1] == "3" else Sparse4DRecipe(symmetric_classes=())


class Training:
    """What a case of training gives and wants."""

    def __init__(self, case):
        self.case, self.recipe = case, recipe_of(case)
        self.given = {k: torch.from_numpy(v) for k, v in case.inputs.items()}
        self.wanted = {k: torch.from_numpy(v) for k, v in case.arrays.items()}
        self.losses = json.loads((case.path / "losses_grads.json").read_text())["losses"]
        names = case.config.get("classes", NUSCENES_CLASSES)
        self.rules = box_rules(self.recipe, names, torch.zeros(()))
        self.rtol = case.info["tolerance"]["losses"]["rtol"]

    @cached_property
    def stages(self):
        return self.case.config["num_decoder"]

    def truths(self, frame):
        return [
            InstanceTruth(
                *(self.given[f"{frame}.s{b}.{name}"] for name in ("gt_boxes", "gt_labels", "instance_id")),
            )
            for b in range(self.case.config["batch"])
        ]

    def draws(self, frame):
        """The case's random numbers, whose first index is group * samples + sample."""
        groups = self.case.config["denoising"]["groups"]
        names = ("dn_rand_noise", "dn_rand_neg", "dn_rand_sign")
        values = [self.given[f"{frame}.{name}"].unflatten(0, (groups, -1)).transpose(0, 1) for name in names]
        return DenoisingDraws(*values, order=self.given[f"{frame}.dn_group_perm"])

    def denoising(self, frame):
        scale = self.case.config["denoising"]["noise_scale"]
        return make_denoising(self.truths(frame), self.draws(frame), scale, self.rules)


def of_training(case):
    return None if case.info["system"] == "sparse4d" and (case.path / "losses_grads.json").exists() else ""


def of_denoising(case):
    return None if of_training(case) is None and "denoising" in case.config else ""


def of_components(case):
    return (
        None
        if case.info["system"] == "sparse4d" and "dense_depth0/1, dense_depth_loss" in case.info.get("outputs", {})
        else ""
    )


@parametrize(of_training)
def test_stages(case):
    """Every stage's assignment is the reference's, and so are its losses."""
    run = Training(case)
    problems = {}
    for frame, wanted in run.losses.items():
        truths = run.truths(frame)
        labels, targets = [truth.labels for truth in truths], [encode_boxes(truth.boxes) for truth in truths]
        for k in range(run.stages):
            logits, boxes = run.wanted[f"{frame}.cls{k}"], run.wanted[f"{frame}.box{k}"]
            found = assign_stage(logits, boxes[..., :10], labels, targets, run.rules)
            assert torch.equal(found.labels, run.wanted[f"{frame}.assigned_label{k}"].long())
            (count,) = divisors([sum(min(len(known), logits.shape[1]) for known in labels)], logits.device)
            quality = run.wanted.get(f"{frame}.quality{k}")
            losses = stage_losses(logits, boxes, quality, labels, targets, run.rules, count)
            problems |= beyond(run, wanted, losses, frame, k)
    assert not problems


def beyond(run, wanted, losses, frame, stage):
    """The losses of a stage that are beyond the tolerance; the box loss has two names in the reference."""
    problems = {}
    for name, loss in losses.items():
        key = f"loss_{name}_{stage}"
        value = wanted[key if key in wanted else key.replace("_box_", "_reg_")]
        if loss.item() != pytest.approx(value, rel=run.rtol):
            problems[frame, key] = (loss.item(), value)
    return problems


@parametrize(of_denoising)
def test_denoising(case):
    """Copies and targets, memory and losses of the denoising instances are the reference's, frame after frame."""
    run = Training(case)
    atol = run.case.info["tolerance"]["predictions"]["atol"]
    problems, memory = {}, None
    for frame, wanted in run.losses.items():
        fresh = run.denoising(frame)
        problems |= different(run, frame, "dn", fresh, FIELDS)
        if error := close(fresh.anchors[..., :10], run.wanted[f"{frame}.dn.anchor"], 1e-5, 1e-6):
            problems[frame, "anchors"] = error
        updated = fresh
        if memory is not None:
            inputs = denoising_inputs(fresh, instances=1)
            _, updated = recall(memory, memory.anchors, inputs, fresh, run.wanted[f"{frame}.mask"])
        problems |= different(run, frame, "dn_updated", updated, FIELDS)

        last = run.stages - 1
        memory = remember(
            updated,
            torch.zeros((*updated.labels.shape, 1)),
            run.wanted[f"{frame}.dn_box{last}"],
            run.given[f"{frame}.dn_group_perm"],
            case.config["denoising"]["temporal_groups"],
        )
        problems |= different(run, frame, "dn_cache", memory, REMEMBERED)
        if error := close(memory.anchors, run.wanted[f"{frame}.dn_cache.dn_anchor"], atol, 0):
            problems[frame, "remembered anchors"] = error
        for k, targets in ((0, fresh), (last, updated)):
            (count,) = divisors([int(targets.valid.sum())], targets.valid.device)
            logits, boxes = run.wanted[f"{frame}.dn_cls{k}"], run.wanted[f"{frame}.dn_box{k}"]
            problems |= beyond(run, wanted, denoising_losses(logits, boxes, targets, run.rules, count), frame, k)
    assert not problems


def different(run, frame, prefix, found, fields):
    pairs = {name: (getattr(found, ours), run.wanted[f"{frame}.{prefix}.{name}"]) for ours, name in fields.items()}
    return {
        (frame, f"{prefix}.{name}"): error
        for name, (value, wanted) in pairs.items()
        if (error := close(value, wanted, 1e-5 if value.is_floating_point() else 0, 0))
    }


@parametrize(of_components)
def test_components(case):
    """The loss of boxes with their quality, and that of dense depth, for single inputs."""
    given = {k: torch.from_numpy(v) for k, v in case.inputs.items()}
    text = case.info["outputs"]["sparse_box_loss.*"]["meaning"]
    count, *symmetric = numbers(re.sub(r"v\d", "", text))
    inputs = [given[f"loss_{name}"] for name in ("box", "target", "weight", "quality", "cls")]
    found = box_losses(*inputs, [int(label) for label in symmetric], torch.tensor(count))
    names = {"box": "loss_box", "cns": "loss_cns", "yns": "loss_yns"}
    pairs = {k: (found[k], case.arrays[f"sparse_box_loss.{name}"]) for k, name in names.items()}

    levels = sorted(k for k in given if k.startswith("gt_depth"))
    depths = [torch.from_numpy(case.arrays[k.replace("gt", "dense")]).flatten() for k in levels]
    depth = dense_depth_loss(depths, [given[k].flatten() for k in levels])
    pairs["depth"] = depth, case.arrays["dense_depth_loss"]
    tolerance = case.info["tolerance"]
    errors = {k: close(value, wanted, tolerance["atol"], tolerance["rtol"]) for k, (value, wanted) in pairs.items()}
    assert not any(errors.values()), errors
