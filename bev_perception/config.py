"""A variant's YAML file as frozen dataclasses; an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any

from bev_perception.strict import ConfigError, check_positive

#: how further boxes of one object are told: not at all, by the distance of centres, or by the overlap of rotated boxes
NMS = ("none", "distance", "rotated_iou")


@dataclass(frozen=True)
class ImageConfig:
    """What the network takes as an image.

    height: pixels, before padding to a multiple of `pad`
    width: pixels, before padding to a multiple of `pad`
    mean: of the 0..255 values, in the order of `channel_order`
    std: of the 0..255 values, in the order of `channel_order`
    channel_order: "rgb" or "bgr"
    pad: height and width are padded to multiples of it, pixels
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

    past: number of frames before the current one
    future: number of frames after the current one; with any, the variant runs on recordings only
    interval: s between two frames
    order: how past and future frames follow the current one, nearest first: "sequential" (all past, then all future
        ones) or "interleaved" (by turns, past first; as many of both)
    max_gap: s; after a longer silence the history is wiped
    missing: what stands for past frames that are not there: the "oldest" one that is, or the "current" frame
    """

    past: int
    future: int = 0
    interval: float = 0.5
    order: str = "sequential"
    max_gap: float = 2.0
    missing: str = "oldest"

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(self.past, self.future) < 0 or min(self.interval, self.max_gap) <= 0:
            raise ConfigError("frames: past and future must not be negative, interval and max_gap must be positive")
        if self.missing not in ("oldest", "current"):
            raise ConfigError(f"frames.missing is {self.missing!r}; it must be 'oldest' or 'current'")
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
    """The frame that the model was trained in, as a transform to base_link.

    Where a recording knows the lidar's real pose, that one takes the place of the nominal mounting. The default is
    nuScenes' LIDAR_TOP (Caesar et al., CVPR 2020), rounded: x right, y forward, z up.

    sensor: "lidar" or "base_link"
    translation: m, of the frame's origin in base_link
    yaw: rad, of the frame in base_link
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
class TrainedCamerasConfig:
    """How the cameras saw that the variant was trained with, which `image_fit` imitates with others.

    The defaults are those of nuScenes (Caesar et al., CVPR 2020), rounded.

    size: width and height of their pictures, pixels
    focals: focal lengths among them, pixels of these pictures
    horizon: row of the horizon in these pictures, pixels
    height: above the ground, m
    """

    size: tuple[int, int] = (1600, 900)
    focals: tuple[float, ...] = (1260.0, 805.0)
    horizon: float = 465.0
    height: float = 1.54

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if not self.focals or min(*self.size, *self.focals, self.height) <= 0:
            raise ConfigError("trained_cameras: size, focals (at least one) and height must be positive")
        if not 0 < self.horizon < self.size[1]:
            raise ConfigError(f"trained_cameras.horizon is {self.horizon}; it must be a row of the pictures")


