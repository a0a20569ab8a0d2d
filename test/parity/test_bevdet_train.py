"""The losses and gradients of whole BEVDet networks against every parity case of training."""

import numpy as np
import pytest
import torch
from torch import nn

from bev_perception.families.bevdet.config import AFTER_VIEW, IN_VIEW
from bev_perception.families.bevdet.losses import all_loss_names, all_losses
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import depth_labels
from bev_perception.families.bevdet.truths import STRIDE, DetectionTruth, VoxelTruth
from bev_perception.supervision.step import freeze

from .bevdet import augmentation_of, batch_of, cameras_of, images_of, model_of
from .cases import close, numbers, parametrize, subsample

#: weight of the depths where a case does not say it, as in the published classes
DEPTH_WEIGHT = 3.0
#: of each mode: whether norms use the statistics of the batch, alignment, whether there are past frames
MODES = {
    "eval_bn": (False, IN_VIEW, True),
    "vt": (True, IN_VIEW, True),
    "no_prev": (True, IN_VIEW, False),
    "after": (True, AFTER_VIEW, True),
}


def is_training(case):
    return None if case.info["system"] == "bevdet" and "loss_cfg" in case.info else ""


def recipe_of(case):
    cfg = case.info["loss_cfg"]
    view = case.config["img_view_transformer"]
    depth = view.get("loss_depth_weight", DEPTH_WEIGHT) if view["type"] != "LSSViewTransformer" else 0.0
    if "loss_occ" in cfg:
        assert cfg["use_mask"]
        return BEVDetRecipe(depth_weight=depth, occupancy_weight=cfg["loss_occ"]["loss_weight"])
    head = cfg["train_cfg"]
    return BEVDetRecipe(
        heatmap_weight=cfg["loss_cls"].get("loss_weight", 1.0),
        box_weight=cfg["loss_bbox"].get("loss_weight", 1.0),
        code_weights=tuple(head["code_weights"]),
        gaussian_overlap=head["gaussian_overlap"],
        gaussian_radius=head["min_radius"],
        max_objects=head["max_objs"],
        depth_weight=depth,
    )


def truths_of(case, head):
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    for b in range(batch_of(case)):
        depths = depth_labels(inputs["gt_depth"][b], STRIDE, head.depth) if "gt_depth" in inputs else None
        if head.boxes is None:
            yield VoxelTruth(inputs["voxel_semantics"][b], inputs["mask_camera"][b], depths)
        else:
            yield DetectionTruth(inputs[f"gt_boxes.{b}"], inputs[f"gt_labels.{b}"], depths)


class Training:
    """The network of a case in one precision."""

    def __init__(self, case, dtype):
        self.case, self.dtype = case, dtype
        self.model = model_of(case).to(dtype)
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        freeze(self.model, "scratch")
        self.recipe = recipe_of(case)

    def losses(self, mode):
        with_statistics, alignment, with_history = MODES[mode]
        self.model.train(with_statistics)
        cameras = cameras_of(self.case)
        output = self.model.perceive(
            [torch.from_numpy(x).to(self.dtype) for x in images_of(self.case)],
            cameras,
            [c.ego2global[:, 0] for c in cameras],
            augmentation_of(self.case),
            alignment,
            with_history,
        )
        head = self.model.head
        losses = all_losses(output, list(truths_of(self.case, head)), head, self.recipe)
        assert set(losses) == set(all_loss_names(head, self.recipe))
        return losses


DTYPES = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]


@parametrize(is_training)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients(case, dtype):
    exact = dtype == torch.float64
    training = Training(case, dtype)
    started = {name: value.clone() for name, value in training.model.named_buffers()}
    rtol = 1e-6 if exact else numbers(case.info["tolerance"]["losses"])[0]
    wrong = {}
    for mode, wanted in case.info["losses"].items():
        training.model.load_state_dict(started, strict=False)
        losses = training.losses(mode)
        assert losses.keys() == wanted.keys()
        # batch statistics are ill-conditioned in float32, as the reference's own error there shows
        loose = {name: 0.0 if exact else 20 * error for name, error in case.info["losses_f32_abs_err"][mode].items()}
        problems = {name: close(value.item(), wanted[name], loose[name], rtol) for name, value in losses.items()}
        wrong |= {(mode, name): problem for name, problem in problems.items() if problem}
        if mode == "vt":
            wrong |= wrong_statistics(case, training.model, 1e-5 if exact else 1e-3)
        if mode == "eval_bn":
            sum(losses.values()).backward()
            wrong |= wrong_gradients(case, training.model, exact)
            training.model.zero_grad()
    assert not wrong


def wrong_statistics(case, model, rtol):
    """The statistics of norms after a step that are not the case's."""
    buffers = dict(model.named_buffers())
    names = [name for name in case.arrays if name.startswith("after_step.")]
    assert names
    problems = {name: close(buffers[name.removeprefix("after_step.")], case.arrays[name], 1e-6, rtol) for name in names}
    return {name: problem for name, problem in problems.items() if problem}


def wrong_gradients(case, model, exact):
    """The gradients, and their norms, that are not the case's."""
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    total = np.sqrt(sum(g.norm().item() ** 2 for g in gradients.values()))
    problems = {"total": (abs(total / case.info["total_grad_norm"] - 1), 1e-6 if exact else 1e-2)}
    norms = case.info["grad_norms"]
    assert norms
    for key, entry in norms.items():
        problems[key] = abs(gradients[key].norm().item() / entry["l2"] - 1), 1e-6 if exact else 1e-2
    for name in (name for name in case.arrays if name.startswith("grad.")):
        key = name.removeprefix("grad.")
        wanted, description = case.outputs[name]
        found = subsample(gradients[key].numpy(), description)
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        # float32 may turn single units of a ReLU on or off, which in the reference happened elsewhere
        problems[name] = error, 1e-6 if exact else max(10 * norms[key]["rel_err_f32"], 5e-4)
    return {name: error for name, (error, limit) in problems.items() if not error < limit}
