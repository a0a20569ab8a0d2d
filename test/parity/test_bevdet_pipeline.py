"""Images, matrices, world augmentation, depths and the occupancy metric against every parity case of the pipeline."""

import re

import numpy as np
import torch

from bev_perception.config import ImageConfig
from bev_perception.data.augment import BevDraw, augment_boxes, train_transform
from bev_perception.evaluation.occupancy import count_voxels
from bev_perception.families.bevdet.config import DepthConfig
from bev_perception.families.bevdet.targets import depth_labels
from bev_perception.families.bevdet.truths import STRIDE, lidar_depths
from bev_perception.families.bevdet.view_transform import depth_values
from bev_perception.families.catalog import FAMILIES
from bev_perception.geometry import intrinsics_4x4
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.preprocess import normalize_images, resample_image

from .cases import close, numbers, parametrize, subsample

SOURCE = (1600, 900)
#: classes of the occupancy metric beside free, which is left out of the mean
FREE = 17


def of_pipeline(case):
    return None if case.info["system"] == "bevdet" and {"transforms", "bda"} <= case.info.keys() else ""


def picture():
    """The image of the cases' formula, [900, 1600, 3] uint8 RGB."""
    x, y, c = np.arange(SOURCE[0])[None, :, None], np.arange(SOURCE[1])[:, None, None], np.arange(3)
    value = 127.5 + 60 * np.sin(x / (17.3 + 3 * c)) + 45 * np.cos(y / (23.7 + 2 * c))
    return np.clip(np.floor(value + 20 * np.sin((x + 2 * y) / (61.1 + 5 * c))), 0, 255).astype(np.uint8)


def transform_of(settings):
    left, top, right, bottom = settings["crop"]
    size = (right - left, bottom - top)
    sides = settings["resize"], tuple(settings["resize_dims"]), (left, top), size
    return ImageTransform(SOURCE, *sides, settings["flip"], settings["rotate"])


@parametrize(of_pipeline)
def test_images_and_matrices(case):
    tolerance = case.info["tolerance"]
    grey, network, matrices = (numbers(tolerance[name])[0] for name in ("uint8", "network_input", "matrices"))
    bgr = picture()[..., ::-1]
    for name, settings in case.info["transforms"].items():
        transform = transform_of(settings)
        config = ImageConfig(transform.size[1], transform.size[0], channel_order="bgr")  # with the statistics of RGB
        if settings["rotate"] or settings["flip"] or name.startswith("train"):
            left = settings["crop"][0]
            own = train_transform(SOURCE[::-1], config, settings["resize"], left, settings["flip"], settings["rotate"])
        else:
            own = image_transform(SOURCE[::-1], config)
        assert (own.resized, own.crop, own.size) == (transform.resized, transform.crop, transform.size)
        np.testing.assert_allclose(own.ida, transform.ida, rtol=1e-12)
        assert close(own.ida[:2, :2], case.arrays[f"{name}.post_rot"], matrices, matrices) is None
        assert close(own.ida[:2, 2], case.arrays[f"{name}.post_tran"], 100 * matrices, matrices) is None

        pixels = resample_image(np.ascontiguousarray(bgr), own)
        wanted, description = case.outputs[f"{name}.uint8"]
        assert close(subsample(pixels[..., ::-1], description), wanted, grey, 0) is None
        wanted, description = case.outputs[f"{name}.network_input"]
        found = normalize_images(torch.tensor(pixels[None]), config)[0]
        assert close(subsample(found, description), wanted, network, 0) is None


@parametrize(of_pipeline)
def test_world(case):
    limit = numbers(case.info["tolerance"]["matrices"])[0]
    boxes = case.inputs["gt_boxes"].astype(np.float64)
    for name, settings in case.info["bda"].items():
        draw = BevDraw(np.radians(settings["rotate_deg"]), settings["scale"], settings["flip_dx"], settings["flip_dy"])
        found, wanted = augment_boxes(boxes, draw), case.arrays[f"{name}.boxes"].astype(np.float64)
        found[:, 6] = wanted[:, 6] + np.angle(np.exp(1j * (found[:, 6] - wanted[:, 6])))
        assert close(found, wanted, limit, limit) is None
        assert close(draw.matrix[:3, :3], case.arrays[f"{name}.matrix"], limit, limit) is None


