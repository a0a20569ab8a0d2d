"""Samples become batches, read ahead by processes, in an order that repeats."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bev_perception.supervision.samples import Batch, TrainingData, TrainingSample, Truth


def collate(samples: Sequence[tuple[TrainingSample[Truth], int]]) -> Batch[Truth]:
    """Stack samples, each with its seed."""
    first = [sample for sample, _ in samples]
    return Batch(
        images=_stack_images([s.images for s in first]),
        reference2image=torch.from_numpy(np.stack([s.reference2image for s in first]).astype(np.float32)),
        time_differences=torch.from_numpy(np.stack([s.time_differences for s in first]).astype(np.float32)),
        truths=tuple(s.truth for s in first),
        seeds=tuple(seed for _, seed in samples),
    )


def _stack_images(images: Sequence[np.ndarray | tuple[np.ndarray, ...]]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(images[0], tuple):
        return tuple(torch.from_numpy(np.stack(level)) for level in zip(*images, strict=True))
    return torch.from_numpy(np.stack(images))


def epoch_order(samples: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Return [steps, batch] indices: a shuffle of all samples that wraps around to fill the last step."""
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    steps = -(-samples // batch)
    return np.resize(order, (steps, batch))


def load_epoch(
    data: TrainingData, order: np.ndarray, seed: int, epoch: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield a batch for each row of order [steps, B], read ahead by `workers` processes (0: by this one)."""
    return iter(
        DataLoader(
            _Seeded(data, seed, epoch),
            batch_sampler=order.tolist(),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_signals,
        )
    )


def _ignore_signals(worker: int) -> None:
    """Let a reader live on when all processes are told to stop: the one that trains finishes its step and ends it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Seeded(Dataset):
    """Gives every sample of an epoch its own stream of chance, whichever process reads it and whenever."""

    def __init__(self, data: TrainingData, seed: int, epoch: int) -> None:
        self.data, self.seed, self.epoch = data, seed, epoch

    def __getitem__(self, index: int) -> tuple[TrainingSample, int]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        return self.data.sample(index, rng), int(rng.integers(2**63))