@dataclass(frozen=True)
class EVA02Config:
    """The vision transformer of the backbone "eva02"; the defaults are EVA02-L as a detector's backbone.

    embed_dim: width of its tokens; a multiple of 4 * num_heads
    num_heads: heads of its attention
    window: side of the windows that most blocks attend in, tokens
    trained_size: side of the square images that the pretraining's detector took, pixels; the rotary positions are laid
        out for it
    drop_path: share of the last block's branches left out in training; from 0 at the first block it grows linearly
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
class SwinConfig:
    """The transformer of the backbone "swin"; the defaults are Swin-B with the windows of its 384-pixel pretraining.

    embed_dim: width of its tokens in the first stage; each later stage has twice as many as the one before
    depths: blocks of each stage
    heads: heads of the attention of each stage
    windows: side of the windows of each stage, tokens
    shifted: whether every second block moves its windows by half their side
    positions: whether learnt positions are added to the tokens of the first stage
    drop_path: share of the last block's branches left out in training; from 0 at the first block it grows linearly
    """

    embed_dim: int = 128
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    windows: tuple[int, int, int, int] = (12, 12, 12, 12)
    shifted: bool = True
    positions: bool = False
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(self.embed_dim, *self.depths, *self.heads, *self.windows) < 1:
            raise ConfigError("backbone.swin: embed_dim, depths, heads and windows must be positive")
        if any(self.embed_dim * 2**stage % heads for stage, heads in enumerate(self.heads)):
            raise ConfigError("backbone.swin: the heads of a stage must divide its width, embed_dim * 2^stage")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"backbone.swin.drop_path is {self.drop_path}; it must lie in 0..1, below 1")


@dataclass(frozen=True)
class BackboneConfig:
    """The image backbone.

    type: "resnet", "vovnet", "eva02" or "swin"
    depth: its depth; of "eva02" and "swin", the number of blocks
    width: channels of the first stage of "resnet"
    first_level: stages of "resnet" or "swin" before the first whose map is given: 0 begins at 1/4 of the image's size,
        1 at 1/8
    with_first: whether the map of the first stage of "resnet" or "swin" is given too, before the others
    patches: whether the stem of "resnet" takes patches of 4x4 pixels, which costs less than overlapping 7x7 windows and
        a max pool (Liu et al., A ConvNet for the 2020s, CVPR 2022, section 2.2)
    style: where a bottleneck of "resnet" has its stride: "pytorch", in its 3x3 convolution, or "caffe", in its first
        1x1 convolution; in caffe's style the batch norms are never trained
    deformable_stages: stages of "resnet", of 1 to 4, whose 3x3 convolutions are deformable
    eva02: further settings of "eva02"
    swin: further settings of "swin"
    """

    type: str = "resnet"
    depth: int = 50
    width: int = 64
    first_level: int = 0
    with_first: bool = False
    patches: bool = False
    style: str = "pytorch"
    deformable_stages: tuple[int, ...] = ()
    eva02: EVA02Config = field(default_factory=EVA02Config)
    swin: SwinConfig = field(default_factory=SwinConfig)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.depth < 1:
            raise ConfigError(f"backbone.depth is {self.depth}; it must be positive")
        if self.width < 1 or not 0 <= self.first_level <= 3:
            raise ConfigError("backbone.width must be positive, backbone.first_level must be one of 0, 1, 2, 3")
        if self.style not in ("pytorch", "caffe"):
            raise ConfigError(f"backbone.style is {self.style!r}; it must be 'pytorch' or 'caffe'")
        if not {*self.deformable_stages} <= {1, 2, 3, 4}:
            raise ConfigError(f"backbone.deformable_stages {self.deformable_stages} must be of 1, 2, 3, 4")
        strangers = {
            "width": self.type != "resnet" and self.width != 64,
            "patches": self.type != "resnet" and self.patches,
            "style": self.type != "resnet" and self.style != "pytorch",
            "deformable_stages": self.type != "resnet" and self.deformable_stages,
            "first_level": self.type not in ("resnet", "swin") and self.first_level != 0,
            "with_first": self.type not in ("resnet", "swin") and self.with_first,
        }
        if any(strangers.values()):
            named = " and ".join(name for name, strange in strangers.items() if strange)
            raise ConfigError(
                f"backbone: {named} cannot be set for {self.type!r}; remove it, or give it its default where a file "
                "that is extended sets it"
            )
        if self.with_first and self.first_level == 0:
            raise ConfigError("backbone.with_first: with first_level 0 the first stage's map is given already")
        for name, default in (("eva02", EVA02Config()), ("swin", SwinConfig())):
            if self.type != name and getattr(self, name) != default:
                raise ConfigError(f"backbone.{name} has no meaning for a backbone of type {self.type!r}; remove it")
        if self.type == "swin" and self.depth != sum(self.swin.depths):
            raise ConfigError(f"backbone.depth ({self.depth}) must be the sum of swin.depths, {sum(self.swin.depths)}")


@dataclass(frozen=True)
class NeckConfig:
    """What makes a pyramid of the backbone's maps.

    type: "fpn"; "lss", which joins two maps in one (Philion and Fidler, ECCV 2020); or "none" for a backbone that gives
        the pyramid itself
    out_channels: channels of every level
    num_outs: number of levels; fewer than the backbone's maps gives only the finest ones
    extra: how "fpn" makes a level beyond the backbone's maps of the level before: "subsample", every other cell of it,
        or "convolution", 3x3 with stride 2
    """

    type: str = "fpn"
    out_channels: int = 256
    num_outs: int = 4
    extra: str = "subsample"

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.extra not in ("subsample", "convolution"):
            raise ConfigError(f"neck.extra is {self.extra!r}; it must be 'subsample' or 'convolution'")
        check_positive(self, "neck", ("out_channels", "num_outs"))


@dataclass(frozen=True)
class BevAugmentationConfig:
    """How the world of a training sample is changed; the defaults are those of Liu et al., ICCV 2023.

    max_rotation: rad about the z axis of the reference frame, to either side
    scale: limits of a factor on all lengths
    flip: whether x is mirrored half of the time, and y too
    """

    max_rotation: float = 0.3925
    scale: tuple[float, float] = (0.95, 1.05)
    flip: bool = False

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.max_rotation < 0 or min(self.scale) <= 0:
            raise ConfigError("training.bev: max_rotation must not be negative, scale must be positive")


@dataclass(frozen=True)
class AveragingConfig:
    """An exponential moving average of the weights, which is what a training gives in place of the last weights.

    decay: share of the average that a step keeps, once it has warmed up
    warmup: number of updates over which that share rises: decay * (1 - exp(-updates / warmup))
    start: number of updates to begin the count with
    """

    decay: float = 0.999
    warmup: float = 2000.0
    start: int = 0

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if not 0 < self.decay < 1 or self.warmup <= 0 or self.start < 0:
            raise ConfigError(
                "training.averaging: decay must lie between 0 and 1, warmup must be positive, start not negative"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How the variant is trained, apart from where; the defaults are those of Liu et al., ICCV 2023.

    epochs: passes over the data
    resize: limits of the random resize of images as wide as nuScenes' (1: as they are); other images are resized to
        the same widths
    encoder: what training changes of backbone and neck: "finetune", all but the backbone's first layers and the
        statistics of its norms; "scratch", everything; "frozen", nothing
    batch: samples a step, of all processes together
    lr: learning rate at the top of the schedule; it falls along a cosine
    cosine: whether it falls by "epoch" or by "step"
    min_lr_ratio: where the cosine ends, as a share of lr
    lr_drop_epochs: epochs after which lr is multiplied by lr_drop, in place of the cosine; none: the cosine
    lr_drop: factor on lr at each of lr_drop_epochs
    warmup_steps: steps over which lr rises at the start
    warmup_ratio: where the rise starts, as a share of lr
    weight_decay: of AdamW
    layer_decay: factor on lr from each layer of the backbone to the one before it; weights of one dimension are then
        without weight decay. 1: all layers learn alike
    backbone_lr: factor on lr for the backbone
    sampling_offset_lr: factor on lr for the sampling offsets
    clip_norm: the most that the norm of all gradients may be
    frames_with_gradient: number of newest frames whose images train the backbone and neck; 0: all
    key_frames: narrowest and widest spacing of the frames, in key frames; none: spacings of single camera frames
    image_flip: whether images are mirrored half of the time
    image_rotation: degrees by which images are rotated at most, to either side
    augment_cameras_apart: whether each camera's images are resized, cropped, mirrored and rotated in their own way
    color_augmentation: whether the colours of images are distorted
    grid_mask: whether a grid of squares is blanked in the images
    bev: augmentation of the world
    averaging: of the weights; none: the last weights count
    sync_norms_from: epoch from which batch norms use the statistics of all processes; none: never
    family: settings of the family alone
    """

    epochs: int
    resize: tuple[float, float]
    encoder: str = "finetune"
    batch: int = 8
    lr: float = 2e-4
    cosine: str = "epoch"
    min_lr_ratio: float = 1e-3
    lr_drop_epochs: tuple[int, ...] = ()
    lr_drop: float = 0.2
    warmup_steps: int = 500
    warmup_ratio: float = 1 / 3
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    backbone_lr: float = 0.1
    sampling_offset_lr: float = 0.1
    clip_norm: float = 35.0
    frames_with_gradient: int = 0
    key_frames: tuple[int, int] | None = None
    image_flip: bool = True
    image_rotation: float = 0.0
    augment_cameras_apart: bool = False
    color_augmentation: bool = True
    grid_mask: bool = True
    bev: BevAugmentationConfig = field(default_factory=BevAugmentationConfig)
    averaging: AveragingConfig | None = None
    sync_norms_from: int | None = None
    family: Any = None

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.encoder not in ("finetune", "scratch", "frozen"):
            raise ConfigError(f"training.encoder is {self.encoder!r}; it must be 'finetune', 'scratch' or 'frozen'")
        if min(self.epochs, self.batch, *self.lr_drop_epochs) < 1:
            raise ConfigError("training: epochs, batch and lr_drop_epochs must be positive")
        if min(self.lr, self.lr_drop, self.clip_norm, *self.resize) <= 0:
            raise ConfigError("training: lr, lr_drop, clip_norm and resize must be positive")
        if self.cosine not in ("epoch", "step"):
            raise ConfigError(f"training.cosine is {self.cosine!r}; it must be 'epoch' or 'step'")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"training.layer_decay is {self.layer_decay}; it must lie above 0 and be 1 at most")
        if self.key_frames is not None and not 1 <= self.key_frames[0] <= self.key_frames[1]:
            raise ConfigError("training.key_frames must be two positive numbers, the smaller one first")
        names = (
            *("warmup_steps", "warmup_ratio", "min_lr_ratio", "weight_decay", "frames_with_gradient"),
            "image_rotation",
        )
        if negative := [name for name in names if getattr(self, name) < 0]:
            raise ConfigError(f"training.{negative[0]} must not be negative")


