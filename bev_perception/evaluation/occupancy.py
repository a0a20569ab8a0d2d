"""Compare occupancy with its labels by lidar rays, voxels and objects.

RayIoU and RayPQ: Liu et al., ECCV 2024, section 4.  mIoU over the voxels that a sensor has observed:
Occ3D (Tian et al., NeurIPS 2023).  F-score of surfaces: Tatarchenko et al., What Do Single-view 3D Reconstruction
Networks Learn?, CVPR 2019.  All as in the code of the former, where the papers leave something open.

Scores of a data set are quotients of counts: each sample gives OccupancyCounts, counts of samples are added, and the
scores are computed from the sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import ndimage

from bev_perception.commands import command
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, OccupancyLabels, check_classes, unknown_as_free
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.lidar_rays import LidarHits, cast_lidar
from bev_perception.evaluation.segments import SegmentCounts, count_segments, truth_ids
from bev_perception.strict import ConfigError
from bev_perception.types import OCC3D_GRID, Occupancy

#: m, difference of the depths of two hits below which they agree
THRESHOLDS = (1, 2, 4)
#: the label of voxels that do not count
IGNORED = UNKNOWN_LABEL
#: fewest rays and voxels of an unmatched segment that counts
SMALLEST_OF_RAYS, SMALLEST_OF_VOXELS = 10, 20
#: elements of segments -> the score that they give
SEGMENTS = {"rays": "RayPQ", "voxels": "PQ"}
#: m, distance below which a surface counts as found
SURFACE_DISTANCE = 0.6


@dataclass(frozen=True)
class RayCounts:
    """Numbers of rays that hit something in the truth, by class (C, free included) and threshold (T).

    truth: [C] int64, by the class they hit in the truth
    found: [C] int64, by the class they hit in the prediction
    hits: [T, C] int64, rays that hit the same class in both, at depths that differ by less than each of THRESHOLDS
    """

    truth: np.ndarray
    found: np.ndarray
    hits: np.ndarray

    def __add__(self, other: RayCounts) -> RayCounts:
        """Return the counts of both."""
        return RayCounts(self.truth + other.truth, self.found + other.found, self.hits + other.hits)

    @property
    def ious(self) -> np.ndarray:
        """[T, C-1], without free; NaN for classes that are neither in the truth nor in the prediction."""
        return _divide(self.hits, self.truth + self.found - self.hits)[:, :-1]


@dataclass(frozen=True)
class VoxelCounts:
    """Numbers of voxels.

    confusion: [C+1, C] int64, by label (rows; the last one is IGNORED) and prediction (columns)
    """

    confusion: np.ndarray

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        """Return the counts of both."""
        return VoxelCounts(self.confusion + other.confusion)

    @property
    def ious(self) -> np.ndarray:
        """[C], free included; NaN for classes without a voxel in the truth, predicted or not."""
        return _ious(self.confusion[:-1])

    def ious_counting(self, only_predicted: float) -> np.ndarray:
        """Return `ious` with this value for classes that are predicted but without a voxel in the truth."""
        predicted = self.confusion[:-1].sum(axis=0) > 0
        return np.where(np.isnan(self.ious) & predicted, only_predicted, self.ious)

    @property
    def occupied_ious(self) -> np.ndarray:
        """[2], of occupied and of free voxels, over all classes; ignored ones count as free."""
        free = self.confusion.shape[1] - 1
        rows = np.add.reduceat(self.confusion, [0, free], axis=0)
        return _ious(np.add.reduceat(rows, [0, free], axis=1))


@dataclass(frozen=True)
class SurfaceSums:
    """Sums over samples.

    samples: number of samples
    accuracy: share of predicted voxels near a true one
    completeness: share of true voxels near a predicted one
    f_score: harmonic mean of both
    """

    samples: int
    accuracy: float
    completeness: float
    f_score: float

    def __add__(self, other: SurfaceSums) -> SurfaceSums:
        """Return the sums over the samples of both."""
        return SurfaceSums(
            self.samples + other.samples,
            self.accuracy + other.accuracy,
            self.completeness + other.completeness,
            self.f_score + other.f_score,
        )

    @property
    def means(self) -> tuple[float, float, float]:
        """Accuracy, completeness and F-score, averaged over samples."""
        return self.accuracy / self.samples, self.completeness / self.samples, self.f_score / self.samples


@dataclass(frozen=True)
class OccupancyCounts:
    """Counts of samples, from which scores are computed; counts of other samples can be added.

    samples: number of samples
    rays: of lidar rays
    voxels: by mask: "camera" and "lidar" where the labels have them, and "none"
    surfaces: by mask: "camera" where the labels have it
    segments: by element: "rays", and "voxels" (within the camera mask), where prediction and labels have instances
    """

    samples: int
    rays: RayCounts
    voxels: dict[str, VoxelCounts]
    surfaces: dict[str, SurfaceSums]
    segments: dict[str, SegmentCounts]

    def __add__(self, other: OccupancyCounts) -> OccupancyCounts:
        """Return the counts of both; raise EvaluationError if only one of them has a mask or segments."""
        return OccupancyCounts(
            self.samples + other.samples,
            self.rays + other.rays,
            _added(self.voxels, other.voxels),
            _added(self.surfaces, other.surfaces),
            _added(self.segments, other.segments),
        )


def count_sample(
    found: Occupancy, labels: OccupancyLabels, origins: np.ndarray, device: torch.device | str = "cpu"
) -> OccupancyCounts:
    """Compare a prediction with the labels of its key frame.

    found: the prediction
    labels: of the key frame
    origins: [n, 3], m, in the ego frame, see lidar_rays.lidar_origins
    device: where rays are cast

    Raises EvaluationError for a prediction on another grid or of other classes than the labels, and for labels without
    instances if the prediction has them.
    """
    check_comparable(found, labels)
    classes = len(found.class_names)
    # what nobody knows stops no ray, neither of the labels nor of the prediction
    known = unknown_as_free(labels.semantics, found.class_names)
    judged = np.where(labels.semantics == UNKNOWN_LABEL, np.uint8(found.free), found.semantics)
    met, truth = cast_lidar([judged, known], found.free, origins, device=device)
    masks = {"camera": labels.mask_camera, "lidar": labels.mask_lidar, "none": np.ones(found.semantics.shape, bool)}
    present = {name: mask for name, mask in masks.items() if mask is not None}
    codes = _confusion_codes(labels.semantics, found.semantics, classes)
    voxels = {name: count_voxels(codes[mask], classes) for name, mask in present.items()}
    surfaces, segments = {}, {}
    if labels.mask_camera is not None:
        surfaces["camera"] = compare_surfaces(found.semantics, labels.semantics, found.free, labels.mask_camera)
    if found.instances is not None and labels.instances is not None:
        ids = found.instances.ravel(), labels.instances.ravel()
        segments["rays"] = count_ray_segments(met, ids[0][met.voxels], truth, ids[1][truth.voxels], found.class_names)
        if labels.mask_camera is not None:
            segments["voxels"] = count_voxel_segments(found, labels, labels.mask_camera)
    return OccupancyCounts(1, count_rays(met, truth, classes), voxels, surfaces, segments)


def count_rays(found: LidarHits, truth: LidarHits, classes: int) -> RayCounts:
    """Count what the same rays hit in a prediction and in the truth; the last of `classes` is free."""
    kept = truth.labels != classes - 1
    labels = truth.labels[kept]
    near = _near(found, truth)[:, kept] & (found.labels[kept] == labels)  # [T, K]
    return RayCounts(
        _histogram(labels, classes),
        _histogram(found.labels[kept], classes),
        np.stack([_histogram(labels[within], classes) for within in near]),
    )


def count_ray_segments(
    found: LidarHits, found_ids: np.ndarray, truth: LidarHits, true_ids: np.ndarray, class_names: Sequence[str]
) -> SegmentCounts:
    """Count the segments that the same rays hit, for each of THRESHOLDS; ids: [R], the instances that rays hit."""
    classes = len(class_names)
    kept = truth.labels != classes - 1
    labels = truth.labels[kept]
    return count_segments(
        labels,
        truth_ids(labels, true_ids[kept], class_names),
        found.labels[kept],
        found_ids[kept],
        _near(found, truth)[:, kept],
        classes,
        SMALLEST_OF_RAYS,
    )


def count_voxel_segments(found: Occupancy, labels: OccupancyLabels, mask: np.ndarray) -> SegmentCounts:
    """Count the segments among the voxels of a mask [X, Y, Z], as for a single threshold; both must have instances."""
    assert found.instances is not None and labels.instances is not None
    semantics = labels.semantics[mask]
    return count_segments(
        semantics,
        truth_ids(semantics, labels.instances[mask], found.class_names),
        found.semantics[mask],
        found.instances[mask],
        np.ones((1, len(semantics)), bool),
        len(found.class_names),
        SMALLEST_OF_VOXELS,
    )


def count_voxels(codes: np.ndarray, classes: int) -> VoxelCounts:
    """Count voxels from their codes [N], see _confusion_codes."""
    counts = np.bincount(codes, minlength=(classes + 2) * classes)
    return VoxelCounts(counts.reshape(classes + 2, classes)[:-1])


def compare_surfaces(found: np.ndarray, truth: np.ndarray, free: int, mask: np.ndarray) -> SurfaceSums:
    """Compare which voxels [X, Y, Z] of a mask are occupied, with a tolerance of SURFACE_DISTANCE."""
    a, b = ((labels != free) & (truth != IGNORED) & mask for labels in (found, truth))
    if not a.any() or not b.any():
        return SurfaceSums(1, 0.0, 0.0, 0.0)
    reach = math.ceil(SURFACE_DISTANCE / OCC3D_GRID.resolution) - 1  # voxels along an axis
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1)
    ball = np.linalg.norm(offsets, axis=-1) * OCC3D_GRID.resolution < SURFACE_DISTANCE
    near_a, near_b = (ndimage.binary_dilation(occupied, ball) for occupied in (a, b))
    accuracy, completeness = float(near_b[a].mean()), float(near_a[b].mean())
    return SurfaceSums(1, accuracy, completeness, 2 / (1 / (accuracy + 1e-8) + 1 / (completeness + 1e-8)))


def _confusion_codes(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """Return the cell of every voxel in a confusion matrix [C+2, C]; rows C and C+1: ignored, and unknown labels."""
    row = np.arange(256).clip(max=classes + 1)
    row[classes:] = classes + 1
    row[IGNORED] = classes
    return row[truth] * classes + found


def _near(found: LidarHits, truth: LidarHits) -> np.ndarray:
    """Return [T, R] bool, whether the depths differ by less than each of THRESHOLDS."""
    apart = np.abs(found.depths - truth.depths)
    return np.stack([apart < np.float32(threshold) for threshold in THRESHOLDS])


def _histogram(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(labels, minlength=256)[:classes]


def _ious(confusion: np.ndarray) -> np.ndarray:
    both = np.diagonal(confusion)
    truth, found = confusion.sum(axis=1), confusion.sum(axis=0)
    return np.where(truth > 0, _divide(both, truth + found - both), np.nan)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b != 0)


Counts = TypeVar("Counts", VoxelCounts, SurfaceSums, SegmentCounts)


def _added(a: dict[str, Counts], b: dict[str, Counts]) -> dict[str, Counts]:
    if a.keys() != b.keys():
        odd = ", ".join(sorted(a.keys() ^ b.keys()))
        raise EvaluationError(f"some key frames have no {odd} to be counted, others have; are all labels of one kind?")
    return {name: a[name] + b[name] for name in a}


def check_comparable(found: Occupancy, labels: OccupancyLabels) -> None:
    """Raise EvaluationError if prediction and labels cannot be compared."""
    if found.grid != OCC3D_GRID or found.semantics.shape != OCC3D_GRID.shape:
        raise EvaluationError(f"the prediction is on {found.grid}, the labels are on {OCC3D_GRID}: not comparable")
    if found.semantics.max(initial=0) >= len(found.class_names):
        raise EvaluationError(
            f"the prediction holds class {found.semantics.max()}, of {len(found.class_names)} classes; name the "
            "variant that it is of (--variant)"
        )
    try:
        check_classes(labels.semantics, found.class_names, "the labels")
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
    if found.instances is not None and labels.instances is None:
        raise EvaluationError(
            "the variant tells objects apart, but these labels do not; write such labels with "
            f"`{command('prepare panoptic-occ')}` "
            "and give their folder (--labels)"
        )


@dataclass(frozen=True)
class OccupancyScores:
    """Scores of a data set, in 0..1; NaN where they are not defined.

    samples: number of samples
    class_names: the last is free
    ray_ious: [T, C-1]
    voxel_ious: mask -> [C-1]
    occupied_ious: mask -> IoU of occupied space over all classes
    surfaces: mask -> accuracy, completeness, F-score
    qualities: "rays" -> [T, C] RayPQ, "voxels" -> [1, C]; empty for a variant without instances
    present: score -> [C-1] bool, the classes that the truth has: by "RayIoU", "RayPQ", "PQ", and by mask
    """

    samples: int
    class_names: tuple[str, ...]
    ray_ious: np.ndarray
    voxel_ious: dict[str, np.ndarray]
    occupied_ious: dict[str, float]
    surfaces: dict[str, tuple[float, float, float]]
    qualities: dict[str, np.ndarray]
    present: dict[str, np.ndarray]

    @staticmethod
    def of(counts: OccupancyCounts, class_names: Sequence[str], only_predicted: float = math.nan) -> OccupancyScores:
        """Compute the scores from counts.

        only_predicted: IoU over voxels of a class that is predicted but not in the truth, see Family.only_predicted
        """
        return OccupancyScores(
            counts.samples,
            tuple(class_names),
            counts.rays.ious,
            {mask: voxels.ious_counting(only_predicted)[:-1] for mask, voxels in counts.voxels.items()},
            {mask: float(voxels.occupied_ious[0]) for mask, voxels in counts.voxels.items()},
            {mask: sums.means for mask, sums in counts.surfaces.items()},
            {of: segments.quality for of, segments in counts.segments.items()},
            {"RayIoU": counts.rays.truth[:-1] > 0}
            | {SEGMENTS[of]: segments.present[:-1] for of, segments in counts.segments.items()}
            | {mask: voxels.confusion[:-1].sum(axis=1)[:-1] > 0 for mask, voxels in counts.voxels.items()},
        )

    def of_present(self) -> OccupancyScores:
        """Return the same scores, undefined for classes that the truth does not have, predicted or not."""
        return replace(
            self,
            ray_ious=_only(self.ray_ious, self.present["RayIoU"]),
            voxel_ious={mask: _only(ious, self.present[mask]) for mask, ious in self.voxel_ious.items()},
            qualities={
                of: _only(quality, np.append(self.present[SEGMENTS[of]], True))
                for of, quality in self.qualities.items()
            },
        )

    @property
    def summary(self) -> dict[str, float]:
        """The scores over all classes, by name; a class that is only predicted counts as the publications have it."""
        found = _by_threshold("RayIoU", self.ray_ious)
        if "rays" in self.qualities:
            found |= _by_threshold("RayPQ", self.qualities["rays"])
        found |= {f"mIoU, {_over(mask)}": _mean(ious) for mask, ious in self.voxel_ious.items()}
        found |= {f"occupied IoU, {_over(mask)}": iou for mask, iou in self.occupied_ious.items()}
        for mask, values in self.surfaces.items():
            names = ("accuracy", "completeness", "F-score")
            found |= {f"{name}, {_over(mask)}": value for name, value in zip(names, values, strict=True)}
        if "voxels" in self.qualities:
            found["voxel PQ, camera mask"] = _mean(self.qualities["voxels"])
        return found

    @property
    def by_class(self) -> dict[str, dict[str, float]]:
        """Class -> its scores, by name; NaN for a class that the truth does not have."""
        known = self.of_present()
        columns = {f"RayIoU@{t}": ious for t, ious in zip(THRESHOLDS, known.ray_ious, strict=True)}
        if "rays" in known.qualities:
            columns |= {f"RayPQ@{t}": q for t, q in zip(THRESHOLDS, known.qualities["rays"], strict=True)}
        columns |= {f"IoU, {_over(mask)}": ious for mask, ious in known.voxel_ious.items()}
        if "voxels" in known.qualities:
            columns["PQ, camera mask"] = known.qualities["voxels"][0]
        return {
            name: {column: float(values[label]) for column, values in columns.items()}
            for label, name in enumerate(self.class_names[:-1])
        }

    def table(self) -> str:
        """Return the scores in percent as a readable table: first over all classes, then a line for each class.

        Means are over the classes that the truth has; where the publications' mean differs, it stands beside.
        """
        lines = [f"{self.samples} samples; all in percent", ""]
        published = self.summary
        for name, value in self.of_present().summary.items():
            beside = self._classes_of(name)
            if beside and _percent(value) != _percent(published[name]):
                beside += f"; {_percent(published[name])} with those that are predicted only, as published"
            lines.append(f"{name:28}{_percent(value):>7}{beside}")
        rows = self.by_class
        heads = [
            head.replace(" mask", "").replace(" voxels", "").replace(",", "") for head in next(iter(rows.values()))
        ]
        lines += ["", f"{'class':22}" + "".join(f"{head:>12}" for head in heads)]
        for name, values in rows.items():
            lines.append(f"{name:22}" + "".join(f"{_percent(value):>12}" for value in values.values()))
        return "\n".join(lines)

    def _classes_of(self, score: str) -> str:
        """Return over how many classes a mean is, as text; "" if over all, or if it is no mean over classes."""
        names = {"RayIoU": "RayIoU", "RayPQ": "RayPQ", "voxel PQ": "PQ"}
        names |= {f"mIoU, {_over(mask)}": mask for mask in self.voxel_ious}
        which = names.get(score) or names.get(score.split(",")[0].split("@")[0])
        if which is None or self.present[which].all():
            return ""
        return f"  over {self.present[which].sum()} of {len(self.present[which])} classes"

    def write(self, path: Path) -> None:
        """Write the scores as JSON, in 0..1; null where they are not defined."""
        document: dict[str, Any] = {
            "samples": self.samples,
            "scores": _without_nan(self.summary),
            "scores_of_present_classes": _without_nan(self.of_present().summary),
            "classes": {name: _without_nan(values) for name, values in self.by_class.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1))


def _by_threshold(name: str, values: np.ndarray) -> dict[str, float]:
    """Return the mean of values [T, C] and those of each threshold."""
    return {name: _mean(values)} | {f"{name}@{t}": _mean(v) for t, v in zip(THRESHOLDS, values, strict=True)}


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _only(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return values [..., C] with NaN for classes that are not present [C]."""
    return np.where(present, values, np.nan)


def _over(mask: str) -> str:
    return "all voxels" if mask == "none" else f"{mask} mask"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _without_nan(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
