"""Maps of past frames in the current ego frame (Huang et al., BEVDet4D, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.families.bevdet.config import GridConfig
from bev_perception.families.bevdet.stereo import StereoView


@dataclass(frozen=True)
class BevMemory:
    """What is remembered of one frame.

    bev: [1, C, (Z,) Y, X], its map before maps are joined
    ego2global: [4, 4] float64, from the frame of the map to the global frame
    view: what a later frame is matched with, of a stereo variant; None once no frame can be matched with it any more
    stamp: ns, of the frame
    """

    bev: Tensor
    ego2global: np.ndarray
    view: StereoView | None
    stamp: int

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The map, and the features for matching."""
        return (self.bev,) if self.view is None else (self.bev, self.view.features)


def drop_views(entries: tuple[BevMemory, ...], interval: float) -> tuple[BevMemory, ...]:
    """Return entries, newest first, without the views that no later frame is matched with.

    A frame is matched with the entry nearest to `interval` (s) before it. So the views of the last `interval` are
    kept, and the next older one.
    """
    recent = entries[0].stamp - round(interval * 1e9) if entries else 0
    last = next((k for k, entry in enumerate(entries) if entry.stamp <= recent), len(entries))
    return (*entries[: last + 1], *(replace(entry, view=None) for entry in entries[last + 1 :]))


def warp_grid(current2older: np.ndarray, grid: GridConfig) -> Tensor:
    """Return where each cell of the current map lies in an older one, [B, Y, X, 2] float64, as F.grid_sample takes it.

    current2older: [B, 4, 4], between the ego frames of the maps; only its planar part counts
    grid: of both maps

    As in training, cells stand for their lower corners, not for their middles.
    """
    planar = current2older[:, [0, 1, 3]][:, :, [0, 1, 3]]
    cells = np.diag([*grid.cell[:2], 1.0])
    cells[:2, 2] = grid.range[:2]
    between = torch.from_numpy(np.linalg.inv(cells) @ planar @ cells)  # [B, 3, 3], in cells
    x, y, _ = grid.size
    rows, columns = torch.meshgrid(torch.arange(y), torch.arange(x), indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).double()  # [Y, X, 3]
    older = torch.einsum("bij,yxj->byxi", between, places)[..., :2]
    return 2 * older / torch.tensor([x - 1, y - 1], dtype=torch.float64) - 1


def warp(bev: Tensor, current2older: np.ndarray, grid: GridConfig) -> Tensor:
    """Return an older map [B, C, (Z,) Y, X] in the current ego frame, zeros where it does not reach.

    current2older: [B, 4, 4], between the ego frames of the maps
    grid: of both maps
    """
    places = warp_grid(current2older, grid).to(bev)
    layers = bev.flatten(1, -3)  # heights, if there are any, are moved alike
    return F.grid_sample(layers, places, align_corners=True).view_as(bev)


def join(maps: Sequence[Tensor], oldest_first: bool) -> Tensor:
    """Return maps [B, C, ...], the current one first, as one [B, T * C, ...]; stereo variants take the oldest first."""
    return torch.cat(list(reversed(maps)) if oldest_first else list(maps), dim=1)
