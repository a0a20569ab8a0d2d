"""EVA-02 (Fang et al., 2023) as a detector's backbone, after ViTDet (Li et al., ECCV 2022).

A plain vision transformer at stride 16: most blocks attend within windows, every third one over the whole image, and
positions enter as rotations of queries and keys (Su et al., 2021). A simple pyramid over its last map gives five
levels, so no neck is needed. Parameters are named as in the official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.config import EVA02Config

PATCH = 16  # pixels
MLP_RATIO = 8 / 3
#: sides of the token grids that the stored position embeddings and the rotary positions were pretrained with
PRETRAINED_GRID = 14
ROTARY_GRID = 16
#: block i attends over the whole image if i % GLOBAL_EVERY == GLOBAL_EVERY - 1
GLOBAL_EVERY = 3
FROZEN_BLOCKS = 3
OUT_CHANNELS = 256
NORM_EPS = 1e-6


def resize_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return table [N, h, w, C] resized to [N, *grid, C] by bicubic interpolation."""
    if table.shape[1:3] == grid:
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def rotary_tables(grid: tuple[int, int], trained: int, dims: int, device: torch.device) -> Tensor:
    """Return the cosines and sines that rotate queries and keys, [2, h * w, dims].

    grid: (h, w), in tokens
    trained: side of the square grid that the angles are computed for, in tokens; for another grid the tables (not the
        angles) are resized, as the weights were trained
    dims: channels of a query or key
    device: of the result

    Half of the channels rotate with the row, half with the column, in pairs of equal angle. The tables are float32
    whatever the model's precision, and equal those of the reference implementation bit for bit.
    """
    half = dims // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)
    positions = torch.arange(trained, device=device, dtype=torch.float32) / trained * ROTARY_GRID
    angles = torch.outer(positions, frequencies).repeat_interleave(2, dim=1)  # [trained, half]
    by_row = angles[:, None].expand(trained, trained, half)
    by_column = angles[None].expand(trained, trained, half)
    turns = torch.cat([by_row, by_column], dim=-1)
    return resize_table(torch.stack([turns.cos(), turns.sin()]), grid).flatten(1, 2)


def _rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotate pairs of neighbouring channels of x [B, heads, L, D] by the angles of tables [2, L, D]."""
    even, odd = x[..., ::2], x[..., 1::2]
    across = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * tables[0] + across * tables[1]).to(x.dtype)


def split_windows(tokens: Tensor, window: int) -> Tensor:
    """Split tokens [B, h, w, C], zero-padded at the bottom and right, into [B * windows, window * window, C]."""
    batch, height, width, channels = tokens.shape
    tokens = F.pad(tokens, (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = tokens.shape[1] // window, tokens.shape[2] // window
    tokens = tokens.view(batch, rows, window, columns, window, channels)
    return tokens.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, window: int, size: tuple[int, int, int]) -> Tensor:
    """Invert split_windows; return tokens [B, h, w, C] for size (B, h, w)."""
    batch, height, width = size
    rows, columns = -(-height // window), -(-width // window)
    tokens = windows.view(batch, rows, columns, window, window, -1).transpose(2, 3)
    return tokens.reshape(batch, rows * window, columns * window, -1)[:, :height, :width]


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop a residual branch x [B, h, w, C] for a share of the samples (Huang et al., ECCV 2016)."""
    if not training or rate == 0:
        return x
    kept = torch.empty(len(x), 1, 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - rate)
    return x * kept / (1 - rate)


