"""Initial anchors of a detector: clusters of where the boxes of a data set are (Lin et al., arXiv 2211.10581, 2022)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bev_perception.commands import command
from bev_perception.data.records import Records
from bev_perception.files import whole_file
from bev_perception.strict import UserError, check_regular

#: numbers of an anchor: centre x, y, z (m), logarithms of length, width and height (m), sine and cosine of its yaw,
#: velocity x, y, z (m/s)
ANCHOR_SIZE = 11


def cluster_anchors(boxes: np.ndarray, count: int, max_distance: float, seed: int) -> np.ndarray:
    """Return anchors [count, 11] float32 at the centres of clusters of boxes (k-means), all of the mean size.

    boxes: [n, 7 or more], x, y, z, length, width, height of boxes in the reference frame, m.
    count: number of anchors.
    max_distance: boxes farther from the origin are left out, m.
    seed: of the start of the clustering.

    Raises UserError if there are fewer boxes than anchors, or if scikit-learn is missing.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise UserError(f"clustering needs scikit-learn ({error}); pip install bev_perception[nuscenes]") from error
    near = boxes[np.linalg.norm(boxes[:, :3], axis=1) <= max_distance]
    if len(near) < count:
        raise UserError(
            f"{count} anchors need as many boxes within {max_distance:g} m, but there are {len(near)}; use more scenes"
        )
    anchors = np.zeros((count, ANCHOR_SIZE), np.float32)
    anchors[:, :3] = KMeans(count, random_state=seed).fit(near[:, :3]).cluster_centers_
    anchors[:, 3:6] = np.log(near[:, 3:6].mean(axis=0))
    anchors[:, 7] = 1.0  # cosine of yaw 0
    return anchors


def annotated_boxes(records: Records) -> np.ndarray:
    """Return the boxes [n, 7] of all key frames in their lidar frames, whatever their class; see Annotations."""
    return np.concatenate([records.annotations(i).boxes for i in range(len(records))])


def write_anchors(anchors: np.ndarray, path: Path) -> None:
    """Write anchors as a .npy file, completely or not at all."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, anchors)


def read_anchors(path: str | Path, count: int) -> np.ndarray:
    """Return anchors [count, 11] float32 from a .npy file.

    Raises UserError for a file that is missing, damaged, or holds other numbers.
    """
    remedy = f"make one with `{command(f'prepare anchors --count {count}')}`"
    try:
        check_regular(Path(path))
        anchors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the anchors {path} cannot be read ({error}); {remedy}") from error
    if not isinstance(anchors, np.ndarray) or anchors.shape != (count, ANCHOR_SIZE) or anchors.dtype.kind != "f":
        raise UserError(f"{path} does not hold {count} anchors of {ANCHOR_SIZE} numbers; {remedy}")
    if not np.isfinite(anchors).all():
        raise UserError(f"{path} holds NaN or infinity; {remedy}")
    return anchors.astype(np.float32)
