"""Settings of a synthetic data set, and the real sensor rigs and trigger times that it uses.

Rigs, times, sizes and speeds are those of nuScenes (Caesar et al., CVPR 2020), rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bev_perception.config import ReferenceFrameConfig
from bev_perception.data import nuscenes
from bev_perception.data.drive import NUSCENES_IMAGE_SIZE, CameraRig
from bev_perception.geometry import invert_transform, make_transform, rotation_from_quaternion, rotation_from_yaw
from bev_perception.rig.description import Rig
from bev_perception.rig.rig_file import rig_document
from bev_perception.strict import UserError
from bev_perception.types import Calibration

VERSION = "v1.0-synth"
#: key frames per second
KEY_RATE = 2
#: images per second and camera to choose from; the lower rate gives key frames only
CAMERA_RATES = (12, 2)
#: every VAL_EVERY-th scene, from the first one on, belongs to the validation split
VAL_EVERY = 5
SPLITS = tuple(nuscenes.SPLITS[VERSION].values())
#: name of the split with the scenes of both
EVERY_SCENE = "synth_all"
#: what --weather takes -> the kinds of light and weather that are drawn from
WEATHER: dict[str, tuple[str, ...]] = {
    "day": ("sunny", "cloudy"),
    "dusk": ("dusk",),
    "rain": ("rain",),
    "night": ("night",),
}


class SynthError(UserError):
    """A synthetic data set cannot be generated; the message names cause and remedy."""


@dataclass(frozen=True)
class SynthSettings:
    """Settings of a synthetic data set; every scene is generated with them.

    seconds: length of a scene, s
    seed: all scenes follow from it
    camera_rate: images per second and camera, one of CAMERA_RATES
    image_size: width, height, pixels; the rigs' intrinsics scale with it
    jpeg_quality: 0..100
    weather: of the scenes, by turns, each one of WEATHER; empty: any but night, by chance
    rig: cameras in the place of one of RIGS, with its poses in base_link; image_size does not count then
    lidar: whether there are lidar points; without, its files are empty

    Raises SynthError for values with which no scene can be generated.
    """

    seconds: float = 20.0
    seed: int = 0
    camera_rate: int = 12
    image_size: tuple[int, int] = NUSCENES_IMAGE_SIZE
    jpeg_quality: int = 84
    weather: tuple[str, ...] = ()
    rig: Rig | None = None
    lidar: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.camera_rate not in CAMERA_RATES:
            raise SynthError(f"a camera rate of {self.camera_rate} Hz is none of {CAMERA_RATES}; choose one of them")
        if not 1.0 <= self.seconds <= 120.0:
            raise SynthError(f"scenes of {self.seconds} s cannot be made; choose 1 to 120")
        width, height = self.image_size
        if width < 16 or 9 * width != 16 * height:
            raise SynthError(f"images of {width}x{height} are not 16:9; choose a width that 16 divides")
        if self.seed < 0:
            raise SynthError(f"the seed {self.seed} is negative; choose one from 0 on")
        if unknown := [name for name in self.weather if name not in WEATHER]:
            raise SynthError(f"there is no weather {unknown[0]!r}; choose of {', '.join(WEATHER)}")
        if self.rig is not None:
            rig_document(self.rig)  # names what a camera lacks

    @property
    def base2ground(self) -> np.ndarray:
        """Transform from base_link to the point on the ground below it, [4, 4]."""
        return make_transform(np.eye(3), np.array([0.0, 0.0, 0.0 if self.rig is None else self.rig.base_height]))


class Mount(NamedTuple):
    """A mounted sensor.

    translation: to base_link, m
    rotation: to base_link, quaternion w, x, y, z
    intrinsics: focal length, cx, cy in pixels of a 1600x900 image; None for a lidar
    """

    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    intrinsics: tuple[float, float, float] | None = None

    @property
    def sensor2ego(self) -> np.ndarray:
        """Transform from the sensor's frame to base_link, [4, 4]."""
        return make_transform(rotation_from_quaternion(*self.rotation), np.array(self.translation))

    def camera_matrix(self, image_size: tuple[int, int]) -> np.ndarray:
        """Return the intrinsics [3, 3] for images of (width, height) pixels."""
        assert self.intrinsics is not None, "a lidar has no camera matrix"
        focal, cx, cy = self.intrinsics
        scale = np.divide(image_size, NUSCENES_IMAGE_SIZE)
        return np.diag([*scale, 1.0]) @ np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])


