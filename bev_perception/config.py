"""A variant's YAML file as frozen dataclasses; an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bev_perception.strict import ConfigError, from_dict

NUSCENES_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
#: (width, height) of its images, pixels
NUSCENES_IMAGE_SIZE = (1600, 900)
#: the variants that come with weights: one that detects, one that gives occupancy on the same encoder
TINY_DETECTOR, TINY_OCCUPANCY = "sparsebev_tiny", "sparseocc_tiny"
#: m from the car, within which boxes of the first are scored
TINY_RANGE = 40.0
#: of Occ3D-nuScenes (Tian et al., NeurIPS 2023); the last is free space
OCC3D_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)


@dataclass(frozen=True)
class ImageConfig:
    """What the network takes as an image.

    height, width: of the network's input before padding to a multiple of `pad`, pixels.
    mean, std: of the 0..255 values, in `channel_order` ("rgb" or "bgr").
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: str = "rgb"
    pad: int = 32

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.channel_order not in ("rgb", "bgr"):
            raise ConfigError(f"image.channel_order is {self.channel_order!r}; it must be 'rgb' or 'bgr'")
        if min(self.height, self.width, self.pad) < 1 or min(self.std) <= 0:
            raise ConfigError("image: height, width, pad and std must be positive")


@dataclass(frozen=True)
class FramesConfig:
    """Which frames the variant was trained with.

    past, future: number of frames beside the current one.  interval: s between them.
    order: how past and future frames follow the current one, nearest first: "sequential" (all past, then all future
    ones) or "interleaved" (by turns, past first; as many of both).
    max_gap: s; after a longer silence the history is wiped.
    """

    past: int
    future: int = 0
    interval: float = 0.5
    order: str = "sequential"
    max_gap: float = 2.0

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(self.past, self.future) < 0 or min(self.interval, self.max_gap) <= 0:
            raise ConfigError("frames: past and future must not be negative, interval and max_gap must be positive")
        if self.order not in ("sequential", "interleaved"):
            raise ConfigError(f"frames.order is {self.order!r}; it must be 'sequential' or 'interleaved'")
        if self.order == "interleaved" and self.past != self.future:
            raise ConfigError("frames: past and future must be equal when order is 'interleaved'")

    @property
    def offsets(self) -> tuple[int, ...]:
        """When the frames are, in the model's order: 0 is the current one, -k lies k intervals before, k after it."""
        past, future = range(-1, -self.past - 1, -1), range(1, self.future + 1)
        if self.order == "sequential":
            return (0, *past, *future)
        return (0, *(offset for pair in zip(past, future, strict=True) for offset in pair))


@dataclass(frozen=True)
class ReferenceFrameConfig:
    """The frame that the model was trained in, as a transform to base_link: translation (m) and yaw (rad).

    sensor: "lidar" or "base_link"; where a recording knows the lidar's real pose, that one takes the place of the
    nominal mounting. The default is nuScenes' LIDAR_TOP (Caesar et al., CVPR 2020), rounded: x right, y forward, z up.
    """

    sensor: str = "lidar"
    translation: tuple[float, float, float] = (0.94, 0.0, 1.84)
    yaw: float = -1.5707963267948966

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.sensor not in ("lidar", "base_link"):
            raise ConfigError(f"reference_frame.sensor is {self.sensor!r}; it must be 'lidar' or 'base_link'")
        if self.sensor == "base_link" and (any(self.translation) or self.yaw):
            raise ConfigError("reference_frame: translation and yaw of base_link to itself must be zero")

    @property
    def is_lidar(self) -> bool:
        """Whether the frame is a lidar's."""
        return self.sensor == "lidar"


@dataclass(frozen=True)
class EVA02Config:
    """The vision transformer of the backbone "eva02"; the defaults are EVA02-L as a detector's backbone.

    embed_dim: width of its tokens, over num_heads heads.  window: side of the windows that most blocks attend in,
    tokens.  trained_size: side of the square images that the pretraining's detector took, pixels; the rotary
    positions are laid out for it.  drop_path: share of the last block's branches left out in training; from 0 at the
    first block it grows linearly.
    """

    embed_dim: int = 1024
    num_heads: int = 16
    window: int = 16
    trained_size: int = 1536
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(self.embed_dim, self.num_heads, self.window) < 1 or self.trained_size < 16:
            raise ConfigError("backbone.eva02: sizes must be positive, trained_size at least 16 pixels")
        if self.embed_dim % (4 * self.num_heads):
            raise ConfigError("backbone.eva02: embed_dim must be a multiple of 4 * num_heads")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"backbone.eva02.drop_path is {self.drop_path}; it must lie in 0..1, below 1")


