"""The losses of occupancy against their formulas, written out voxel by voxel."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import ConfigError
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL
from bev_perception.families.sparseocc.losses import (
    affinity,
    class_weights,
    count_labels,
    lovasz_softmax,
    mask_dice,
    mask_entropy,
    occupancy_loss_names,
    occupancy_losses,
)
from bev_perception.families.sparseocc.model import SparseOccOutput
from bev_perception.families.sparseocc.voxel_decoder import VoxelStage
from bev_perception.families.variants import load_variant
from bev_perception.supervision.samples import NO_INSTANCE, OccupancyTruth

CLASSES = 4  # the last is free
GRID = (8, 8, 4)
FINITE = torch.tensor(True)


def random_stage(scale, kept, seed, batch=1):
    """A stage with logits in float64, and truths of its grid; some labels are unknown."""
    generator = torch.Generator().manual_seed(seed)
    cubes = torch.cartesian_prod(*(torch.arange(n // scale) for n in GRID))
    order = torch.stack([torch.randperm(len(cubes), generator=generator)[:kept] for _ in range(batch)])
    logits = 2 * torch.randn((batch, kept, CLASSES), generator=generator, dtype=torch.float64)
    semantics = torch.randint(CLASSES + 1, (batch, *GRID), generator=generator)
    semantics = torch.where(semantics == CLASSES, UNKNOWN_LABEL, semantics).to(torch.uint8)
    return VoxelStage(cubes[order], logits, scale), semantics


def fine_voxels(stage, semantics):
    """(logits [K * scale^3, C], labels [K * scale^3]) of the only sample, one row a voxel, as the paper's code has."""
    steps = torch.cartesian_prod(*[torch.arange(stage.scale)] * 3).reshape(-1, 3)
    places = (stage.locations[0][:, None] * stage.scale + steps).flatten(0, 1)
    labels = semantics[0][tuple(places.T)].long()
    return stage.logits[0].repeat_interleave(len(steps), dim=0), labels


def plain_lovasz(probability, labels):
    losses = []
    for c in range(CLASSES):
        inside = (labels == c).double()
        if inside.sum() == 0:
            continue
        errors, order = (inside - probability[:, c]).abs().sort(descending=True)
        hits = inside[order]
        jaccard = 1 - (hits.sum() - hits.cumsum(0)) / (hits.sum() + (1 - hits).cumsum(0))
        losses.append(errors @ torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]]))
    return sum(losses) / max(len(losses), 1)


def plain_affinity(p, inside):
    """Of one class: p, inside [v]."""
    if inside.sum() == 0:
        return p.new_zeros(())
    loss = -(p @ inside / p.sum()).log() - (p @ inside / inside.sum()).log()
    if (1 - inside).sum() > 0:
        loss = loss - ((1 - p) @ (1 - inside) / (1 - inside).sum()).log()
    return loss


def plain_losses(logits, labels, weights):
    probability, known = logits.softmax(1), labels != UNKNOWN_LABEL
    p, y = probability[known], labels[known]
    present = sorted(set(y.tolist()))
    terms = [plain_affinity(p[:, c], (y == c).double()) for c in present]
    return {
        "loss_sem_lovasz": plain_lovasz(probability, labels),
        "loss_geo_scal": plain_affinity(1 - p[:, -1], (y != CLASSES - 1).double()),
        "loss_sem_scal": sum(terms) / len(terms),
        "loss_sem_ce": torch.nn.functional.cross_entropy(logits[known], y, weights),
    }


def output_of(stage, queries=3, seed=0):
    """An output whose three stages are the same one."""
    generator = torch.Generator().manual_seed(seed)
    batch, kept = stage.locations.shape[:2]
    return SparseOccOutput(
        (stage, stage, stage),
        torch.randn((2, batch, queries, CLASSES - 1), generator=generator, dtype=torch.float64),
        torch.randn((2, batch, queries, kept), generator=generator, dtype=torch.float64),
        FINITE,
    )


def truth_of(semantics, masks=0, seed=0, visible=None):
    """A truth whose masks are random voxels; there are so many masks."""
    generator = torch.Generator().manual_seed(seed)
    instances = torch.randint(NO_INSTANCE, masks, GRID, generator=generator) if masks else torch.full(GRID, NO_INSTANCE)
    return OccupancyTruth(
        semantics, instances.to(torch.int16), torch.randint(CLASSES - 1, (masks,), generator=generator), visible
    )