#: sensor rigs of three nuScenes cars, channel -> mount
RIGS: tuple[dict[str, Mount], ...] = (
    {
        "CAM_FRONT": Mount((1.701, 0.016, 1.511), (0.4998, -0.5030, 0.4998, -0.4974), (1266, 816, 492)),
        "CAM_FRONT_RIGHT": Mount((1.551, -0.493, 1.496), (0.2060, -0.2027, 0.6825, -0.6714), (1261, 808, 495)),
        "CAM_FRONT_LEFT": Mount((1.524, 0.495, 1.509), (0.6757, -0.6736, 0.2121, -0.2112), (1273, 827, 480)),
        "CAM_BACK": Mount((0.028, 0.003, 1.579), (0.5038, -0.4974, -0.4942, 0.5045), (809, 829, 482)),
        "CAM_BACK_LEFT": Mount((1.036, 0.485, 1.591), (0.6924, -0.7032, -0.1165, 0.1120), (1257, 792, 493)),
        "CAM_BACK_RIGHT": Mount((1.015, -0.481, 1.562), (0.1228, -0.1324, -0.7004, 0.6905), (1260, 807, 501)),
        "LIDAR_TOP": Mount((0.944, 0.0, 1.840), (0.7078, -0.0065, 0.0106, -0.7063)),
    },
    {
        "CAM_FRONT": Mount((1.722, 0.005, 1.495), (0.5077, -0.4973, 0.4984, -0.4965), (1253, 827, 470)),
        "CAM_FRONT_RIGHT": Mount((1.581, -0.499, 1.517), (0.2034, -0.1915, 0.6786, -0.6794), (1257, 818, 452)),
        "CAM_FRONT_LEFT": Mount((1.575, 0.501, 1.507), (0.6812, -0.6688, 0.2102, -0.2111), (1258, 827, 451)),
        "CAM_BACK": Mount((0.055, 0.011, 1.568), (0.5068, -0.4978, -0.4988, 0.4966), (797, 858, 477)),
        "CAM_BACK_LEFT": Mount((1.049, 0.483, 1.562), (0.7049, -0.6907, -0.1121, 0.1162), (1255, 830, 467)),
        "CAM_BACK_RIGHT": Mount((1.059, -0.467, 1.551), (0.1382, -0.1380, -0.6893, 0.6976), (1250, 825, 463)),
        "LIDAR_TOP": Mount((0.986, 0.0, 1.840), (0.7067, -0.0153, 0.0174, -0.7071)),
    },
    {
        "CAM_FRONT": Mount((1.671, -0.026, 1.536), (0.5008, -0.4968, 0.4963, -0.5060), (1263, 787, 438)),
        "CAM_FRONT_RIGHT": Mount((1.593, -0.527, 1.526), (0.2238, -0.2109, 0.6710, -0.6746), (1264, 762, 415)),
        "CAM_FRONT_LEFT": Mount((1.564, 0.472, 1.535), (0.6750, -0.6702, 0.2101, -0.2259), (1256, 760, 418)),
        "CAM_BACK": Mount((0.086, -0.007, 1.541), (0.5006, -0.5082, -0.4991, 0.4919), (798, 679, 419)),
        "CAM_BACK_LEFT": Mount((1.055, 0.441, 1.605), (0.6991, -0.6958, -0.1189, 0.1140), (1258, 743, 423)),
        "CAM_BACK_RIGHT": Mount((1.042, -0.456, 1.595), (0.1239, -0.1310, -0.6956, 0.6954), (1259, 753, 429)),
        "LIDAR_TOP": Mount((0.891, 0.0, 1.843), (0.7044, 0.0025, -0.0013, -0.7098)),
    },
)
CAMERAS = tuple(channel for channel in RIGS[0] if channel.startswith("CAM_"))
LIDAR = "LIDAR_TOP"

