"""The settings of the CenterPoint head (Yin et al., CVPR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from bev_perception.strict import ConfigError, check_box, check_positive

#: how boxes of a task suppress each other
ROTATED, CIRCLE = "rotated", "circle"


@dataclass(frozen=True)
class TaskConfig:
    """A group of classes that share the branches of a head, and whose boxes suppress each other.

    classes: names of its classes; none: all classes of the variant
    nms: "rotated", by the overlap of boxes seen from above, or "circle", by the distance of centres
    nms_scale: factor on the sizes of each class's boxes while they are compared; none: 1 for all
    """

    classes: tuple[str, ...] = ()
    nms: str = ROTATED
    nms_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.nms not in (ROTATED, CIRCLE):
            raise ConfigError(f"a task's nms is {self.nms!r}; it must be {ROTATED!r} or {CIRCLE!r}")
        if self.nms == CIRCLE and self.nms_scale:
            raise ConfigError(f"a task's nms_scale has no meaning for nms {CIRCLE!r}; remove it")
        if min(self.nms_scale, default=1.0) <= 0:
            raise ConfigError(f"a task's nms_scale {self.nms_scale} must be positive")


@dataclass(frozen=True)
class CenterPointConfig:
    """The head and how its maps become boxes.

    tasks: groups of classes, which together are the variant's classes in their order
    shared_channels: channels of the map that all branches share
    max_candidates: the most cells a class, and then a task, whose boxes are considered
    score_threshold: boxes must score above it
    post_center_range: x, y, z low, then high, m, in the reference frame, in which the centres of boxes must lie
    nms_threshold: "rotated": overlap (intersection over union) above which the worse box is dropped
    nms_squared_radius: "circle": squared distance of centres, m^2, up to which the worse box is dropped
    max_boxes: the most boxes of a task that are kept
    """

    tasks: tuple[TaskConfig, ...] = (TaskConfig(),)
    shared_channels: int = 64
    max_candidates: int = 500
    score_threshold: float = 0.1
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    nms_threshold: float = 0.2
    nms_squared_radius: float = 1.0
    max_boxes: int = 500

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_positive(self, "head.boxes", ("shared_channels", "max_candidates", "max_boxes"))
        check_box("head.boxes.post_center_range", self.post_center_range)
        if not (0 <= self.score_threshold <= 1 and 0 <= self.nms_threshold <= 1):
            raise ConfigError("head.boxes: score_threshold and nms_threshold must lie in 0..1")
        if self.nms_squared_radius < 0:
            raise ConfigError(f"head.boxes.nms_squared_radius ({self.nms_squared_radius}) must not be negative")
        if not self.tasks or (len(self.tasks) > 1 and not all(task.classes for task in self.tasks)):
            raise ConfigError("head.boxes.tasks must be one task, or several that all name their classes")

    def groups(self, class_names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """Return the class names of each task; raise ConfigError if they are not the variant's classes in order."""
        groups = tuple(task.classes or class_names for task in self.tasks)
        if tuple(chain(*groups)) != class_names:
            raise ConfigError(
                f"head.boxes.tasks name the classes {list(chain(*groups))}; they must name each class of the variant "
                f"in its order: {list(class_names)}"
            )
        for group, task in zip(groups, self.tasks, strict=True):
            if task.nms_scale and len(task.nms_scale) != len(group):
                raise ConfigError(
                    f"head.boxes.tasks: nms_scale has {len(task.nms_scale)} factors for the {len(group)} classes "
                    f"{', '.join(group)}; give one a class, or none"
                )
        return groups
