"""Add instances to semantic occupancy labels, from the boxes of the key frame (Liu et al., ECCV 2024)."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.data.folders import one_writer
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import check_classes, labels_path, read_labels, write_labels
from bev_perception.data.records import Annotations, Records
from bev_perception.geometry import rotation_from_yaw, transform_points
from bev_perception.types import OCC3D_GRID

LOG = logging.getLogger(__name__)

#: m, added to length, width and height of a box to collect voxels that lie in no box
MARGIN = 0.8


def instances_from_boxes(
    semantics: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    lidar2ego: np.ndarray,
    class_names: Sequence[str] = OCC3D_CLASSES,
) -> np.ndarray:
    """Return the instance [X, Y, Z] of each voxel on OCC3D_GRID: numbers from 1 on; 0: free, or no instance.

    A voxel belongs to the first box of its class that contains its centre. A voxel in no box belongs to the nearest box
    of its class that has a voxel already and contains its centre when enlarged by MARGIN; without such a box it belongs
    to no instance. A class that is never annotated with boxes is one instance.

    semantics: [X, Y, Z], classes as indices into class_names
    boxes: [n, 7], in the lidar frame, as in Annotations
    names: [n], classes of the boxes
    lidar2ego: [4, 4]
    class_names: the last is free
    """
    free = len(class_names) - 1
    voxels = np.argwhere(semantics != free)  # [v, 3]
    labels = semantics[semantics != free]
    low, size = np.array(OCC3D_GRID.origin), OCC3D_GRID.resolution
    points = ((voxels + 0.5) * size + low).astype(np.float32)  # [v, 3], m in the ego frame
    centers = transform_points(lidar2ego, boxes[:, :3])
    ids = np.zeros(len(voxels), np.int16)
    count = 0

    def inside(box: int, margin: float) -> np.ndarray:
        """Return [v] bool, the voxels of the class of the box that are in it."""
        found = labels == class_names.index(names[box])
        axes = lidar2ego[:3, :3] @ rotation_from_yaw(boxes[box, 6])  # its length, width and height in the ego frame
        found[found] = (np.abs((points[found] - centers[box]) @ axes) <= (boxes[box, 3:6] + margin) / 2).all(axis=1)
        return found

    id_of: dict[int, int] = {}
    for box, name in enumerate(names):
        if name not in class_names:
            continue
        taken = inside(box, 0.0) & (ids == 0)
        if taken.any():
            count += 1
            id_of[box] = count
            ids[taken] = count
    for label, name in enumerate(class_names[:free]):
        taken = labels == label
        if name not in NUSCENES_CLASSES and taken.any():
            count += 1
            ids[taken] = count
    left = ids == 0
    distance = np.full(len(voxels), np.inf)  # [v], m, to the middle of the nearest box so far
    for box, number in id_of.items():
        taken = left & inside(box, MARGIN)
        away = np.linalg.norm(points[taken] - centers[box], axis=1)
        nearer = away < distance[taken]
        taken[taken] = nearer
        distance[taken], ids[taken] = away[nearer], number
    instances = np.zeros(semantics.shape, np.uint8 if count < 256 else np.int16)
    instances[tuple(voxels.T)] = ids
    return instances


def prepare_panoptic(records: Records, labels: str | Path, out: Path, threads: int) -> int:
    """Write labels with instances to out/<scene>/<token>/labels.npz for all key frames; return how many were written.

    Complete files in `out` are kept.

    records: the key frames
    labels: folder of the labels of Occ3D, see labels_path
    out: directory to write to
    threads: number of key frames at a time

    Raises NuScenesError if the labels of some key frames are missing or damaged, and ConfigError for labels of other
    classes than Occ3D's; all others are written before.
    """

    def prepare(i: int) -> str | bool:
        """Write one key frame; return whether it was written, or why that is impossible."""
        scene, token = records.scenes[i], records.tokens[i]
        target = labels_path(out, scene, token, "")
        if _is_complete(target):
            return False
        path = labels_path(records.root, scene, token, labels)
        try:
            source = read_labels(path)
        except NuScenesError as error:
            return str(error)
        check_classes(source.semantics, OCC3D_CLASSES, str(path))
        annotations: Annotations = records.annotations(i)
        instances = instances_from_boxes(
            source.semantics, annotations.boxes, annotations.names.tolist(), records.lidar2ego(i)
        )
        write_labels(target, replace(source, instances=instances))
        return True

    with (
        one_writer(out, "*/*/labels.*.part.npz"),
        ThreadPoolExecutor(threads) as pool,
    ):  # numpy and zlib release the interpreter's lock
        found = pool.map(prepare, range(len(records)))
        done = list(tqdm(found, total=len(records), desc="panoptic labels", unit="key frame"))
    written = sum(result is True for result in done)
    impossible = [result for result in done if isinstance(result, str)]
    if impossible:
        raise NuScenesError(
            f"{len(impossible)} of {len(records)} key frames have no panoptic labels now ({written} were written), "
            f"the first because: {impossible[0]}; complete the labels and run this again"
        )
    LOG.info("%d of %d key frames were there already", len(records) - written, len(records))
    return written


def _is_complete(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:  # reads the directory at its end, which a part of a file lacks
            return "instances.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
