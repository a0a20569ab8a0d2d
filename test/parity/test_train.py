"""Training of SparseBEV against the published reference: losses, assignment, denoising and gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from bev_perception.config import TrainingConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.sparsebev.config import SparseBEVRecipe
from bev_perception.families.sparsebev.losses import detection_losses
from bev_perception.families.sparsebev.targets import DenoisingDraws, assign, encode_boxes, make_denoising
from bev_perception.supervision.samples import BoxTruth
from bev_perception.supervision.step import encode_frames, freeze

from .cases import close, numbers, parametrize
from .test_sparsebev import cameras_of, network_input, variant_of

MODES = ("full", "stop", "nodn")


def reason_to_skip(case):
    return None if case.info["system"] == "sparsebev" and "losses" in case.info.get("outputs", {}) else ""


def training_variant_of(case):
    variant = variant_of(case)
    return dataclasses.replace(
        variant,
        head=dataclasses.replace(variant.head, dropout=case.config["dropout"]),
        training=TrainingConfig(
            epochs=1, resize=(1.0, 1.0), family=SparseBEVRecipe(case.config["query_denoising_groups"])
        ),
    )


class Run:
    """Losses, gradients and what led to them, in all modes of a case."""

    def __init__(self, case, dtype):
        self.case, self.exact = case, dtype == torch.float64
        self.arrays = dict(np.load(case.path / "outputs.npz"))
        model = build_model(training_variant_of(case)).train()
        case.load_weights(model, constants=("code_weights",))
        freeze(model, "finetune")
        self.model = model.to(dtype)
        frame_ids = case.inputs["frame_ids"]
        self.images = torch.stack(
            [torch.stack([torch.from_numpy(network_input(case, f)) for f in sample]) for sample in frame_ids]
        ).to(dtype)  # [B, T, N, 3, H, W]
        batch, frames = frame_ids.shape
        cameras = cameras_of(case)
        matrices = case.inputs["lidar2img"].reshape(batch, frames, cameras, 4, 4)
        self.matrices = torch.from_numpy(matrices).to(dtype)
        stamps = case.inputs["timestamp"].reshape(batch, frames, cameras)
        self.differences = torch.from_numpy((stamps[:, :1] - stamps).mean(axis=2).astype(np.float32)).to(dtype)
        self.truths = [
            BoxTruth(
                torch.from_numpy(case.inputs[f"gt_boxes.{b}"]).to(dtype),
                torch.from_numpy(case.inputs[f"gt_labels.{b}"]),
            )
            for b in range(batch)
        ]
        self.denoising = make_denoising(
            self.truths, self.draws(), case.config["num_query"], tuple(case.config["pc_range"]), velocity_noise=0.0
        )

    def draws(self):
        """The case's random numbers, which are in the order [group, sample, box], sample by sample."""
        groups = self.case.config["query_denoising_groups"]
        values = [
            torch.from_numpy(self.case.inputs[name]).unflatten(0, (groups, -1))
            for name in ("dn_box_rand", "dn_label_prob", "dn_new_label")
        ]
        sizes = [len(truth.labels) for truth in self.truths]
        return [
            DenoisingDraws(rand[..., :3], flip, label, torch.zeros_like(flip), torch.zeros_like(rand[..., :2]))
            for rand, flip, label in zip(*(value.split(sizes, dim=1) for value in values), strict=True)
        ]

    def __call__(self, mode):
        """Return outputs, losses and the decoder's first input; the parameters hold their gradients afterwards."""
        seen = []
        handle = self.model.pts_bbox_head.decoder_layer.register_forward_pre_hook(
            lambda module, args: seen.append(args[:2])
        )
        denoising = None if mode == "nodn" else self.denoising
        levels = encode_frames(
            self.model, self.images, self.case.config["stop_prev_grad_of_mode_stop"] if mode == "stop" else 0
        )
        output = self.model.detect(
            levels,
            self.matrices,
            self.differences,
            tuple(self.case.config["padded_size"]),
            None if denoising is None else denoising.queries,
        )
        handle.remove()
        code_weights = self.model.pts_bbox_head.code_weights
        losses = detection_losses(output, self.truths, denoising, code_weights, moving_weight=1.0)
        sum(losses.values()).backward()
        return output, {name: loss.item() for name, loss in losses.items()}, seen[0]


def problems_of_losses(run, mode, losses):
    """Every loss, and their sum, beyond the case's tolerance."""
    wanted = run.case.info["outputs"]["losses"][mode]
    assert losses.keys() == wanted.keys()
    rtol = 1e-8 if run.exact else numbers(run.case.info["tolerance"]["losses"])[0]
    assert sum(losses.values()) == pytest.approx(run.case.info["outputs"]["total"][mode], rel=rtol)
    return beyond({name: (losses[name], wanted[name]) for name in wanted}, lambda name: rtol)


