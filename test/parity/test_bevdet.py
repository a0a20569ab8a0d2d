"""BEVDet, BEVDet4D, BEVDepth4D, BEVStereo4D and their occupancy models against the published reference."""

import dataclasses

import numpy as np
import torch

from bev_perception.families.bevdet.config import AFTER_VIEW, IN_VIEW
from bev_perception.families.bevdet.depth_net import camera_vector
from bev_perception.families.bevdet.temporal import warp_grid
from bev_perception.families.bevdet.view_transform import (
    cell_index,
    depth_values,
    image2sensor,
    lift_points,
    pixel_rays,
    sensor2grid,
)
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.types import Limits

from .bevdet import Run, augmentation_of, cameras_of, model_of, variant_of
from .cases import assert_official_keys, close, parametrize, subsample

MODES = {"vt": IN_VIEW, "after": AFTER_VIEW}


def has_keys_only(case):
    return None if case.info["system"] == "bevdet" and "key inventory" in case.info.get("kind", "") else ""


def is_inference(case):
    return None if case.info["system"] == "bevdet" and "modes" in case.info else ""


def is_large(case):
    """Whether a case takes more than a few seconds."""
    return np.prod(case.config["input_size"]) * case.config["frames_in_input"] > 25000


@parametrize(has_keys_only)
def test_names_of_the_weights(case):
    with torch.device("meta"):
        model = build_model(variant_of(case))
    assert_official_keys(model, case.keys)
    assert sum(p.numel() for p in model.parameters()) == case.info["total_parameters"]


@parametrize(has_keys_only)
def test_published_settings(case):
    """The variant of that name has the settings of the publication."""
    found, wanted = load_variant(case.path.name.partition("_keys_")[2]), variant_of(case)
    assert found.head.alignment == (AFTER_VIEW if found.name.startswith("bevdet-r50") else IN_VIEW)
    head = dataclasses.replace(wanted.head, alignment=found.head.alignment)
    if head.boxes is not None and "circle" not in head.boxes.nms:  # then the radii do not matter
        head = dataclasses.replace(head, boxes=dataclasses.replace(head.boxes, nms_radius=found.head.boxes.nms_radius))
    assert found == dataclasses.replace(
        wanted, name=found.name, head=head, training=found.training, provenance=found.provenance
    )


@parametrize(is_inference)
def test_geometry(case):
    config = variant_of(case)
    cameras, bda = cameras_of(case), augmentation_of(case)
    key2global = cameras[0].ego2global[:, 0]
    sensor2key = [sensor2grid(frame, key2global) for frame in cameras]
    cpu, size = torch.device("cpu"), case.config["input_size"]
    rays = pixel_rays(size, (size[0] // 16, size[1] // 16), cpu)
    found = {
        "sensor2keyego": np.stack(sensor2key, axis=1)[0],
        "mlp_input": camera_vector(cameras[0], sensor2key[0], bda),
    }
    for t, frame in enumerate(cameras):
        image2ego = torch.from_numpy(bda[:, None] @ sensor2key[t] @ image2sensor(frame))
        points = lift_points(image2ego, rays, depth_values(config.head.depth, cpu))
        found |= {f"frustum_xyz.f{t}": points.movedim(0, -1), f"voxel_index.f{t}": cell_index(points, config.head.grid)}
        current2older = bda @ np.linalg.inv(frame.ego2global[:, 0]) @ key2global @ np.linalg.inv(bda)
        found[f"after.shift_grid.f{t}"] = warp_grid(current2older, config.head.grid)
    checked = {name for name in case.outputs if name in found}
    assert {"sensor2keyego", "voxel_index.f0", "frustum_xyz.f0"} <= checked
    for name in checked:
        wanted, description = case.outputs[name]
        tolerance = 0 if name.startswith("voxel_index") else 1e-6
        problem = close(subsample(np.asarray(found[name]), description), wanted, tolerance, tolerance)
        assert problem is None, f"{name}: {problem}"


@parametrize(is_inference, slow=is_large)
def test_networks_and_boxes(case):
    wrong, checked = {}, set()
    model = model_of(case)
    for dtype in (torch.float64, torch.float32):
        model = model.to(dtype)
        for mode in case.info["modes"]:
            run = Run(case, model, dtype, MODES[mode])
            prefix = "" if mode == case.info["modes"][0] else f"{mode}."
            names = {prefix + name: value for name, value in run.found.items() if prefix + name in case.outputs}
            checked |= names.keys()
            wrong |= {
                (name, dtype): problem for name, value in names.items() if (problem := compare(case, name, value))
            }
            if run.output.tasks:
                wrong |= {(prefix, i, dtype): problem for i, problem in enumerate(compare_boxes(case, prefix, run))}
                checked |= {prefix + name for name in ("boxes", "scores", "labels")}
    geometry = ("sensor2keyego", "frustum_xyz", "voxel_index", "after.shift_grid", "mlp_input")
    assert {name for name in case.outputs if not name.startswith(geometry)} == checked
    assert not wrong


def compare(case, name, value):
    wanted, description = case.outputs[name]
    if "f32_err" not in description:
        return close(subsample(value.numpy(), description), wanted, 0, 0)
    error = description["f32_err"]
    # in float64 only the rounding of the stored values is between; but for large maps, in the reference's warp
    exact = max(4e-6, error / 20 if np.prod(case.config["input_size"]) > 30000 else 0)
    atol, rtol = (exact, 2e-6) if value.dtype == torch.float64 else (max(1e-4, 20 * error), 1e-4)
    return close(subsample(value.numpy(), description), wanted, atol, rtol)


def compare_boxes(case, prefix, run):
    """Boxes of a task may change places in float32 if their scores tie; so each is compared with the nearest."""
    exact = next(iter(run.found.values())).dtype == torch.float64
    found = run.model.decode(run.output, Limits()).boxes
    wanted = {name: case.outputs[prefix + name][0] for name in ("boxes", "scores", "labels")}
    bottom = found.centers - [0, 0, 0.5] * found.sizes[:, 2:]
    boxes = np.c_[bottom, found.sizes, found.yaws, found.velocities]
    if len(boxes) != len(wanted["boxes"]):
        yield f"{len(boxes)} boxes, wanted {len(wanted['boxes'])}"
        return
    distance = np.linalg.norm(wanted["boxes"][:, None, :3] - boxes[None, :, :3], axis=-1)
    distance += 1e3 * (wanted["labels"][:, None] != found.labels)
    order = distance.argmin(axis=1)
    if len(set(order.tolist())) < len(order):
        yield "boxes are missing"
    boxes = boxes[order]
    boxes[:, 6] = wanted["boxes"][:, 6] + np.angle(np.exp(1j * (boxes[:, 6] - wanted["boxes"][:, 6])))
    yield from filter(
        None,
        (
            close(boxes, wanted["boxes"], 1e-5 if exact else 1e-3, 1e-6),
            close(found.scores[order], wanted["scores"], 1e-6 if exact else 1e-4, 0),
            None if (found.labels[order] == wanted["labels"]).all() else "labels differ",
        ),
    )