#: ms, trigger time of each camera relative to the lidar's stamp of a key frame
TRIGGER_MS = {
    "CAM_FRONT": -36.0,
    "CAM_FRONT_RIGHT": -28.0,
    "CAM_FRONT_LEFT": -44.0,
    "CAM_BACK": -11.0,
    "CAM_BACK_LEFT": -1.0,
    "CAM_BACK_RIGHT": -20.0,
}
#: ms, standard deviation of the time of a set of images, and of each camera's time within the set
SET_JITTER_MS, CAMERA_JITTER_MS = 1.4, 0.1


def cameras_of(settings: SynthSettings, rig: int = 0) -> dict[str, CameraRig]:
    """Return channel -> camera, mounted on base_link, of the settings' own rig, or else of a number of RIGS."""
    if settings.rig is not None:
        return {c.name.upper(): CameraRig(c.name, c.calibration, c.sensor2ego) for c in settings.rig.complete}  # type: ignore[arg-type]
    size = settings.image_size
    return {
        channel: CameraRig(channel.lower(), Calibration(mount.camera_matrix(size), *size), mount.sensor2ego)
        for channel, mount in RIGS[rig].items()
        if channel != LIDAR
    }


def lidar_of(settings: SynthSettings, rig: int = 0) -> np.ndarray:
    """Return the transform from the lidar to base_link, [4, 4].

    On a rig of one's own it is where variants take it to be, as boxes are found and scored in its frame.
    """
    if settings.rig is None:
        return RIGS[rig][LIDAR].sensor2ego
    nominal = ReferenceFrameConfig()
    lidar2ground = make_transform(rotation_from_yaw(nominal.yaw), np.array(nominal.translation))
    return invert_transform(settings.base2ground) @ lidar2ground


class Shot(NamedTuple):
    """One image to be taken.

    channel: the camera
    stamp: us
    key: number of the key frame that the image belongs to; -1 between key frames
    """

    channel: str
    stamp: int
    key: int


@dataclass(frozen=True)
class Schedule:
    """The trigger times of a scene's sensors.

    key_stamps: [S] us, of the lidar
    shots: the images, in order of time
    """

    key_stamps: np.ndarray
    shots: tuple[Shot, ...]


def key_frames(settings: SynthSettings) -> int:
    """Return the number of key frames of a scene."""
    return max(2, round(settings.seconds * KEY_RATE))


def make_schedule(settings: SynthSettings, start: int, rng: np.random.Generator) -> Schedule:
    """Return the trigger times of a scene that starts at `start` (us): real offsets with the real jitter."""
    keys = key_frames(settings)
    # key frames follow the lidar, which sweeps at 20 Hz and is recorded at key frames only; images follow their own
    # 12 Hz, and every sixth is the nearest to a key frame
    offsets = TRIGGER_MS if settings.rig is None else dict.fromkeys(cameras_of(settings), 0.0)
    key_stamps = start + np.rint(np.arange(keys) * 1e6 / KEY_RATE + rng.normal(0, 500, keys)).astype(np.int64)
    per_key = settings.camera_rate // KEY_RATE
    shots = []
    for tick in range((keys - 1) * per_key + 1):
        key, rest = divmod(tick, per_key)
        base = start + tick * 1e6 / settings.camera_rate + 1e3 * rng.normal(0, SET_JITTER_MS)
        for channel, offset in offsets.items():
            stamp = base + 1e3 * (offset + rng.normal(0, CAMERA_JITTER_MS))
            shots.append(Shot(channel, round(stamp), key if rest == 0 else -1))
    return Schedule(key_stamps, tuple(sorted(shots, key=lambda shot: shot.stamp)))
