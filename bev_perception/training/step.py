"""The forward pass of training: from a batch to its losses."""

from __future__ import annotations

import contextlib
import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bev_perception.config import TrainingConfig
from bev_perception.data.augment import distort_colors, draw_grid_mask, draw_photometric, grid_mask
from bev_perception.models.sparsebev import SparseBEV
from bev_perception.precision import PRECISIONS
from bev_perception.preprocess import normalize_images
from bev_perception.training.losses import detection_losses
from bev_perception.training.samples import Batch
from bev_perception.training.targets import draw_denoising, make_denoising


def freeze(model: SparseBEV) -> None:
    """Take the parameters that the variant keeps as pretrained out of training."""
    for parameter in model.img_backbone.frozen_parameters():
        parameter.requires_grad_(False)


def compute_twice(model: SparseBEV) -> None:
    """Let backbone blocks and decoder passes forget their activations and compute them again in the backward pass."""
    for module in (*model.img_backbone.blocks(), model.pts_bbox_head.decoder_layer):
        module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)


def encode_frames(model: SparseBEV, images: Tensor, frames_with_gradient: int) -> list[list[Tensor]]:
    """Return the pyramids, T x L of [B, N, h, w, C] float32, of images [B, T, N, 3, H, W].

    frames_with_gradient: of only so many frames, from the first, gradients reach the backbone and neck; the others are
    encoded one by one as in inference. 0: all.
    """
    frames = images.shape[1]
    trained = min(frames_with_gradient or frames, frames)
    levels_by_frame = _encode(model, images[:, :trained])
    if trained < frames:
        model.img_backbone.eval()
        with torch.no_grad():
            for t in range(trained, frames):
                levels_by_frame += _encode(model, images[:, t : t + 1])
        model.img_backbone.train()
    return levels_by_frame


def _encode(model: SparseBEV, images: Tensor) -> list[list[Tensor]]:
    """Encode [B, T, N, 3, H, W] at once, ordered so that each frame's maps are contiguous."""
    by_frame = images.transpose(0, 1)
    levels = model.encode(by_frame.flatten(0, 2))
    split = [level.unflatten(0, by_frame.shape[:3]).unbind() for level in levels]  # L x T
    return [list(frame) for frame in zip(*split, strict=True)]


class TrainingStep(nn.Module):
    """The model with what surrounds it in training; one module, so that DistributedDataParallel can wrap it.

    precision: a key of PRECISIONS.
    """

    def __init__(self, model: SparseBEV, recipe: TrainingConfig, precision: str) -> None:
        """Keep the model; `precision` must be a key of PRECISIONS."""
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.dtype = PRECISIONS[precision]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return every loss by its name, see detection_losses. The batch's seeds decide what is drawn."""
        model, config = self.model, self.model.config
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        draws = [
            draw_denoising(len(truth.labels), self.recipe.denoising_groups, len(config.class_names), generator)
            for truth, generator in zip(batch.truths, generators, strict=True)
        ]
        denoising = make_denoising(batch.truths, draws, config.detector.num_query, config.detector.pc_range)
        images = self._prepare_images(batch.images, generators)
        with self._autocast(images.device):
            levels_by_frame = encode_frames(model, images, self.recipe.frames_with_gradient)
        output = model.detect(
            [[level.float() for level in levels] for levels in levels_by_frame],
            batch.reference2image,
            batch.time_differences,
            (images.shape[-2], images.shape[-1]),
            None if denoising is None else denoising.queries,
        )
        return detection_losses(output, batch.truths, denoising, model.pts_bbox_head.code_weights)

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    @torch.no_grad()
    def _prepare_images(self, pixels: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return augmented, normalised and padded images [B, T, N, 3, H, W] of pixels [B, T, N, h, w, 3] uint8."""
        augmented = self.recipe.image_augmentation
        samples = [
            _distort(sample, generator) if augmented else sample
            for sample, generator in zip(pixels, generators, strict=True)
        ]
        images = torch.stack(
            [normalize_images(s.flatten(0, 1), self.model.config.image).unflatten(0, s.shape[:2]) for s in samples]
        )
        if augmented:
            self._mask(images, generators[0])
        return images

    def _mask(self, images: Tensor, generator: torch.Generator) -> None:
        """Blank the same squares in all images that gradients are taken of."""
        height, width = images.shape[-2:]
        drawn = draw_grid_mask(height, width, generator)
        if drawn is not None:
            kept = torch.from_numpy(grid_mask(height, width, drawn)).to(images.device)
            images[:, : self.recipe.frames_with_gradient or None] *= kept


def _distort(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return [T, N, h, w, 3] float32 of [T, N, h, w, 3] uint8 with every image's colours distorted."""
    frames = [
        distort_colors(frame.permute(0, 3, 1, 2).float(), draw_photometric(len(frame), generator))
        for frame in pixels  # frame by frame: of all at once, the copies would fill the memory
    ]
    return torch.stack(frames).permute(0, 1, 3, 4, 2)
