"""How Sparse4D is trained (Lin et al., Sparse4D, 2022; Sparse4D v2 and v3, 2023); the defaults are those of v3."""

from __future__ import annotations

from dataclasses import dataclass, field

from bev_perception.strict import ConfigError

#: numbers of a target, see targets.TARGET_SIZE
Numbers = tuple[float, float, float, float, float, float, float, float, float, float]


@dataclass(frozen=True)
class DenoisingConfig:
    """Noisy copies of known boxes that are instances beside the learnt ones.

    groups: each holds two copies of every known box, a near one and a far one; 0: no denoising
    remembered: groups that live on in the next frame
    max_boxes: known boxes of a sample that are copied
    noise: how far the numbers of a near copy are moved at most; those of a far copy are moved one to two times as far
    """

    groups: int = 5
    remembered: int = 3
    max_boxes: int = 32
    noise: Numbers = (2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if not 0 <= self.remembered <= self.groups:
            raise ConfigError("training.family.denoising.remembered must lie between 0 and the number of groups")
        if self.max_boxes < 1 or min(self.noise) < 0:
            raise ConfigError("training.family.denoising: max_boxes must be positive, noise must not be negative")


@dataclass(frozen=True)
class SequenceConfig:
    """How the frames of scenes follow each other in training; every sample of a batch goes on with its own sequence.

    parts: sequences that a scene is cut into; 0: frames in random order, without memory
    skip: probability that a frame is left out before the next one
    reverse: probability that a sequence runs backwards
    """

    parts: int = 2
    skip: float = 0.5
    reverse: float = 0.1

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.parts < 0 or not (0 <= self.skip <= 1 and 0 <= self.reverse <= 1):
            raise ConfigError("training.family.sequences: parts must not be negative, skip and reverse must be in 0..1")


@dataclass(frozen=True)
class Sparse4DRecipe:
    """How the decoder is trained. Numbers of a box are x, y, z, log of length, width, height, sin, cos of yaw, vx, vy.

    matching_weights: weight of each number's error in the matching of instances with known boxes
    loss_weights: weight of each number's error in the box loss
    cone_weights: factors on both for traffic cones, which have no front and do not move
    symmetric_classes: classes whose front and back look alike; either is right
    min_score: boxes of instances whose score is not above it do not count in the box loss
    max_depth: greatest depth of lidar points that supervise dense depth, m
    clip_depth: whether farther points count as being there; otherwise they are left out
    sequences: how frames follow each other
    denoising: noisy copies of known boxes
    anchors: file of initial anchors (`prepare anchors` makes one); empty: spread evenly, or those of --init
    """

    matching_weights: Numbers = (2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0)
    loss_weights: Numbers = (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    cone_weights: Numbers = (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0)
    symmetric_classes: tuple[str, ...] = ("barrier",)
    min_score: float = 0.05
    max_depth: float = 60.0
    clip_depth: bool = True
    sequences: SequenceConfig = field(default_factory=SequenceConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    anchors: str = ""

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(*self.matching_weights, *self.loss_weights, *self.cone_weights) < 0:
            raise ConfigError("training.family: weights must not be negative")
        if not 0 <= self.min_score < 1 or self.max_depth <= 0:
            raise ConfigError("training.family: min_score must lie in 0..1, max_depth must be positive")
