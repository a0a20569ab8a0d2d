"""Scores of made-up streets, and of the real label where it is present."""

import dataclasses
import json
from functools import reduce
from operator import add

import numpy as np
import pytest
from scipy.spatial import cKDTree

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import OccupancyLabels, read_labels
from bev_perception.evaluation import occupancy
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.occupancy import OccupancyScores, compare_surfaces, count_sample
from bev_perception.types import OCC3D_GRID, Occupancy, VoxelGrid

FREE = 17
ORIGINS = np.array([[0.94, 0, 1.84], [-10, 3, 1.8]])


def street(seed=0, cars=6):
    """Labels of a road with cars between walls; masks, and an instance a car."""
    rng = np.random.default_rng(seed)
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    instances = np.zeros(OCC3D_GRID.shape, np.uint8)
    semantics[:, :, 1:3] = 11
    semantics[:, [20, 179], :10] = 15
    for k in range(cars):
        x, y = rng.integers(40, 90, 2)
        at = np.s_[x : x + 10, y : y + 5, 3:7]
        semantics[at], instances[at] = 4, k + 1
    mask = rng.random(OCC3D_GRID.shape) < 0.7
    return OccupancyLabels(semantics, rng.random(OCC3D_GRID.shape) < 0.8, mask, instances)


def prediction(labels, seed=0, noise=0.002, panoptic=True):
    rng = np.random.default_rng(seed)
    semantics = labels.semantics.copy()
    changed = rng.random(semantics.shape) < noise
    semantics[changed] = rng.integers(0, 18, changed.sum())
    return Occupancy(semantics, OCC3D_CLASSES, instances=labels.instances.astype(np.int16) if panoptic else None)


def perfect(labels):
    return Occupancy(labels.semantics, OCC3D_CLASSES, instances=labels.instances)


def check_perfect(scores):
    assert {name: value for name, value in scores.summary.items() if value != pytest.approx(1)} == {}
    for values in scores.by_class.values():
        known = [value for value in values.values() if not np.isnan(value)]
        assert known == pytest.approx([1] * len(known))


def test_truth_scores_full_marks():
    labels = street()
    scores = OccupancyScores.of(count_sample(perfect(labels), labels, ORIGINS), OCC3D_CLASSES)
    check_perfect(scores)
    assert list(scores.summary)[:8] == [f"Ray{m}{t}" for m in ("IoU", "PQ") for t in ("", "@1", "@2", "@4")]
    assert len(scores.summary) == 8 + 3 + 3 + 3 + 1
    assert not np.isnan(scores.by_class["car"]["RayPQ@1"]) and np.isnan(scores.by_class["bus"]["RayIoU@1"])


def test_the_real_label_judged_by_itself(nuscenes_root):
    files = sorted((nuscenes_root / "gts").glob("*/*/labels.npz"))
    if not files:
        pytest.skip(f"no occupancy labels in {nuscenes_root}/gts")
    labels = read_labels(files[0])
    found = Occupancy(labels.semantics, OCC3D_CLASSES)
    scores = OccupancyScores.of(count_sample(found, labels, ORIGINS), OCC3D_CLASSES)
    check_perfect(scores)
    assert scores.qualities == {} and set(scores.voxel_ious) == {"camera", "lidar", "none"}
    met = {name for name, values in scores.by_class.items() if not np.isnan(values["RayIoU@1"])}
    assert {"car", "driveable_surface", "sidewalk", "manmade", "vegetation"} <= met
    # everything a voxel further ahead
    moved = dataclasses.replace(found, semantics=np.roll(found.semantics, 1, axis=0))
    worse = OccupancyScores.of(count_sample(moved, labels, ORIGINS), OCC3D_CLASSES).summary
    assert 0.3 < worse["RayIoU@1"] < worse["RayIoU@2"] < worse["RayIoU@4"] < 1
    assert 0.3 < worse["mIoU, camera mask"] < 0.9
    assert worse["F-score, camera mask"] > 0.9


def test_an_empty_prediction_scores_nothing():
    labels = street()
    empty = Occupancy(
        np.full(OCC3D_GRID.shape, FREE, np.uint8), OCC3D_CLASSES, instances=np.zeros_like(labels.instances)
    )
    scores = OccupancyScores.of(count_sample(empty, labels, ORIGINS), OCC3D_CLASSES)
    assert set(scores.summary.values()) == {0}


