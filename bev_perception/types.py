"""The data types that pass through the pipeline: images, calibrations, frames, boxes, results.

Conventions throughout the package:

* stamps are integer nanoseconds from message headers (never the wall clock);
* a transform named ``a2b`` is a [4, 4] float64 matrix that transforms points from frame a to frame b;
* a camera frame is the optical frame (x right, y down, z forward);
* the ego frame is base_link (x forward, y left, z up), the global frame is any fixed frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.strict import UserError

if TYPE_CHECKING:  # tools without a model, such as the bag player, start seconds sooner without torch
    import torch


class FrameError(UserError):
    """A frame that cannot be used; it costs itself alone, and the next one may be fine.

    cause: short and fixed; such frames are counted by it
    """

    cause = "bad frame"


#: default tf frames: of the vehicle, and of the world that it moves in
BASE_FRAME = "base_link"
FIXED_FRAME = "odom"

#: numbers of coefficients of OpenCV's polynomial lens model: k1, k2, p1, p2, k3; k4 to k6; s1 to s4; tau x and y
_POLYNOMIAL = (4, 5, 8, 12, 14)
#: number of distortion coefficients that each CameraInfo distortion model accepts; both polynomial models are OpenCV's,
#: and drivers call either by the other's name
DISTORTION_MODELS: dict[str, tuple[int, ...]] = {
    "plumb_bob": _POLYNOMIAL,
    "rational_polynomial": _POLYNOMIAL,
    "equidistant": (4,),
}
#: other names that drivers and calibration tools give these models, in small letters with underscores
_SYNONYMS = {
    **dict.fromkeys(("radtan", "radial_tangential", "brown_conrady"), "plumb_bob"),
    "rational": "rational_polynomial",
    **dict.fromkeys(
        ("equi", "fisheye", "opencv_fisheye", "kannala_brandt", "kannala_brandt4", "kb", "kb4"), "equidistant"
    ),
}
#: models of lenses that do not become ideal ones where their coefficients are zero or lie elsewhere than in D
_OTHER_LENSES = re.compile(
    r"omni|mei|fov|double_sphere|^ds$|eucm|f_?theta|fisheye|cylind|spheric|stereograph|kannala|^kb"
)


def _model_named(name: str) -> str:
    """Return the key of DISTORTION_MODELS that a driver means by a name; other names in small letters as they are."""
    plain = re.sub(r"[\s/-]+", "_", name.strip().lower())
    return _SYNONYMS.get(plain, plain)


def _unknown_model(name: str, count: int) -> str:
    """Return the message about a distortion model that is none of ours, or about none at all."""
    known = [
        " or ".join([model, *(name for name, meant in _SYNONYMS.items() if meant == model)])
        for model in DISTORTION_MODELS
    ]
    what = f"distortion model {name!r} is unknown"
    if not name:
        what = f"CameraInfo names no distortion model, but D has {count} coefficients"
    elif name == "pinhole":
        what = f"distortion model 'pinhole' has no distortion, but D has {count} coefficients"
    return (
        f"{what}; supported: {'; '.join(known)}. Have the driver name the model that D was calibrated with, or publish "
        "rectified images"
    )


def _without_padding(distortion: tuple[float, ...], counts: tuple[int, ...]) -> tuple[float, ...] | None:
    """Return the coefficients without the zeros that fill up D, in the smallest number of `counts` that holds them.

    None if D is shorter than any, or has other values where a model has no coefficient.
    """
    used = max((i + 1 for i, d in enumerate(distortion) if d), default=0)
    fitting = [count for count in counts if used <= count <= len(distortion)]
    return distortion[: fitting[0]] if fitting else None


#: pixels of a picture's longer side that no camera exceeds; what is computed of a picture is bounded by it
LARGEST_SIDE = 1 << 16


def _same(value: Any, other: Any) -> bool:
    # equal_nan raises TypeError for what is not a number, such as the name of the lens and None
    if isinstance(value, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(value, other, equal_nan=True)
    return bool(np.array_equal(value, other))


@dataclass(frozen=True)
class Calibration:
    """Pinhole intrinsics and lens distortion of one camera.

    intrinsics: [3, 3] float64, in pixels of the full, distorted image
    width: of the images that the intrinsics belong to, pixels
    height: of the images that the intrinsics belong to, pixels
    distortion_model: a key of DISTORTION_MODELS or a name that drivers give one, which becomes the key; anything
        where the lens is ideal
    distortion: coefficients in the order of sensor_msgs/CameraInfo, with zeros behind them or not; empty, or all zero
        in a polynomial model, means an ideal lens
    projection: [3, 3] float64, the left of P of CameraInfo: intrinsics of the rectified image; None if it is not known
    rectification: [3, 3] float64, R of CameraInfo, which turns the optical frame into that of the rectified image
    rectified: whether the values are those of the rectified image

    Raises UserError, naming cause and remedy, for values that no camera can have.
    """

    intrinsics: np.ndarray
    width: int
    height: int
    distortion_model: str = ""
    distortion: tuple[float, ...] = ()
    projection: np.ndarray | None = None
    rectification: np.ndarray | None = None
    rectified: bool = False

    def equals(self, other: Calibration) -> bool:
        """Return whether all values are those of another calibration; NaN, which drivers put into P, equals NaN."""
        return self is other or all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def of_rectified(self) -> Calibration:
        """Return the calibration of the rectified image: the left of P in the place of K, and no distortion.

        Raises UserError where CameraInfo has no P or no R.
        """
        turn = np.eye(3) if self.rectification is None or not self.rectification.any() else self.rectification
        if self.projection is None or not (self.projection[0, 0] > 0 and self.projection[1, 1] > 0):
            raise UserError("the images are said to be rectified, but P of CameraInfo is empty; calibrate the camera")
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) or np.linalg.det(turn) < 0:
            raise UserError(f"R of CameraInfo is no rotation: {turn.ravel().tolist()}; calibrate the camera")
        return Calibration(self.projection, self.width, self.height, rectification=turn, rectified=True)

    def __post_init__(self) -> None:
        """Check the values; an ideal lens gets an empty distortion, any other loses the zeros that fill up D."""
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
        if max(self.width, self.height) > LARGEST_SIDE:
            raise UserError(f"CameraInfo says {self.width}x{self.height} pixels, which no camera has; check the driver")
        if not np.isfinite(self.distortion).all():
            raise UserError(f"D of CameraInfo holds NaN or infinity: {self.distortion}; recalibrate the camera")
        if not np.array_equal(k[2], (0, 0, 1)):
            raise UserError(f"the last row of K of CameraInfo is {k[2].tolist()}; it must be 0, 0, 1")
        model = _model_named(self.distortion_model)
        object.__setattr__(self, "distortion_model", model)
        # polynomial models with all-zero coefficients do not distort; an equidistant lens does
        if not any(self.distortion) and (model != "equidistant" or not self.distortion):
            if model not in DISTORTION_MODELS and _OTHER_LENSES.search(model):
                raise UserError(_unknown_model(model, len(self.distortion)))
            object.__setattr__(self, "distortion", ())
            return
        if model not in DISTORTION_MODELS:
            raise UserError(_unknown_model(model, len(self.distortion)))
        counts = DISTORTION_MODELS[model]
        coefficients = _without_padding(self.distortion, counts)
        if coefficients is None:
            raise UserError(
                f"{model} takes {counts} coefficients, D of CameraInfo has {len(self.distortion)}: {self.distortion}"
            )
        object.__setattr__(self, "distortion", coefficients)


@dataclass(frozen=True, eq=False)
class CameraImage:
    """One image as received, still encoded; preprocess decodes it. Instances compare by identity.

    camera: name from the node's camera list
    stamp: ns
    frame_id: the optical frame in tf
    encoding: a sensor_msgs/Image encoding, or "jpeg" / "png" for compressed data
    data: the bytes, a 1-D buffer of uint8
    width: of a raw image, pixels; 0 for compressed data
    height: of a raw image, pixels; 0 for compressed data
    step: of a raw image, bytes per row; 0 for compressed data
    mosaic: the Bayer encoding, such as "bayer_rggb8", of compressed data that is not interpolated; else ""
    """

    camera: str
    stamp: int
    frame_id: str
    encoding: str
    data: bytes | memoryview | np.ndarray
    width: int = 0
    height: int = 0
    step: int = 0
    mosaic: str = ""


@dataclass(frozen=True)
class View:
    """One camera of a Frame: its image, and the camera's pose when the image was taken.

    image: as received
    calibration: of the camera
    sensor2ego: [4, 4], optical frame to base_link
    ego2global: [4, 4], base_link to the global frame at the image's own stamp
    """

    image: CameraImage
    calibration: Calibration
    sensor2ego: np.ndarray
    ego2global: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One set of simultaneous views.

    stamp: ns, of the anchor camera
    cameras: names of all cameras, in the configured order
    views: one per camera, None for a missing camera (the frame is then degraded)
    ego2global: [4, 4], base_link to the global frame at `stamp`
    missing: camera name -> why the camera is missing
    lidar2global: [4, 4], at `stamp`, from the lidar frame that boxes were trained in (that of nuScenes) to the global
        frame; None takes the lidar's nominal mounting on base_link from the variant
    base_height: m, of base_link above the ground
    """

    stamp: int
    cameras: tuple[str, ...]
    views: tuple[View | None, ...]
    ego2global: np.ndarray
    missing: dict[str, str] = field(default_factory=dict)
    lidar2global: np.ndarray | None = None
    base_height: float = 0.0


