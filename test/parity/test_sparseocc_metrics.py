"""RayIoU, RayPQ and the voxel metrics against the reference's counts."""

from functools import reduce
from operator import add

import numpy as np
import pytest

from bev_perception.classes import THINGS
from bev_perception.data.occupancy_labels import OccupancyLabels
from bev_perception.evaluation import occupancy
from bev_perception.evaluation.lidar_rays import cast_lidar, lidar_directions, origins_in_ego
from bev_perception.evaluation.segments import MATCH_IOU
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.types import Occupancy, VoxelGrid
from parity.cases import parametrize

MASKS = ("camera", "lidar", "none")


def cases(variant):
    return parametrize(lambda case: None if (case.info["system"], case.info["variant"]) == ("metric", variant) else "")


def outputs(case):
    """{name: array}; these cases describe several arrays at once."""
    return dict(np.load(case.path / "outputs.npz"))


def unpacked(case, name):
    """Masks [S, X, Y, Z] bool from their bits."""
    shape = case.inputs["gt"].shape
    bits = np.unpackbits(case.inputs[name], axis=1, count=np.prod(shape[1:]))
    return bits.reshape(shape).astype(bool)


def split_origins(origins, counts):
    return np.split(origins, np.cumsum(counts)[:-1])


def transforms(case, name):
    pairs = zip(case.inputs[f"{name}_rotation_wxyz"], case.inputs[f"{name}_translation"], strict=True)
    return np.stack([make_transform(rotation_from_quaternion(*q), t) for q, t in pairs])


def case_origins(case):
    """Of every frame of the case."""
    lidar2ego, scenes = transforms(case, "lidar2ego"), case.inputs["scene_index"]
    lidar2global = transforms(case, "ego2global") @ lidar2ego
    found = []
    for i, scene in enumerate(scenes):
        of_scene = np.flatnonzero(scenes == scene)
        found.append(origins_in_ego(lidar2global[of_scene], int((of_scene == i).nonzero()[0][0]), lidar2ego[i]))
    return found


@cases("rayiou")
def test_rayiou(case):
    config = case.config
    low, high = config["pc_range"][:3], config["pc_range"][3:]
    grid = VoxelGrid(tuple(low), config["voxel_size"], tuple(config["occ_size"]))
    np.testing.assert_allclose(high, np.add(low, np.multiply(grid.shape, grid.resolution)))
    assert tuple(config["thresholds"]) == occupancy.THRESHOLDS
    wanted = outputs(case)
    np.testing.assert_array_equal(lidar_directions()[::13], wanted["ray_dirs"])

    origins = case_origins(case)
    assert [len(o) for o in origins] == wanted["all_origins_count"].tolist()
    np.testing.assert_allclose(np.concatenate(origins), wanted["all_origins"], rtol=0, atol=1e-9)
    origins = [origins[i] for i in config["picked_frames"]]
    given = split_origins(wanted["origins"], wanted["origins_per_sample"])
    np.testing.assert_allclose(np.concatenate(origins), np.concatenate(given), rtol=0, atol=1e-9)

    free, classes = config["free_index"], len(config["class_names"])
    for of_samples in (origins, given):
        counts, start = [], 0
        for pred, gt, of_sample in zip(case.inputs["pred"], case.inputs["gt"], of_samples, strict=True):
            hits = dict(zip(("pred", "gt"), cast_lidar([pred, gt], free, of_sample, grid), strict=True))
            rows = slice(start, start + len(of_sample))
            for name, hit in hits.items():
                depths = hit.depths.reshape(len(of_sample), -1)[:, ::13]
                voxels = hit.voxels.reshape(len(of_sample), -1)[:, ::13]
                np.testing.assert_allclose(depths, wanted[f"ray_{name}_depth"][rows], rtol=0, atol=1e-4)
                at = np.stack(np.unravel_index(voxels, pred.shape), axis=-1)
                np.testing.assert_array_equal(at, wanted[f"ray_{name}_voxel"][rows])
            counts.append(occupancy.count_rays(hits["pred"], hits["gt"], classes))
            start += len(of_sample)
        total = reduce(add, counts)
        np.testing.assert_array_equal(total.truth, wanted["gt_count"])
        np.testing.assert_array_equal(total.found, wanted["pred_count"])
        np.testing.assert_array_equal(total.hits, wanted["tp_count"])
        np.testing.assert_allclose(total.ious, wanted["iou"], rtol=0, atol=1e-12)
        means = list(occupancy._by_threshold("RayIoU", total.ious).values())
        np.testing.assert_allclose(means, wanted["rayiou"], rtol=0, atol=1e-12)


