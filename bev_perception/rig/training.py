"""How far a rig is from the one that a variant was trained with, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bev_perception.config import VariantConfig
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.mounting import seen_headings
from bev_perception.sensing.image_fit import IMAGE_FIT, fit_view
from bev_perception.sensing.image_transform import image_transform
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


def check_training(rig: Rig, trained: Rig, config: VariantConfig, image_fit: str = IMAGE_FIT) -> Iterator[Finding]:
    """Yield how each camera and the whole rig differ from those of the training.

    rig: to be judged
    trained: what the variant was trained with; how its cameras saw is in the variant
    config: the variant
    image_fit: how pictures become the variant's input
    """
    of_training = _Trained(config)
    for camera in rig.complete:
        try:
            geometry = _Geometry(camera, rig, config, image_fit)
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


class _Trained:
    """What the network saw of the cameras in training, as in _Geometry; focals: their focal lengths."""

    def __init__(self, config: VariantConfig) -> None:
        cameras = config.trained_cameras
        transform = image_transform(cameras.size[::-1], config.image)
        self.focals = [focal * transform.resize for focal in cameras.focals]
        self.horizon = (cameras.horizon * transform.resize - transform.crop[1]) / config.image.height
        self.height = cameras.height


class _Geometry:
    """What the network sees of a camera.

    focal: length, pixels of the network's input
    horizon: its row at the middle column, as a share of the input's height; negative above the input, NaN for a camera
        that looks too steep
    height: of the camera above the ground, m
    cut_off: whether the input has lost the horizon of the picture
    nearest_cut: m; ground beyond is above the input; infinity if the horizon is in it
    """

    def __init__(self, camera: RigCamera, rig: Rig, config: VariantConfig, image_fit: str) -> None:
        assert camera.calibration is not None and camera.sensor2ego is not None
        fitted = fit_view(camera.calibration, camera.sensor2ego, config, image_fit)
        k, transform = fitted.calibration.intrinsics, fitted.transform
        self.focal = float(k[0, 0]) * transform.resize
        in_picture = horizon_row(fitted.calibration, fitted.sensor2ego)
        row = math.nan if in_picture is None else in_picture * transform.resize - transform.crop[1]
        input_hw = (config.image.height, config.image.width)
        self.cut_off = cut_off(fitted.calibration, fitted.sensor2ego, transform.source2output, input_hw)
        self.horizon = float(row) / config.image.height
        self.height = float(camera.sensor2ego[2, 3]) + rig.base_height
        below = math.atan(-row / (k[1, 1] * transform.resize)) if row < 0 else 0.0  # rad, of the input's first row
        self.nearest_cut = abs(self.height) / math.tan(below) if below > 1e-3 else math.inf


def _focal_length(name: str, camera: _Geometry, trained: _Trained) -> Finding:
    nearest = min(trained.focals, key=lambda focal: abs(math.log(focal / camera.focal)))
    ratio = camera.focal / nearest
    figure = f"{camera.focal:.0f} pixels of the input, {nearest:.0f} in training"
    level = grade(max(ratio, 1 / ratio), FOCAL_RATIO, FOCAL_RATIO_LOST)
    looks, seems = ("larger", "nearer") if ratio > 1 else ("smaller", "farther")
    remedy = (
        f"everything looks {max(ratio, 1 / ratio):.2f} times {looks}, so boxes may come out about as many times "
        f"{seems}; try image_fit virtual, fine-tune, or choose another lens"
    )
    return judged("focal length", name, level, figure, remedy)


def _horizon(name: str, camera: _Geometry, trained: _Trained) -> Finding:
    figure = f"at {camera.horizon:.0%} of the input's height, {trained.horizon:.0%} in training"
    if camera.horizon < 0:
        figure += f"; ground beyond {camera.nearest_cut:.1f} m is cut off"
        remedy = (
            "the crop keeps the bottom of the picture: set image_fit to horizon or virtual"
            if camera.cut_off
            else "the camera looks so far down that its picture holds no horizon: level it"
        )
        return Finding("horizon", name, FAIL if camera.nearest_cut < 20 else WARN, figure, remedy)
    away = abs(camera.horizon - trained.horizon)
    level = OK if away <= HORIZON_SHIFT else WARN
    remedy = "expect missed and misplaced objects far away: level the camera, or set image_fit to horizon or virtual"
    return judged("horizon", name, level, figure, remedy)


def _camera_height(name: str, camera: _Geometry, trained: _Trained) -> Finding:
    figure = f"{camera.height:.2f} m above the ground, {trained.height:.2f} m in training"
    away = abs(camera.height - trained.height)
    remedy = "expect distances that are off, since the ground is seen at another angle; fine-tune for a rig like this"
    return judged("height against training", name, OK if away <= CAMERA_HEIGHT else WARN, figure, remedy)


def _reference_height(rig: Rig, trained: Rig, config: VariantConfig) -> Finding:
    height = rig.base_height + config.reference_frame.translation[2]
    usual = trained.base_height + config.reference_frame.translation[2]
    figure = f"{height:.2f} m above the ground, {usual:.2f} m in training"
    remedy = (
        f"{rig.base_frame} is {rig.base_height:.2f} m above the ground, and was on it in training: give the node, and "
        f"every command that reads bags, its height (base_height, --base-height {rig.base_height:g})"
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
