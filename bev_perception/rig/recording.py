"""What the checks of a recording need of it: the rig, pictures, ego poses, and when messages were stamped and came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from bev_perception.geometry import interpolate_transform
from bev_perception.rig.description import Rig


@dataclass(frozen=True)
class Times:
    """When the messages of a topic (or of one tf link) were stamped and when they came, in the order of coming.

    stamps: [n] int64, ns, of the headers
    logged: [n] int64, ns, when they were recorded
    """

    stamps: np.ndarray
    logged: np.ndarray


class PoseTrack:
    """The poses of the vehicle in the fixed frame.

    stamps: [n] int64, ns, ascending
    ego2global: [n, 4, 4]
    """

    def __init__(self, stamps: np.ndarray, ego2global: np.ndarray) -> None:
        """Sort the poses; of equal stamps, the first is kept."""
        self.stamps, first = np.unique(np.asarray(stamps, np.int64), return_index=True)
        self.ego2global = np.asarray(ego2global, np.float64).reshape(-1, 4, 4)[first]

    def at(self, stamp: float) -> np.ndarray | None:
        """Return the pose [4, 4] at a stamp (ns), interpolated; None before the first and after the last one."""
        stamps = self.stamps
        if len(stamps) == 0 or not stamps[0] <= stamp <= stamps[-1]:
            return None
        after = int(np.searchsorted(stamps, stamp, "right"))
        if after == len(stamps):
            return self.ego2global[-1]
        weight = float(stamp - stamps[after - 1]) / float(stamps[after] - stamps[after - 1])
        return interpolate_transform(self.ego2global[after - 1], self.ego2global[after], weight)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a camera in grey.

    camera: name
    stamp: ns
    size: width and height, pixels
    png: its grey values; a hundred unpacked pictures of large cameras take a gigabyte
    """

    camera: str
    stamp: int
    size: tuple[int, int]
    png: bytes

    @classmethod
    def of(cls, camera: str, stamp: int, gray: np.ndarray) -> Picture:
        """Return the picture of grey values [H, W] uint8."""
        packed = cv2.imencode(".png", gray, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        return cls(camera, stamp, (gray.shape[1], gray.shape[0]), packed.tobytes())

    @property
    def gray(self) -> np.ndarray:
        """The grey values, [H, W] uint8, decoded anew."""
        return cv2.imdecode(np.frombuffer(self.png, np.uint8), cv2.IMREAD_GRAYSCALE)


@dataclass(frozen=True)
class Recording:
    """What a bag tells about a rig.

    rig: the cameras
    poses: of the vehicle; empty without odometry in tf
    images: camera -> times of its images
    links: tf link "parent -> child" between base and fixed frame -> times of its poses; static links are left out
    moments: sets of pictures taken at nearly one time, one for each camera that had any
    pairs: camera -> consecutive pictures
    """

    rig: Rig
    poses: PoseTrack
    images: Mapping[str, Times]
    links: Mapping[str, Times]
    moments: Sequence[Mapping[str, Picture]] = ()
    pairs: Mapping[str, Sequence[tuple[Picture, Picture]]] = field(default_factory=dict)
