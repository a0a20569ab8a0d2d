"""What weights tell of the variant that they belong to, to explain why a checkpoint does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor


def facts(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what can be told from the names and shapes of weights; what cannot is left out."""
    found: dict[str, str] = {}
    net = "img_view_transformer.depth_net."
    context = _channels(state, "pre_process_net.layers.0.0.conv1", 0)
    joined = _channels(state, "img_bev_encoder_backbone.layers.0.0.conv1", 1)
    depths = None
    if f"{net}weight" in state:
        found["depth net"] = "plain"
        context = context or joined
        depths = state[f"{net}weight"].shape[0] - (context or 0)
    elif f"{net}context_conv.weight" in state:
        found["depth net"] = "stereo" if any(key.startswith(f"{net}cost_volumn_net.") for key in state) else "camera"
        context = state[f"{net}context_conv.weight"].shape[0]
        depths = _channels(state, f"{net}depth_conv.4", 0)
    if depths and context:
        found |= {"depths": str(depths), "lifted channels": str(context)}
    if joined and context:
        found["frames"] = str(joined // context)
    width = state.get(f"{net}reduce_conv.0.weight", state.get(f"{net}weight"))
    if width is not None:
        found["neck's channels"] = str(width.shape[1])
    tasks = {key.split(".")[2] for key in state if key.startswith("pts_bbox_head.task_heads.")}
    if tasks:
        found["head"] = f"boxes of {len(tasks)} task{'s' if len(tasks) > 1 else ''}"
        found["classes"] = str(sum(_channels(state, f"pts_bbox_head.task_heads.{t}.heatmap.1", 0) or 0 for t in tasks))
    elif "predicter.2.weight" in state:
        final, outputs = state.get("final_conv.conv.weight"), state["predicter.2.weight"].shape[0]
        columns = final is not None and final.ndim == 4
        found["head"] = "occupancy of columns" if columns else "occupancy of voxels"
        found["classes of a column" if columns else "classes"] = str(outputs)
    return found | _backbone_facts(state)


def _backbone_facts(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the kind of the backbone, and the width, windows and positions of a Swin transformer."""
    net = "img_backbone."
    if not any(key.startswith(net) for key in state):
        return {}
    width = _channels(state, f"{net}patch_embed.projection", 0)
    if width is None:
        return {"backbone": "resnet"}
    tables = (f"{net}stages.{k}.blocks.0.attn.w_msa.relative_position_bias_table" for k in range(4))
    sides = [(math.isqrt(state[name].shape[0]) + 1) // 2 for name in tables if name in state]  # of (2 * side - 1)^2
    return {
        "backbone": "swin",
        "backbone's width": str(width),
        "windows": "/".join(map(str, sides)),
        "position embedding": "there" if f"{net}absolute_pos_embed" in state else "none",
    }


def _channels(state: Mapping[str, Tensor], name: str, dim: int) -> int | None:
    """Return a dimension of a convolution's weight, whether the convolution has a name of its own or not."""
    weight = state.get(f"{name}.weight", state.get(f"{name}.conv.weight"))
    return None if weight is None else weight.shape[dim]


def explain(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence that names what differs between the model and the weights, or nothing.

    expected: weights of the model
    state: weights of the file
    """
    ours, theirs = facts(expected), facts(state)
    different = [
        f"{name} {theirs.get(name, 'none')} instead of {ours.get(name, 'none')}"
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]
    return [f"The file is of another variant: {', '.join(different)}."] if different and theirs else []