class Attention(nn.Module):
    """Multi-head attention with rotary position embeddings of queries and keys; keys have no bias."""

    def __init__(self, dims: int, heads: int) -> None:
        """Build the projections."""
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dims, dims, bias=False)
        self.k_proj = nn.Linear(dims, dims, bias=False)
        self.v_proj = nn.Linear(dims, dims, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dims))
        self.v_bias = nn.Parameter(torch.zeros(dims))
        self.proj = nn.Linear(dims, dims)

    def forward(self, tokens: Tensor, tables: Tensor) -> Tensor:
        """Return attended tokens [B, L, C]; every token attends to all L. tables: [2, L, D] of rotary_tables."""
        query = _rotate(self._split_heads(F.linear(tokens, self.q_proj.weight, self.q_bias)), tables)
        key = _rotate(self._split_heads(self.k_proj(tokens)), tables)
        value = self._split_heads(F.linear(tokens, self.v_proj.weight, self.v_bias))
        mixed = F.scaled_dot_product_attention(query, key, value)  # [B, heads, L, D]
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer, 2020) with a norm on the hidden features."""

    def __init__(self, dims: int) -> None:
        """Build the layer."""
        super().__init__()
        hidden = int(dims * MLP_RATIO)
        self.w1 = nn.Linear(dims, hidden)
        self.w2 = nn.Linear(dims, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.w3 = nn.Linear(hidden, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [..., C] for x [..., C]."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    """Attention and feed-forward layer, each with a norm before it and a residual connection.

    window: side of the windows within which tokens attend to each other, in tokens; 0 for the whole image
    """

    def __init__(self, dims: int, heads: int, window: int, drop_path: float) -> None:
        """Build the block."""
        super().__init__()
        self.window = window
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dims, eps=NORM_EPS)
        self.attn = Attention(dims, heads)
        self.norm2 = nn.LayerNorm(dims, eps=NORM_EPS)
        self.mlp = SwiGLU(dims)

    def forward(self, tokens: Tensor, tables: Tensor) -> Tensor:
        """Return tokens [B, h, w, C] refined."""
        tokens = tokens + drop_path(self._attend(self.norm1(tokens), tables), self.drop_path, self.training)
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_path, self.training)

    def _attend(self, x: Tensor, tables: Tensor) -> Tensor:
        if not self.window:
            return self.attn(x.flatten(1, 2), tables).view_as(x)
        # padding follows the norm and is not masked: padded tokens contribute the bias of the values
        windows = self.attn(split_windows(x, self.window), tables)
        return join_windows(windows, self.window, (x.shape[0], x.shape[1], x.shape[2]))


class VisionTransformer(nn.Module):
    """A transformer over patches of 16 x 16 pixels: images [B, 3, H, W] -> tokens [B, H / 16, W / 16, C]."""

    def __init__(self, depth: int, config: EVA02Config) -> None:
        """Build the transformer with fresh weights."""
        super().__init__()
        dims = config.embed_dim
        self.config = config
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, dims, PATCH, PATCH)))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + PRETRAINED_GRID**2, dims))  # the first is the class token's
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                dims,
                config.num_heads,
                window=0 if i % GLOBAL_EVERY == GLOBAL_EVERY - 1 else config.window,
                drop_path=config.drop_path * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the last block's tokens."""
        tokens = self.patch_embed(images).permute(0, 2, 3, 1)
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens + self._positions(grid)
        in_window, in_image = self._tables(grid)
        for block in self.blocks:
            tokens = block(tokens, in_window if block.window else in_image)
        return tokens

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        return resize_table(self.pos_embed[:, 1:].unflatten(1, (PRETRAINED_GRID, PRETRAINED_GRID)), grid)

    def _tables(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the rotary tables of a window and of the whole image.

        They depend on the image's size and cost next to nothing compared with a block, so they are not stored.
        """
        window = self.config.window
        dims = self.config.embed_dim // self.config.num_heads
        return (
            rotary_tables((window, window), window, dims, self.pos_embed.device),
            rotary_tables(grid, self.config.trained_size // PATCH, dims, self.pos_embed.device),
        )


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        """Build the norm."""
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """Convolution without bias, followed by a ChannelNorm."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        """Build both."""
        super().__init__(in_channels, out_channels, size, padding=size // 2, bias=False)
        self.norm = ChannelNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size."""
        return self.norm(super().forward(x))


def _pyramid_level(channels: int, *scaling: nn.Module) -> nn.Sequential:
    """Return the layers of one pyramid level: `scaling`, which outputs `channels` channels, then two convolutions."""
    return nn.Sequential(*scaling, NormedConv(channels, OUT_CHANNELS, 1), NormedConv(OUT_CHANNELS, OUT_CHANNELS, 3))


class EVA02(nn.Module):
    """The transformer and its feature pyramid.

    out_channels: of the five outputs, at strides 4, 8, 16, 32 and 64
    derived_keys: keys of official checkpoints, relative to this module, that are not loaded: the rotary tables, stored
        twice, which are computed for each image size instead
    """

    def __init__(self, depth: int, config: EVA02Config) -> None:
        """Build the network with fresh weights; depth is the number of blocks."""
        super().__init__()
        dims = config.embed_dim
        self.out_channels = (OUT_CHANNELS,) * 5
        self.backbone = nn.ModuleDict(
            {
                "net": VisionTransformer(depth, config),
                "simfp_2": _pyramid_level(
                    dims // 4,
                    nn.ConvTranspose2d(dims, dims // 2, 2, 2),
                    ChannelNorm(dims // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(dims // 2, dims // 4, 2, 2),
                ),
                "simfp_3": _pyramid_level(dims // 2, nn.ConvTranspose2d(dims, dims // 2, 2, 2)),
                "simfp_4": _pyramid_level(dims),
                "simfp_5": _pyramid_level(dims, nn.MaxPool2d(2, 2)),
            }
        )
        tables = ["rope_win", "rope_glb", *(f"blocks.{i}.attn.rope" for i in range(depth))]
        self.derived_keys = frozenset(f"backbone.net.{t}.freqs_{part}" for t in tables for part in ("cos", "sin"))

    @property
    def transformer(self) -> VisionTransformer:
        """The transformer without the pyramid."""
        net: VisionTransformer = self.backbone["net"]  # type: ignore[assignment]
        return net

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that detectors keep frozen as pretrained: the embeddings and the first blocks."""
        net = self.transformer
        return [net.pos_embed, *net.patch_embed.parameters(), *net.blocks[:FROZEN_BLOCKS].parameters()]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order; training may recompute their activations to save memory."""
        return list(self.transformer.blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return five maps [B, out_channels[i], H / 2^(i+2), W / 2^(i+2)] of images [B, 3, H, W].

        H and W are multiples of 32; the size of the last map is rounded up.
        """
        tokens = self.transformer(images).permute(0, 3, 1, 2)
        levels = [self.backbone[f"simfp_{i}"](tokens) for i in (2, 3, 4, 5)]
        return [*levels, levels[-1][..., ::2, ::2]]