@cases("raypq")
def test_raypq(case):
    config, inputs = case.config, case.inputs
    names, free = config["class_names"], config["free_index"]
    assert tuple(config["thresholds"]) == occupancy.THRESHOLDS and set(config["thing_classes"]) == THINGS
    assert (config["min_num_points"], config["iou_threshold"]) == (occupancy.SMALLEST_OF_RAYS, MATCH_IOU)
    counts = []
    for s, origins in enumerate(split_origins(inputs["origins"], inputs["origins_per_sample"])):
        found, truth = cast_lidar([inputs["pred_sem"][s], inputs["gt_sem"][s]], free, origins)
        ids = inputs["pred_inst"][s].ravel()[found.voxels], inputs["gt_inst"][s].ravel()[truth.voxels]
        counts.append(occupancy.count_ray_segments(found, ids[0], truth, ids[1], names))
    total = reduce(add, counts)
    wanted = outputs(case)
    np.testing.assert_array_equal(total.matched, wanted["tp"])
    np.testing.assert_array_equal(total.false, wanted["fp"])
    np.testing.assert_array_equal(total.missed, wanted["fn"])
    np.testing.assert_allclose(total.iou_sum, wanted["iou_sum"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(total.quality, wanted["pq"], rtol=0, atol=1e-12)
    means = list(occupancy._by_threshold("RayPQ", total.quality).values())
    np.testing.assert_allclose(means, wanted["raypq"], rtol=0, atol=1e-12)


@cases("occ_miou")
def test_voxel_metrics(case):
    """Through count_sample and its scores, as in an evaluation; the origins do not matter here."""
    config, inputs = case.config, case.inputs
    names = tuple(config["class_names"])
    assert config["ignore_label"] == occupancy.IGNORED and config["free_index"] == len(names) - 1
    assert config["fscore_threshold"] == occupancy.SURFACE_DISTANCE
    assert config["vpq_min_num_points"] == occupancy.SMALLEST_OF_VOXELS
    camera, lidar = unpacked(case, "mask_camera"), unpacked(case, "mask_lidar")
    counts = []
    for s in range(len(inputs["gt"])):
        found = Occupancy(inputs["pred"][s], names, instances=inputs["pred_inst"][s])
        labels = OccupancyLabels(inputs["gt"][s], lidar[s], camera[s], inputs["gt_inst"][s])
        counts.append(occupancy.count_sample(found, labels, np.zeros((1, 3))))
    total = reduce(add, counts)
    scores = occupancy.OccupancyScores.of(total, names)
    wanted = outputs(case)
    for mask in MASKS:
        voxels = total.voxels[mask]
        np.testing.assert_array_equal(voxels.confusion[:-1], wanted[f"hist_{mask}"])
        np.testing.assert_allclose(voxels.ious, wanted[f"iou_{mask}"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(voxels.occupied_ious, wanted[f"geo_iou_{mask}"], rtol=0, atol=1e-12)
        over = "all voxels" if mask == "none" else f"{mask} mask"
        assert round(100 * scores.summary[f"mIoU, {over}"], 2) == pytest.approx(wanted[f"miou_{mask}"])
        assert round(100 * scores.summary[f"occupied IoU, {over}"], 2) == pytest.approx(wanted[f"geo_miou_{mask}"])
    np.testing.assert_allclose(scores.surfaces["camera"], wanted["fscore_camera"], rtol=0, atol=1e-9)
    segments = total.segments["voxels"]
    np.testing.assert_array_equal(segments.matched[0], wanted["vpq_tp"])
    np.testing.assert_array_equal(segments.false[0], wanted["vpq_fp"])
    np.testing.assert_array_equal(segments.missed[0], wanted["vpq_fn"])
    np.testing.assert_allclose(segments.iou_sum[0], wanted["vpq_iou_sum"], rtol=0, atol=1e-9)