@dataclass(frozen=True)
class BackboneConfig:
    """type: "resnet", "vovnet" or "eva02".  depth: its depth; of "eva02", the number of blocks.

    width: of the first stage of "resnet", channels.  first_level: stages of "resnet" before the first whose map is
    given: 0 begins at 1/4 of the image's size, 1 at 1/8.  patches: whether the stem of "resnet" takes patches of 4x4
    pixels.  eva02: what else there is to say about "eva02".
    """

    type: str = "resnet"
    depth: int = 50
    width: int = 64
    first_level: int = 0
    patches: bool = False
    eva02: EVA02Config = field(default_factory=EVA02Config)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.depth < 1:
            raise ConfigError(f"backbone.depth is {self.depth}; it must be positive")
        if self.width < 1 or not 0 <= self.first_level <= 3:
            raise ConfigError("backbone.width must be positive, backbone.first_level must be one of 0, 1, 2, 3")
        if self.type != "resnet" and (self.width, self.first_level, self.patches) != (64, 0, False):
            raise ConfigError(
                f"backbone: width, first_level and patches are of a resnet, not of {self.type!r}; remove them"
            )
        if self.type != "eva02" and self.eva02 != EVA02Config():
            raise ConfigError(f"backbone.eva02 has no meaning for a backbone of type {self.type!r}; remove it")


@dataclass(frozen=True)
class NeckConfig:
    """type: "fpn", or "none" for a backbone that gives the pyramid itself.

    out_channels: of every level.  num_outs: number of levels.
    """

    type: str = "fpn"
    out_channels: int = 256
    num_outs: int = 4


@dataclass(frozen=True)
class SparseBEVHeadConfig:
    """The query decoder of SparseBEV (Liu et al., ICCV 2023).

    num_query: learnt queries.  proposals: further ones, which start where the perspective head sees objects; 0: none.
    correct_velocity: let each pass correct the velocity that it looks along, as Sparse4D does (Lin et al., 2022).
    """

    num_query: int = 900
    proposals: int = 0
    correct_velocity: bool = False
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    num_layers: int = 6
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    code_size: int = 10
    dropout: float = 0.1
    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


@dataclass(frozen=True)
class SparseOccHeadConfig:
    """The voxel decoder and the mask transformer of SparseOcc (Liu et al., ECCV 2024).

    kept_training, kept_testing: voxels that each of the three stages keeps, in training and otherwise.
    num_query: masks.  mask_layers: passes of the one mask layer.  panoptic: whether objects are told apart.
    score_threshold: of a mask's class.  overlap_threshold: share of a mask that must not be taken by better ones.
    occ_range: x, y, z low, then high, m.  occ_size: number of voxels along x, y, z.
    """

    num_query: int = 100
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    mask_layers: int = 2
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    dropout: float = 0.1
    kept_training: tuple[int, int, int] = (4000, 16000, 64000)
    kept_testing: tuple[int, int, int] = (2000, 8000, 32000)
    panoptic: bool = False
    score_threshold: float = 0.3
    overlap_threshold: float = 0.8
    occ_range: tuple[float, float, float, float, float, float] = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
    occ_size: tuple[int, int, int] = (200, 200, 16)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        edges = [
            (high - low) / size if size > 0 else 0.0
            for low, high, size in zip(self.occ_range[:3], self.occ_range[3:], self.occ_size, strict=True)
        ]
        if min(edges) <= 0 or max(edges) - min(edges) > 1e-6 * max(edges):
            raise ConfigError(
                f"head: occ_range {self.occ_range} in occ_size {self.occ_size} voxels gives voxels of "
                f"{' x '.join(f'{edge:g}' for edge in edges)} m; they must be cubes"
            )
        if not (0 <= self.score_threshold <= 1 and 0 <= self.overlap_threshold <= 1):
            raise ConfigError("head: score_threshold and overlap_threshold must lie in 0..1")
        if min(self.kept_training + self.kept_testing) < 1 or self.mask_layers < 0:
            raise ConfigError("head: the stages must keep at least one voxel each, mask_layers must not be negative")

    @property
    def resolution(self) -> float:
        """Length of a voxel's edge, m."""
        return (self.occ_range[3] - self.occ_range[0]) / self.occ_size[0]


