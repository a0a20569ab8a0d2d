"""What training leaves on the disk to go on from, and how it is read again."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from bev_perception.models.checkpoints import save_checkpoint
from bev_perception.models.protocol import Model
from bev_perception.strict import UserError

STATE, WEIGHTS = "state.pt", "weights.safetensors"
#: of state.pt; to be raised where what Identity's fields mean changes. Before 2 it was not said
FORMAT = 2


class TrainingError(UserError):
    """Training that cannot start or go on; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Identity:
    """What must be the same for a training to go on where another stopped.

    part: the variant's name, and what of it is trained.  config: its digest.
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
) -> None:
    """Write out/weights.safetensors, for use, and out/state.pt, which holds all that resuming needs.

    Each file is replaced at once or not at all; state.pt holds the weights too, so that the two need not agree.
    """
    content = {
        "format": FORMAT,
        "identity": asdict(identity),
        "step": step,
        "weights": model.state_dict(),
        "legacy_boxes": getattr(model, "legacy_boxes", False),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    partial = out / f"{STATE}.partial"
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, out / STATE)
    save_checkpoint(model, out / WEIGHTS, {"variant": model.config.name, "steps": str(step)})


def load_state(
    out: Path,
    identity: Identity,
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> int:
    """Fill model, optimizer and scaler with what save_state wrote; return the number of steps done.

    Raises TrainingError for a file that is missing, damaged or of a training with other settings.
    """
    path = out / STATE
    if not path.is_file():
        raise TrainingError(f"there is no {path} to resume from; start without resume, or give the right directory")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content.get("format"), set(content.get("identity", ()))
    except Exception as error:  # damaged bytes can meet the reader anywhere
        raise TrainingError(f"{path} cannot be read ({error}); start anew from weights.safetensors") from error
    if found != (FORMAT, {field.name for field in fields(Identity)}):
        raise TrainingError(
            f"{path} was written by another version of bev_perception; go on with that version, or start anew (init) "
            f"from {WEIGHTS} beside it"
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
    return content["step"]
