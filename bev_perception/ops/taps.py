"""Bilinear interpolation as four cells of a map with their weights, for the ops that gather rows of maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of a table's rows, [K, C].

    table: [R, C]
    rows: [K, n] int64
    weights: [K, n]
    """
    if torch.compiler.is_compiling():  # a compiler fuses plain gathers, and every runtime has them
        return (table[rows] * weights[..., None]).sum(dim=1)
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def bilinear_taps(y: Tensor, x: Tensor, height: int, width: int, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four cells around a position in a map, and their weights, both [..., 4].

    y: [...], row, in cells; 0 is the middle of the first row
    x: [...], column, in cells
    height: rows of the map
    width: columns of the map
    scale: [...], factor on the weights; may be broadcast

    Cells are row * width + column. A cell outside of the map has weight 0 and a clamped row and column.
    """
    rows, weight_y = _linear_taps(y, height)
    columns, weight_x = _linear_taps(x, width)
    cells = rows[..., :, None] * width + columns[..., None, :]
    weights = (weight_y * scale[..., None])[..., :, None] * weight_x[..., None, :]
    return cells.flatten(-2), weights.flatten(-2)


def _linear_taps(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the two cells next to a position along one axis, and their interpolation weights, both [..., 2].

    at: [...], 0 is the middle of the first cell
    size: number of cells
    """
    # a point behind a camera has a huge position: clamp it to one cell outside, where the weights are 0
    at = at.clamp(-1, size)
    first = at.detach().floor()
    fraction = at - first
    cells = torch.stack([first, first + 1], dim=-1)
    weights = torch.stack([1 - fraction, fraction], dim=-1) * ((cells >= 0) & (cells < size))
    return cells.long().clamp(0, size - 1), weights