HeadConfig = SparseBEVHeadConfig | SparseOccHeadConfig

#: family -> the settings of its head, and the classes that it tells apart unless a variant names others
FAMILIES: dict[str, tuple[type[HeadConfig], tuple[str, ...]]] = {
    "sparsebev": (SparseBEVHeadConfig, NUSCENES_CLASSES),
    "sparseocc": (SparseOccHeadConfig, OCC3D_CLASSES),
}


@dataclass(frozen=True)
class DecodeConfig:
    """From raw outputs to boxes: at most max_num above score_threshold with centres inside post_center_range (m)."""

    max_num: int = 300
    score_threshold: float = 0.05
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


@dataclass(frozen=True)
class BevAugmentationConfig:
    """How the world of a training sample is changed about the reference frame; the defaults are SparseBEV's.

    max_rotation: rad about the z axis, to either side.  scale: limits of a factor on all lengths.
    flip: whether x is mirrored half of the time, and y too.
    """

    max_rotation: float = 0.3925
    scale: tuple[float, float] = (0.95, 1.05)
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.max_rotation < 0 or min(self.scale) <= 0:
            raise ConfigError("training.bev: max_rotation must not be negative, scale must be positive")


@dataclass(frozen=True)
class TrainingConfig:
    """How the variant is trained, apart from where; the defaults are SparseBEV's (Liu et al., ICCV 2023).

    epochs: passes over the data.  resize: limits of the random resize of images as wide as nuScenes' (1: as they are);
    others are resized to the same widths.
    encoder: what training changes of backbone and neck: "finetune", all but the backbone's first layers and the
    statistics of its norms; "scratch", everything; "frozen", nothing.
    perspective_weight: of the losses of the perspective head, for models that have one.
    batch: samples a step, of all processes together.  lr: at the top of the schedule; it falls along a cosine, epoch by
    epoch, to lr * min_lr_ratio.  warmup_steps: over which it rises, from lr * warmup_ratio.
    lr_drop_epochs: if there are any, lr does not follow the cosine but is multiplied by lr_drop after so many epochs.
    backbone_lr, sampling_offset_lr: factors on lr for the backbone and the sampling offsets.
    clip_norm: the most that the norm of all gradients may be.
    frames_with_gradient: the images of only so many frames, the newest, train the backbone and neck; 0: all.
    image_flip: whether the images are mirrored half of the time.  color_augmentation: whether their colours are
    distorted.  grid_mask: whether squares of them are blanked.  bev: what happens to the world; see data.augment.
    denoising_groups: for boxes, noisy copies of every known one that are queries beside the learnt ones; 0: none.
    denoising_velocity: m/s, noise of the velocities that those start with (standard deviation); half have nothing else.
    0: none, as in SparseBEV; they then look at every frame where the object was, and cannot see how fast it is.
    moving_weight: of the velocity of a box that moves, where that of one that stands is 1. Where most stand, the least
    absolute error of what is not sure is that of "it stands", which is what a detector then says of everything.
    camera_mask: for occupancy, masks are compared only where the cameras see.
    seen_only: for occupancy, what neither the cameras nor the lidar see counts as free, as it does in labels that come
    of lidar points. Where labels know the far sides of things, most of what is filled is hidden, and to find it uses up
    the few voxels that a small model keeps.
    """

    epochs: int
    resize: tuple[float, float]
    encoder: str = "finetune"
    perspective_weight: float = 1.0
    batch: int = 8
    lr: float = 2e-4
    min_lr_ratio: float = 1e-3
    lr_drop_epochs: tuple[int, ...] = ()
    lr_drop: float = 0.2
    warmup_steps: int = 500
    warmup_ratio: float = 1 / 3
    weight_decay: float = 0.01
    backbone_lr: float = 0.1
    sampling_offset_lr: float = 0.1
    clip_norm: float = 35.0
    frames_with_gradient: int = 0
    image_flip: bool = True
    color_augmentation: bool = True
    grid_mask: bool = True
    bev: BevAugmentationConfig = field(default_factory=BevAugmentationConfig)
    denoising_groups: int = 10
    denoising_velocity: float = 0.0
    moving_weight: float = 1.0
    camera_mask: bool = False
    seen_only: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.encoder not in ("finetune", "scratch", "frozen"):
            raise ConfigError(f"training.encoder is {self.encoder!r}; it must be 'finetune', 'scratch' or 'frozen'")
        if min(self.epochs, self.batch, *self.lr_drop_epochs) < 1:
            raise ConfigError("training: epochs, batch and lr_drop_epochs must be positive")
        if min(self.lr, self.lr_drop, self.clip_norm, self.moving_weight, *self.resize) <= 0:
            raise ConfigError("training: lr, lr_drop, clip_norm, moving_weight and resize must be positive")
        names = ("warmup_steps", "denoising_groups", "denoising_velocity", "frames_with_gradient", "perspective_weight")
        if negative := [name for name in names if getattr(self, name) < 0]:
            raise ConfigError(f"training.{negative[0]} must not be negative")