@settings(deadline=None, max_examples=20)
@given(scale=st.sampled_from([1, 2, 4]), share=st.floats(0.1, 1.0), seed=st.integers(0, 2**31))
def test_losses_of_cubes_are_those_of_their_voxels(scale, share, seed):
    most = math.prod(n // scale for n in GRID)
    stage, semantics = random_stage(scale, max(1, round(share * most)), seed)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    logits = stage.logits.requires_grad_()
    losses = occupancy_losses(output_of(stage), [truth_of(semantics[0])], weights)
    found = {name: losses[f"{name}_0"] for name in ("loss_sem_lovasz", "loss_geo_scal", "loss_sem_scal", "loss_sem_ce")}
    fine, labels = fine_voxels(stage, semantics)
    if not (labels != UNKNOWN_LABEL).any():
        return
    wanted = plain_losses(fine, labels, weights)
    for name, value in found.items():
        assert value.item() == pytest.approx(wanted[name].item(), rel=1e-9, abs=1e-9), name
    (gradient,) = torch.autograd.grad(sum(found.values()), logits, retain_graph=True)
    (plain_gradient,) = torch.autograd.grad(sum(wanted.values()), logits)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-7, atol=1e-9)


def test_samples_are_averaged():
    stage, semantics = random_stage(2, 20, seed=3, batch=2)
    weights = torch.ones(CLASSES, dtype=torch.float64)
    both = occupancy_losses(output_of(stage), [truth_of(s) for s in semantics], weights)
    for name in ("loss_sem_lovasz_1", "loss_geo_scal_1", "loss_sem_scal_1", "loss_sem_ce_1"):
        alone = []
        for b in range(2):
            one = VoxelStage(stage.locations[b : b + 1], stage.logits[b : b + 1], 2)
            alone.append(occupancy_losses(output_of(one), [truth_of(semantics[b])], weights)[name].item())
        assert both[name].item() == pytest.approx(sum(alone) / 2)


def test_unknown_labels_are_outside_of_every_class_in_the_lovasz_loss_alone():
    stage, semantics = random_stage(1, 100, seed=1)
    weights = torch.ones(CLASSES, dtype=torch.float64)
    semantics[:] = 1
    before = occupancy_losses(output_of(stage), [truth_of(semantics[0])], weights)
    moved = semantics.clone()
    moved[0, :4] = UNKNOWN_LABEL
    after = occupancy_losses(output_of(stage), [truth_of(moved[0])], weights)
    kept = stage.locations[0][:, 0] >= 4
    fewer = VoxelStage(stage.locations[:, kept], stage.logits[:, kept], 1)
    without = occupancy_losses(output_of(fewer), [truth_of(semantics[0])], weights)
    assert after["loss_sem_ce_0"].item() == pytest.approx(without["loss_sem_ce_0"].item())
    assert after["loss_sem_scal_0"].item() == pytest.approx(without["loss_sem_scal_0"].item())
    values = [losses["loss_sem_lovasz_0"].item() for losses in (before, after, without)]
    assert len({round(value, 6) for value in values}) == 3


@pytest.mark.parametrize("label", [UNKNOWN_LABEL, CLASSES - 1])
def test_nothing_known_and_nothing_there(label):
    stage, semantics = random_stage(2, 10, seed=0)
    stage.logits.requires_grad_()
    losses = occupancy_losses(
        output_of(stage), [truth_of(torch.full_like(semantics[0], label))], torch.ones(CLASSES, dtype=torch.float64)
    )
    sum(losses.values()).backward()
    assert stage.logits.grad.isfinite().all()
    assert losses["loss_geo_scal_0"] == 0
    assert (losses["loss_sem_ce_0"] == 0) == (label == UNKNOWN_LABEL)


@pytest.mark.parametrize("scale", [-300.0, 300.0])
def test_certain_predictions_give_finite_losses_and_gradients(scale):
    stage, semantics = random_stage(2, 10, seed=0)
    logits = (stage.logits.float() * scale).requires_grad_()
    output = output_of(VoxelStage(stage.locations, logits, 2))
    masks = (output.mask_logits.float() * scale).requires_grad_()
    output = SparseOccOutput(output.stages, output.class_logits.float() * scale, masks, FINITE)
    losses = occupancy_losses(output, [truth_of(semantics[0], masks=2)], torch.ones(CLASSES))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert logits.grad.isfinite().all() and masks.grad.isfinite().all()


