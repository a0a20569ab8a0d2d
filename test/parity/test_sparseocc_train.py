"""Training of SparseOcc against the published reference: losses, assignments and gradients."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from bev_perception.families.catalog import build_model
from bev_perception.families.sparseocc.losses import class_weights, occupancy_loss_names, occupancy_losses
from bev_perception.families.sparseocc.mask_decoder import pick_voxels
from bev_perception.families.sparseocc.targets import assign_masks, masks_at
from bev_perception.models.query_layers import EncodedViews
from bev_perception.supervision.samples import NO_INSTANCE, OccupancyTruth
from bev_perception.supervision.step import encode_frames, freeze

from .cases import close, numbers, parametrize
from .test_sparseocc import STORED_VOXEL, images_of, matrices_of, network_input, variant_of

EMPTY = 255  # the reference's NO_INSTANCE


def reason_to_skip(case):
    ours = case.info["system"] == "sparseocc" and "loss_*" in case.info.get("outputs", {})
    return None if ours else ""


def training_variant_of(case):
    variant = variant_of(case)
    assert "0" in case.config["dropout"]  # "all dropout probabilities set to 0"
    return dataclasses.replace(variant, head=dataclasses.replace(variant.head, panoptic=False, dropout=0.0))


def truths_of(case, masked=False):
    """The truths of all samples; masked: with the case's visibility mask."""
    inputs, shape = case.inputs, case.inputs["voxel_semantics"].shape
    visible = np.unpackbits(inputs["mask_camera_bits"], count=int(np.prod(shape))).reshape(shape).astype(bool)
    instances = np.where(inputs["voxel_instances"] == EMPTY, NO_INSTANCE, inputs["voxel_instances"].astype(np.int16))
    return [
        OccupancyTruth(
            torch.from_numpy(inputs["voxel_semantics"][b]),
            torch.from_numpy(instances[b].astype(np.int16)),
            torch.from_numpy(inputs[f"instance_class_ids_b{b}"]),
            torch.from_numpy(visible[b]) if masked else None,
        )
        for b in range(shape[0])
    ]


class Run:
    """One forward and backward pass over a case."""

    def __init__(self, case):
        self.case = case
        model = build_model(training_variant_of(case)).train()
        case.load_weights(model)
        freeze(model, "finetune")
        self.model = model
        self.weights = torch.tensor(class_weights(model.config.class_names))
        pixels = images_of(case)  # [B, T, N, 3, h, w]
        images = torch.stack(
            [torch.stack([network_input(frame, model.config) for frame in sample]) for sample in pixels]
        )
        self.passes = 0
        self.differently_chosen = []
        views = EncodedViews(
            encode_frames(model, images, frames_with_gradient=0),
            torch.from_numpy(matrices_of(case)).float(),
            tuple(images.shape[-2:]),
        )
        self.output = model.pts_bbox_head(views, self._choose)
        self.losses = occupancy_losses(self.output, truths_of(case), self.weights)
        sum(self.losses.values()).backward()

    def _choose(self, inside, locations):
        """Our choice for the case's random numbers, but the reference's where the two differ (by rounding)."""
        ranks, places = (torch.from_numpy(self.case.inputs[name][self.passes]) for name in ("u_idx", "u_pad"))
        own = pick_voxels(inside, locations, ranks, places, self.model.config.head.occ_size)
        reference = torch.from_numpy(self.case.arrays[f"md{self.passes}_sampled_voxels"])
        same = (own - reference).abs().amax(dim=-1, keepdim=True) < STORED_VOXEL
        self.differently_chosen.append(1 - same.double().mean().item())
        self.passes += 1
        return torch.where(same, own, reference)


@pytest.fixture(scope="module")
def runs():
    """The last case's run, for all tests of this file."""
    return {}


def run_of(case, runs):
    if case.name not in runs:
        runs.clear()
        runs[case.name] = Run(case)
    return runs[case.name]


def beyond(pairs, rtol):
    errors = {key: abs(found / wanted - 1) for key, (found, wanted) in pairs.items()}
    return {key: error for key, error in errors.items() if not error < rtol}


def tolerances(case):
    """Of losses and of gradient norms."""
    return numbers(re.search(r"rtol (.*?) \(", case.info["tolerance"]["note"])[1])[:2]


@parametrize(reason_to_skip)
def test_losses_and_gradients(case, runs):
    run = run_of(case, runs)
    assert max(run.differently_chosen) < 0.05
    rtol, rtol_norm = tolerances(case)
    losses = {name: loss.item() for name, loss in run.losses.items()}
    names = {name for name in case.arrays if name.startswith("loss_")}
    assert set(losses) | {"loss_total"} == names
    assert set(losses) == set(occupancy_loss_names(case.config["voxel_layers"], 1 + case.config["mask_layers"]))
    losses["loss_total"] = sum(losses.values())
    assert not beyond({name: (losses[name], case.arrays[name]) for name in names}, rtol)

    gradients = {k: p.grad.double().norm().item() for k, p in run.model.named_parameters() if p.grad is not None}
    gradients["(all parameters)"] = float(np.sqrt(np.sum(np.square(list(gradients.values())))))
    prefix = "gradnorm:"
    wanted = {name.removeprefix(prefix): norm for name, norm in case.arrays.items() if name.startswith(prefix)}
    assert len(wanted) > 10
    assert not beyond({key: (gradients[key], norm) for key, norm in wanted.items()}, rtol_norm)


@parametrize(reason_to_skip)
def test_losses_where_the_cameras_see(case, runs):
    run = run_of(case, runs)
    with torch.no_grad():
        losses = occupancy_losses(run.output, truths_of(case, masked=True), run.weights)
    wanted = {name: value for name, value in case.arrays.items() if name.startswith("withmask_")}
    assert wanted.keys() == {f"withmask_{name}" for name in losses}
    pairs = {name: (losses[name.removeprefix("withmask_")].item(), value) for name, value in wanted.items()}
    assert not beyond(pairs, tolerances(case)[0])


@parametrize(reason_to_skip)
def test_predictions_and_assignments(case, runs):
    run = run_of(case, runs)
    output = run.output
    for i, stage in enumerate(output.stages):
        differing = sum(
            len(set(map(tuple, found)) ^ set(map(tuple, wanted)))
            for found, wanted in zip(stage.locations.tolist(), case.arrays[f"stage{i}_loc"].tolist(), strict=True)
        )
        assert differing <= case.info["tolerance"]["deviation"]["stage_set_difference"][i]
    for j, logits in enumerate(output.class_logits.detach()):
        assert close(logits, case.arrays[f"class{j}"], 2e-3, 1e-3) is None
    for b, truth in enumerate(truths_of(case)):
        locations = output.stages[-1].locations[b]
        targets = masks_at(truth, locations, torch.float32)
        np.testing.assert_array_equal(targets.classes, case.arrays[f"class_ids_after_drop_b{b}"])
        rows = {tuple(location): row for row, location in enumerate(locations.tolist())}
        order = [rows.get(tuple(location), -1) for location in case.arrays["stage2_loc"][b, ::8].tolist()]
        kept = np.array(order) >= 0  # a voxel whose score ties with another's may have been kept in its place
        masks = output.mask_logits[-1, b].detach().numpy()[:, order]
        assert close(masks[:, kept], case.arrays["mask2"][b][:, kept], 2e-3, 1e-3) is None
        for j in range(len(output.class_logits)):
            found = assign_masks(output.class_logits[j, b], output.mask_logits[j, b], targets)
            np.testing.assert_array_equal(torch.stack(found), case.arrays[f"assign{j}_b{b}"])
