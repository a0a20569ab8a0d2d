"""The optimizer's parameter groups, and the schedule of the learning rate."""

from __future__ import annotations

import math

from torch import nn

from bev_perception.config import TrainingConfig

BACKBONE = "img_backbone"


def parameter_groups(model: nn.Module, recipe: TrainingConfig, lr: float) -> list[dict]:
    """Return the trainable parameters as optimizer groups, one for each learning rate factor and weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        key = lr_factor(model, name, recipe), _weight_decay(name, parameter, recipe)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "lr": lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), members in groups.items()
    ]


def lr_factor(model: nn.Module, name: str, recipe: TrainingConfig) -> float:
    """Return the factor on the learning rate of a parameter.

    With recipe.layer_decay it falls with every layer of the backbone from the last one down (Clark et al., ICLR 2020).
    """
    if name.startswith(f"{BACKBONE}."):
        factor = recipe.backbone_lr
        if recipe.layer_decay < 1:
            backbone = model.get_submodule(BACKBONE)
            last: int = backbone.layer_count  # type: ignore[assignment]
            layer: int = backbone.layer_of(name.removeprefix(f"{BACKBONE}."))  # type: ignore[operator]
            factor *= recipe.layer_decay ** (last - layer)
        return factor
    return recipe.sampling_offset_lr if "sampling_offset" in name else 1.0


def _weight_decay(name: str, parameter: nn.Parameter, recipe: TrainingConfig) -> float:
    free = recipe.layer_decay < 1 and (parameter.ndim <= 1 or name.endswith(".bias"))
    return 0.0 if free else recipe.weight_decay


def schedule(recipe: TrainingConfig, step: int, steps_per_epoch: int, epochs: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine or step-wise drops.

    step: number of steps done.
    epochs: number of epochs of this training; if it is not the recipe's, drops come at the same share of it.
    """
    epoch = step // steps_per_epoch
    if recipe.lr_drop_epochs:
        factor = recipe.lr_drop ** sum(epoch >= drop * epochs / recipe.epochs for drop in recipe.lr_drop_epochs)
    else:
        done = epoch if recipe.cosine == "epoch" else step / steps_per_epoch
        falling = (1 + math.cos(math.pi * done / epochs)) / 2
        factor = recipe.min_lr_ratio + (1 - recipe.min_lr_ratio) * falling
    if step < recipe.warmup_steps:
        factor *= 1 - (1 - step / recipe.warmup_steps) * (1 - recipe.warmup_ratio)
    return factor
