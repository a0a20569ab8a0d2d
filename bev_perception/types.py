"""The data that walks through the pipeline: images, calibrations, frames, boxes, results.

Conventions, everywhere in the package:

* stamps are integer nanoseconds of the header (never the wall clock);
* a transform named ``a2b`` is a [4, 4] float64 matrix that takes points of frame a to frame b;
* a camera frame is the optical frame (x right, y down, z forward);
* the ego frame is base_link (x forward, y left, z up), the global frame is any fixed frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from bev_perception.strict import UserError

if TYPE_CHECKING:  # tools without a model, the bag player for one, start seconds sooner without it
    import torch


class FrameError(UserError):
    """A frame that cannot be used; it costs itself alone, and the next one may be fine."""


#: default tf frames: of the vehicle, and of the world it moves in
BASE_FRAME = "base_link"
FIXED_FRAME = "odom"

#: number of distortion coefficients that each CameraInfo distortion model accepts
DISTORTION_MODELS: dict[str, tuple[int, ...]] = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
}


@dataclass(frozen=True)
class Calibration:
    """Pinhole intrinsics of one camera with its lens distortion.

    intrinsics: [3, 3] float64, pixels of the full, distorted image.
    width, height: size in pixels of the images that the intrinsics belong to.
    distortion_model: a key of DISTORTION_MODELS, or "" for an ideal lens.
    distortion: coefficients in the order of sensor_msgs/CameraInfo; empty, or all zero in a polynomial model, means
    an ideal lens.

    Raises UserError, naming cause and remedy, for values that no camera can have.
    """

    intrinsics: np.ndarray
    width: int
    height: int
    distortion_model: str = ""
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the values and normalise the distortion of an ideal lens to none."""
        k = np.asarray(self.intrinsics, np.float64).reshape(3, 3)
        object.__setattr__(self, "intrinsics", k)
        object.__setattr__(self, "distortion", tuple(float(d) for d in self.distortion))
        if not np.isfinite(k).all():
            raise UserError(f"K of CameraInfo holds NaN or infinity: {k.ravel().tolist()}; recalibrate the camera")
        if k[0, 0] <= 0 or k[1, 1] <= 0:
            raise UserError(
                f"K of CameraInfo has focal lengths {k[0, 0]}, {k[1, 1]}; they must be positive "
                "(an all-zero K means that the driver publishes no calibration)"
            )
        if self.width <= 0 or self.height <= 0:
            raise UserError(f"CameraInfo says {self.width}x{self.height} pixels; fill in width and height")
        if not np.isfinite(self.distortion).all():
            raise UserError(f"D of CameraInfo holds NaN or infinity: {self.distortion}; recalibrate the camera")
        if not np.array_equal(k[2], (0, 0, 1)):
            raise UserError(f"the last row of K of CameraInfo is {k[2].tolist()}; it must be 0, 0, 1")
        # the polynomials vanish with their coefficients; an equidistant lens bends without any
        if not any(self.distortion) and (self.distortion_model != "equidistant" or not self.distortion):
            object.__setattr__(self, "distortion", ())
            return
        if self.distortion_model not in DISTORTION_MODELS:
            raise UserError(
                f"distortion model {self.distortion_model!r} is unknown; supported: {', '.join(DISTORTION_MODELS)}"
            )
        if len(self.distortion) not in DISTORTION_MODELS[self.distortion_model]:
            raise UserError(
                f"{self.distortion_model} takes {DISTORTION_MODELS[self.distortion_model]} coefficients, "
                f"D of CameraInfo has {len(self.distortion)}"
            )


@dataclass(frozen=True, eq=False)
class CameraImage:
    """One image as it arrived, still encoded; decoding belongs to preprocess. Equal only to itself.

    camera: name from the node's camera list.  stamp: ns.  frame_id: the optical frame in tf.
    encoding: a sensor_msgs/Image encoding, or "jpeg" / "png" for compressed data.
    data: the bytes (uint8, 1-D buffer).
    width, height, step: of a raw image (pixels, pixels, bytes a row); 0 for compressed data.
    """

    camera: str
    stamp: int
    frame_id: str
    encoding: str
    data: bytes | memoryview | np.ndarray
    width: int = 0
    height: int = 0
    step: int = 0


