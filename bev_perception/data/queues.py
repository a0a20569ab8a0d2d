"""Frame queues over nuScenes records: which images a model sees with a key frame; after Liu et al., ICCV 2023.

A frame of a queue is an image set, [N] indices of images; see records.Records. Occupancy models are trained and
evaluated with the same queues (Liu et al., ECCV 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bev_perception.config import FramesConfig
from bev_perception.data.records import Records
from bev_perception.strict import read_regular
from bev_perception.types import CameraImage, Cameras, Frame, View

#: image sets after which no more are collected before or after a key frame
MAX_SETS = 60
#: distance between key frames, in image sets
KEY_FRAME_STEP = 6
#: narrowest and widest spacing of the frames in training, in image sets
TRAIN_INTERVALS = (4, 8)


def previous_sets(records: Records, i: int) -> list[np.ndarray]:
    """Return the image sets before key frame i, newest first, not beyond the start of its scene.

    The 6th, 12th, ... are key frames.
    """
    sets: list[np.ndarray] = []
    while len(sets) < MAX_SETS and len(sweeps := records.sweeps(i)):
        sets += [*sweeps, records.cameras(i - 1)]
        i -= 1
    return sets


def next_sets(records: Records, i: int) -> list[np.ndarray]:
    """Return the image sets after key frame i, in order of time; they continue into the next scene.

    The published variants with future frames were trained and scored across the end of a scene, too.
    """
    sets: list[np.ndarray] = []
    for j in range(i + 1, len(records)):
        if len(sets) >= MAX_SETS:
            break
        sets += [*records.sweeps(j)[::-1], records.cameras(j)]
    return sets


def select_sets(sets: Sequence[np.ndarray], current: np.ndarray, count: int, interval: int) -> list[np.ndarray]:
    """Return `count` of the sets, `interval` apart; the last set repeats at the end, `current` if there are no sets."""
    if not sets:
        return [current] * count
    return [sets[min((k + 1) * interval, len(sets)) - 1] for k in range(count)]


def evaluation_queue(records: Records, i: int, frames: FramesConfig) -> list[np.ndarray]:
    """Return the queue of key frame i for evaluation: itself and its neighbours, in the order of the model."""
    current = records.cameras(i)
    past = select_sets(previous_sets(records, i), current, frames.past, KEY_FRAME_STEP)
    future = select_sets(next_sets(records, i), current, frames.future, KEY_FRAME_STEP) if frames.future else []
    return _in_order(current, past, future, frames)


def training_queue(records: Records, i: int, frames: FramesConfig, rng: np.random.Generator) -> list[np.ndarray]:
    """Return a queue of key frame i for training, with one random spacing for the whole queue."""
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


def key_frame_queue(records: Records, i: int, frames: FramesConfig, spacing: int) -> list[np.ndarray]:
    """Return a queue of key frame i for training, with past frames that are key frames of its scene.

    spacing: of the frames, in key frames
    """
    queue = [records.cameras(i)]
    for k in range(i - spacing, i - spacing * (frames.past + 1), -spacing):
        if k >= 0 and records.scenes[k] == records.scenes[i]:
            queue.append(records.cameras(k))
        else:
            queue.append(queue[0 if frames.missing == "current" else -1])
    return queue


def _in_order(
    current: np.ndarray, past: list[np.ndarray], future: list[np.ndarray], frames: FramesConfig
) -> list[np.ndarray]:
    at = {0: current, **{-k: s for k, s in enumerate(past, 1)}, **dict(enumerate(future, 1))}
    return [at[offset] for offset in frames.offsets]


def stored_cameras(records: Records, queue: Sequence[np.ndarray]) -> Cameras:
    """Return the matrices, all [T, N, ...], of the cameras of a queue, for its images as they are stored."""
    images = [image for image_set in queue for image in records.images(image_set)]
    shape = (len(queue), -1)
    return Cameras(
        intrinsics=np.stack([image.calibration.intrinsics for image in images]).reshape(*shape, 3, 3),
        source2image=np.tile(np.eye(4), (len(images), 1, 1)).reshape(*shape, 4, 4),
        sensor2ego=np.stack([image.sensor2ego for image in images]).reshape(*shape, 4, 4),
        ego2global=np.stack([image.ego2global for image in images]).reshape(*shape, 4, 4),
    )


def reference2image(records: Records, i: int, queue: Sequence[np.ndarray]) -> np.ndarray:
    """Return [T, N, 4, 4] float64: lidar frame of key frame i to depth-scaled pixels of the images as stored."""
    return stored_cameras(records, queue).global2image @ records.lidar2global(i)


def read_frame(records: Records, i: int, image_set: np.ndarray | None = None) -> Frame:
    """Return key frame i as a live rig would give it.

    Stamp and pose of the frame are those of the lidar; each view has its own.

    records: the key frames
    i: the key frame
    image_set: other images to take, with key frame i as their reference; None: its own images

    Raises OSError for a file that cannot be read.
    """
    views = tuple(
        View(
            CameraImage(
                image.camera, image.stamp * 1000, image.camera, "jpeg", read_regular(records.root / image.path)
            ),
            image.calibration,
            image.sensor2ego,
            image.ego2global,
        )
        for image in records.images(records.cameras(i) if image_set is None else image_set)
    )
    return Frame(
        stamp=records.stamps[i] * 1000,
        cameras=records.camera_names,
        views=views,
        ego2global=records.ego2global(i),
        lidar2global=records.lidar2global(i),
    )


def training_boxes(
    records: Records, i: int, class_names: Sequence[str], pc_range: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes [n, 9] and labels [n] of key frame i for training.

    Boxes are in the lidar frame: x, y, z of the centre, length, width, height (m), yaw in [-pi, pi) (rad), vx, vy (m/s,
    0 where unknown). Labels are int64 indices into class_names. Objects without a lidar or radar point, of other
    classes, or with centres outside of pc_range in x or y are left out.

    records: the key frames
    i: the key frame
    class_names: the classes of the variant
    pc_range: x, y, z low, then high, m
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
