"""Fold batch norms into the convolutions before them: the same function in inference, a pass less over each map."""

from __future__ import annotations

import torch
from torch import nn

#: convolutions, and the batch norms of their dimension
_PAIRS = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> None:
    """Change the weights of convolutions so that the batch norms after them have nothing left to do.

    model: in evaluation mode, with its weights loaded; names of its state_dict change

    A batch norm is folded if the submodule registered right before it in the same module is the convolution that it
    norms, as everywhere in this package (test/models/test_folding.py compares every family with its unfolded self). All
    others stay: those of inputs, and those of deformable convolutions.

    Raises ValueError for a model in training mode, whose norms use the statistics of their batch.
    """
    for parent in model.modules():
        before: nn.Module | None = None
        for name, child in list(parent.named_children()):
            if any(isinstance(before, conv) and isinstance(child, norm) for conv, norm in _PAIRS):
                assert isinstance(before, nn.Conv2d | nn.Conv3d) and isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d)
                if child.training:
                    raise ValueError("batch norms are folded for inference only; call eval() first")
                _fold(before, child)
                setattr(parent, name, nn.Identity())
            before = child


def _fold(conv: nn.Conv2d | nn.Conv3d, norm: nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    """Give `conv` the weights with which it computes `norm` of what it has computed so far."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # [out]
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale
    weight = conv.weight.double() * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