def problems_of_gradients(run, mode):
    """Every gradient's norm beyond the case's tolerance; all of the gradients together count as one more."""
    wanted = run.case.info["outputs"]["grad_norm"][mode]
    usual, sensitive = numbers(run.case.info["tolerance"]["grad_norm"])[:2]
    gradients = {k: p.grad.double() for k, p in run.model.named_parameters() if p.grad is not None}
    together = torch.stack([g.norm() for g in gradients.values()]).norm().item()
    wanted_together = run.case.info["outputs"]["global_grad_norm"][mode]

    def rtol(key):
        if run.exact:
            return 1e-4
        return sensitive if "init_query_bbox" in key or "sampling_offset" in key else usual

    return beyond({k: (gradients[k].norm().item(), norm) for k, norm in wanted.items()}, rtol) | beyond(
        {"together": (together, wanted_together)}, lambda key: 1e-6 if run.exact else 1e-3
    )


def beyond(pairs, rtol):
    errors = {key: abs(found / wanted - 1) for key, (found, wanted) in pairs.items()}
    return {key: error for key, error in errors.items() if not error < rtol(key)}


def problems_of_arrays(run, output, query_boxes, query_features):
    """What the mode "full" stores beside: outputs, the decoder's first input, corners of gradients."""
    arrays = run.arrays
    places = run.case.info["pad"]
    found = {
        "cls": output.logits[:, :, places:],
        "box": output.boxes[:, :, places:],
        "dn_cls": output.logits[[0, -1], :, :places],
        "dn_box": output.boxes[[0, -1], :, :places],
        "query_bbox": query_boxes,
        "query_feat": query_features[:, ::3, ::4],
        "query_feat_last": query_features[..., -1],
    }
    outputs_atol = numbers(run.case.info["tolerance"]["cls, box, dn_*"])[0]
    problems = {
        name: close(value.detach(), arrays[name], *((5e-6, 1e-6) if run.exact else (outputs_atol, 1e-6)))
        for name, value in found.items()
    }
    share = 5e-3 if run.exact else numbers(run.case.info["tolerance"]["grad8x8"])[0]
    for name in arrays:
        if name.startswith("grad8x8."):
            parameter = run.model.get_parameter(name.removeprefix("grad8x8."))
            corner = parameter.grad.reshape(len(parameter), -1)[:8, :8]
            problems[name] = close(corner, arrays[name], share * np.abs(arrays[name]).max(), 0)
    blocked = np.packbits(run.denoising.queries.blocked.numpy(), axis=1)
    problems["attn_mask"] = None if np.array_equal(blocked, arrays["attn_mask"]) else "differs"
    problems["gt_index"] = None if np.array_equal(assigned(run, output), arrays["gt_index"]) else "differs"
    return {name: problem for name, problem in problems.items() if problem}


def assigned(run, output):
    """[layers, B, Q]: 0 for a query without a box, else 1 + the box's index."""
    logits, boxes = (x[:, :, run.case.info["pad"] :] for x in (output.logits, output.boxes))
    found = np.zeros(logits.shape[:3], np.int64)
    for layer, sample in np.ndindex(found.shape[:2]):
        truth = run.truths[sample]
        queries, known = assign(
            logits[layer, sample],
            boxes[layer, sample],
            truth.labels,
            encode_boxes(truth.boxes),
            run.model.pts_bbox_head.code_weights,
        )
        found[layer, sample, queries] = known + 1
    return found


#: float32 with everything; the other modes, and float64, several times as slow, in slow tests
RUNS = [("full", torch.float32)] + [
    pytest.param(mode, dtype, marks=pytest.mark.slow)
    for dtype in (torch.float32, torch.float64)
    for mode in MODES
    if (mode, dtype) != ("full", torch.float32)
]


@parametrize(reason_to_skip)
@pytest.mark.parametrize(("mode", "dtype"), RUNS, ids=lambda value: str(value).removeprefix("torch."))
def test_training(case, mode, dtype):
    run = Run(case, dtype)
    output, losses, inputs = run(mode)
    problems = problems_of_losses(run, mode, losses) | problems_of_gradients(run, mode)
    if mode == "full":
        problems |= problems_of_arrays(run, output, *inputs)
    assert not problems
    frozen = {k for k, p in run.model.named_parameters() if p.grad is None}
    stem = ("img_backbone.conv1.", "img_backbone.bn1.", "img_backbone.layer1.")
    assert frozen == {k for k, _ in run.model.named_parameters() if k.startswith(stem)}