def test_thick_surfaces_gain_nothing():
    """The point of RayIoU: what lies behind the first surface is not seen."""
    labels = street()
    filled = labels.semantics.copy()
    filled[:, :20], filled[:, 180:] = 15, 15  # behind the walls
    scores = OccupancyScores.of(count_sample(Occupancy(filled, OCC3D_CLASSES), labels, ORIGINS), OCC3D_CLASSES)
    assert scores.summary["RayIoU"] == 1 and scores.by_class["manmade"]["IoU, all voxels"] < 0.2


def test_sums_are_the_whole():
    """One sample after another, in two heaps as two processes do, or in another order."""
    samples = []
    for seed in range(3):
        labels = street(seed)
        samples.append(count_sample(prediction(labels, seed), labels, ORIGINS))
    whole = reduce(add, samples)
    heaps = (samples[2] + samples[0]) + samples[1]
    assert whole.samples == heaps.samples == 3
    for a, b in ((whole.rays.hits, heaps.rays.hits), (whole.rays.truth, heaps.rays.truth)):
        np.testing.assert_array_equal(a, b)
        assert a.sum() > 1000
    one, two = (OccupancyScores.of(counts, OCC3D_CLASSES) for counts in (whole, heaps))
    assert one.summary == pytest.approx(two.summary, rel=1e-12, nan_ok=True)
    # they are counts of all rays and voxels, not means of samples' scores
    truth, found = (np.stack([getattr(s.rays, name) for s in samples]).sum(axis=0) for name in ("truth", "found"))
    hits = np.stack([s.rays.hits for s in samples]).sum(axis=0)
    met = [4, 11, 15]
    np.testing.assert_allclose(one.ray_ious[0][met], hits[0][met] / (truth + found - hits[0])[met])
    assert 0.1 < one.summary["RayIoU"] < 0.9 and 0.1 < one.summary["RayPQ"] < 0.9


def test_confusion_by_counting():
    labels = street()
    semantics = labels.semantics.copy()
    semantics[:5] = 255
    semantics[5] = 18  # a label that does not exist is skipped, as the reference does
    found = prediction(labels)
    counts = occupancy.count_voxels(
        occupancy._confusion_codes(semantics, found.semantics, 18)[labels.mask_camera], classes=18
    )
    for t, p in ((11, 11), (11, 3), (FREE, FREE), (255, 11), (4, FREE)):
        wanted = ((semantics == t) & (found.semantics == p) & labels.mask_camera).sum()
        assert counts.confusion[18 if t == 255 else t, p] == wanted
    occupied, free = found.semantics != FREE, found.semantics == FREE
    true = (semantics < FREE) & labels.mask_camera
    known = labels.mask_camera & (semantics != 18)
    assert counts.occupied_ious[0] == (true & occupied).sum() / ((true | occupied) & known).sum()
    assert counts.occupied_ious[1] == (known & ~true & free).sum() / (known & (~true | free)).sum()
    assert np.isnan(counts.ious[0]) and counts.confusion[:, 0].sum() > 0  # predicted, but nowhere in truth


def test_surfaces_by_nearest_neighbours():
    labels = street()
    found = prediction(labels, noise=0.02).semantics
    found[:100, 18:23] = FREE  # half a wall is missed
    sums = compare_surfaces(found, labels.semantics, FREE, labels.mask_camera)
    a, b = ((np.argwhere((x != FREE) & labels.mask_camera) + 0.5) * 0.4 for x in (found, labels.semantics))
    accuracy, completeness = (cKDTree(q).query(p)[0] < 0.6 for p, q in ((a, b), (b, a)))
    assert 0.5 < sums.accuracy < 1 and 0.5 < sums.completeness < 1
    assert sums.accuracy == accuracy.mean() and sums.completeness == completeness.mean()
    assert sums.means[2] == pytest.approx(2 / (1 / sums.accuracy + 1 / sums.completeness))
    nothing = np.full_like(found, FREE)
    for pair in ((nothing, found), (found, nothing), (nothing, nothing)):
        assert compare_surfaces(*pair, FREE, labels.mask_camera).means == (0, 0, 0)


