"""Score occupancy in files: results in the format of the Occ3D-nuScenes challenge, with the labels of the data set.

A result is <sample token>.npz with the array `pred` [200, 200, 16] uint8 and, for variants with instances, the array
`instances` of the same shape. What FlashOCC writes is read as well: an array without a name, and files called
<scene>/<sample token>/pred.npz.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bev_perception.data.arrays import ArraysError, names_of, read_arrays
from bev_perception.data.occupancy_labels import HIGHEST, LABELS_FOLDER, labels_path, read_labels
from bev_perception.data.records import Records
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.lidar_rays import lidar_origins
from bev_perception.evaluation.occupancy import OccupancyCounts, OccupancyScores, check_comparable, count_sample
from bev_perception.evaluation.running import whole_scenes
from bev_perception.strict import inside
from bev_perception.types import OCC3D_GRID, Occupancy

#: name of the file of scores in the output directory
SCORES_FILE = "occupancy_metrics.json"
#: what numpy calls an array that was saved without a name
UNNAMED = "arr_0"


def count_row(
    found: Occupancy, records: Records, i: int, labels: str | Path, device: torch.device | str = "cpu"
) -> OccupancyCounts:
    """Compare the occupancy of key frame i with its labels.

    found: the prediction
    records: the key frames
    i: the key frame
    labels: folder of the labels, see labels_path
    device: where rays are cast

    Raises EvaluationError if the prediction cannot be compared with the labels, NuScenesError for damaged labels.
    """
    truth = read_labels(labels_path(records.root, records.scenes[i], records.tokens[i], labels))
    try:
        return count_sample(found, truth, lidar_origins(records, i), device)
    except EvaluationError as error:
        raise EvaluationError(f"sample {records.tokens[i]} of {records.scenes[i]}: {error}") from error


def check_labels(records: Records, labels: str | Path, class_names: Sequence[str], panoptic: bool) -> None:
    """Raise EvaluationError if labels are missing, or the first ones cannot be compared with such a prediction."""
    paths = [
        labels_path(records.root, scene, token, labels)
        for scene, token in zip(records.scenes, records.tokens, strict=True)
    ]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(paths)} key frames have no occupancy labels, such as {paths[missing[0]]}; unpack "
            "them there, give the folder that they are in (--labels), or evaluate single scenes (with all their "
            f"labels here: {whole_scenes(records, missing)})"
        )
    nothing = np.full(OCC3D_GRID.shape, len(class_names) - 1, np.uint8)
    instances = np.zeros(OCC3D_GRID.shape, np.int16) if panoptic else None
    check_comparable(Occupancy(nothing, tuple(class_names), instances=instances), read_labels(paths[0]))


def find_occupancy(directory: Path, scene: str, token: str) -> Path | None:
    """Return the file of results of a key frame: <token>.npz, or <scene>/<token>/pred.npz; None if there is none.

    The first is that of the challenge and of this package, the second is what FlashOCC writes for its pictures.
    """
    places = inside(directory, f"{token}.npz"), inside(directory, scene, token) / "pred.npz"
    return next((path for path in places if path.is_file()), None)


def read_occupancy(path: Path, class_names: Sequence[str]) -> Occupancy:
    """Return the result in a file, the array `pred` or the only unnamed one; raise EvaluationError if it holds none."""
    try:
        known = read_arrays(path, ("pred", UNNAMED, "instances"))
        arrays = names_of(path)
    except (OSError, ArraysError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}); write it again") from error
    if UNNAMED in known and "pred" not in known:
        known["pred"] = known[UNNAMED]
    if "pred" not in known:
        raise EvaluationError(f"{path} holds no array 'pred' but {', '.join(arrays) or 'nothing'}")
    known.pop(UNNAMED, None)
    for name, array in known.items():
        if array.shape != OCC3D_GRID.shape or array.dtype.kind not in "ui" or array.min() < 0:
            raise EvaluationError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; it must be whole numbers from 0 on, of shape "
                f"{OCC3D_GRID.shape}"
            )
    if "instances" in known and known["instances"].max() > HIGHEST["instances"]:
        raise EvaluationError(
            f"{path}: instances holds {known['instances'].max()}; they must lie in 0 to {HIGHEST['instances']}"
        )
    if known["pred"].max() >= len(class_names):
        raise EvaluationError(
            f"{path} holds class {known['pred'].max()}, of {len(class_names)} classes; name the variant that it is of "
            "(--variant)"
        )
    return Occupancy(known["pred"].astype(np.uint8), tuple(class_names), instances=known.get("instances"))


def score_occupancy_files(
    directory: Path,
    records: Records,
    out: Path,
    class_names: Sequence[str],
    labels: str | Path = LABELS_FOLDER,
    only_predicted: float = math.nan,
) -> OccupancyScores:
    """Score a directory of results, on all cores.

    directory: must hold a result for every key frame of `records`
    records: the key frames
    out: directory for occupancy_metrics.json
    class_names: of results and labels; the last is free
    labels: folder of the labels, see labels_path
    only_predicted: see Family.only_predicted

    Raises EvaluationError for results or labels that are missing (before anything is scored) and for damaged results,
    NuScenesError for damaged labels.
    """
    paths = [
        find_occupancy(directory, scene, token) for scene, token in zip(records.scenes, records.tokens, strict=True)
    ]
    found = [path for path in paths if path is not None]
    missing = [i for i, path in enumerate(paths) if path is None]
    if missing:
        raise EvaluationError(
            f"{directory} lacks the results of {len(missing)} of the {len(paths)} samples to be scored, such as "
            f"{records.tokens[missing[0]]}.npz; score it on the split that it was made for, or on single scenes "
            f"(complete here: {whole_scenes(records, missing)})"
        )
    check_labels(records, labels, class_names, panoptic=False)

    def count(i: int) -> OccupancyCounts:
        return count_row(read_occupancy(found[i], class_names), records, i, labels)

    # unpacking, ray casting and numpy let other threads run; PyTorch shall not start more of its own in each
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        counts = tqdm(pool.map(count, range(len(found))), total=len(found), desc="scoring", unit="sample")
        scores = OccupancyScores.of(reduce(add, counts), class_names, only_predicted)
    scores.write(out / SCORES_FILE)
    return scores
