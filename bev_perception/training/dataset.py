"""nuScenes as training data: key frames with their frame queues, images, augmentation and ground truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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
from bev_perception.data.queues import evaluation_queue, read_frame, reference2image, training_queue
from bev_perception.data.records import Records
from bev_perception.families.catalog import family_of
from bev_perception.geometry import invert_transform
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.preprocess import ImageTransform, image_transform, resample_image
from bev_perception.supervision.samples import EncodableData, Encode, TrainingSample
from bev_perception.training.state import TrainingError

LOG = logging.getLogger(__name__)

#: replacements tried for an unusable sample before it is an error
MAX_REPLACEMENTS = 20


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

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample:
        """Return key frame `index`, or its replacement, augmented.

        Raises NuScenesError if MAX_REPLACEMENTS replacements cannot be used either.
        """
        reason = ""
        for _ in range(1 + MAX_REPLACEMENTS):
            try:
                sample = self._read(index, rng)
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

    def _read(self, index: int, rng: np.random.Generator) -> TrainingSample | None:
        records = self._records
        queue = self._queue(index, rng)
        calibration = records.images(queue[0])[0].calibration
        transform = self._transform((calibration.height, calibration.width), rng)
        world = draw_bev(rng, self._recipe.bev)
        truth = self._truths.read(index, world)
        if truth is None:
            return None
        stamps = np.array([[image.stamp for image in records.images(image_set)] for image_set in queue])  # [T, 6] us
        return TrainingSample(
            images=self._images(index, queue, transform),
            reference2image=augment_matrices(transform.ida @ self._matrices(index, queue), world),
            time_differences=(stamps[:1] - stamps).mean(axis=1) / 1e6,
            truth=truth,
        )

    def _queue(self, index: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return the image sets [6] of the model's frames, see queues."""
        return training_queue(self._records, index, self._config.frames, rng)

    def _transform(self, source_hw: tuple[int, int], rng: np.random.Generator) -> ImageTransform:
        """Return the resizing and cropping of all images of a sample."""
        ratio = NUSCENES_IMAGE_SIZE[0] / source_hw[1]  # recipes are written for images of nuScenes' width
        low, high = self._recipe.resize
        ratios = (low * ratio, high * ratio)
        return draw_image_transform(rng, source_hw, self._config.image, ratios, self._recipe.image_flip)

    def _matrices(self, index: int, queue: Sequence[np.ndarray]) -> np.ndarray:
        """Return [T, 6, 4, 4], from the variant's reference frame (m) to depth-scaled pixels of the stored images."""
        lidar2image = reference2image(self._records, index, queue)
        if self._config.reference_frame.is_lidar:
            return lidar2image
        return lidar2image @ invert_transform(self._records.lidar2ego(index))

    def _images(
        self, index: int, queue: Sequence[np.ndarray], transform: ImageTransform
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """Return TrainingSample.images of the frames of a queue."""
        return self._pixels(index, queue, transform)

    def _pixels(self, index: int, queue: Sequence[np.ndarray], transform: ImageTransform) -> np.ndarray:
        """Return [T, 6, h, w, 3] uint8 BGR; repeated frames are read once."""
        read: dict[tuple[int, ...], np.ndarray] = {}
        for image_set in queue:
            key = tuple(image_set.tolist())
            if key not in read:
                frame = read_frame(self._records, index, image_set)
                read[key] = np.stack(
                    [resample_image(decode_image(view.image), transform) for view in frame.views if view is not None]
                )
        return np.stack([read[tuple(image_set.tolist())] for image_set in queue])


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
            calibration = self._records.images(np.array(image_set))[0].calibration
            transform = self._transform((calibration.height, calibration.width))
            try:
                pixels = self._pixels(index, [np.array(image_set)], transform)[0]
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

    def _transform(self, source_hw: tuple[int, int], rng: np.random.Generator | None = None) -> ImageTransform:
        return image_transform(source_hw, self._config.image)

    def _images(
        self, index: int, queue: Sequence[np.ndarray], transform: ImageTransform
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

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample:
        """Return sample `index`, or its replacement from the same part."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        before = self._ends[part - 1] if part else 0
        return self._parts[part].sample(index - int(before), rng)

    def encoded(self, encode: Encode, folder: Path, part: int, parts: int) -> JoinedData:
        """See EncodableData."""
        folders = [folder / str(k) for k in range(len(self._parts))]
        return JoinedData([d.encoded(encode, f, part, parts) for d, f in zip(self._parts, folders, strict=True)])
