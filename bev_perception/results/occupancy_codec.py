"""Encode an occupancy for the message bev_perception/SemanticOccupancy and decode it, without ROS and PyTorch.

The layout is documented in msg/SemanticOccupancy.msg. Any object with these fields can be decoded: a message of rclpy,
of rosbags, or of another DDS library whose arrays are lists.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bev_perception.strict import UserError
from bev_perception.types import Occupancy, VoxelGrid

#: the longest run that one entry can hold
LONGEST_RUN = 255


class Runs(NamedTuple):
    """The voxels of an occupancy as a run-length encoding, x fastest and z slowest.

    labels: [r] uint8, class of each run
    lengths: [r] uint8, number of voxels in each run, 1 to LONGEST_RUN
    instances: [r] int16, object of each run; empty if the occupancy does not distinguish objects
    """

    labels: np.ndarray
    lengths: np.ndarray
    instances: np.ndarray


def encode(occupancy: Occupancy) -> Runs:
    """Return the occupancy's voxels as runs.

    Raises ValueError for arrays that do not fit the grid, labels without a class name, and negative instances.
    """
    shape, classes = tuple(occupancy.grid.shape), len(occupancy.class_names)
    if min(shape) < 1 or not 1 <= classes <= 256:
        raise ValueError(f"a grid of {shape} voxels with {classes} classes cannot be encoded; 1 to 256 classes can")
    labels = _flatten(occupancy.semantics, shape, classes - 1, "semantics").astype(np.uint8, copy=False)
    changes = labels[1:] != labels[:-1]
    instances = np.empty(0, np.int16)
    if occupancy.instances is not None:
        highest = np.iinfo(np.int16).max
        instances = _flatten(occupancy.instances, shape, highest, "instances").astype(np.int16, copy=False)
        changes |= instances[1:] != instances[:-1]

    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=labels.size)
    pieces = -(-lengths // LONGEST_RUN)  # [r]: number of entries that each run takes
    cut = np.full(pieces.sum(), LONGEST_RUN, np.uint8)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * LONGEST_RUN  # the last entry of a run holds the rest
    starts = np.repeat(starts, pieces)
    return Runs(labels[starts], cut, instances[starts] if instances.size else instances)


def decode(message: Any) -> Occupancy:
    """Return the occupancy in a message; its frame and stamp are in message.header.

    Memory use is at most a few hundred times the size of the message, however large a grid it claims to have.

    Raises UserError, naming the field, for a message that does not follow the layout.
    """
    grid, class_names = _grid(message), tuple(message.class_names)
    if not 1 <= len(class_names) <= 256:
        raise UserError(f"class_names holds {len(class_names)} names; 1 to 256 are possible")
    labels = _values(message.run_labels, np.uint8, "run_labels", len(class_names) - 1)
    lengths = _values(message.run_lengths, np.uint8, "run_lengths", LONGEST_RUN)
    instances = _values(message.run_instances, np.int16, "run_instances", np.iinfo(np.int16).max)
    if len(labels) != len(lengths):
        raise UserError(f"run_labels has {len(labels)} entries, run_lengths {len(lengths)}; they must be as many")
    if len(instances) not in (0, len(lengths)):
        raise UserError(f"run_instances has {len(instances)} entries; it must be empty or have {len(lengths)}")
    voxels, total = math.prod(grid.shape), int(lengths.sum(dtype=np.int64))
    if total != voxels:
        raise UserError(f"run_lengths add up to {total} voxels, the shape {grid.shape} has {voxels}")
    if not lengths.all():
        raise UserError("run_lengths holds a run of no voxels; each has 1 to 255")
    return Occupancy(
        semantics=_unflatten(np.repeat(labels, lengths), grid.shape),
        class_names=class_names,
        grid=grid,
        instances=_unflatten(np.repeat(instances, lengths), grid.shape) if len(instances) else None,
    )


def _flatten(values: np.ndarray, shape: tuple[int, ...], highest: int, name: str) -> np.ndarray:
    """Check values [X, Y, Z] and return them as [X * Y * Z], x fastest."""
    if values.shape != shape:
        raise ValueError(f"{name} are {values.shape}, the grid is {shape}; they must be equal")
    _check_range(values, highest, name)
    return values.ravel(order="F")


def _unflatten(flat: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return flat values [X * Y * Z], x fastest, as a contiguous array [X, Y, Z]."""
    return np.ascontiguousarray(flat.reshape(shape, order="F"))


def _grid(message: Any) -> VoxelGrid:
    shape = tuple(int(size) for size in message.shape)
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"shape is {shape}; it must be three numbers of at least 1")
    origin = (float(message.origin.x), float(message.origin.y), float(message.origin.z))
    resolution = float(message.resolution)
    if not all(map(math.isfinite, (*origin, resolution))) or resolution <= 0:
        raise UserError(f"origin is {origin}, resolution {resolution} m; they must be finite, resolution positive")
    return VoxelGrid(origin, resolution, (shape[0], shape[1], shape[2]))


def _values(values: Any, dtype: type[np.integer], name: str, highest: int) -> np.ndarray:
    """Check a message field and return it as an array [r] of dtype; arrays of rclpy and rosbags are not copied."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(f"{name} must be a sequence of whole numbers")
    _check_range(array, highest, name)
    return array.astype(dtype, copy=False)


def _check_range(values: np.ndarray, highest: int, name: str) -> None:
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= highest:
        raise UserError(f"{name} reaches from {values.min()} to {values.max()}; 0 to {highest} is possible")
