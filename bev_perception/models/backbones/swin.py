"""Swin transformer (Liu et al., ICCV 2021) as a detector's backbone, plain or as pretrained by GeoMIM.

Blocks attend within windows of the token map. In the plain transformer every second block shifts its windows by half
their side; that of GeoMIM (Liu et al., ICCV 2023) never shifts, but adds positions to the tokens. Parameters are named
as in the official checkpoints of the detectors.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline
from scipy.optimize import brentq
from torch import Tensor, nn

from bev_perception.config import SwinConfig
from bev_perception.models.backbones.eva02 import drop_path, join_windows, resize_table, split_windows

PATCH = 4  # pixels
MLP_RATIO = 4
#: side of the token grid that the position embedding was pretrained with
PRETRAINED_GRID = 56
#: what is added to attention between regions that only the shift has made neighbours
BLOCKED = -100.0
#: least ratio of two neighbouring distances in a resized bias table
LEAST_GROWTH = 1.01


def relative_index(window: int) -> Tensor:
    """Return where the bias table holds the offset between each two tokens of a window, [window^2, window^2] int64."""
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    rows, columns = (axis[:, None] - axis[None] + window - 1 for axis in (y, x))
    return rows * (2 * window - 1) + columns


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """Return a table of biases [s^2, heads] for windows of another size, [side^2, heads].

    As in BEiT (Bao et al., 2021): the old offsets are spread over the new ones so that their distances grow
    geometrically from the middle outwards, and a cubic spline is laid through them. So near tokens, whose biases
    matter most, keep theirs, in smaller windows too: the distances never shrink.
    """
    old = round(len(table) ** 0.5)
    if old == side:
        return table
    reach, wanted = old // 2, side // 2

    def excess(q: float) -> float:
        return float((q ** np.arange(reach)).sum() - wanted)

    ratio = LEAST_GROWTH if excess(LEAST_GROWTH) >= 0 else brentq(excess, LEAST_GROWTH, 10.0)
    outwards = np.cumsum(ratio ** np.arange(reach))
    places = np.concatenate([-outwards[::-1], [0.0], outwards])
    offsets = np.arange(-wanted, wanted + 1)
    maps = table.detach().double().numpy().reshape(old, old, -1)
    resized = [RectBivariateSpline(places, places, maps[..., h])(offsets, offsets) for h in range(maps.shape[-1])]
    return torch.from_numpy(np.stack(resized, axis=-1)).reshape(side * side, -1).to(table.dtype)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learnt bias for each offset between two tokens."""

    relative_position_index: Tensor

    def __init__(self, dims: int, heads: int, window: int) -> None:
        """Build the projections and the table."""
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_index(window))
        self.qkv = nn.Linear(dims, 3 * dims)
        self.proj = nn.Linear(dims, dims)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Return attended tokens [W, L, C] of windows [W, L, C].

        mask: [windows of an image, L, L], added to the attention of every image; None for none
        """
        query, key, value = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [W, H, L, D]
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # [H, L, L]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(windows) // len(mask), 1, 1, 1)  # [W, H, L, L]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention within windows and a feed-forward layer, each with a norm before it and a residual connection.

    window: side of the windows, tokens
    shift: by which the windows are moved to the right and down, tokens; 0 for none
    drop: share of the samples that a branch is left out for in training
    """

    def __init__(self, dims: int, heads: int, window: int, shift: int, drop: float) -> None:
        """Build the block."""
        super().__init__()
        self.window, self.shift, self.drop = window, shift, drop
        self.norm1 = nn.LayerNorm(dims)
        self.attn = nn.ModuleDict({"w_msa": WindowAttention(dims, heads, window)})
        self.norm2 = nn.LayerNorm(dims)
        hidden = nn.Sequential(nn.Linear(dims, MLP_RATIO * dims), nn.GELU())
        self.ffn = nn.ModuleDict({"layers": nn.Sequential(hidden, nn.Linear(MLP_RATIO * dims, dims))})

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, h, w, C] refined."""
        tokens = tokens + drop_path(self._attend(self.norm1(tokens)), self.drop, self.training)
        return tokens + drop_path(self.ffn["layers"](self.norm2(tokens)), self.drop, self.training)

    def _attend(self, x: Tensor) -> Tensor:
        """Attend within windows; padding follows the norm and is not masked, so padded tokens act by their biases."""
        batch, height, width, _ = x.shape
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        size = (batch, x.shape[1], x.shape[2])
        mask = None
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            mask = shift_mask(size[1], size[2], window, shift, x.device).to(x.dtype)
        x = join_windows(self.attn["w_msa"](split_windows(x, window), mask), window, size)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]


@functools.lru_cache(maxsize=8)  # blocks of a stage share theirs, as do the steps of a stream
def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return what keeps apart the regions that a cyclic shift joins in one window, [windows, L, L]: 0 or BLOCKED."""
    with torch.inference_mode(False):  # it may serve training later
        return _shift_mask(height, width, window, shift).to(device)


