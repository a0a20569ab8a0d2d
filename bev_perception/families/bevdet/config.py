"""The settings of BEVDet and its successors (Huang et al., 2021 and 2022; Li et al., 2022 and 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bev_perception.strict import ConfigError, check_box, check_positive

#: depth nets: one convolution; camera-aware (Li et al., BEVDepth); camera-aware and with a stereo cost volume over time
PLAIN, CAMERA, STEREO = "plain", "camera", "stereo"
#: how older maps come into the current ego frame
IN_VIEW, AFTER_VIEW = "in_view", "after_view"


@dataclass(frozen=True)
class GridConfig:
    """The grid that images are lifted into; one cell high for a bird's eye view.

    range: x, y, z low, then high, m, in the ego frame
    cell: edge lengths of a cell along x, y, z, m
    """

    range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    cell: tuple[float, float, float] = (0.8, 0.8, 8.0)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_box("head.grid.range", self.range)
        if min(self.cell) <= 0:
            raise ConfigError(f"head.grid.cell {self.cell} must be positive")
        for low, high, cell in zip(self.range[:3], self.range[3:], self.cell, strict=True):
            count = (high - low) / cell
            if abs(count - round(count)) > 1e-3:
                raise ConfigError(f"head.grid: {low}..{high} m is no whole number of cells of {cell} m")

    @property
    def size(self) -> tuple[int, int, int]:
        """Number of cells along x, y, z."""
        x, y, z = (
            round((high - low) / cell)
            for low, high, cell in zip(self.range[:3], self.range[3:], self.cell, strict=True)
        )
        return x, y, z


@dataclass(frozen=True)
class DepthConfig:
    """The depths that a pixel's features are spread over.

    low: the first depth, m
    high: end of the range, m, itself not a depth
    step: between two depths, m; logarithmic ones are as many as there would be with this step
    logarithmic: whether depths grow by a constant factor instead, up to high - 1
    """

    low: float = 1.0
    high: float = 60.0
    step: float = 1.0
    logarithmic: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_positive(self, "head.depth", ("low", "step"))
        if self.count < 2 or (self.logarithmic and self.high - 1 <= self.low):
            raise ConfigError(f"head.depth: {self.low}..{self.high} m in steps of {self.step} m leave no two depths")

    @property
    def count(self) -> int:
        """Number of depths."""
        return math.ceil(round((self.high - self.low) / self.step, 6))


@dataclass(frozen=True)
class EncoderConfig:
    """The networks on the grid.

    volumetric: whether they keep the height and convolve in three dimensions
    pre_blocks: residual blocks for each frame's map before the maps are joined; 0 for a variant without past frames
    blocks: residual blocks in each stage
    channels: of each stage
    strides: of each stage
    out_channels: of the map for the head
    """

    volumetric: bool = False
    pre_blocks: int = 2
    blocks: tuple[int, int, int] = (2, 2, 2)
    channels: tuple[int, int, int] = (160, 320, 640)
    strides: tuple[int, int, int] = (2, 2, 2)
    out_channels: int = 256

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(*self.blocks, *self.channels, *self.strides, self.out_channels) < 1 or self.pre_blocks < 0:
            raise ConfigError("head.encoder: blocks, channels, strides and out_channels must be positive")


@dataclass(frozen=True)
class CenterPointConfig:
    """The detection head (Yin et al., CVPR 2021) and how boxes are read off its maps.

    tasks: the classes, in groups that share their maps; together they are the variant's class_names, in this order
    shared_channels: channels of the convolutions
    score_threshold: lowest score of a box, itself excluded
    max_num: the most boxes of a task before the suppression
    center_range: x, y, z low, then high, m, of the centres that are kept
    nms: of each task: "rotate" (overlap of scaled boxes) or "circle" (squared distance of centres)
    nms_threshold: of each task: boxes that overlap more with a better one are dropped; not of "circle"
    nms_factor: of each class, in the order of the tasks: its boxes are scaled by it for the overlap
    nms_radius: of each task: centres whose squared distance to a better one is at most this are dropped; of "circle"
    post_max: the most boxes of a task after the suppression
    """

    tasks: tuple[tuple[str, ...], ...] = (
        (
            *("car", "truck", "construction_vehicle", "bus", "trailer"),
            *("barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone"),
        ),
    )
    shared_channels: int = 64
    score_threshold: float = 0.1
    max_num: int = 500
    center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    nms: tuple[str, ...] = ("rotate",)
    nms_threshold: tuple[float, ...] = (0.2,)
    nms_factor: tuple[tuple[float, ...], ...] = ((1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 1.5, 3.5),)
    nms_radius: tuple[float, ...] = (0.0,)
    post_max: int = 500

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_positive(self, "head.boxes", ("shared_channels", "max_num", "post_max"))
        check_box("head.boxes.center_range", self.center_range)
        if not all(self.tasks):
            raise ConfigError("head.boxes.tasks: every task needs a class")
        lists = {name: getattr(self, name) for name in ("nms", "nms_threshold", "nms_factor", "nms_radius")}
        for name, values in lists.items():
            if len(values) != len(self.tasks):
                raise ConfigError(f"head.boxes.{name} has {len(values)} entries for {len(self.tasks)} tasks")
        if [len(factors) for factors in self.nms_factor] != [len(task) for task in self.tasks]:
            raise ConfigError("head.boxes.nms_factor must have one factor for each class of each task")
        if not set(self.nms) <= {"rotate", "circle"}:
            raise ConfigError(f"head.boxes.nms is {list(self.nms)}; it must hold 'rotate' or 'circle'")

    def check_classes(self, class_names: tuple[str, ...]) -> None:
        """Raise ConfigError if the tasks are not made of these classes in this order."""
        named = tuple(name for task in self.tasks for name in task)
        if named != class_names:
            raise ConfigError(
                f"head.boxes.tasks name the classes {list(named)}; let them name each of class_names once, in its "
                f"order: {list(class_names)}"
            )


@dataclass(frozen=True)
class OccupancyConfig:
    """The occupancy head.

    hidden: channels between the two layers that classify a voxel
    heights: voxels of a column that a bird's eye view is turned into (Yu et al., FlashOCC, 2023); 0: the map itself
        has the voxels of the grid
    """

    hidden: int = 64
    heights: int = 0

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.hidden < 1 or self.heights < 0:
            raise ConfigError("head.occupancy: hidden must be positive, heights must not be negative")


@dataclass(frozen=True)
class BEVDetHeadConfig:
    """From features of images to boxes or occupancy.

    grid: that images are lifted into
    depth: the depths of a pixel
    depth_net: "plain", one convolution; "camera", which knows the camera's matrices (Li et al., BEVDepth, AAAI 2023);
        "stereo", which also matches pixels with the frame before (Li et al., BEVStereo, AAAI 2023)
    context: channels that are lifted
    aspp_channels: channels of each branch of the pyramid in a depth net that is not plain
    unmatched_cost: cost of a stereo match that falls outside of the older image
    alignment: how the maps of past frames come into the current ego frame when a whole queue of frames is computed:
        "in_view", their points are lifted into it; "after_view", each map is lifted into its own ego frame, then
        warped. A stream warps the maps that it remembers, whatever this says
    encoder: the networks on the grid
    boxes: the detection head, of a detector
    occupancy: the occupancy head, of an occupancy model
    """

    grid: GridConfig = field(default_factory=GridConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    depth_net: str = PLAIN
    context: int = 80
    aspp_channels: int = 96
    unmatched_cost: float = 5.0
    alignment: str = AFTER_VIEW
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    boxes: CenterPointConfig | None = None
    occupancy: OccupancyConfig | None = None

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        check_positive(self, "head", ("context", "aspp_channels"))
        if self.depth_net not in (PLAIN, CAMERA, STEREO):
            raise ConfigError(f"head.depth_net is {self.depth_net!r}; it must be 'plain', 'camera' or 'stereo'")
        if self.alignment not in (IN_VIEW, AFTER_VIEW):
            raise ConfigError(f"head.alignment is {self.alignment!r}; it must be 'in_view' or 'after_view'")
        if (self.boxes is None) == (self.occupancy is None):
            raise ConfigError("head: give one of boxes and occupancy, the head that the variant has")
        if self.boxes is not None and self.encoder.volumetric:
            raise ConfigError("head.encoder.volumetric: boxes are read off a bird's eye view; set it to false")
        if self.occupancy is not None and self.encoder.volumetric != (self.occupancy.heights == 0):
            raise ConfigError(
                "head.occupancy.heights: give the voxels of a column where encoder.volumetric is false, else 0"
            )

    @property
    def stereo(self) -> bool:
        """Whether images are matched with the frame before."""
        return self.depth_net == STEREO
