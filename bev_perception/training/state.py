"""The saved state of a training: written to disk, and read to resume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from bev_perception.files import whole_file
from bev_perception.models.checkpoints import save_checkpoint
from bev_perception.models.protocol import Model
from bev_perception.strict import UserError
from bev_perception.training.averaging import WeightAverage

STATE, WEIGHTS = "state.pt", "weights.safetensors"
#: version of state.pt's format; increase it if the meaning of Identity's fields changes. Format 1 did not store it
FORMAT = 3


class TrainingError(UserError):
    """A training that cannot start or continue; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Identity:
    """What must be unchanged when a training is resumed.

    part: the variant's name and which part of it is trained.
    config: digest of the variant's settings.
    seed: of everything random.
    samples: number of samples per epoch.
    batch: samples per step of all processes together.
    epochs: number of epochs.
    lr: peak learning rate.
    precision: of the encoder.
    """

    part: str
    config: str
    seed: int
    samples: int
    batch: int
    epochs: int
    lr: float
    precision: str


def save_state(
    out: Path,
    identity: Identity,
    step: int,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: WeightAverage | None,
    memories: Sequence[Any],
) -> None:
    """Write out/weights.safetensors, the weights to use, and out/state.pt, everything that resuming needs.

    average: of the weights; if there is one, it is what to use.
    memories: what the step of each process remembers.

    Each file is replaced atomically. state.pt holds the weights as well, so the two files need not match.
    """
    content = {
        "format": FORMAT,
        "identity": asdict(identity),
        "step": step,
        "weights": model.state_dict(),
        "legacy_boxes": getattr(model, "legacy_boxes", False),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "average": None if average is None else average.state,
        "memories": list(memories),
    }
    try:
        with whole_file(out / STATE) as partial, partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch.save wraps what the file system says
        raise TrainingError(
            f"{out / STATE} cannot be written ({error}); make room and resume from the state saved before"
        ) from error
    metadata = {"variant": model.config.name, "steps": str(step)}
    save_checkpoint(model, out / WEIGHTS, metadata, None if average is None else average.state)


def load_state(
    out: Path,
    identity: Identity,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: WeightAverage | None,
) -> tuple[int, list[Any]]:
    """Restore model, optimizer, scaler and average from what save_state wrote.

    Returns the number of steps done, and what the step of each process remembers.

    Raises TrainingError for a file that is missing, damaged, of another version or of a training with other settings.
    """
    path = out / STATE
    if not path.is_file():
        raise TrainingError(f"there is no {path} to resume from; start without resume, or give the right directory")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content.get("format"), set(content.get("identity", ()))
    except Exception as error:  # damaged bytes can meet the reader anywhere
        raise TrainingError(
            f"{path} cannot be read ({error}); start anew in another directory, with init {out / WEIGHTS}"
        ) from error
    if found != (FORMAT, {field.name for field in fields(Identity)}):
        raise TrainingError(
            f"{path} was written by another version of bev_perception; go on with that version, or start anew in "
            f"another directory, with init {out / WEIGHTS}"
        )
    stored = Identity(**content["identity"])
    differing = [
        f"{field.name} {getattr(stored, field.name)!r}, now {getattr(identity, field.name)!r}"
        for field in fields(Identity)
        if getattr(stored, field.name) != getattr(identity, field.name)
    ]
    if differing:
        raise TrainingError(f"{path} is of a training with {'; '.join(differing)}; resume with the same settings")
    model.load_state_dict(content["weights"])
    if hasattr(model, "legacy_boxes"):
        model.legacy_boxes = content["legacy_boxes"]
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    if average is not None:
        average.load(content["average"])
    return content["step"], content["memories"]
