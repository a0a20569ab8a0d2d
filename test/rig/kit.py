"""A small plausible rig to plant faults in."""

from dataclasses import replace

import numpy as np

from bev_perception.data.rig_recording import rig_of
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.rig.description import CameraInfo, Rig, RigCamera
from bev_perception.sensing.view_checks import BODY_FROM_OPTICAL
from bev_perception.types import Calibration

SIZE = (800, 450)


def calibration(focal=630.0, size=SIZE, center=None, fy=None, model="", d=()):
    x, y = center or (size[0] / 2, size[1] / 2)
    return Calibration(np.array([[focal, 0, x], [0, fy or focal, y], [0, 0, 1.0]]), *size, model, d)


def looking(yaw=0.0, pitch=0.0, roll=0.0, at=(1.5, 0.0, 1.5)):
    """Return sensor2ego of an optical frame: degrees to the left, down, and clockwise about the view's axis."""
    y, p, r = np.radians((yaw, pitch, roll))
    pitched = np.array([[np.cos(p), 0, np.sin(p)], [0, 1, 0], [-np.sin(p), 0, np.cos(p)]])
    rolled = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    return make_transform(rotation_from_yaw(y) @ pitched @ rolled @ BODY_FROM_OPTICAL, np.array(at))


def info_of(lens, **fields):
    k = lens.intrinsics
    given = {"size": (lens.width, lens.height), "k": k, "r": np.eye(3), "p": np.c_[k, np.zeros(3)]}
    return CameraInfo(**(given | fields))


def camera(name="cam", lens=None, pose=None, **fields):
    lens = lens or calibration()
    whole = RigCamera(
        name,
        f"{name}_optical",
        info=info_of(lens),
        calibration=lens,
        sensor2ego=looking() if pose is None else pose,
        picture_size=(lens.width, lens.height),
    )
    return replace(whole, **fields)


def nuscenes_like(size=SIZE):
    return rig_of(synthetic_rig(size))


def one(*cameras, **fields):
    return Rig(tuple(cameras), **fields)


def levels(findings):
    """Return "about: check" -> level of all findings."""
    return {f"{f.about}: {f.check}": f.level for f in findings}


def bad(findings):
    """Return the names of the checks that are not OK, sorted; each must have a remedy."""
    found = [f for f in findings if f.level != "OK"]
    assert all(f.remedy for f in found)
    return sorted({f.check for f in found})
