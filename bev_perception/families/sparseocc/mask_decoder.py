"""The mask transformer of SparseOcc (Liu et al., ECCV 2024, section 3.2): queries predict classes and voxel masks.

After Mask2Former (Cheng et al., CVPR 2022), but a query samples the images at random voxels of its own mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.models.query_layers import AdaptiveMixing, EncodedViews, FeedForward, decode_centers

#: chooses where queries sample: (inside [B, Q, N] bool, locations [B, N, 3] int64) -> positions [B, Q, K, 3] in fine
#: voxels from the low corner of the range. inside: whether each voxel at `locations` is in the query's mask.
ChooseVoxels = Callable[[Tensor, Tensor], Tensor]


class RandomVoxels:
    """Chooses `count` random voxels of each mask from random numbers that were drawn before; waits for no device."""

    def __init__(self, numbers: Tensor, count: int, occ_size: Sequence[int]) -> None:
        """Keep the settings.

        numbers: [n], 0..1, on the device; from `draw_numbers`
        count: voxels per mask
        occ_size: number of fine voxels along x, y, z
        """
        self.numbers, self.count, self.occ_size = numbers, count, occ_size
        self.taken: Tensor | int = 0  # how many of the numbers have been used

    def __call__(self, inside: Tensor, locations: Tensor) -> Tensor:
        """Return positions [B, Q, count, 3]; see ChooseVoxels.

        Each sample takes numbers for all queries first, then for the queries whose mask is empty.
        """
        queries, count = inside.shape[1], self.count
        ranks, places = [], []
        for empty in (~inside.any(dim=-1)).unbind():  # [Q], of each sample
            ranks.append(self._numbers(self.taken, queries * count).view(queries, count))
            after = self.taken + queries * count
            rank = (empty.cumsum(dim=0) - 1).clamp(min=0)  # [Q], among the empty ones; of no use for the others
            places.append(self._numbers(after + rank[:, None] * (3 * count), 3 * count).view(queries, count, 3))
            self.taken = after + empty.sum() * (3 * count)
        return pick_voxels(inside, locations, torch.stack(ranks), torch.stack(places), self.occ_size)

    def _numbers(self, first: Tensor | int, count: int) -> Tensor:
        """Return `count` numbers from index `first` (an int or [..., 1]) on, [..., count]."""
        return self.numbers[first + torch.arange(count, device=self.numbers.device)]


def draw_numbers(generator: torch.Generator, head: SparseOccHeadConfig, batch: int = 1) -> Tensor:
    """Return as many random numbers, [n] float32 on the generator's device, as all passes of the decoder can take.

    The numbers are those of drawing as many as are needed, one time after the other.
    """
    most = 4 * head.num_query * head.num_groups * head.num_points  # ranks, and places for empty masks
    return torch.rand(batch * head.mask_layers * most, generator=generator, device=generator.device)


def pick_voxels(inside: Tensor, locations: Tensor, ranks: Tensor, places: Tensor, occ_size: Sequence[int]) -> Tensor:
    """Return K positions of each mask for given random numbers: [B, Q, K, 3] in fine voxels, float32.

    inside: [B, Q, N] bool, see ChooseVoxels
    locations: [B, N, 3], see ChooseVoxels
    ranks: [B, Q, K], 0..1, which voxel of the mask, in the order of the voxels
    places: [B, Q, K, 3], 0..1, position in the whole grid, for an empty mask; if all masks of a sample are empty,
        position in the voxel at the grid's origin, as the published weights were trained
    occ_size: number of fine voxels along x, y, z
    """
    order = inside.cumsum(dim=-1, dtype=torch.int32)  # [B, Q, N]
    counts = order[..., -1:]  # [B, Q, 1]
    wanted = torch.minimum((ranks * counts).int() + 1, counts)  # the product may round up to the count
    index = _places_of(inside, order, wanted)  # [B, Q, K]
    samples = torch.arange(len(locations), device=locations.device)[:, None, None]
    any_inside = counts.sum(dim=1, keepdim=True)[..., None] > 0  # [B, 1, 1, 1]
    elsewhere = places * torch.where(any_inside, places.new_tensor(occ_size), 1.0)
    return torch.where(counts[..., None] > 0, locations[samples, index].to(places.dtype), elsewhere)


def _places_of(inside: Tensor, order: Tensor, wanted: Tensor) -> Tensor:
    """Return the places [B, Q, K] of the `wanted`-th voxels, from 1, of masks [B, Q, N]; any place if there is none.

    order: [B, Q, N], how many voxels of the mask there are up to each
    """
    last = inside.shape[-1] - 1
    if torch.compiler.is_compiling():  # runtimes of exported models have no search in sorted numbers
        slots = torch.where(inside, order - 1, last + 1).long()  # voxels outside of the mask share one more slot
        places = torch.arange(last + 1, device=inside.device).expand_as(slots)
        return F.pad(torch.zeros_like(slots), (0, 1)).scatter(-1, slots, places).gather(-1, wanted.long().clamp(1) - 1)
    return torch.searchsorted(order, wanted).clamp(max=last)


class MaskDecoderLayer(nn.Module):
    """One refinement of all queries from the images, and their predictions; all passes share the weights."""

    def __init__(self, head: SparseOccHeadConfig, num_classes: int, frames: int) -> None:
        """Build the layer; `num_classes` does not count free space."""
        super().__init__()
        dims = head.embed_dims
        self.range, self.occ_size = head.occ_range, head.occ_size
        self.groups, self.points = head.num_groups, head.num_points
        # names as in the official checkpoints: self_attn.self_attn.in_proj_weight, sampling.offset
        self.self_attn = nn.ModuleDict({"self_attn": nn.MultiheadAttention(dims, head.num_heads, batch_first=True)})
        self.sampling = nn.ModuleDict(
            {
                "offset": (offset := nn.Linear(dims, self.groups * self.points * 3)),
                "scale_weights": nn.Linear(dims, self.groups * self.points * head.num_levels),
            }
        )
        self.mixing = AdaptiveMixing(dims, self.groups, frames * self.points, head.mixing_out_points)
        self.ffn = FeedForward(dims, head.ffn_dim, head.dropout)
        self.mask_proj = nn.Linear(dims, dims)
        self.classifier = nn.Linear(dims, num_classes)
        self.norm1 = nn.LayerNorm(dims)
        self.norm2 = nn.LayerNorm(dims)
        self.norm3 = nn.LayerNorm(dims)
        nn.init.zeros_(offset.weight)
        nn.init.zeros_(offset.bias)
        for parameter in self.self_attn.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def predict(self, queries: Tensor, voxel_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [B, Q, classes] and mask logits [B, Q, N] for queries [B, Q, C] and voxels [B, N, C]."""
        return self.classifier(queries), self.mask_proj(queries) @ voxel_features.transpose(1, 2)

    def forward(self, queries: Tensor, embedding: Tensor, voxels: Tensor, views: EncodedViews) -> Tensor:
        """Return refined queries [B, Q, C].

        queries: [B, Q, C]
        embedding: [Q, C], the learnt embedding of each query
        voxels: [B, Q, G*P, 3], where the queries sample, in fine voxels
        views: the encoded images
        """
        named = queries + embedding
        attended, _ = self.self_attn["self_attn"](named, named, queries, need_weights=False)
        queries = self.norm1(queries + attended)
        by_group = (self.groups, self.points, 3)
        positions = voxels.unflatten(2, by_group[:2]) + self.sampling["offset"](queries).unflatten(-1, by_group)
        points = decode_centers(positions / positions.new_tensor(self.occ_size), self.range)  # [B, Q, G, P, 3] m
        sampled = views.sample(points, self.sampling["scale_weights"](queries))
        queries = self.norm2(self.mixing(sampled, queries))
        refined: Tensor = self.norm3(self.ffn(queries))
        return refined


