"""Progress of training: a bar on a terminal, log messages elsewhere, and log.jsonl and TensorBoard files."""

from __future__ import annotations

import datetime
import json
import logging
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

LOG = logging.getLogger(__name__)


class Progress:
    """Averages the losses over some steps and writes them to out/log.jsonl and, for TensorBoard, to out/tensorboard.

    A context manager. With several processes, all but the first are silent.
    """

    def __init__(self, out: Path, done: int, total: int, every: int, silent: bool) -> None:
        """Open the files.

        out: directory of the files.
        done: number of steps done before this run.
        total: number of steps of the whole training.
        every: steps between two reports; the first step is reported as well, so that what is wrong shows at once.
        silent: whether to report nothing and write no files.
        """
        self._done, self._total, self._every, self._silent = done, total, every, silent
        self._sums: dict[str, float] = {}
        self._since = 0
        self._started, self._start_step = time.monotonic(), done
        if silent:
            return
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True)
        self._file = (out / "log.jsonl").open("a", buffering=1)
        self._writer = _tensorboard(out, done)

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        if self._silent:
            return
        self._bar.close()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def step(self, epoch: int, lr: float, values: dict[str, float], skipped: int | None = None) -> None:
        """Count one step.

        epoch: number of epochs done.
        lr: learning rate of the parameters without a factor of their own.
        values: losses and other values, averaged until the next report.
        skipped: number of steps that fp16 has skipped in this run; None without fp16.
        """
        self._done += 1
        if self._silent:
            return
        self._bar.update()
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._since += 1
        if self._done % self._every == 0 or self._done in (self._start_step + 1, self._total):
            self._report(epoch, lr, {} if skipped is None else {"skipped": skipped})

    def _report(self, epoch: int, lr: float, counts: dict[str, int]) -> None:
        means = {name: total / self._since for name, total in self._sums.items()}
        self._sums, self._since = {}, 0
        values = {"lr": lr, **means, **counts}
        line = {"step": self._done, "epoch": epoch} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, self._done)
        shown = {name: f"{means[name]:.3g}" for name in ("loss", "grad_norm")} | counts
        self._bar.set_postfix(shown)
        if self._bar.disable:
            seconds = (time.monotonic() - self._started) / (self._done - self._start_step) * (self._total - self._done)
            eta = datetime.timedelta(seconds=round(seconds))
            LOG.info("epoch %d, step %d of %d, %s left: %s", epoch, self._done, self._total, eta, shown)


def _tensorboard(out: Path, done: int) -> Any:
    """Return a TensorBoard writer that hides events of an earlier run for steps that are now repeated."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        LOG.warning(
            "no curves for TensorBoard (%s; pip install bev_perception[train]); the losses go to log.jsonl", error
        )
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=done + 1)