@dataclass(frozen=True)
class Provenance:
    """Where a variant comes from and what its publication claims for it.

    paper: title, authors and venue
    pretraining: what the encoder was trained on before
    published_nds_val: percent, nuScenes detection score on the validation split
    published_nds_test: percent, nuScenes detection score on the test split
    published_rayiou: percent, on the validation split
    published_raypq: percent, on the validation split
    published_miou: percent, mean intersection over union of the occupancy on the validation split
    published_fps: frames a second
    published_hardware: what published_fps was measured on, and how
    weights_source: where the official weights are to be found; empty: there are none
    weights_licence: what is known of the licence of the official weights
    note: anything else
    """

    paper: str = ""
    pretraining: str = ""
    published_nds_val: float | None = None
    published_nds_test: float | None = None
    published_rayiou: float | None = None
    published_raypq: float | None = None
    published_miou: float | None = None
    published_fps: float | None = None
    published_hardware: str = ""
    weights_source: str = ""
    weights_licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class VariantConfig:
    """One variant: the facts of a model, apart from where and how it is deployed.

    name: equal to the file's name
    family: the family of models that it belongs to
    image: what the network takes as an image
    frames: which frames it looks at
    head: the family's own settings
    backbone: the image backbone
    neck: what makes a pyramid of the backbone's maps
    reference_frame: the frame that the model works in
    trained_cameras: how the cameras saw that it was trained with
    class_names: the classes that it tells apart; unless given, those of the family
    nms: how further boxes of one object are dropped behind its own decoding: "none", "distance" or "rotated_iou"
    training: how it is trained; a variant without it cannot be
    provenance: where it comes from
    """

    name: str
    family: str
    image: ImageConfig
    frames: FramesConfig
    head: Any
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    reference_frame: ReferenceFrameConfig = field(default_factory=ReferenceFrameConfig)
    trained_cameras: TrainedCamerasConfig = field(default_factory=TrainedCamerasConfig)
    class_names: tuple[str, ...] = ()
    nms: str = "none"
    training: TrainingConfig | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if len(set(self.class_names)) < len(self.class_names):
            raise ConfigError(f"class_names must name each class once; got {list(self.class_names)}")
        if self.nms not in NMS:
            raise ConfigError(f"nms is {self.nms!r}; it must be one of {', '.join(NMS)}")


def digest(config: VariantConfig) -> str:
    """Return what tells a variant from one with other settings, its recipe included; nms changes no network.

    Settings at their defaults do not count: a new one with a default ends neither trainings nor results that are to be
    resumed.
    """
    settings = _other_than_default(replace(config, provenance=Provenance(), nms="none"))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _other_than_default(value: Any) -> Any:
    """Return plain values of a setting; of a dataclass only the fields that differ from their defaults."""
    if is_dataclass(value):
        default = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(value)}
        own = {name: getattr(value, name) for name in default}
        return {name: _other_than_default(v) for name, v in own.items() if v != default[name]}
    if isinstance(value, (tuple, list)):
        return [_other_than_default(item) for item in value]
    return value
