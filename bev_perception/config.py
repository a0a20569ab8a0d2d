"""A variant's YAML file as frozen dataclasses; an unknown key is an error that names the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

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


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the key and the remedy."""


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
    max_gap: s; after a longer silence the history is wiped.
    """

    past: int
    future: int = 0
    interval: float = 0.5
    max_gap: float = 2.0

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if min(self.past, self.future) < 0 or min(self.interval, self.max_gap) <= 0:
            raise ConfigError("frames: past and future must not be negative, interval and max_gap must be positive")


@dataclass(frozen=True)
class ReferenceFrameConfig:
    """The frame that the boxes were trained in, as a transform to base_link: translation (m) and yaw (rad).

    The default is nuScenes' LIDAR_TOP (Caesar et al., CVPR 2020), rounded: x right, y forward, z up.
    """

    translation: tuple[float, float, float] = (0.94, 0.0, 1.84)
    yaw: float = -1.5707963267948966


@dataclass(frozen=True)
class BackboneConfig:
    """type: name of the backbone.  depth: its depth, where it has several."""

    type: str = "resnet"
    depth: int = 50


@dataclass(frozen=True)
class NeckConfig:
    """type: "fpn".  out_channels: of every level.  num_outs: number of levels."""

    type: str = "fpn"
    out_channels: int = 256
    num_outs: int = 4


@dataclass(frozen=True)
class SparseBEVHeadConfig:
    """The query decoder of SparseBEV (Liu et al., ICCV 2023)."""

    num_query: int = 900
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    num_layers: int = 6
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    code_size: int = 10
    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


@dataclass(frozen=True)
class DecodeConfig:
    """From raw outputs to boxes: at most max_num above score_threshold with centres inside post_center_range (m)."""

    max_num: int = 300
    score_threshold: float = 0.05
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


@dataclass(frozen=True)
class Provenance:
    """Where a variant comes from and what its publication claims for it."""

    paper: str = ""
    pretraining: str = ""
    published_nds_val: float | None = None
    published_nds_test: float | None = None
    published_fps: float | None = None
    published_hardware: str = ""
    weights_licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class VariantConfig:
    """One variant: the facts of a model, apart from where and how it is deployed."""

    name: str
    family: str
    image: ImageConfig
    frames: FramesConfig
    head: SparseBEVHeadConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    neck: NeckConfig = field(default_factory=NeckConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    reference_frame: ReferenceFrameConfig = field(default_factory=ReferenceFrameConfig)
    class_names: tuple[str, ...] = NUSCENES_CLASSES
    provenance: Provenance = field(default_factory=Provenance)


def from_dict(cls: type, values: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from plain values, strictly.

    Raises ConfigError for an unknown key (naming the nearest), a missing key or a value of a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(fields)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing key {', '.join(map(repr, missing))}")
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}".lstrip(".")) for key, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if typing.get_origin(hint) in (UnionType, typing.Union):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{where}: expected {len(items)} values, got {len(value)}")
    return tuple(_convert(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True)))


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
    config: VariantConfig = from_dict(VariantConfig, values, path.name)
    if config.name != path.stem:
        raise ConfigError(f"{path.name}: name is {config.name!r}; it must equal the file's name")
    return config