class MaskDecoder(nn.Module):
    """The learnt queries and the repeated passes of a single decoder layer."""

    def __init__(self, head: SparseOccHeadConfig, num_classes: int, frames: int) -> None:
        """Build the decoder; `num_classes` does not count free space."""
        super().__init__()
        self.passes = head.mask_layers
        self.query_feat = nn.Embedding(head.num_query, head.embed_dims)
        self.query_pos = nn.Embedding(head.num_query, head.embed_dims)
        self.decoder_layer = MaskDecoderLayer(head, num_classes, frames)

    def forward(
        self, voxel_features: Tensor, locations: Tensor, views: EncodedViews, choose: ChooseVoxels
    ) -> tuple[Tensor, Tensor]:
        """Return class logits [M + 1, B, Q, classes] and mask logits [M + 1, B, Q, N], before and after M passes.

        voxel_features: [B, N, C]
        locations: [B, N, 3], of the voxels
        views: the encoded images
        choose: chooses where queries sample
        """
        queries = self.query_feat.weight.expand(len(locations), -1, -1)
        predictions = [self.decoder_layer.predict(queries, voxel_features)]
        for _ in range(self.passes):
            voxels = choose(predictions[-1][1] > 0, locations)
            queries = self.decoder_layer(queries, self.query_pos.weight, voxels.to(queries), views)
            predictions.append(self.decoder_layer.predict(queries, voxel_features))
        classes, masks = zip(*predictions, strict=True)
        return torch.stack(classes), torch.stack(masks)
