"""The settings of the additions that the small variants make to SparseBEV; without them it is the published method."""

from __future__ import annotations

from dataclasses import dataclass

from bev_perception.strict import ConfigError


@dataclass(frozen=True)
class ProposalsConfig:
    """A perspective head on the image features, and queries that start where it sees objects.

    perspective: whether the model has such a head, which training supervises
    queries: number of queries that start where the head sees objects; they come after the learnt ones
    correct_velocity: whether each pass corrects the velocity that it looks along, as in Lin et al., 2022, instead of
        telling it anew
    """

    perspective: bool = False
    queries: int = 0
    correct_velocity: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.queries < 0:
            raise ConfigError(f"head.proposals.queries ({self.queries}) must not be negative")
        if self.queries and not self.perspective:
            raise ConfigError("head.proposals.queries need head.proposals.perspective: true")


@dataclass(frozen=True)
class ProposalsRecipe:
    """How the additions are trained.

    perspective_weight: factor on the losses of the perspective head
    denoising_velocity: m/s, standard deviation of the velocities that noisy copies start with; half of them have
        nothing else. With 0, as published, they look at every frame where the object was and cannot see how fast it is
    moving_weight: factor on the velocity loss of boxes that move. Where most objects stand, "it stands" has the least
        absolute error for an object that may move or not, and a detector then says it of everything
    """

    perspective_weight: float = 1.0
    denoising_velocity: float = 0.0
    moving_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        for name in ("perspective_weight", "denoising_velocity"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training.family.proposals.{name} must not be negative")
        if self.moving_weight <= 0:
            raise ConfigError("training.family.proposals.moving_weight must be positive")
