"""Table of what the variants cost and where their official weights are, for docs/models.md.

`python -m bev_perception.evaluation.costs` prints it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bev_perception.evaluation.timing import count_operations
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import list_variants, load_variant, shipped_weights

_COLUMNS = ("name", "parameters [M]", "encoder [GMAC]", "weights", "licence of the weights")
#: cameras of the rig that is counted for
CAMERAS = 6


def costs_table(names: Sequence[str]) -> str:
    """Return a Markdown table of variants, one per row, without a trailing newline."""
    rows = [_COLUMNS, *(_row(name) for name in names)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(_COLUMNS) + "|", *lines[1:]])


def count_costs(name: str) -> tuple[int, int]:
    """Return the parameters that inference needs, and the operations (two a multiply-add) of encoding CAMERAS images.

    Nothing is computed: the model and the images are without memory.
    """
    config = load_variant(name)
    pad = config.image.pad
    height, width = (-(-side // pad) * pad for side in (config.image.height, config.image.width))
    with torch.device("meta"):
        model = build_model(config).eval()
        images = torch.zeros(CAMERAS, 3, height, width)
    parameters = sum(p.numel() for n, p in model.named_parameters() if n.split(".")[0] not in model.training_only)
    with torch.inference_mode():
        return parameters, sum(count_operations(model, lambda: model.image_maps(images)).values())


def _row(name: str) -> tuple[str, ...]:
    origin = load_variant(name).provenance
    parameters, operations = count_costs(name)
    shipped = shipped_weights(name) is not None
    return (
        name,
        f"{parameters / 1e6:.1f}",
        f"{operations / 2e9:.1f}",
        "shipped" if shipped else origin.weights_source or "none",
        "Apache-2.0" if shipped else origin.weights_licence or "-",
    )


if __name__ == "__main__":
    print(costs_table(list_variants()))
