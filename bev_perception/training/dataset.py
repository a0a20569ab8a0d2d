"""nuScenes as training takes it: the records, their queues and the augmentation behind TrainingData."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bev_perception.config import ConfigError, TrainingConfig, VariantConfig
from bev_perception.data.augment import augment_matrices, draw_bev, draw_image_transform
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.data.queues import read_frame, reference2image, training_queue
from bev_perception.data.records import Records
from bev_perception.geometry import invert_transform
from bev_perception.images import ImageError, decode_image
from bev_perception.preprocess import ImageTransform, resample_image
from bev_perception.training.samples import TrainingData, TrainingSample
from bev_perception.training.truths import open_truths

LOG = logging.getLogger(__name__)

#: pixels, of the images that recipes of training are written for
NUSCENES_WIDTH = 1600
#: samples tried in the place of one that cannot be used, before that is an error
MAX_REPLACEMENTS = 20


class NuScenesTraining:
    """The key frames of `records` as samples of a variant.

    A key frame without a box that counts is replaced by another; so is one with a file that is missing or damaged,
    which a warning names. Too many of them in a row are an error.
    """

    def __init__(self, config: VariantConfig, records: Records, labels: str | Path = LABELS_FOLDER) -> None:
        """Keep them; labels: the folder of occupancy labels, see labels_path, if the variant needs them.

        Raises ConfigError for a variant that says nothing of its training, or what the data set cannot do.
        """
        if config.training is None:
            raise ConfigError(f"{config.name} says nothing of its training; add the entry 'training' to its file")
        self._config = config
        self._recipe: TrainingConfig = config.training
        self._records = records
        self._truths = open_truths(config, config.training, records, labels)

    def __len__(self) -> int:
        """Return the number of key frames."""
        return len(self._records)

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample:
        """Return key frame `index`, augmented, or the one that replaces it.

        Raises NuScenesError if none of MAX_REPLACEMENTS key frames in its place can be used.
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
        records, recipe = self._records, self._recipe
        queue = training_queue(records, index, self._config.frames, rng)
        calibration = records.images(queue[0])[0].calibration
        ratio = NUSCENES_WIDTH / calibration.width
        low, high = recipe.resize
        transform = draw_image_transform(
            rng,
            (calibration.height, calibration.width),
            self._config.image,
            (low * ratio, high * ratio),
            recipe.image_flip,
        )
        world = draw_bev(rng, recipe.bev)
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

    def _matrices(self, index: int, queue: Sequence[np.ndarray]) -> np.ndarray:
        """Return [T, 6, 4, 4], the variant's reference frame to the depth-scaled pixels of every image as stored."""
        lidar2image = reference2image(self._records, index, queue)
        if self._config.reference_frame.is_lidar:
            return lidar2image
        return lidar2image @ invert_transform(self._records.lidar2ego(index))

    def _images(self, index: int, queue: Sequence[np.ndarray], transform: ImageTransform) -> np.ndarray:
        """Return [T, 6, h, w, 3] uint8 BGR; where frames repeat, their images are read once."""
        read: dict[tuple[int, ...], np.ndarray] = {}
        for image_set in queue:
            key = tuple(image_set.tolist())
            if key not in read:
                frame = read_frame(self._records, index, image_set)
                read[key] = np.stack(
                    [resample_image(decode_image(view.image), transform) for view in frame.views if view is not None]
                )
        return np.stack([read[tuple(image_set.tolist())] for image_set in queue])


class JoinedData:
    """Several data sets as one, in the order given."""

    def __init__(self, parts: Sequence[TrainingData]) -> None:
        """Keep the parts; there must be one at least."""
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        """Return the number of samples of all parts."""
        return int(self._ends[-1])

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample:
        """Return sample `index` of all, or the one of its part that replaces it."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        before = self._ends[part - 1] if part else 0
        return self._parts[part].sample(index - int(before), rng)
