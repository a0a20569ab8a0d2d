"""nuScenes as training data: key frames with their frame queues, images, augmentation and ground truth."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bev_perception.config import ConfigError, TrainingConfig, VariantConfig
from bev_perception.data.augment import augment_matrices, draw_bev, draw_image_transform
from bev_perception.data.drive import NUSCENES_IMAGE_SIZE
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.data.queues import evaluation_queue, key_frame_queue, read_frame, stored_cameras, training_queue
from bev_perception.data.records import Records
from bev_perception.families.catalog import family_of, gives
from bev_perception.families.family import BOXES
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.preprocess import resample_image
from bev_perception.supervision.samples import EncodableData, Encode, TrainingSample
from bev_perception.supervision.truths import Sight
from bev_perception.training.state import TrainingError
from bev_perception.types import Calibration

LOG = logging.getLogger(__name__)

#: replacements tried for an unusable sample before it is an error
MAX_REPLACEMENTS = 20
#: ns
YEAR = 365 * 24 * 3600 * 10**9


class NuScenesTraining:
    """Key frames as training samples of a variant.

    A key frame without usable ground truth is replaced by a random other one, and so is one with a missing or damaged
    file, which is logged as a warning. Too many unusable key frames in a row are an error.
    """

    def __init__(self, config: VariantConfig, records: Records, labels: str | Path = LABELS_FOLDER) -> None:
        """Open the ground truth.

        labels: folder of occupancy labels, see labels_path; unused by detectors.

        Raises ConfigError for a variant without a training recipe, or with one that the data set does not support.
        """
        if config.training is None:
            raise ConfigError(f"{config.name} says nothing of its training; add the entry 'training' to its file")
        self._config = config
        self._recipe: TrainingConfig = config.training
        self._records, self._labels = records, labels
        self._truths = family_of(config).truths(config, records, labels)

    def __len__(self) -> int:
        """Return the number of key frames."""
        return len(self._records)

    def encoded(self, encode: Encode, folder: Path, part: int, parts: int) -> EncodedTraining:
        """See EncodableData."""
        folder.mkdir(parents=True, exist_ok=True)
        data = EncodedTraining(self._config, self._records, self._labels, folder, part, parts)
        data.write(encode)
        return data

    def sequences(self) -> list[list[int]]:
        """Return the key frames of each scene, in order of time."""
        scenes: dict[str, list[int]] = {}
        for index, scene in enumerate(self._records.scenes):
            scenes.setdefault(scene, []).append(index)
        return list(scenes.values())

    def classes(self, index: int) -> set[int]:
        """Return the classes of the valid boxes of key frame `index`."""
        annotations = self._records.annotations(index)
        names = set(annotations.names[annotations.valid].tolist())
        return {label for label, name in enumerate(self._config.class_names) if name in names}

    def sample(
        self, index: int, rng: np.random.Generator, augmentation: np.random.Generator | None = None
    ) -> TrainingSample:
        """Return key frame `index`, or its replacement, augmented; see TrainingData.

        Raises NuScenesError if MAX_REPLACEMENTS replacements cannot be used either.
        """
        reason = ""
        drawn = {} if augmentation is None else augmentation.bit_generator.state
        for _ in range(1 + MAX_REPLACEMENTS):
            if augmentation is not None:  # a replacement is changed as the sequence that it stands in
                augmentation.bit_generator.state = drawn
            try:
                sample = self._read(index, rng, augmentation or rng)
                if sample is not None:
                    return sample
                reason = f"there is nothing to learn from key frame {self._records.tokens[index]}"
            except (OSError, ImageError, NuScenesError) as error:
                reason = str(error)
                LOG.warning("%s; another key frame takes its place", reason)
            index = int(rng.integers(len(self)))
        raise NuScenesError(
            f"{1 + MAX_REPLACEMENTS} key frames in a row cannot be used, the last because: {reason}; "
            "complete the data set"
        )

    def _read(self, index: int, rng: np.random.Generator, augmentation: np.random.Generator) -> TrainingSample | None:
        records = self._records
        queue = self._queue(index, rng)
        cameras = stored_cameras(records, queue)
        transforms = self._transforms([(c.height, c.width) for c in self._calibrations(queue)], augmentation)
        cameras.source2image[:] = [transform.ida for transform in transforms]
        world = draw_bev(augmentation, self._recipe.bev)
        reference2global = self._reference2global(index)
        size = self._config.image
        sight = Sight(world, cameras.global2image[0] @ reference2global, (size.height, size.width))
        truth = self._truths.read(index, sight)
        if truth is None:
            return None
        stamps = np.array([records.image_stamps(image_set) for image_set in queue])  # [T, N] us
        return TrainingSample(
            images=self._images(index, queue, transforms),
            cameras=cameras,
            reference2global=augment_matrices(reference2global, world),
            time_differences=(stamps[:1] - stamps).mean(axis=1) / 1e6,
            stamp=records.stamps[index] * 1000,
            world=world.matrix,
            truth=truth,
        )

    def _queue(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the image sets [N] of the model's frames, see queues."""
        frames, spacings = self._config.frames, self._recipe.key_frames
        if spacings is None:
            return training_queue(self._records, index, frames, rng)
        return key_frame_queue(self._records, index, frames, int(rng.integers(spacings[0], spacings[1] + 1)))

    def _calibrations(self, queue: Sequence[np.ndarray]) -> list[Calibration]:
        return [image.calibration for image in self._records.images(queue[0])]

    def _transforms(self, sizes: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[ImageTransform]:
        """Return how each camera's images are resized, cropped, mirrored and rotated; sizes are (height, width)."""
        if self._recipe.augment_cameras_apart:
            return [self._transform(size, rng) for size in sizes]
        return [self._transform(sizes[0], rng)] * len(sizes)

    def _transform(self, source_hw: tuple[int, int], rng: np.random.Generator) -> ImageTransform:
        ratio = NUSCENES_IMAGE_SIZE[0] / source_hw[1]  # recipes are written for images of nuScenes' width
        low, high = self._recipe.resize
        ratios = (low * ratio, high * ratio)
        recipe = self._recipe
        return draw_image_transform(
            rng, source_hw, self._config.image, ratios, recipe.image_flip, recipe.image_rotation
        )

    def _reference2global(self, index: int) -> np.ndarray:
        """Return [4, 4], from the variant's reference frame (m) to the global frame."""
        if self._config.reference_frame.is_lidar:
            return self._records.lidar2global(index)
        return self._records.ego2global(index)

    def _images(
        self, index: int, queue: Sequence[np.ndarray], transforms: Sequence[ImageTransform]
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """Return TrainingSample.images of the frames of a queue."""
        return self._pixels(index, queue, transforms)

    def _pixels(self, index: int, queue: Sequence[np.ndarray], transforms: Sequence[ImageTransform]) -> np.ndarray:
        """Return [T, N, h, w, 3] uint8 BGR; repeated frames are read once."""
        read: dict[tuple[int, ...], np.ndarray] = {}
        for image_set in queue:
            key = tuple(image_set.tolist())
            if key not in read:
                views = read_frame(self._records, index, image_set).views
                read[key] = np.stack(
                    [
                        resample_image(decode_image(view.image, transform.source), transform)
                        for view, transform in zip(views, transforms, strict=True)
                        if view is not None
                    ]
                )
        return np.stack([read[tuple(image_set.tolist())] for image_set in queue])


def check_taught(records: Records, config: VariantConfig) -> None:
    """Raise NuScenesError if a detector is to learn from boxes none of which has one of its classes."""
    if BOXES not in gives(config):
        return
    names = {name for i in range(len(records)) for name in records.annotations(i).names.tolist()}
    if names.isdisjoint(config.class_names):
        raise NuScenesError(
            f"{records.root} has boxes of {', '.join(sorted(names)) or 'no class'}, {config.name} learns "
            f"{', '.join(config.class_names)}; give a variant with class_names of these boxes, see docs/own-data.md"
        )


class EncodedTraining(NuScenesTraining):
    """Key frames with the features of a frozen encoder instead of images, encoded as in inference.

    The features are stored as float16 in a folder, one file per pyramid level and process.
    """

    def __init__(
        self, config: VariantConfig, records: Records, labels: str | Path, folder: Path, part: int, parts: int
    ) -> None:
        """List the image sets to encode; `write` encodes those of process `part` of `parts`."""
        super().__init__(config, records, labels)
        self._folder, self._part, self._parts = folder, part, parts
        self._place: dict[tuple[int, ...], tuple[int, int]] = {}  # image set -> its number, a key frame that has it
        for index in range(len(records)):
            for image_set in self._queue(index):
                self._place.setdefault(tuple(image_set.tolist()), (len(self._place), index))

    def write(self, encode: Encode) -> None:
        """Encode this process's share of the images; unreadable ones are skipped with a warning.

        Raises TrainingError for features beyond float16's range.
        """
        mine = list(self._place.items())[self._part :: self._parts]
        usable, levels = np.zeros(len(mine), bool), list[np.memmap]()
        for row, (image_set, (_, index)) in enumerate(tqdm(mine, desc="encode", unit="frame", disable=self._part > 0)):
            queue = [np.array(image_set)]
            transforms = self._transforms([(c.height, c.width) for c in self._calibrations(queue)])
            try:
                pixels = self._pixels(index, queue, transforms)[0]
            except (OSError, ImageError, NuScenesError) as error:
                LOG.warning("%s; its key frame takes no part", error)
                continue
            features = encode(pixels)
            levels = levels or [
                np.lib.format.open_memmap(self._file(k, self._part), "w+", np.float16, (len(mine), *level.shape))
                for k, level in enumerate(features)
            ]
            for k, (level, values) in enumerate(zip(levels, features, strict=True)):
                level[row] = _as_half(values, k)
            usable[row] = True
        for level in levels:
            level.flush()
        np.save(self._folder / f"usable-{self._part}.npy", usable)

    def _file(self, level: int, part: int) -> Path:
        return self._folder / f"level{level}-{part}.npy"

    def _queue(self, index: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
        return evaluation_queue(self._records, index, self._config.frames)

    def _transforms(
        self, sizes: Sequence[tuple[int, int]], rng: np.random.Generator | None = None
    ) -> list[ImageTransform]:
        return [image_transform(size, self._config.image) for size in sizes]

    def _images(
        self, index: int, queue: Sequence[np.ndarray], transforms: Sequence[ImageTransform]
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        frames = []
        for image_set in queue:
            row, part = divmod(self._place[tuple(image_set.tolist())][0], self._parts)
            if not np.load(self._folder / f"usable-{part}.npy")[row]:
                raise NuScenesError(f"an image of key frame {self._records.tokens[index]} could not be read")
            files = (self._file(level, part) for level in range(self._config.neck.num_outs))
            frames.append([np.load(file, mmap_mode="r")[row] for file in files])
        return tuple(np.stack(level) for level in zip(*frames, strict=True))


def _as_half(values: Tensor, level: int) -> np.ndarray:
    """Return the features of a level as float16.  Raises TrainingError for values that it cannot hold."""
    half = values.half()
    if not half.isfinite().all():
        raise TrainingError(
            f"the features of level {level} reach {values.abs().max().item():.3g}, but they are kept as float16, which "
            f"ends at {torch.finfo(torch.float16).max:.0f}; train encoder and decoder together, or use another encoder"
        )
    return half.cpu().numpy()


class JoinedData:
    """Several data sets concatenated."""

    def __init__(self, parts: Sequence[EncodableData]) -> None:
        """Concatenate the parts, at least one."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Return the number of samples of all parts together."""
        return int(self._ends[-1])

    def sample(
        self, index: int, rng: np.random.Generator, augmentation: np.random.Generator | None = None
    ) -> TrainingSample:
        """Return sample `index`, or its replacement from the same part."""
        part, inside = self._find(index)
        sample = self._parts[part].sample(inside, rng, augmentation)
        # parts are recordings of other times, even if their clocks say the same: memory does not go from one to another
        return replace(sample, stamp=sample.stamp + part * YEAR)

    def sequences(self) -> list[list[int]]:
        """Return the samples of each scene of all parts, in order of time."""
        starts = [0, *self._ends[:-1].tolist()]
        return [
            [start + index for index in sequence]
            for start, part in zip(starts, self._parts, strict=True)
            for sequence in part.sequences()
        ]

    def classes(self, index: int) -> Collection[int]:
        """Return the classes of the boxes of sample `index`."""
        part, inside = self._find(index)
        return self._parts[part].classes(inside)

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the part that holds a sample, and the sample's number there."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        return part, index - before

    def encoded(self, encode: Encode, folder: Path, part: int, parts: int) -> JoinedData:
        """See EncodableData."""
        folders = [folder / str(k) for k in range(len(self._parts))]
        return JoinedData([d.encoded(encode, f, part, parts) for d, f in zip(self._parts, folders, strict=True)])
