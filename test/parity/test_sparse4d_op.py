"""The deformable aggregation of Sparse4D against the published operator."""

import pytest
import torch

from bev_perception.ops.deformable_aggregation import aggregate_features, aggregate_features_reference

from .cases import close, parametrize

BOTH = pytest.mark.parametrize("aggregate", [aggregate_features, aggregate_features_reference])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def is_operator(case):
    return case.info["system"] == "sparse4d" and "grad_out_anchors" in case.info.get("inputs", ())


def tensors_of(case, dtype):
    """{name: leaf tensor} of the inputs that have gradients, and those of the upstream."""
    return {
        name: torch.from_numpy(value).to(dtype).requires_grad_()
        for name, value in case.inputs.items()
        if value.dtype.kind == "f"
    }


def maps_of(table, cameras, shapes, starts):
    """L maps [B, V, h, w, C] of a table [B, V, cells, C] with the levels behind each other."""
    parts = zip(shapes.tolist(), starts.tolist(), strict=True)
    return [table[:, cameras, start : start + h * w].unflatten(2, (h, w)).contiguous() for (h, w), start in parts]


@BOTH
@DTYPES
@parametrize(lambda case: None if is_operator(case) else "")
def test_operator(case, aggregate, dtype):
    given = tensors_of(case, dtype)
    levels = maps_of(given["feat"], slice(None), case.inputs["spatial_shape"], case.inputs["level_start"])
    atol, rtol = (2e-6, 2e-6) if dtype == torch.float64 else (case.info["tolerance"][k] for k in ("atol", "rtol"))
    for form in ("points", "anchors"):
        out = aggregate(levels, given["loc"], given["weights"], True, form == "points")
        upstream = given[f"grad_out_{form}"].detach()
        out = out.reshape(upstream.shape)
        assert close(out.detach(), case.arrays[f"out_{form}"], atol, rtol) is None
        leaves = ("feat", "loc", "weights")
        gradients = torch.autograd.grad((out * upstream).sum(), [given[name] for name in leaves], retain_graph=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            wanted = case.arrays[f"grad_{name}_{form}"]
            looser = 1e-4 if name == "loc" else atol
            assert close(gradient.reshape(wanted.shape), wanted, max(looser, atol), rtol) is None


@BOTH
@parametrize(lambda case: None if is_operator(case) and "var_feat" in case.inputs else "")
def test_cameras_of_different_sizes(case, aggregate):
    """The operator sums over cameras, so cameras with other sizes are further calls."""
    given = tensors_of(case, torch.float64)
    shapes, starts = case.inputs["var_spatial_shape"], case.inputs["var_level_start"]
    total = 0
    for camera in range(len(shapes)):
        maps = maps_of(given["var_feat"][:, None], slice(None), shapes[camera], starts[camera])
        own = slice(camera, camera + 1)
        total = total + aggregate(maps, given["loc"][:, :, :, own], given["weights"][:, :, :, own], True)
    assert close(total.detach(), case.arrays["var_out_anchors"], 2e-6, 2e-6) is None