def test_a_perfect_prediction_costs_next_to_nothing():
    stage, semantics = random_stage(1, 200, seed=0)
    semantics[semantics == UNKNOWN_LABEL] = 0
    labels = fine_voxels(stage, semantics)[1]
    logits = torch.full((1, 200, CLASSES), -40.0, dtype=torch.float64)
    logits[0, torch.arange(200), labels] = 40.0
    truth = truth_of(semantics[0], masks=3)
    ids = truth.instances[tuple(stage.locations[0].T)].long()
    masks = torch.where(ids == torch.tensor([[2], [0], [1]]), 40.0, -40.0).double()  # [3, N]
    classes = torch.full((3, CLASSES - 1), -40.0, dtype=torch.float64)
    classes[torch.arange(3), truth.class_ids[[2, 0, 1]]] = 40.0
    perfect = VoxelStage(stage.locations, logits, 1)
    output = SparseOccOutput((perfect,) * 3, classes.expand(2, 1, -1, -1), masks.expand(2, 1, -1, -1), FINITE)
    losses = occupancy_losses(output, [truth], torch.ones(CLASSES, dtype=torch.float64))
    assert set(losses) == set(occupancy_loss_names(3, 2)) and max(loss.item() for loss in losses.values()) < 1e-6


def test_losses_of_masks_are_divided_by_the_number_of_masks():
    stage, semantics = random_stage(1, 100, seed=0)
    weights = torch.ones(CLASSES, dtype=torch.float64)
    output = output_of(stage, queries=6)
    one, four = (occupancy_losses(output, [truth_of(semantics[0], masks=m, seed=m)], weights) for m in (1, 4))
    no_class = occupancy_losses(output, [truth_of(semantics[0])], weights)["loss_class_0"].item()
    assert no_class > one["loss_class_0"].item() * 0.5 > 0
    assert four["loss_class_0"].item() < no_class  # a quarter of about as much
    assert 0 < four["loss_dice_mask_0"].item() <= 5 and 0 < one["loss_dice_mask_0"].item() <= 5


def test_masks_are_compared_where_they_are_visible():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 10), generator=generator)
    masks = (torch.rand((2, 10), generator=generator) < 0.5).float()
    visible = (torch.arange(10) < 6).float()
    dice, entropy = mask_dice(logits, masks, visible), mask_entropy(logits, masks, visible)
    torch.testing.assert_close(dice, mask_dice(logits[:, :6], masks[:, :6], None))
    torch.testing.assert_close(entropy, mask_entropy(logits[:, :6], masks[:, :6], None) * 6 / 10)
    p, t = logits[0].sigmoid(), masks[0]
    assert mask_dice(logits, masks, None)[0].item() == pytest.approx(
        (1 - (2 * (p @ t) + 1) / (p.sum() + t.sum() + 1)).item()
    )


def test_count_labels():
    semantics = torch.full((4, 4, 2), 3, dtype=torch.uint8)
    semantics[2, 0, 0], semantics[3, 1, 1], semantics[0, 0, 0] = 1, UNKNOWN_LABEL, 2
    counts = count_labels(semantics, torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0]]), 2, CLASSES)
    assert counts.tolist() == [[0, 1, 0, 6, 1], [0, 0, 1, 7, 0], [0, 0, 0, 8, 0]]


def test_lovasz_and_affinity_of_a_hand_made_case():
    probability = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    counts = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    # one voxel of each class. Of class 0 the errors are 0.2 outside, then 0.1 inside, and the Jaccard losses after them
    # 1 - 1/2 and 1 - 0/2; of class 1 it is 0.2 inside, then 0.1 outside, with 1 - 0/1 and 1 - 0/2
    assert lovasz_softmax(probability, counts).item() == pytest.approx(
        ((0.2 * 0.5 + 0.1 * 0.5) + (0.2 * 1.0 + 0.1 * 0.0)) / 2
    )
    loss = affinity(probability, counts[:, :2], counts[:, :2].sum(1, keepdim=True))
    assert loss[0].item() == pytest.approx(-math.log(0.9 / 1.1) - math.log(0.9) - math.log(0.8))


def test_class_weights():
    weights = class_weights(OCC3D_CLASSES)
    assert weights[-1] == pytest.approx(1 / math.log(1892500630.001)) and weights[2] == max(weights)
    openocc = load_variant("r50_nuimg_704x256_8f_openocc").class_names
    assert len(openocc) == 17 and "others" not in openocc
    by_name = dict(zip(OCC3D_CLASSES, weights, strict=True))
    assert class_weights(openocc) == tuple(by_name[name] for name in openocc)
    with pytest.raises(ConfigError, match="no voxel counts are known of the classes tree, lamp; use the names"):
        class_weights(("car", "tree", "lamp", "free"))


def test_names():
    assert occupancy_loss_names(1, 2) == (
        *("loss_sem_lovasz_0", "loss_geo_scal_0", "loss_sem_scal_0", "loss_sem_ce_0"),
        *("loss_mask_0", "loss_dice_mask_0", "loss_class_0", "loss_mask_1", "loss_dice_mask_1", "loss_class_1"),
    )
