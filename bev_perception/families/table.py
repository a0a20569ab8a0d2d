"""Table of the variants for the documentation, from their YAML files."""

from __future__ import annotations

from bev_perception.config import BackboneConfig, Provenance, VariantConfig
from bev_perception.families.catalog import gives
from bev_perception.families.family import BOXES, INSTANCES, OCCUPANCY, TRACKS
from bev_perception.families.variants import list_variants, load_variant

_COLUMNS = ("name", "gives", "images", "backbone", "pretraining", "published score", "published FPS", "runs")
_BACKBONES = {
    "resnet": "ResNet-{}",
    "vovnet": "VoVNet V-{}-eSE",
    "eva02": "EVA-02 of {} blocks",
    "swin": "Swin of {} blocks",
}


def variants_table() -> str:
    """Return a Markdown table of the variants that come with the package, one per row, without a trailing newline."""
    rows = [_COLUMNS, *(_row(load_variant(name)) for name in list_variants())]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(_COLUMNS) + "|", *lines[1:]])


def _row(config: VariantConfig) -> tuple[str, ...]:
    image, origin = config.image, config.provenance
    return (
        config.name,
        what_it_gives(config),
        f"{image.width}x{image.height}, {_frames(config)}",
        _backbone(config.backbone),
        origin.pretraining or "none",
        published_score(origin) or "-",
        f"{origin.published_fps} ({origin.published_hardware})" if origin.published_fps is not None else "-",
        "offline" if config.frames.future else "live, offline",
    )


def what_it_gives(config: VariantConfig) -> str:
    """Return what a variant gives, in words."""
    given = gives(config)
    names = {
        BOXES: "boxes with track ids" if TRACKS in given else "boxes",
        OCCUPANCY: "panoptic occupancy" if INSTANCES in given else "occupancy",
    }
    return ", ".join(name for what, name in names.items() if what in given)


def _frames(config: VariantConfig) -> str:
    count = len(config.frames.offsets)
    if config.frames.future:
        return f"{count} frames, {config.frames.future} of the future"
    return "1 frame" if count == 1 else f"{count} frames"


def _backbone(config: BackboneConfig) -> str:
    name = _BACKBONES.get(config.type, f"{config.type} {{}}").format(config.depth)
    return f"{name}, {config.swin.embed_dim} wide" if config.type == "swin" else name


def published_score(origin: Provenance) -> str:
    """Return the scores in a variant's publication, in percent; "" if there are none."""
    scores = (
        ("NDS (val)", origin.published_nds_val),
        ("NDS (test)", origin.published_nds_test),
        ("RayIoU (val)", origin.published_rayiou),
        ("RayPQ (val)", origin.published_raypq),
        ("mIoU (val)", origin.published_miou),
    )
    return ", ".join(f"{score} {name}" for name, score in scores if score is not None)
