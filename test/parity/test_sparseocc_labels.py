"""Labels, targets and colours in the training of SparseOcc, against every case with these schemas."""

import numpy as np
import pytest
import torch

from bev_perception.data.augment import (
    BevDraw,
    PhotometricDraw,
    augment_grid,
    augment_matrices,
    distort_colors,
    hsv_to_rgb,
    rgb_to_hsv,
)
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL
from bev_perception.data.panoptic import instances_from_boxes
from bev_perception.families.sparseocc.targets import mask_targets
from bev_perception.geometry import invert_transform
from bev_perception.supervision.samples import NO_INSTANCE

from .cases import parametrize

EMPTY = 255  # the reference's NO_INSTANCE


def with_output(name):
    return lambda case: None if case.info["system"] == "sparseocc" and name in case.info.get("outputs", {}) else ""


def arrays_of(case):
    return dict(np.load(case.path / "outputs.npz"))


@parametrize(with_output("instances"))
def test_instances_from_boxes(case):
    inputs = case.inputs
    found = instances_from_boxes(
        inputs["semantics"],
        inputs["gt_boxes"],
        inputs["gt_names"].tolist(),
        inputs["lidar2ego"],
        tuple(case.config["class_names"]),
    )
    np.testing.assert_array_equal(found, arrays_of(case)["instances"])


def draws_of(case):
    for angle, flips in zip(case.config["angles_deg"], case.config["flips"], strict=True):
        yield BevDraw(np.deg2rad(angle), 1.0, *flips)


@parametrize(with_output("instances"))
@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_mask_targets(case, kind):
    outputs, classes = arrays_of(case), case.config["class_names"]
    instances = outputs["instances"] if kind == "panoptic" else None
    places, class_ids = mask_targets(case.inputs["semantics"], instances, classes)
    np.testing.assert_array_equal(class_ids, outputs[f"{kind}_class_ids"])

    def as_reference(grid):
        return np.where(grid == NO_INSTANCE, EMPTY, grid)

    np.testing.assert_array_equal(as_reference(places), outputs[f"{kind}_voxel_instances"])
    for k, draw in enumerate(draws_of(case)):
        turned = augment_grid(places, draw, NO_INSTANCE)
        differing = as_reference(turned) != outputs[f"{kind}_aug{k}_voxel_instances"]
        assert differing.mean() <= 1e-4  # ties of the nearest neighbour


@parametrize(with_output("instances"))
def test_bev_augmentation(case):
    outputs = arrays_of(case)
    for k, draw in enumerate(draws_of(case)):
        turned = augment_grid(case.inputs["semantics"], draw, UNKNOWN_LABEL)
        assert (turned != outputs[f"aug{k}_semantics"]).mean() <= 1e-4
        np.testing.assert_allclose(draw.plane, outputs[f"aug{k}_bda_rot"][:2, :2], atol=1e-6)
        ego2lidar = augment_matrices(invert_transform(case.inputs["lidar2ego"]), draw)
        np.testing.assert_allclose(ego2lidar, outputs[f"aug{k}_ego2lidar"], atol=1e-6)


def recorded_colors(draws, n):
    """The recorded numbers [kind, value] in the order of section 3.5 of the description."""
    draws = iter(draws)

    def take(wanted):
        kind, value = next(draws)
        assert kind == wanted
        return value

    def maybe(kind, neutral):
        return take(kind) if take("randint") else neutral

    last = np.array([take("randint") for _ in range(n)]) == 1
    brightness, contrast, saturation, hue = np.zeros(n), np.ones(n), np.ones(n), np.zeros(n)
    channels = np.tile(np.arange(3), (n, 1))
    for i in range(n):
        brightness[i] = maybe("uniform", 0.0)
        if not last[i]:
            contrast[i] = maybe("uniform", 1.0)
    for i in range(n):
        saturation[i], hue[i] = maybe("uniform", 1.0), maybe("uniform", 0.0)
    for i in range(n):
        if last[i]:
            contrast[i] = maybe("uniform", 1.0)
        channels[i] = maybe("permutation", channels[i])
    assert next(draws, None) is None
    values = (torch.from_numpy(v).float() for v in (brightness, contrast, saturation, hue))
    return PhotometricDraw(torch.from_numpy(last), *values, torch.from_numpy(channels))


@parametrize(with_output("hsv"))
def test_colors(case):
    outputs = {name: torch.from_numpy(array) for name, array in arrays_of(case).items()}
    images = torch.from_numpy(case.inputs["img"]).float()
    atol = case.info["tolerance"]
    draw = recorded_colors(case.info["inputs"]["draws"], len(images))
    torch.testing.assert_close(distort_colors(images, draw), outputs["out"], atol=atol, rtol=0)
    torch.testing.assert_close(rgb_to_hsv(images), outputs["hsv"], atol=atol, rtol=0)
    torch.testing.assert_close(hsv_to_rgb(outputs["hsv"]), outputs["rgb"], atol=atol, rtol=0)
