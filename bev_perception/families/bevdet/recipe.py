"""How BEVDet and its successors are trained."""

from __future__ import annotations

from dataclasses import dataclass

from bev_perception.strict import ConfigError, check_positive


@dataclass(frozen=True)
class BEVDetRecipe:
    """What training needs beyond a variant's common recipe.

    heatmap_weight: factor on the losses of the classes
    box_weight: factor on the losses of the boxes
    code_weights: factors on the errors of a box's codes: x, y, z, logarithms of length, width and height, sine and
        cosine of the yaw, vx, vy
    gaussian_overlap: overlap (intersection over union) with the true box that boxes moved within a blob of the heatmap
        still have
    gaussian_radius: smallest radius of a blob, cells
    max_objects: the most boxes of a task that are learnt from
    depth_weight: factor on the loss of the depths, for which the lidar is read; 0: depths are not taught
    occupancy_weight: factor on the loss of the voxels
    camera_mask: whether only voxels that a camera sees are learnt from
    past_from: epochs after which past frames are used; before, their maps are zeros and they are not computed
    balanced: whether key frames are repeated so that all classes occur about equally often
    """

    heatmap_weight: float = 1.0
    box_weight: float = 0.25
    code_weights: tuple[float, float, float, float, float, float, float, float, float, float] = (1.0,) * 10
    gaussian_overlap: float = 0.1
    gaussian_radius: int = 2
    max_objects: int = 500
    depth_weight: float = 0.0
    occupancy_weight: float = 1.0
    camera_mask: bool = True
    past_from: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_positive(self, "training.family", ("gaussian_radius", "max_objects"))
        if not 0 < self.gaussian_overlap < 1:
            raise ConfigError(f"training.family.gaussian_overlap ({self.gaussian_overlap}) must lie in 0..1, inside")
        names = ("heatmap_weight", "box_weight", "depth_weight", "occupancy_weight", "past_from")
        if min(*self.code_weights, *(getattr(self, name) for name in names)) < 0:
            raise ConfigError(f"training.family: code_weights, {', '.join(names)} must not be negative")
