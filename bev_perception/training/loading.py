"""Batches of samples in a given order, loaded by worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bev_perception.strict import UserError
from bev_perception.supervision.order import Draw
from bev_perception.supervision.samples import Batch, BatchGeometry, TrainingData, TrainingSample, Truth
from bev_perception.training.state import TrainingError

#: errors that workers pass on unchanged, so that the user sees one sentence and no traceback
_EXPECTED = (UserError, OSError)


def collate(samples: Sequence[tuple[TrainingSample[Truth], int]]) -> Batch[Truth]:
    """Return a batch of samples, each given with its seed."""
    first = [sample for sample, _ in samples]
    return Batch(
        images=_stack_images([s.images for s in first]),
        reference2image=torch.from_numpy(np.stack([s.reference2image for s in first]).astype(np.float32)),
        time_differences=torch.from_numpy(np.stack([s.time_differences for s in first]).astype(np.float32)),
        truths=tuple(s.truth for s in first),
        seeds=tuple(seed for _, seed in samples),
        geometry=BatchGeometry(
            intrinsics=torch.from_numpy(np.stack([s.cameras.intrinsics for s in first])),
            source2image=torch.from_numpy(np.stack([s.cameras.source2image for s in first])),
            sensor2ego=torch.from_numpy(np.stack([s.cameras.sensor2ego for s in first])),
            ego2global=torch.from_numpy(np.stack([s.cameras.ego2global for s in first])),
            reference2global=torch.from_numpy(np.stack([s.reference2global for s in first])),
            world=torch.from_numpy(np.stack([s.world for s in first])),
        ),
        stamps=torch.tensor([s.stamp for s in first]),
    )


def _stack_images(images: Sequence[np.ndarray | tuple[np.ndarray, ...]]) -> Tensor | tuple[Tensor, ...]:
    if isinstance(images[0], tuple):
        return tuple(torch.from_numpy(np.stack(level)) for level in zip(*images, strict=True))
    return torch.from_numpy(np.stack(images))


class LoadedBatches(Iterator[Batch]):
    """Batches in a given order, read by worker processes that start at once.

    Workers ignore SIGTERM and SIGINT, as the training process finishes its step first. They end as soon as `close` is
    called or the training process ends, even if it is killed.
    """

    def __init__(self, data: TrainingData, order: Sequence[Sequence[Draw]], workers: int, pin_memory: bool) -> None:
        """Start the workers.

        order: [steps][B] samples.
        workers: number of worker processes; 0: this process loads the samples.
        pin_memory: whether batches are copied to pinned memory, from which a GPU reads faster.
        """
        self._batches: Iterator[Batch | Exception] = iter(())
        self._lifeline, self._held = multiprocessing.Pipe(duplex=False)
        loader = DataLoader(
            _Seeded(data),
            batch_sampler=[list(row) for row in order],
            num_workers=workers,
            collate_fn=_collate_or_error,
            pin_memory=pin_memory,
            worker_init_fn=_EndWithTrainer(self._lifeline, self._held),
        )
        try:
            with _signals_blocked():
                self._batches = iter(loader)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> Batch:
        """Return the next batch; raise the error of a sample that could not be read."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self.close()
            raise
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        """End the workers, even in the middle of a sample; PyTorch would wait for them until they have finished it."""
        self._held.close()
        self._lifeline.close()
        self._batches = iter(())  # PyTorch's holds queues and processes


@contextlib.contextmanager
def explained_losses() -> Iterator[None]:
    """Turn PyTorch's error for a worker that died, which a signal handler can raise anywhere, into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"a process that reads ahead has ended ({error}); if memory ran out, use fewer --workers or a smaller "
            "--batch; resume from the state saved last"
        ) from error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGTERM and SIGINT in this thread, and from their first instruction on in processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _EndWithTrainer:
    """Ends a worker process as soon as the training process closes its end of a pipe or ends.

    PyTorch and Python end workers with SIGTERM, which these ignore; and no signal tells a worker that its parent was
    killed.
    """

    def __init__(self, lifeline: Connection, held: Connection) -> None:
        self._lifeline, self._held = lifeline, held

    def __call__(self, worker: int) -> None:
        self._held.close()  # the worker's copy
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self._lifeline.poll(None)
        os._exit(0)


def _collate_or_error(samples: Sequence[tuple[TrainingSample, int] | Exception]) -> Batch | Exception:
    """Return the batch, or the first error of its samples."""
    errors = (sample for sample in samples if isinstance(sample, Exception))
    return next(errors, None) or collate(samples)  # type: ignore[arg-type]


class _Seeded(Dataset):
    """Gives every sample its own random stream, whichever process reads it and whenever."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, draw: Draw) -> tuple[TrainingSample, int] | Exception:
        rng = np.random.default_rng(draw.seed)
        augmentation = None if draw.augmentation is None else np.random.default_rng(draw.augmentation)
        try:
            return self.data.sample(draw.index, rng, augmentation), int(rng.integers(2**63))
        except _EXPECTED as error:  # if a worker raised it, PyTorch would wrap it in a traceback
            return error
