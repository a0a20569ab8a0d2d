"""Occupancy in files: labels as Occ3D-nuScenes (Tian et al., NeurIPS 2023) lays them out, and results beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bev_perception.data.arrays import ArraysError, names_of, read_arrays
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.files import whole_file
from bev_perception.strict import ConfigError, inside
from bev_perception.types import OCC3D_GRID, Occupancy

#: the folder under a nuScenes dataroot that Occ3D's archive unpacks to
LABELS_FOLDER = "gts"
#: of semantics in labels: nobody knows what is there. It is no target of training, stops no rays and counts in no score
UNKNOWN_LABEL = 255
#: largest values in labels; masks are 0 and 1
HIGHEST = {"semantics": UNKNOWN_LABEL, "instances": np.iinfo(np.int16).max}


@dataclass(frozen=True)
class OccupancyLabels:
    """The labels of one key frame on OCC3D_GRID, in the ego frame at the lidar's stamp.

    semantics: [X, Y, Z] uint8, indices into the data set's classes, the last of which is free space; or UNKNOWN_LABEL.
    mask_lidar, mask_camera: [X, Y, Z] bool, what the lidar and what the cameras observed; None where the file has none.
    instances: [X, Y, Z] integer, the same number for all voxels of an object, from 1 on; 0: free, or no object. None
    where the file tells no objects apart.
    """

    semantics: np.ndarray
    mask_lidar: np.ndarray | None = None
    mask_camera: np.ndarray | None = None
    instances: np.ndarray | None = None


def labels_path(root: Path, scene: str, token: str, folder: str | Path = LABELS_FOLDER) -> Path:
    """Return where the labels of a key frame are: scene by its name, key frame by its sample's token.

    folder: relative to the dataroot, or a path of its own.
    """
    return inside(Path(root) / folder, scene, token) / "labels.npz"


def read_labels(path: Path) -> OccupancyLabels:
    """Return the labels of a file; raise NuScenesError, naming cause and remedy, if it is missing or damaged."""
    names = ("semantics", "mask_lidar", "mask_camera", "instances")
    try:
        known = read_arrays(path, names)
        arrays = names_of(path)
    except FileNotFoundError as error:
        raise NuScenesError(
            f"there are no occupancy labels at {path}; unpack the labels so that they lie at "
            "<folder>/<scene>/<token>/labels.npz, and give that folder if it is not the usual one"
        ) from error
    except ArraysError as error:
        raise NuScenesError(f"{path} is damaged ({error}); unpack it again") from error
    if "semantics" not in known:
        raise NuScenesError(f"{path} holds no array 'semantics' but {', '.join(arrays) or 'nothing'}; unpack it again")
    for name, array in known.items():
        kinds = "ui" if name in HIGHEST else "uib"
        if array.shape != OCC3D_GRID.shape or array.dtype.kind not in kinds:
            raise NuScenesError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}; it must be whole numbers of shape "
                f"{OCC3D_GRID.shape}; are these labels in the layout of Occ3D?"
            )
        low, high, highest = int(array.min()), int(array.max()), HIGHEST.get(name, 1)
        if low < 0 or high > highest:
            raise NuScenesError(
                f"{path}: {name} holds values from {low} to {high}; they must lie in 0 to {highest}; are these "
                "labels in the layout of Occ3D?"
            )
    masks = {name: array.astype(bool) for name, array in known.items() if name.startswith("mask_")}
    return OccupancyLabels(known["semantics"].astype(np.uint8), instances=known.get("instances"), **masks)


def check_classes(semantics: np.ndarray, class_names: Sequence[str], what: str) -> None:
    """Raise ConfigError for labels of other classes than these, the last of which is free space.

    semantics: uint8 of any shape, with UNKNOWN_LABEL where nobody knows.
    what: the labels, as the message names them, such as their path.
    """
    present = np.flatnonzero(np.bincount(semantics.ravel(), minlength=UNKNOWN_LABEL + 1)[:UNKNOWN_LABEL])
    free = len(class_names) - 1
    if present.size and present[-1] != free:  # some space is always free: without it, free has another number
        raise ConfigError(
            f"{what} hold the classes {', '.join(map(str, present))}, but they must be of {len(class_names)} classes, "
            f"the last of which ({free}, {class_names[-1]}) is free space and always occurs; give the labels "
            "(--labels) that the variant is meant for, or the variant that is meant for them"
        )


def unknown_as_free(semantics: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return labels with free space, the last class, in the place of UNKNOWN_LABEL."""
    return np.where(semantics == UNKNOWN_LABEL, np.uint8(len(class_names) - 1), semantics)


def write_labels(path: Path, labels: OccupancyLabels) -> None:
    """Write a file that read_labels reads, whole or not at all."""
    arrays = {
        name: array.astype(np.uint8) if array.dtype == bool else array
        for name, array in vars(labels).items()
        if array is not None
    }
    with whole_file(path) as partial:
        np.savez_compressed(partial, **arrays)


def write_occupancy(occupancy: Occupancy, directory: Path, name: str) -> None:
    """Write what a variant says of one frame, called `name`; the file appears when it is complete.

    It is the format of the challenge on Occ3D-nuScenes: <name>.npz with the labels `pred` [X, Y, Z] uint8, and beside
    them `instances` where objects are told apart.
    """
    arrays = {"pred": occupancy.semantics}
    if occupancy.instances is not None:
        arrays["instances"] = occupancy.instances
    with whole_file(inside(directory, f"{name}.npz")) as partial:
        np.savez_compressed(partial, **arrays)
