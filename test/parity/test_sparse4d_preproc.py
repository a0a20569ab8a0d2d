"""Preprocessing of Sparse4D against the published reference: images, matrices, boxes and maps of lidar depth."""

import numpy as np
import torch

from bev_perception.config import ImageConfig
from bev_perception.data.augment import BevDraw, augment_matrices
from bev_perception.data.lidar_depth import depth_pyramid
from bev_perception.data.records import Annotations
from bev_perception.families.sparse4d.truths import training_objects
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.preprocess import normalize_images, resample_image

from .cases import close, parametrize

#: reach of the depth maps (m), as in the published configs; version 3 clips farther points
MAX_DEPTH = 60.0
#: nuScenes' images
SOURCE = (1600, 900)


def of_preproc(case):
    return None if case.info["system"] == "sparse4d" and "depth_strides" in case.config else ""


def settings_of(case):
    return case.config["configs"].items()


def transform_of(settings):
    left, top, right, bottom = settings["crop"]
    return ImageTransform(
        SOURCE,
        settings["resize"],
        tuple(settings["resize_dims"]),
        (left, top),
        (right - left, bottom - top),
        settings["flip"],
        settings["rotate"],
    )


def image(camera):
    """The case's image of a camera, [900, 1600, 3] BGR."""
    x, y, c = np.arange(SOURCE[0])[None, :, None], np.arange(SOURCE[1])[:, None, None], np.arange(3)
    value = (3 * x) // 2 + (5 * y) // 3 + 70 * c + 31 * camera + 9 * (((x // 24) ^ (y // 18)) % 13)
    return (value % 256).astype(np.uint8)


def annotations_of(case):
    boxes, labels = case.inputs["gt_boxes"], case.inputs["gt_labels"]
    names = np.array(case.config["classes"])[labels]
    ones = np.ones(len(labels), np.int32)
    return Annotations(boxes[:, :7], boxes[:, 7:], names, ones, ones, np.arange(len(labels)))


@parametrize(of_preproc)
def test_matrices(case):
    problems = {}
    atol, rtol = (case.info["tolerance"]["matrices"][name] for name in ("atol", "rtol"))
    for name, settings in settings_of(case):
        transform, world = transform_of(settings), BevDraw(settings["rotate_3d"])
        found = {
            "projection_mat": augment_matrices(transform.ida @ case.inputs["lidar2img"], world),
            "T_global": augment_matrices(case.inputs["lidar2global"], world),
            "focal": case.inputs["cam_intrinsic"][:, 0, 0] * settings["resize"],
            "image_wh": np.tile(transform.size, (len(case.inputs["lidar2img"]), 1)),
        }
        problems |= {(name, k): close(v, case.arrays[f"{name}.{k}"], atol, rtol) for k, v in found.items()}
    assert not any(problems.values()), problems


@parametrize(of_preproc)
def test_inference_transforms(case):
    """The transform that live operation takes for a size is the reference's."""
    for name, settings in settings_of(case):
        if name.startswith("test"):
            wanted = transform_of(settings)
            found = image_transform(SOURCE[::-1], ImageConfig(height=wanted.size[1], width=wanted.size[0]))
            assert (found.crop, found.resized, found.size) == (wanted.crop, wanted.resized, wanted.size)
            np.testing.assert_allclose(found.ida, wanted.ida, rtol=1e-12)


def pixels_of(case, name):
    transform = transform_of(case.config["configs"][name])
    return np.stack([resample_image(image(k), transform) for k in case.info["inputs"]["camera_index"]])


@parametrize(of_preproc)
def test_images(case):
    normalise = case.config["normalise"]
    atol = case.info["tolerance"]["image_uint8_bgr"]["atol"]
    problems = {}
    for name, _ in settings_of(case):
        pixels = pixels_of(case, name)
        height, width = pixels.shape[1:3]
        step = 16 if width > 1000 else 8
        config = ImageConfig(height, width, tuple(normalise["mean_rgb"]), tuple(normalise["std_rgb"]), "rgb")
        normal = normalize_images(torch.from_numpy(pixels), config).numpy()
        found = {
            "image_uint8_bgr": (pixels[:, 3::step, 5::step], atol),
            "image_norm": (normal[:, :, 3 :: 2 * step, 5 :: 2 * step], atol / min(normalise["std_rgb"])),
            "image_mean": (pixels.mean(axis=(1, 2), dtype=np.float64), 0.1),
        }
        problems |= {(name, k): close(v, case.arrays[f"{name}.{k}"], limit, 0) for k, (v, limit) in found.items()}
    assert not any(problems.values()), problems


@parametrize(of_preproc)
def test_version_1(case):
    """Version 1 crops rows and leaves the size as it is."""
    config = ImageConfig(640, 1600, (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")
    transform = image_transform(SOURCE[::-1], config)
    first = case.info["inputs"]["camera_index"][0]
    pixels = torch.from_numpy(resample_image(image(first), transform)[None])
    assert close(normalize_images(pixels, config)[0, :, 3::32, 5::32], case.arrays["v1.image_norm"], 1e-4, 0) is None
    matrices = transform.ida @ case.inputs["lidar2img"]
    assert close(matrices, case.arrays["v1.projection_mat"], 1e-4, 1e-6) is None


@parametrize(of_preproc)
def test_depths(case):
    """Depth maps follow the augmented image, but not the rotation of the world."""
    atol = case.info["tolerance"]["depth"]["atol"]
    for name, settings in settings_of(case):
        if f"{name}.depth0.index" not in case.arrays:
            continue
        transform = transform_of(settings)
        matrices = transform.ida @ case.inputs["lidar2img"]
        size, strides = transform.size[::-1], case.config["depth_strides"]
        for k, level in enumerate(depth_pyramid(case.inputs["points"], matrices, size, strides, MAX_DEPTH, clip=True)):
            assert level.shape == tuple(case.arrays[f"{name}.depth{k}.shape"])
            wanted = np.full(level.size, -1.0)
            wanted[case.arrays[f"{name}.depth{k}.index"]] = case.arrays[f"{name}.depth{k}.value"]
            assert close(level.ravel(), wanted, atol, 0) is None


@parametrize(of_preproc)
def test_boxes(case):
    for name, settings in settings_of(case):
        if f"{name}.gt_boxes" not in case.arrays:
            continue
        boxes, labels, ids = training_objects(
            annotations_of(case), case.config["classes"], case.config["range_filter_m"], BevDraw(settings["rotate_3d"])
        )
        assert close(boxes, case.arrays[f"{name}.gt_boxes"], 1e-4, 0) is None
        assert labels.tolist() == case.arrays[f"{name}.gt_labels"].tolist()
        assert ids.tolist() == case.arrays[f"{name}.instance_id"].tolist()
