"""nuScenes as training takes it: the records, their queues and the augmentation behind TrainingData."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from bev_perception.config import ConfigError, TrainingConfig, VariantConfig
from bev_perception.data.augment import augment_boxes, augment_matrices, draw_bev, draw_image_transform
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.queues import read_frame, reference2image, training_boxes, training_queue
from bev_perception.data.records import Records
from bev_perception.images import ImageError, decode_image
from bev_perception.preprocess import ImageTransform, resample_image
from bev_perception.training.samples import TrainingSample

LOG = logging.getLogger(__name__)

#: samples tried in the place of one that cannot be used, before that is an error
MAX_REPLACEMENTS = 20


class NuScenesTraining:
    """The key frames of `records` as samples of a variant.

    A key frame without a box that counts is replaced by another; so is one with a file that is missing or damaged,
    which a warning names. Too many of them in a row are an error.
    """

    def __init__(self, config: VariantConfig, records: Records) -> None:
        """Keep both; raise ConfigError for a variant that says nothing of its training."""
        if config.training is None:
            raise ConfigError(f"{config.name} says nothing of its training; add the entry 'training' to its file")
        self._config = config
        self._recipe: TrainingConfig = config.training
        self._records = records

    def __len__(self) -> int:
        """Return the number of key frames."""
        return len(self._records)

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample:
        """Return key frame `index`, augmented, or the one that replaces it.

        Raises NuScenesError if none of MAX_REPLACEMENTS key frames in its place can be used.
        """
        reason = ""
        for _ in range(1 + MAX_REPLACEMENTS):
            boxes, labels = training_boxes(
                self._records, index, self._config.class_names, self._config.detector.pc_range
            )
            try:
                if len(boxes):
                    return self._read(index, boxes, labels, rng)
                reason = f"key frame {self._records.tokens[index]} has no box that counts"
            except (OSError, ImageError) as error:
                reason = str(error)
                LOG.warning("%s; another key frame takes its place", reason)
            index = int(rng.integers(len(self)))
        raise NuScenesError(
            f"{1 + MAX_REPLACEMENTS} key frames in a row cannot be used, the last because: {reason}; "
            "complete the data set"
        )

    def _read(self, index: int, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> TrainingSample:
        records, frames = self._records, self._config.frames
        queue = training_queue(records, index, frames, rng)
        matrices = reference2image(records, index, queue)  # [T, 6, 4, 4]
        stamps = np.array([[image.stamp for image in records.images(image_set)] for image_set in queue])  # [T, 6] us
        calibration = records.images(queue[0])[0].calibration
        transform = draw_image_transform(
            rng, (calibration.height, calibration.width), self._config.image, self._recipe.resize
        )
        world = draw_bev(rng)
        return TrainingSample(
            images=self._images(index, queue, transform),
            reference2image=augment_matrices(transform.ida @ matrices, world),
            time_differences=(stamps[:1] - stamps).mean(axis=1) / 1e6,
            boxes=augment_boxes(boxes, world),
            labels=labels,
        )

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