@dataclass(frozen=True)
class Provenance:
    """Where a variant comes from and what its publication claims for it, scores in percent."""

    paper: str = ""
    pretraining: str = ""
    published_nds_val: float | None = None
    published_nds_test: float | None = None
    published_rayiou: float | None = None
    published_raypq: float | None = None
    published_fps: float | None = None
    published_hardware: str = ""
    weights_licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class VariantConfig:
    """One variant: the facts of a model, apart from where and how it is deployed.

    perspective: whether the model has a perspective head, which training supervises.
    """

    name: str
    family: str
    image: ImageConfig
    frames: FramesConfig
    head: HeadConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    reference_frame: ReferenceFrameConfig = field(default_factory=ReferenceFrameConfig)
    class_names: tuple[str, ...] = NUSCENES_CLASSES
    perspective: bool = False
    training: TrainingConfig | None = None
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def detector(self) -> SparseBEVHeadConfig:
        """The head of a variant that detects boxes; raises ConfigError for another."""
        if not isinstance(self.head, SparseBEVHeadConfig):
            raise ConfigError(f"{self.name} is a variant of {self.family}, which detects no boxes; choose another")
        return self.head

    @property
    def occupancy(self) -> SparseOccHeadConfig:
        """The head of a variant that gives occupancy; raises ConfigError for another."""
        if not isinstance(self.head, SparseOccHeadConfig):
            raise ConfigError(f"{self.name} is a variant of {self.family}, which gives no occupancy; choose another")
        return self.head


def variants_directory() -> Path:
    """Return the directory of the variants' YAML files.

    It lies beside the package in a source tree and an editable install, in share/bev_perception of a ROS 2
    workspace, and inside the package in a wheel.
    """
    package = Path(__file__).resolve().parent
    candidates = [package.parent / "config" / "models", package / "config" / "models"]
    candidates += [up / "share" / "bev_perception" / "config" / "models" for up in package.parents]
    for directory in candidates:
        if directory.is_dir():
            return directory
    raise ConfigError(f"no config/models beside {package}; the installation is incomplete, install the package again")


def weights_directory() -> Path:
    """Return where the weights are that come with the package; it need not exist."""
    return variants_directory().parent / "weights"


def shipped_weights(name: str) -> Path | None:
    """Return the file of weights that comes with the package for the variant `name`, or None if there is none."""
    path = weights_directory() / f"{name}.safetensors"
    return path if path.is_file() else None


def list_variants() -> list[str]:
    """Return the names of all variants that come with the package."""
    return sorted(path.stem for path in variants_directory().glob("*.yaml"))


def load_variant(name: str | Path) -> VariantConfig:
    """Load a variant by its name, or from the path of a YAML file of your own.

    Raises ConfigError for a name that does not exist (naming the nearest) and for any mistake in the file.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = variants_directory() / f"{name}.yaml"
        if not path.is_file():
            known = list_variants()
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"unknown variant {str(name)!r}; {hint}known: {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the variant file {path}: {error}") from error
    config = _variant_from(values, path.name)
    if config.name != path.stem:
        raise ConfigError(f"{path.name}: name is {config.name!r}; it must equal the file's name")
    return config


def _variant_from(values: Any, where: str) -> VariantConfig:
    """Build the variant from plain values; its family decides what its head is made of."""
    family = values.get("family") if isinstance(values, dict) else None
    if family is None:
        return from_dict(VariantConfig, values, where)  # raises: it is missing
    if family not in FAMILIES:
        raise ConfigError(f"{where}: unknown family {family!r}; known: {', '.join(FAMILIES)}")
    head, classes = FAMILIES[family]
    values = {"class_names": classes, **values}
    if "head" in values:
        values["head"] = from_dict(head, values["head"], f"{where}.head")
    config: VariantConfig = from_dict(VariantConfig, values, where)
    return config
