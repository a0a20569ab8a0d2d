"""Frame queues over nuScenes records: which images a model sees with a key frame; after Liu et al., ICCV 2023.

A frame of a queue is an image set, [6] indices of images; see records.Records. Occupancy models are trained and
evaluated with the same queues (Liu et al., ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bev_perception.config import FramesConfig
from bev_perception.data.drive import CAMERAS
from bev_perception.data.records import Records
from bev_perception.geometry import intrinsics_4x4, invert_transform
from bev_perception.types import CameraImage, Frame, View

#: images sets looked at on either side of a key frame
MAX_SETS = 60
#: image sets from one key frame to the next
KEY_FRAME_STEP = 6
#: the widest and the narrowest spacing of training, in image sets
TRAIN_INTERVALS = (4, 8)


def previous_sets(records: Records, i: int) -> list[np.ndarray]:
    """Return the image sets before key frame i, newest first, back to the start of its scene.

    The 6th, 12th, ... are the previous key frames.
    """
    sets: list[np.ndarray] = []
    while len(sets) < MAX_SETS and len(sweeps := records.sweeps(i)):
        sets += [*sweeps, records.cameras(i - 1)]
        i -= 1
    return sets


def next_sets(records: Records, i: int) -> list[np.ndarray]:
    """Return the image sets after key frame i, in the order of time; at a scene's end those of the next one follow.

    That they do is how the published variants with future frames were trained and scored.
    """
    sets: list[np.ndarray] = []
    for j in range(i + 1, len(records)):
        if len(sets) >= MAX_SETS:
            break
        sets += [*records.sweeps(j)[::-1], records.cameras(j)]
    return sets


def select_sets(sets: Sequence[np.ndarray], current: np.ndarray, count: int, interval: int) -> list[np.ndarray]:
    """Return `count` of the sets, one every `interval`; the last repeats where they end, `current` where none are."""
    if not sets:
        return [current] * count
    return [sets[min((k + 1) * interval, len(sets)) - 1] for k in range(count)]


def evaluation_queue(records: Records, i: int, frames: FramesConfig) -> list[np.ndarray]:
    """Return the queue of key frame i in evaluation, itself and its neighbouring key frames, in the model's order."""
    current = records.cameras(i)
    past = select_sets(previous_sets(records, i), current, frames.past, KEY_FRAME_STEP)
    future = select_sets(next_sets(records, i), current, frames.future, KEY_FRAME_STEP) if frames.future else []
    return _in_order(current, past, future, frames)


def training_queue(records: Records, i: int, frames: FramesConfig, rng: np.random.Generator) -> list[np.ndarray]:
    """Return a queue of key frame i in training, with a spacing drawn from rng, one for the whole queue."""
    current = records.cameras(i)
    past = previous_sets(records, i)
    narrow, wide = TRAIN_INTERVALS
    if frames.future:
        interval = int(rng.integers(narrow, wide + 1))
        future = select_sets(next_sets(records, i), current, frames.future, interval)
        return _in_order(current, select_sets(past, current, frames.past, interval), future, frames)
    interval = 1
    if 0 < frames.past < len(past):
        wide = min(len(past) // frames.past, wide)
        interval = int(rng.integers(min(wide, narrow), wide + 1))
    return _in_order(current, select_sets(past, current, frames.past, interval), [], frames)


def _in_order(
    current: np.ndarray, past: list[np.ndarray], future: list[np.ndarray], frames: FramesConfig
) -> list[np.ndarray]:
    at = {0: current, **{-k: s for k, s in enumerate(past, 1)}, **dict(enumerate(future, 1))}
    return [at[offset] for offset in frames.offsets]


def reference2image(records: Records, i: int, queue: Sequence[np.ndarray]) -> np.ndarray:
    """Return [T, 6, 4, 4] float64: key frame i's lidar frame to the depth-scaled pixels of every image as stored."""
    lidar2global = records.lidar2global(i)
    return np.array(
        [
            [
                intrinsics_4x4(image.calibration.intrinsics) @ invert_transform(image.sensor2global) @ lidar2global
                for image in records.images(image_set)
            ]
            for image_set in queue
        ]
    )


def read_frame(records: Records, i: int, image_set: np.ndarray | None = None) -> Frame:
    """Return key frame i, or any image set with key frame i's lidar as reference, as the frame that a live rig gives.

    The stamp and the poses of the frame are the lidar's, those of the images their own.
    Raises OSError for a file that cannot be read.
    """
    views = tuple(
        View(
            CameraImage(
                image.camera, image.stamp * 1000, image.camera, "jpeg", (records.root / image.path).read_bytes()
            ),
            image.calibration,
            image.sensor2ego,
            image.ego2global,
        )
        for image in records.images(records.cameras(i) if image_set is None else image_set)
    )
    return Frame(
        stamp=records.stamps[i] * 1000,
        cameras=CAMERAS,
        views=views,
        ego2global=records.ego2global(i),
        lidar2global=records.lidar2global(i),
    )


def training_boxes(
    records: Records, i: int, class_names: Sequence[str], pc_range: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes of key frame i that count in training, and their labels [n] int64, indices into class_names.

    Boxes [n, 9] in the lidar frame: x, y, z of the middle, length, width, height (m), yaw in [-pi, pi), vx, vy (m/s, 0
    where unknown). Left out are objects that no sensor has seen, other classes, and middles outside pc_range in x, y.
    """
    annotations = records.annotations(i)
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in annotations.names.tolist()], np.int64)
    boxes = np.concatenate([annotations.boxes, np.nan_to_num(annotations.velocities)], axis=1)
    low, high = np.array(pc_range[:2]), np.array(pc_range[3:5])
    inside = ((boxes[:, :2] > low) & (boxes[:, :2] < high)).all(axis=1)
    keep = annotations.valid & inside & (labels >= 0)
    boxes[:, 6] = (boxes[:, 6] + np.pi) % (2 * np.pi) - np.pi
    return boxes[keep], labels[keep]