def test_classes_of_another_data_set_and_no_masks():
    """OpenOcc: 17 labels, and what is observed is not said."""
    names = ("car", *[f"class{k}" for k in range(15)], "free")
    semantics = np.minimum(street().semantics, 16)
    labels = OccupancyLabels(semantics)
    scores = OccupancyScores.of(count_sample(Occupancy(semantics, names), labels, ORIGINS), names)
    check_perfect(scores)
    assert set(scores.voxel_ious) == {"none"} and scores.surfaces == {} and len(scores.by_class) == 16


def test_a_perfect_prediction_scores_full_marks_where_what_is_unseen_is_unknown():
    """Labels of some data sets are 255 where nothing was observed: such voxels stop no rays, and count nowhere."""
    known = street()
    unknown = ~known.mask_camera & (np.random.default_rng(1).random(OCC3D_GRID.shape) < 0.5)
    labels = dataclasses.replace(known, semantics=np.where(unknown, np.uint8(255), known.semantics))
    found = Occupancy(np.where(unknown, np.uint8(FREE), known.semantics), OCC3D_CLASSES, instances=known.instances)
    counts = count_sample(found, labels, ORIGINS)
    check_perfect(OccupancyScores.of(counts, OCC3D_CLASSES))
    seen = count_sample(found, dataclasses.replace(known, semantics=found.semantics), ORIGINS)
    np.testing.assert_array_equal(counts.rays.truth, seen.rays.truth)
    np.testing.assert_array_equal(counts.segments["rays"].matched, seen.segments["rays"].matched)


def test_a_prediction_never_holds_unknown():
    labels = street()
    wrong = labels.semantics.copy()
    wrong[0, 0, 0] = 255
    with pytest.raises(EvaluationError, match="the prediction holds class 255, of 18 classes"):
        count_sample(Occupancy(wrong, OCC3D_CLASSES), labels, ORIGINS)


def test_what_cannot_be_compared_is_explained():
    labels = street()
    found = perfect(labels)

    def refused(message, found, labels):
        with pytest.raises(EvaluationError, match=message):
            count_sample(found, labels, ORIGINS)

    refused("are on", dataclasses.replace(found, grid=VoxelGrid((0, 0, 0), 0.5, (200, 200, 16))), labels)
    refused(
        "the labels hold the classes 5, 12, 16, 18, but",
        found,
        dataclasses.replace(labels, semantics=labels.semantics + 1),
    )
    refused("prepare panoptic-occ", found, dataclasses.replace(labels, instances=None))
    counts = count_sample(found, labels, ORIGINS)
    with pytest.raises(EvaluationError, match="no camera to be counted"):
        counts + count_sample(found, dataclasses.replace(labels, mask_camera=None), ORIGINS)


def test_table_and_file(tmp_path):
    labels = street()
    scores = OccupancyScores.of(count_sample(prediction(labels), labels, ORIGINS), OCC3D_CLASSES)
    lines = scores.table().splitlines()
    assert lines[0].startswith("1 samples")
    row = next(line for line in lines if line.startswith("RayIoU "))
    known = {name for name, values in scores.by_class.items() if not np.isnan(values["RayIoU@1"])}
    mean = np.mean([[scores.by_class[name][f"RayIoU@{t}"] for name in known] for t in (1, 2, 4)])
    assert float(row.split()[1]) == round(100 * mean, 2) and f"over {len(known)} of 17 classes" in row
    assert f"{100 * scores.summary['RayIoU']:.2f} with those that are predicted only, as published" in row
    assert "bus" not in known and set(scores.by_class["bus"].values()) != {0.0}
    assert len(lines) == 2 + len(scores.summary) + 2 + 17
    columns = next(line for line in lines if line.startswith("car")).split()
    assert len(columns) == 1 + len(scores.by_class["car"]) and "-" in lines[-16].split()
    assert max(map(len, lines)) < 160
    scores.write(tmp_path / "new" / "scores.json")
    document = json.loads((tmp_path / "new" / "scores.json").read_text())
    assert document["scores"] == scores.summary and document["samples"] == 1
    assert document["classes"]["bus"]["IoU, lidar mask"] is None
    assert document["classes"]["car"]["RayPQ@2"] == scores.by_class["car"]["RayPQ@2"]
