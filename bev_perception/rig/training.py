"""How far a rig is from the one that a variant was trained with, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bev_perception.config import VariantConfig
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.mounting import seen_headings
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.view_checks import cut_off, horizon_row
from bev_perception.strict import UserError

#: ratios of focal lengths from which depth suffers, and from which it is lost
FOCAL_RATIO, FOCAL_RATIO_LOST = 1.2, 2.0
#: share of the input's height by which the horizon may lie elsewhere
HORIZON_SHIFT = 0.15
#: m by which a camera, and base_link, may be higher or lower than in training
CAMERA_HEIGHT, BASE_HEIGHT = 0.5, 0.2
#: share of the circle by which less may be seen
COVERAGE = 0.1


def check_training(rig: Rig, trained: Rig, config: VariantConfig) -> Iterator[Finding]:
    """Yield how each camera and the whole rig differ from those of the training.

    rig: to be judged
    trained: what the variant was trained with
    config: the variant
    """
    of_training = [_Geometry(camera, trained, config) for camera in trained.complete]
    for camera in rig.complete:
        try:
            geometry = _Geometry(camera, rig, config)
        except UserError as error:
            yield Finding("picture's shape", camera.name, FAIL, str(error), "publish the camera_info of the stream")
            continue
        yield _focal_length(camera.name, geometry, of_training)
        if not math.isnan(geometry.horizon):  # else its direction is the finding
            yield _horizon(camera.name, geometry, of_training)
        yield _camera_height(camera.name, geometry, of_training)
    yield _reference_height(rig, trained, config)
    yield _seen(rig, trained)
    yield _count(rig, trained)


class _Geometry:
    """What the network sees of a camera.

    focal: length, pixels of the network's input
    horizon: its row at the middle column, as a share of the input's height; negative above the input, NaN for a camera
        that looks too steep
    height: of the camera above the ground, m
    cut_off: whether the input has lost the horizon of the picture
    nearest_cut: m; ground beyond is above the input; infinity if the horizon is in it
    """

    def __init__(self, camera: RigCamera, rig: Rig, config: VariantConfig) -> None:
        assert camera.calibration is not None and camera.sensor2ego is not None
        k = camera.calibration.intrinsics
        transform: ImageTransform = image_transform((camera.calibration.height, camera.calibration.width), config.image)
        self.focal = float(k[0, 0]) * transform.resize
        in_picture = horizon_row(camera.calibration, camera.sensor2ego)
        row = math.nan if in_picture is None else in_picture * transform.resize - transform.crop[1]
        input_hw = (config.image.height, config.image.width)
        self.cut_off = cut_off(camera.calibration, camera.sensor2ego, transform.source2output, input_hw)
        self.horizon = float(row) / config.image.height
        self.height = float(camera.sensor2ego[2, 3]) + rig.base_height
        below = math.atan(-row / (k[1, 1] * transform.resize)) if row < 0 else 0.0  # rad, of the input's first row
        self.nearest_cut = abs(self.height) / math.tan(below) if below > 1e-3 else math.inf


def _focal_length(name: str, camera: _Geometry, trained: list[_Geometry]) -> Finding:
    nearest = min((t.focal for t in trained), key=lambda focal: abs(math.log(focal / camera.focal)))
    ratio = camera.focal / nearest
    figure = f"{camera.focal:.0f} pixels of the input, {nearest:.0f} in training"
    level = grade(max(ratio, 1 / ratio), FOCAL_RATIO, FOCAL_RATIO_LOST)
    looks, seems = ("larger", "nearer") if ratio > 1 else ("smaller", "farther")
    remedy = (
        f"everything looks {max(ratio, 1 / ratio):.2f} times {looks}, so boxes may come out about as many times "
        f"{seems}; fine-tune, or choose another resolution or lens"
    )
    return judged("focal length", name, level, figure, remedy)


def _horizon(name: str, camera: _Geometry, trained: list[_Geometry]) -> Finding:
    rows = [t.horizon for t in trained]
    figure = f"at {camera.horizon:.0%} of the input's height, {min(rows):.0%} to {max(rows):.0%} in training"
    if camera.horizon < 0:
        figure += f"; ground beyond {camera.nearest_cut:.1f} m is cut off"
        remedy = (
            "the crop keeps the bottom of the picture: crop it in the driver so that it is wider than high"
            if camera.cut_off
            else "the camera looks so far down that its picture holds no horizon: level it"
        )
        return Finding("horizon", name, FAIL if camera.nearest_cut < 20 else WARN, figure, remedy)
    away = max(min(rows) - camera.horizon, camera.horizon - max(rows))
    level = OK if away <= HORIZON_SHIFT else WARN
    remedy = "expect missed and misplaced objects far away: level the camera, or crop the picture in the driver"
    return judged("horizon", name, level, figure, remedy)


def _camera_height(name: str, camera: _Geometry, trained: list[_Geometry]) -> Finding:
    heights = [t.height for t in trained]
    figure = f"{camera.height:.2f} m above the ground, {min(heights):.2f} to {max(heights):.2f} m in training"
    away = max(min(heights) - camera.height, camera.height - max(heights))
    remedy = "expect distances that are off, since the ground is seen at another angle; fine-tune for a rig like this"
    return judged("height against training", name, OK if away <= CAMERA_HEIGHT else WARN, figure, remedy)


def _reference_height(rig: Rig, trained: Rig, config: VariantConfig) -> Finding:
    height = rig.base_height + config.reference_frame.translation[2]
    usual = trained.base_height + config.reference_frame.translation[2]
    figure = f"{height:.2f} m above the ground, {usual:.2f} m in training"
    remedy = (
        f"{rig.base_frame} is {rig.base_height:.2f} m above the ground, and was on it in training: boxes may come out "
        "at wrong heights; use a frame on the ground, such as base_footprint, as base frame"
    )
    return judged("reference point", "rig", OK if abs(height - usual) <= BASE_HEIGHT else WARN, figure, remedy)


def _seen(rig: Rig, trained: Rig) -> Finding:
    here, usual = float(seen_headings(rig).mean()), float(seen_headings(trained).mean())
    remedy = "nothing is found where no camera looks; elsewhere, objects at the rims of the views are found less often"
    level = OK if here >= usual - COVERAGE else WARN
    return judged("coverage against training", "rig", level, f"{here:.0%}, {usual:.0%} in training", remedy)


def _count(rig: Rig, trained: Rig) -> Finding:
    here, usual = len(rig.cameras), len(trained.cameras)
    remedy = "any number works; `bev_perception eval --lost-camera-study` measures what missing views cost"
    return judged("number of cameras", "rig", OK if here >= usual else WARN, f"{here}, {usual} in training", remedy)