def _shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    spans = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    regions = torch.zeros(1, height, width, 1)
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans):
            regions[:, rows, columns] = 3 * i + j
    of_token = split_windows(regions, window)[..., 0]  # [windows, L]
    return (of_token[:, None] != of_token[:, :, None]).float() * BLOCKED


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: tokens [B, h, w, C] -> [B, h / 2, w / 2, 2C]; odd sizes are padded."""

    def __init__(self, dims: int) -> None:
        """Build the norm and the projection."""
        super().__init__()
        self.norm = nn.LayerNorm(4 * dims)
        self.reduction = nn.Linear(4 * dims, 2 * dims, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the merged tokens; the four neighbours of a channel lie side by side, row by row."""
        batch, height, width, channels = tokens.shape
        tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
        blocks = tokens.view(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
        return self.reduction(self.norm(blocks.permute(0, 1, 3, 5, 2, 4).flatten(3)))


class SwinTransformer(nn.Module):
    """The transformer's maps from stage `first_level` on, normed, and on request the first stage's map before them.

    config: sizes and kind of the transformer
    first_level: first stage, of 0 to 3, whose output is returned
    with_first: whether the output of the first stage, which is not normed, comes before the others
    out_channels: channels of the outputs
    not_pretrained: endings of weights that classifiers lack, or that follow from the settings
    """

    def __init__(self, config: SwinConfig, first_level: int = 0, with_first: bool = False) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        dims = config.embed_dim
        self.first_level, self.with_first = first_level, with_first
        widths = [dims * 2**stage for stage in range(4)]
        self.out_channels = ((dims,) if with_first else ()) + tuple(widths[first_level:])
        self.patch_embed = nn.Sequential(
            OrderedDict(projection=nn.Conv2d(3, dims, PATCH, PATCH), norm=nn.LayerNorm(dims))
        )
        if config.positions:
            self.absolute_pos_embed = nn.Parameter(torch.empty(1, dims, PRETRAINED_GRID, PRETRAINED_GRID))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        count, i = sum(config.depths), 0
        self.stages = nn.ModuleList()
        for stage, (depth, heads, window) in enumerate(zip(config.depths, config.heads, config.windows, strict=True)):
            blocks = nn.ModuleList()
            for k in range(depth):
                shift = window // 2 if config.shifted and k % 2 else 0
                blocks.append(Block(widths[stage], heads, window, shift, config.drop_path * i / max(count - 1, 1)))
                i += 1
            parts: dict[str, nn.Module] = {"blocks": blocks}
            if stage < 3:
                parts["downsample"] = PatchMerging(widths[stage])
            self.stages.append(nn.ModuleDict(parts))
        norms = [f"norm{stage}" for stage in range(first_level, 4)]
        self.not_pretrained = ("relative_position_index", *(f"{n}.{w}" for n in norms for w in ("weight", "bias")))
        for stage in range(first_level, 4):
            self.add_module(f"norm{stage}", nn.LayerNorm(widths[stage]))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def adapt_pretrained(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return pretrained weights under this module's names and in its layout.

        state: of a detector or of GeoMIM, or as released with the paper of the transformer

        Bias tables of other windows are resized; the indices into them follow from the settings and are left out.
        """
        official = any(key.startswith("layers.") for key in state)
        own = self.state_dict()
        adapted = {}
        for name, weight in state.items():
            key, value = _from_official(name, weight) if official else (name, weight)
            if key.endswith("relative_position_index"):
                continue
            if key.endswith("relative_position_bias_table") and key in own and value.ndim == 2:
                value = resize_bias_table(value, round(len(own[key]) ** 0.5))
            adapted[key] = value
        return adapted

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that detectors keep frozen as pretrained: none."""
        return []

    @property
    def layer_count(self) -> int:
        """Number of layers that layer_of tells apart, but for the first: the blocks, and what follows them."""
        return len(self.blocks()) + 1

    def layer_of(self, name: str) -> int:
        """Return the layer of a weight: 0 for the patches and positions, then one for each block.

        name: of the weight

        The merging of patches after a stage belongs to the first block after it; norms of the outputs come last.
        """
        if name.startswith(("patch_embed.", "absolute_pos_embed")):
            return 0
        part, *path = name.split(".")
        if part != "stages":
            return self.layer_count
        depths = [len(stage["blocks"]) for stage in self.stages]  # type: ignore[index]
        stage = int(path[0])
        if path[1] == "downsample":
            return sum(depths[: stage + 1]) + 1
        return sum(depths[:stage]) + int(path[2]) + 1

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order; training may recompute their activations to save memory."""
        return [block for stage in self.stages for block in stage["blocks"]]  # type: ignore[index]

    def first_map(self, images: Tensor) -> Tensor:
        """Return the first stage's map [B, C, H / 4, W / 4] of images [B, 3, H, W], without computing the others."""
        return self._stage(0, self._embed(images)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return maps [B, out_channels[i], h, w] of images [B, 3, H, W]; stage i has H / 2^(i+2) rows."""
        tokens = self._embed(images)
        outputs = []
        for i in range(4):
            tokens = self._stage(i, tokens)
            if i == 0 and self.with_first:
                outputs.append(tokens.permute(0, 3, 1, 2))
            if i >= self.first_level:
                outputs.append(self.get_submodule(f"norm{i}")(tokens).permute(0, 3, 1, 2))
            if i < 3:
                tokens = self.stages[i]["downsample"](tokens)  # type: ignore[index]
        return outputs

    def _embed(self, images: Tensor) -> Tensor:
        """Return the tokens [B, h, w, C] of patches, with their positions if there are any."""
        tokens = self.patch_embed.norm(self.patch_embed.projection(images).permute(0, 2, 3, 1))  # type: ignore[operator]
        if hasattr(self, "absolute_pos_embed"):
            table = self.absolute_pos_embed.permute(0, 2, 3, 1)
            tokens = tokens + resize_table(table, (tokens.shape[1], tokens.shape[2]))
        return tokens

    def _stage(self, i: int, tokens: Tensor) -> Tensor:
        for block in self.stages[i]["blocks"]:  # type: ignore[index]
            tokens = block(tokens)
        return tokens


#: names in the release with the paper -> names here
_RENAMED = (
    ("layers.", "stages."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("patch_embed.proj.", "patch_embed.projection."),
)


def _from_official(name: str, weight: Tensor) -> tuple[str, Tensor]:
    """Return a weight as released with the paper under its name here, in the layout of here.

    Patch merging there stacks whole pixels, column by column; here the four pixels of a channel lie side by side, row
    by row.
    """
    for old, new in _RENAMED:
        name = name.replace(old, new)
    if ".downsample." in name:
        pixels = weight.unflatten(-1, (2, 2, -1))  # [..., column, row, C]
        weight = pixels.movedim(-1, -3).transpose(-1, -2).flatten(-3)
    return name, weight
