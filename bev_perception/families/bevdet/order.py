"""The order of key frames in training: shuffled, or with classes balanced."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from bev_perception.config import VariantConfig
from bev_perception.strict import ConfigError
from bev_perception.supervision.order import Draw, Order, Shuffled
from bev_perception.supervision.samples import TrainingData


def training_order(config: VariantConfig, data: TrainingData, slots: int, seed: int) -> Order:
    """Return the order of a variant's samples.

    config: the variant, with a recipe
    data: the samples
    slots: samples of a step, of all processes together
    seed: what the order and the samples' random numbers follow from

    Raises ConfigError if classes are to be balanced and no sample has any.
    """
    assert config.training is not None
    if not config.training.family.balanced:
        return Shuffled(len(data), slots, seed)
    classes = [data.classes(index) for index in range(len(data))]
    samples = balance_classes(classes, len(config.class_names), np.random.default_rng(seed))
    if not len(samples):
        raise ConfigError(
            f"{config.name}: no key frame holds an object of the classes {', '.join(config.class_names)}, so there is "
            "nothing to balance; set training.family.balanced to false, or use other data"
        )
    return Balanced(samples, slots, seed)


def balance_classes(classes: Sequence[Collection[int]], count: int, rng: np.random.Generator) -> np.ndarray:
    """Return samples [n] int64, class after class, in which every class takes an equal part (Zhu et al., CBGS, 2019).

    classes: of the objects of each sample
    count: number of classes

    From the samples that hold a class, as many are drawn with replacement as that makes; samples are counted once for
    each class that they hold.
    """
    holding = [np.array([i for i, held in enumerate(classes) if label in held], np.int64) for label in range(count)]
    total = sum(map(len, holding))
    drawn = [
        rng.choice(samples, int(len(samples) * (1 / count / (len(samples) / total))))
        for samples in holding
        if len(samples)
    ]
    return np.concatenate(drawn) if drawn else np.zeros(0, np.int64)


class Balanced:
    """Samples of which some come several times in an epoch, shuffled; the first fill up the last step."""

    def __init__(self, samples: np.ndarray, slots: int, seed: int) -> None:
        """Set the samples.

        samples: [n], of an epoch
        slots: samples of a step, of all processes together
        seed: of the order, and of the samples' random numbers
        """
        self._samples, self._places, self._seed = samples, Shuffled(len(samples), slots, seed), seed

    def __len__(self) -> int:
        """Return the number of steps per epoch."""
        return len(self._places)

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """Return the samples of each step of an epoch: [steps][slots]; copies of a sample have their own chance."""
        rows = self._places.epoch(epoch)
        return [[Draw(int(self._samples[draw.index]), draw.seed) for draw in row] for row in rows]
