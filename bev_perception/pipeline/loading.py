"""Load a variant with its weights onto a device, and build a pipeline from it."""

from __future__ import annotations

from pathlib import Path

import torch

from bev_perception.commands import command
from bev_perception.config import VariantConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import Variant, load_variant, shipped_weights
from bev_perception.health import Health
from bev_perception.models.checkpoints import load_checkpoint, save_checkpoint
from bev_perception.models.device import choose_device
from bev_perception.models.folding import fold_batch_norms
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.strict import ConfigError


def give_back_device_memory() -> None:
    """Release GPU memory that PyTorch's allocator has cached but no tensor uses any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_weights(config: VariantConfig, checkpoint: str | Path | None, device: torch.device) -> LoadedVariant:
    """Build a variant on `device` for inference, and load its weights strictly; its batch norms are then folded.

    config: the variant
    checkpoint: path of its weights; None: the shipped ones
    device: for the model

    Raises ConfigError and CheckpointError, which name the cause and the remedy.
    """
    path = checkpoint or shipped_weights(config.name)
    if path is None:
        raise ConfigError(
            f"no weights are shipped for {config.name}; give the path of some as its checkpoint "
            f"(`{command('init-weights')}` makes untrained ones for a trial run)"
        )
    model = build_model(config)
    info = load_checkpoint(model, path)
    fold_batch_norms(model.eval())
    model.to(device)
    return LoadedVariant(config, model, info)


def load_pipeline(
    variant: Variant,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    settings: PipelineSettings | None = None,
    health: Health | None = None,
    second: tuple[Variant, str | Path | None] | None = None,
) -> Pipeline:
    """Build a variant, load its weights strictly, and return it as a pipeline.

    variant: name, path of a YAML file, or loaded configuration
    checkpoint: path of its weights; None: the shipped ones
    device: see choose_device
    settings: None takes the defaults of PipelineSettings
    health: counts frames and drops; None creates a new one
    second: (variant, checkpoint) to run alongside: occupancy in addition to detection, or the reverse

    Raises ConfigError and CheckpointError, which name the cause and the remedy.
    """
    where = choose_device(device)
    wanted = ((variant, checkpoint), *([second] if second else []))
    loaded = [load_weights(load_variant(name), path, where) for name, path in wanted]
    return Pipeline(loaded, where, settings, health)


def write_initial_weights(variant: Variant, path: Path, seed: int) -> None:
    """Write the initial weights of a variant as safetensors, marked as untrained; for trial runs and tests.

    variant: as in load_pipeline
    path: of the file
    seed: of the random initialization
    """
    config = load_variant(variant)
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(build_model(config), path, {"variant": config.name, "trained": "false", "seed": str(seed)})
