"""Validation between epochs of a training: scores of the weights so far, and a copy of the best ones."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bev_perception.files import whole_file
from bev_perception.strict import parse_json, read_regular
from bev_perception.training.state import WEIGHTS, TrainingError

LOG = logging.getLogger(__name__)

BEST, SCORES = "best.safetensors", "val.jsonl"
#: returns the scores, higher is better, of the weights in a file; the last one decides which weights are best. It is
#: called in all processes, and returns no scores in all but the first
Validate = Callable[[Path], Mapping[str, float]]


class Validation:
    """Scores out/weights.safetensors every few epochs, writes the scores to out/val.jsonl, keeps out/best.safetensors.

    A resumed training knows the scores of before.
    """

    def __init__(self, validate: Validate, out: Path, every: int, resume: bool = False) -> None:
        """Prepare to validate.

        validate: see Validate.
        out: directory of the training.
        every: epochs between two validations; the last epoch is always followed by one.
        resume: whether the scores in `out` are of this training; else they are removed.

        Raises TrainingError if `every` is not positive, or out/val.jsonl is damaged.
        """
        if every < 1:
            raise TrainingError(f"weights cannot be validated every {every} epochs; give a whole number from 1 on")
        self._validate, self._out, self._every = validate, out, every
        if not resume:
            (out / SCORES).unlink(missing_ok=True)
        self._read()

    def after(self, epoch: int, epochs: int, step: int) -> None:
        """Validate if it is time to.

        epoch: number of epochs done.
        epochs: of the whole training.
        step: number of steps done; one that has its scores already is not validated again.
        """
        if epoch % self._every and epoch != epochs:
            return
        before = self._read()
        if any(row["step"] == step for row in before):
            return
        scores = self._validate(self._out / WEIGHTS)
        if not scores:
            return
        name, score = list(scores.items())[-1]
        best = math.isfinite(score) and all(score > row[name] for row in before if row.get(name) is not None)
        if best:
            with whole_file(self._out / BEST) as partial:
                shutil.copyfile(self._out / WEIGHTS, partial)
        known = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        rows = [*before, {"step": step, "epoch": epoch, **known}]
        with whole_file(self._out / SCORES) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        LOG.info("after epoch %d: %s%s", epoch, shown, f"; the best so far, kept as {BEST}" if best else "")

    def _read(self) -> list[dict[str, Any]]:
        path = self._out / SCORES
        try:
            rows = [dict(parse_json(line)) for line in read_regular(path).splitlines()] if path.exists() else []
            if not all(type(row.get("step")) is int for row in rows):
                raise TypeError("a row has no step")
            return rows
        except (ValueError, TypeError) as error:
            raise TrainingError(f"{path} is damaged ({error}); delete it, and validation begins anew") from error
