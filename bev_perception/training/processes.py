"""The processes that train together, under torchrun or alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from bev_perception.models.device import choose_device
from bev_perception.training.state import TrainingError


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    rank: number of this process, from 0.
    count: number of processes.
    device: of this process.
    """

    rank: int
    count: int
    device: torch.device

    def wrap(self, step: nn.Module, broadcast: bool, leaves_out: bool) -> nn.Module:
        """Return the step with gradients averaged over the processes.

        broadcast: whether the processes take over the buffers of the first one.
        leaves_out: whether the step computes nothing with some of its parameters.
        """
        if self.count == 1:
            return step
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            step, device_ids=device_ids, broadcast_buffers=broadcast, find_unused_parameters=leaves_out
        )

    def synchronize_norms(self, step: nn.Module) -> nn.Module:
        """Return the step with batch norms that use the statistics of all processes; PyTorch has them for GPUs only."""
        if self.count == 1 or self.device.type != "cuda":
            return step
        return nn.SyncBatchNorm.convert_sync_batchnorm(step)

    def gather(self, memory: Any) -> list[Any]:
        """Return the memories of all processes, on the CPU, in the first process; an empty list in the others."""
        own = tree_map(lambda value: value.cpu() if isinstance(value, Tensor) else value, memory)
        if self.count == 1:
            return [own]
        gathered: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(own, gathered)
        return gathered or []

    def own(self, memories: Sequence[Any]) -> Any:
        """Return this process's memory, on its device.

        Raises TrainingError if they are those of another number of processes.
        """
        if all(memory is None for memory in memories):
            return None
        if len(memories) != self.count:
            raise TrainingError(
                f"this training has a memory in each of {len(memories)} processes; resume it with as many"
            )
        return tree_map(
            lambda value: value.to(self.device) if isinstance(value, Tensor) else value, memories[self.rank]
        )

    def average(self, losses: dict[str, Tensor], names: tuple[str, ...], stop: bool) -> tuple[dict[str, float], bool]:
        """Return the losses averaged over the processes, and whether any process was asked to stop."""
        some = next(iter(losses.values()))
        zero = torch.zeros_like(some)  # a process without boxes has no denoising losses
        values = torch.stack([losses.get(name, zero).detach() for name in names] + [torch.full_like(zero, float(stop))])
        if self.count > 1:
            dist.all_reduce(values)
            values[:-1] /= self.count
        *averages, stopping = values.tolist()
        return dict(zip(names, averages, strict=True)), stopping > 0


@contextlib.contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the process group of torchrun, if there is one; yield this process's place in it.

    device: as in TrainSettings; under torchrun every process takes a GPU of its own.

    Raises ConfigError or TrainingError for a device that cannot be used.
    """
    count, rank, local = (
        int(os.environ.get(name, d)) for name, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if count > 1 and device.startswith("cuda:"):
        raise TrainingError(f"device is {device!r}, but each process takes one of its own under torchrun; give 'cuda'")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    chosen = choose_device(f"cuda:{local}" if on_gpu else device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, chosen)
    finally:
        dist.destroy_process_group()