def depth_configs(case):
    """The settings of the depths, by the names of their outputs: "depth cfg [1.0, 60.0, 0.5] sid=False"."""
    found = {}
    for name, output in case.info["outputs"].items():
        if ".label_" in name:
            text = re.search(r"depth cfg \[(.*?)\] sid=(\w+)", output["meaning"])
            kind = name.rpartition("_")[2]
            found[kind] = DepthConfig(*map(float, text[1].split(",")), logarithmic=text[2] == "True")
    return found


def depth_maps(case):
    """{name: (post_rot [N, 3, 3], post_tran [N, 3])}, of the images that points are projected into."""
    cameras = len(case.inputs["intrins"])
    name = next(name for name in case.info["transforms"] if name.startswith("test"))
    rotation, translation = np.tile(np.eye(3), (cameras, 1, 1)), np.zeros((cameras, 3))
    rotation[:, :2, :2], translation[:, :2] = case.arrays[f"{name}.post_rot"], case.arrays[f"{name}.post_tran"]
    aug = case.inputs["aug_post_rot"], case.inputs["aug_post_tran"]
    return {"depth_test": (rotation, translation), "depth_aug": aug}, case.info["outputs"][f"{name}.uint8"]["shape"][:2]


@parametrize(of_pipeline)
def test_depth_bins(case):
    configs = depth_configs(case)
    for kind, config in configs.items():
        assert config.count == len(case.arrays[f"depth_bins_{kind}"])
        assert close(depth_values(config, "cpu"), case.arrays[f"depth_bins_{kind}"], 1e-5, 1e-6) is None
    maps, size = depth_maps(case)
    for name in maps:
        labels = case.arrays[f"{name}.label_{next(iter(configs))}"]
        stored = np.zeros((len(labels), *size), np.float32)
        stored[tuple(case.arrays[f"{name}.nonzero_cam_row_col"].T)] = case.arrays[f"{name}.values"]
        for kind, config in configs.items():
            found = depth_labels(torch.from_numpy(stored), STRIDE, config)
            np.testing.assert_array_equal(found, case.arrays[f"{name}.label_{kind}"])


@parametrize(of_pipeline)
def test_lidar_depths(case):
    """The reference computes in float32, far from the origin, so points near the edge of a pixel move to the next."""
    inputs = {name: value.astype(np.float64) for name, value in case.inputs.items()}
    lidar2global = inputs["ego2global_lidar"] @ inputs["lidar2ego"]
    global2sensor = np.linalg.inv(inputs["ego2global"] @ inputs["sensor2ego"])
    intrinsics = np.stack([intrinsics_4x4(k) for k in inputs["intrins"]])
    maps, size = depth_maps(case)
    for name, (rotation, translation) in maps.items():
        source2image = np.tile(np.eye(4), (len(rotation), 1, 1))
        source2image[:, :3, :3] = rotation
        source2image[:, :2, 2] += translation[:, :2]
        lidar2image = source2image @ intrinsics @ global2sensor @ lidar2global
        for config in depth_configs(case).values():
            found = lidar_depths(inputs["points"], lidar2image, tuple(size), config)
            places = case.arrays[f"{name}.nonzero_cam_row_col"]
            at = dict(zip(map(tuple, places.tolist()), case.arrays[f"{name}.values"], strict=True))
            own = {tuple(place) for place in np.argwhere(found > 0).tolist()}
            moved = own ^ at.keys()
            assert len(moved) < 0.02 * len(at)
            for camera, row, column in moved:
                depths = [at.get((camera, row, column)), found[camera, row, column]]
                near = [(camera, row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
                depth = depths[0] if depths[0] is not None else depths[1]
                others = [at.get(place, np.inf) for place in near] + [found[p] for p in near if p in own]
                assert np.sort(np.abs(np.array(others) - depth))[1] < 1e-3  # the same point in the next pixel
            common = list(own & at.keys())
            apart = np.abs([found[place] - at[place] for place in common])
            assert (apart < 3e-4).mean() > 0.99  # else another point is the nearest one there


@parametrize(of_pipeline)
def test_occupancy_metric(case):
    truth, found, mask = (case.inputs[f"occ_{name}"] for name in ("gt", "pred", "mask"))
    counts = count_voxels((truth.astype(np.int64) * (FREE + 1) + found)[mask], FREE + 1)
    ious = counts.ious_counting(FAMILIES["bevdet"].only_predicted)[:FREE]
    wanted = dict(case.info["occ_metric"]["result_percent"])
    assert round(100 * np.nanmean(ious), 2) == wanted.pop("mIoU")
    np.testing.assert_allclose(np.round(100 * ious, 2), list(wanted.values()), atol=1e-6)