@dataclass(frozen=True)
class Cameras:
    """Where N cameras are and how they see; identity for a missing camera. Arrays may have further leading axes.

    intrinsics: [N, 3, 3] float64, pixels of the images before they are resized and cropped
    source2image: [N, 4, 4] float64, depth-scaled pixels (u*d, v*d, d, 1) of those images to those of the model's input
    sensor2ego: [N, 4, 4] float64, optical frame to base_link
    ego2global: [N, 4, 4] float64, base_link to the global frame at each image's own stamp
    """

    intrinsics: np.ndarray
    source2image: np.ndarray
    sensor2ego: np.ndarray
    ego2global: np.ndarray

    @classmethod
    def identities(cls, n: int) -> Cameras:
        """Return n cameras whose matrices are all identities."""
        return cls(np.tile(np.eye(3), (n, 1, 1)), *(np.tile(np.eye(4), (n, 1, 1)) for _ in range(3)))

    def select(self, keep: np.ndarray) -> Cameras:
        """Return the cameras that `keep`, a mask or indices, selects."""
        return Cameras(*(getattr(self, item.name)[keep] for item in fields(self)))

    @property
    def global2image(self) -> np.ndarray:
        """[N, 4, 4] float64, global frame (m) to depth-scaled pixels of the model's input; see geometry.project."""
        sensor2global = self.ego2global @ self.sensor2ego
        intrinsics = np.broadcast_to(np.eye(4), sensor2global.shape).copy()
        intrinsics[..., :3, :3] = self.intrinsics
        return self.source2image @ intrinsics @ invert_transform(sensor2global)


