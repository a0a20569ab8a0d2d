"""Record where the queries of SparseBEV sample the images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bev_perception.families.sparsebev.decode import to_boxes
from bev_perception.families.sparsebev.model import SparseBEV, SparseBEVOutput
from bev_perception.models.sampling_trace import SamplingTrace
from bev_perception.types import Boxes3D


@contextmanager
def record_sampling(model: SparseBEV) -> Iterator[list[SamplingTrace]]:
    """Append a trace to the list for every run of the model inside the `with` block; the model itself is unchanged."""
    traces: list[SamplingTrace] = []
    points: list[Tensor] = []  # one entry per stage: [T, Q, K, 3]

    def after_stage(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        points.append(outputs[0][0].flatten(2, 3))

    def after_run(_module: nn.Module, inputs: tuple[Any, ...], output: SparseBEVOutput) -> None:
        _, reference2image, time_differences, image_size, *_ = inputs
        seconds = time_differences[0].cpu().numpy()
        traces.append(
            SamplingTrace(torch.stack(points), reference2image[0], image_size, seconds, _boxes(model, output))
        )

    head = model.pts_bbox_head
    hooks = [
        head.register_forward_pre_hook(lambda _module, _inputs: points.clear()),  # of a run that has failed
        head.decoder_layer.get_submodule("sampling").register_forward_hook(after_stage),
        head.register_forward_hook(after_run),
    ]
    try:
        yield traces
    finally:
        for hook in hooks:
            hook.remove()


def _boxes(model: SparseBEV, output: SparseBEVOutput) -> Boxes3D:
    """Return one box per query, of its best class, without any limit on score or position."""
    scores, labels = output.logits[-1, 0].sigmoid().max(dim=1)  # [Q]
    found = (x.double().cpu().numpy() for x in (scores, output.boxes[-1, 0]))
    return to_boxes(next(found), labels.cpu().numpy(), next(found), model.config.class_names, model.legacy_boxes)