@dataclass(frozen=True)
class View:
    """One camera of a Frame: its image and where the camera was when it was taken.

    sensor2ego: [4, 4], optical frame to base_link.  ego2global: [4, 4] at the image's own stamp.
    """

    image: CameraImage
    calibration: Calibration
    sensor2ego: np.ndarray
    ego2global: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One set of simultaneous views.

    stamp: ns, of the anchor camera.  cameras: every camera's name, in the configured order.
    views: one a camera, None where it is missing (the frame is then degraded).
    ego2global: [4, 4] at `stamp`.  missing: camera name -> why it is missing.
    lidar2global: [4, 4] at `stamp`, of the lidar whose frame boxes were trained in (nuScenes'), where there is one;
    None takes the variant's nominal mounting on base_link.
    """

    stamp: int
    cameras: tuple[str, ...]
    views: tuple[View | None, ...]
    ego2global: np.ndarray
    missing: dict[str, str] = field(default_factory=dict)
    lidar2global: np.ndarray | None = None


@dataclass(frozen=True)
class ModelInput:
    """A frame as the model takes it.

    images: [N, 3, H, W] float32 on the device, normalised; zeros where a camera is missing.
    global2image: [N, 4, 4] float64, global frame to pixels of `images` (depth-scaled); see geometry.project.
    reference2global: [4, 4] float64, the model's reference frame at `stamp` to the global frame.
    present: [N] bool.  stamps: [N] int64 ns, the camera's own (the frame's where missing).  stamp: ns.
    """

    images: torch.Tensor
    global2image: np.ndarray
    reference2global: np.ndarray
    present: np.ndarray
    stamps: np.ndarray
    stamp: int

    def seen_from(self, reference2global: np.ndarray) -> ModelInput:
        """Return the same for a model with another reference frame, [4, 4]."""
        return replace(self, reference2global=reference2global)


@dataclass(frozen=True)
class Boxes3D:
    """Detected boxes, in descending score.

    centers: [n, 3] m, the box's middle.  sizes: [n, 3] m: length, width, height.
    yaws: [n] rad, counter-clockwise from +x.  velocities: [n, 2] m/s over ground, in the box's frame of reference.
    scores: [n] in 0..1.  labels: [n] int64, indices into class_names.
    """

    centers: np.ndarray
    sizes: np.ndarray
    yaws: np.ndarray
    velocities: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Boxes3D:
        """Return the boxes at `keep` (a mask or indices)."""
        return Boxes3D(
            self.centers[keep],
            self.sizes[keep],
            self.yaws[keep],
            self.velocities[keep],
            self.scores[keep],
            self.labels[keep],
            self.class_names,
        )


@dataclass(frozen=True)
class Limits:
    """How much is handed out; None takes the variant's own.

    score: lowest score of a box
    count: the most boxes
    """

    score: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class VoxelGrid:
    """Where the voxels of an occupancy are: [X, Y, Z] cubes, voxel (i, j, k) from origin + resolution * (i, j, k) on.

    origin: m, the outer corner of voxel (0, 0, 0).  resolution: m.  shape: number of voxels along x, y, z.
    """

    origin: tuple[float, float, float]
    resolution: float
    shape: tuple[int, int, int]


#: of Occ3D-nuScenes (Tian et al., NeurIPS 2023) and OpenOcc: 40 m to each side, 1 m below to 5.4 m above base_link
OCC3D_GRID = VoxelGrid((-40.0, -40.0, -1.0), 0.4, (200, 200, 16))


@dataclass(frozen=True)
class Occupancy:
    """What fills the space round the vehicle, in base_link.

    semantics: [X, Y, Z] uint8, indices into class_names, the last of which is free space.
    instances: [X, Y, Z] int16, the same number for all voxels of one object, from 1 on; 0: no instance. None where the
    variant tells no objects apart.
    """

    semantics: np.ndarray
    class_names: tuple[str, ...]
    grid: VoxelGrid = OCC3D_GRID
    instances: np.ndarray | None = None

    @property
    def free(self) -> int:
        """The label of free space."""
        return len(self.class_names) - 1

    @property
    def occupied(self) -> np.ndarray:
        """[X, Y, Z] bool: not free."""
        return self.semantics != self.free


@dataclass(frozen=True)
class Result:
    """What the pipeline says of one frame.

    stamp: ns, the frame's
    boxes: in base_link at `stamp`; None if no variant that detects took part
    occupancy: in base_link at `stamp`; None if no variant of occupancy took part
    missing: camera -> why it took no part
    reset: why memory was wiped before this frame, or None
    timings: stage -> seconds
    history: the most memory entries that a variant could choose from
    reference_boxes: the same boxes in the frame that the model works in (nuScenes' lidar, where the Frame says where
        that is), for benchmarks that turn them into the world in full precision
    """

    stamp: int
    boxes: Boxes3D | None
    occupancy: Occupancy | None
    missing: dict[str, str]
    reset: str | None
    timings: dict[str, float]
    history: int
    reference_boxes: Boxes3D | None = None