@dataclass(frozen=True)
class ModelInput:
    """A frame as input of a model.

    images: [N, 3, H, W] float32 on the device, normalised; zeros for a missing camera
    cameras: their matrices
    reference2global: [4, 4] float64, the model's reference frame at `stamp` to the global frame
    present: [N] bool, False for a missing camera
    stamps: [N] int64, ns, of each camera's image; the frame's stamp for a missing camera
    stamp: ns, of the frame
    """

    images: torch.Tensor
    cameras: Cameras
    reference2global: np.ndarray
    present: np.ndarray
    stamps: np.ndarray
    stamp: int

    @property
    def global2image(self) -> np.ndarray:
        """[N, 4, 4] float64, as that of `cameras`; zeros for a missing camera, so that it sees no point."""
        return np.where(self.present[:, None, None], self.cameras.global2image, 0.0)

    def seen_from(self, reference2global: np.ndarray) -> ModelInput:
        """Return the same input for a model with another reference frame; reference2global is [4, 4]."""
        return replace(self, reference2global=reference2global)


#: track id of a box that belongs to no track
NO_TRACK = -1


@dataclass(frozen=True)
class Boxes3D:
    """Detected boxes, in descending order of score.

    centers: [n, 3], m, the middle of each box
    sizes: [n, 3], length, width, height, m
    yaws: [n], rad, counter-clockwise from +x
    velocities: [n, 2], m/s over ground, along the axes of the frame that the boxes are in
    scores: [n], 0..1
    labels: [n] int64, indices into class_names
    class_names: names of the classes
    track_ids: [n] int64, the same for an object in every frame, never given again to another one; NO_TRACK for a box
        that is not tracked; None without tracking
    """

    centers: np.ndarray
    sizes: np.ndarray
    yaws: np.ndarray
    velocities: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    track_ids: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Boxes3D:
        """Return the boxes that `keep`, a mask or indices, selects."""
        return Boxes3D(
            self.centers[keep],
            self.sizes[keep],
            self.yaws[keep],
            self.velocities[keep],
            self.scores[keep],
            self.labels[keep],
            self.class_names,
            None if self.track_ids is None else self.track_ids[keep],
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
    """Where the voxels of an occupancy are: voxel (i, j, k) is the cube that starts at origin + resolution * (i, j, k).

    origin: x, y, z of the outer corner of voxel (0, 0, 0), m
    resolution: edge length of a voxel, m
    shape: number of voxels along x, y, z
    """

    origin: tuple[float, float, float]
    resolution: float
    shape: tuple[int, int, int]


#: grid of Occ3D-nuScenes (Tian et al., NeurIPS 2023) and OpenOcc: 40 m to each side of base_link, from 1 m below it to
#: 5.4 m above
OCC3D_GRID = VoxelGrid((-40.0, -40.0, -1.0), 0.4, (200, 200, 16))


@dataclass(frozen=True)
class Occupancy:
    """Semantic (or panoptic) occupancy of the space around the vehicle, in base_link.

    semantics: [X, Y, Z] uint8, indices into class_names
    class_names: names of the classes; the last is free space
    grid: where the voxels are
    instances: [X, Y, Z] int16, object numbers from 1 on, the same for all voxels of an object; 0: no object. None if
        the variant does not distinguish objects
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
        """Mask [X, Y, Z] bool of the voxels that are not free."""
        return self.semantics != self.free


@dataclass(frozen=True)
class Result:
    """The pipeline's output for one frame.

    stamp: ns, of the frame
    boxes: in base_link at `stamp`, with the track ids of the variant or of the tracker; None without a variant that
        detects boxes
    occupancy: in base_link at `stamp`; None without a variant that predicts occupancy
    missing: camera name -> why the camera was not used
    reset: why the memory was cleared before this frame; None if it was not
    timings: stage -> s
    history: number of memory entries that a variant could choose from; the largest over the variants
    reference_boxes: the same boxes in the model's reference frame (the nuScenes lidar's, where the Frame has its pose),
        for benchmarks that transform them to the global frame in full precision
    """

    stamp: int
    boxes: Boxes3D | None
    occupancy: Occupancy | None
    missing: dict[str, str]
    reset: str | None
    timings: dict[str, float]
    history: int
    reference_boxes: Boxes3D | None = None
