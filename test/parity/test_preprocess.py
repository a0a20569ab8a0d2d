"""Resize, crop, normalisation and matrices of inference against every parity case that records them.

A case is taken by its contents: a config with `final_dims`, `params` and the normalisations.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bev_perception.config import ImageConfig
from bev_perception.sensing.image_transform import image_transform
from bev_perception.sensing.images import decode_image
from bev_perception.sensing.preprocess import normalize_images, resample_image
from bev_perception.types import CameraImage

ROOT = Path(__file__).resolve().parents[2]
PARITY = Path(os.environ.get("BEV_PARITY", ROOT.parent / "shared" / "parity"))
NUSCENES = Path(os.environ.get("BEV_NUSCENES", ROOT.parent / "shared" / "nuscenes"))


def find_cases():
    """Return (directory, case, name of one input size) of every size of every preprocessing case."""
    found = []
    for path in sorted(PARITY.glob("*/case.json")):
        case = json.loads(path.read_text())
        config = case.get("config")
        if isinstance(config, dict) and {"final_dims", "params", "source", "norm_rgb"} <= config.keys():
            found += [
                pytest.param(path.parent, case, name, id=f"{path.parent.name}-{name}") for name in config["params"]
            ]
    return found


CASES = find_cases()
pytestmark = pytest.mark.skipif(not CASES, reason=f"no preprocessing case in $BEV_PARITY or {PARITY}")


def image_config(case, name, norm="norm_rgb"):
    height, width = case["config"]["final_dims"][name]
    values = case["config"][norm]
    order = "rgb" if values["to_rgb"] else "bgr"
    return ImageConfig(height, width, tuple(values["mean"]), tuple(values["std"]), order)


def synthetic_image(case, cam):
    """The picture that the case defines by a formula, [900, 1600, 3] uint8."""
    height, width = case["config"]["source"]
    y, x = np.mgrid[:height, :width, :1][:2]
    c = np.arange(3)
    return ((7 * x + 13 * y + 50 * c + x * y // 97 + 40 * ((x // 40 + y // 30) % 2) + 31 * cam) % 256).astype(np.uint8)


@pytest.mark.parametrize(("directory", "case", "name"), CASES)
def test_transform_and_matrices(directory, case, name):
    expected = case["config"]["params"][name]
    transform = image_transform(tuple(case["config"]["source"]), image_config(case, name))
    left, top = transform.crop
    assert transform.resize == expected["resize"]
    assert list(transform.resized) == expected["resize_dims"]
    assert [left, top, left + transform.size[0], top + transform.size[1]] == expected["crop"]
    outputs, inputs = np.load(directory / "outputs.npz"), np.load(directory / "inputs.npz")
    np.testing.assert_allclose(transform.ida, outputs[f"{name}.ida"], atol=1e-4, rtol=1e-6)
    lidar2img = transform.ida @ inputs["lidar2img_1600x900"]
    np.testing.assert_allclose(lidar2img, outputs[f"{name}.lidar2img"], atol=1e-4, rtol=1e-6)


def resample_all(case, name, load, cameras):
    transform = image_transform(tuple(case["config"]["source"]), image_config(case, name))
    return np.stack([resample_image(load(cam), transform) for cam in cameras])


def subset(case, key):
    """Return the cameras and the step in rows and columns that a recorded output holds, from its description."""
    words = case["outputs"][f"{key}.u8"]
    start, stop, step = (None if n == "None" else int(n) for n in words.split("cameras ")[1].split(",")[0].split(":"))
    return list(range(len(case["camera_order"])))[start:stop:step], int(words.rsplit("::", 1)[1])


def normalized_as_recorded(case, name, pixels, outputs, key, stride):
    """Normalise in the order of channels that the recorded output has (the case does not name it)."""
    expected = torch.from_numpy(outputs[f"{key}.net"])
    candidates = [
        normalize_images(torch.from_numpy(pixels), image_config(case, name, norm))[
            :, :, : pixels.shape[1] : stride, : pixels.shape[2] : stride
        ]
        for norm in ("norm_rgb", "norm_bgr")
    ]
    return min(candidates, key=lambda c: (c - expected).abs().mean()), expected


@pytest.mark.parametrize(("directory", "case", "name"), CASES)
def test_synthetic_images(directory, case, name):
    outputs = np.load(directory / "outputs.npz")
    key = f"synthetic.{name}"
    cameras = range(len(case["camera_order"]))
    pixels = resample_all(case, name, lambda cam: synthetic_image(case, cam), cameras)
    np.testing.assert_array_equal(pixels.sum((1, 2), dtype=np.int64), outputs[f"{key}.checksum"])
    kept, stride = subset(case, key)
    np.testing.assert_array_equal(pixels[kept][:, ::stride, ::stride], outputs[f"{key}.u8"])
    result, expected = normalized_as_recorded(case, name, pixels[kept], outputs, key, stride)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("directory", "case", "name"), CASES)
def test_real_images(directory, case, name):
    files = {camera: list(NUSCENES.rglob(real["name"])) for camera, real in case["real_files"].items()}
    if not all(files.values()):
        pytest.skip(f"the case's real JPEGs are not under $BEV_NUSCENES or {NUSCENES}")

    def load(cam):
        camera = case["camera_order"][cam]
        data = files[camera][0].read_bytes()
        assert hashlib.sha256(data).hexdigest() == case["real_files"][camera]["sha256"]
        return decode_image(CameraImage(camera, 0, camera, "jpeg", data))

    outputs = np.load(directory / "outputs.npz")
    key = f"real.{name}"
    kept, stride = subset(case, key)
    pixels = resample_all(case, name, load, kept)
    difference = np.abs(pixels[:, ::stride, ::stride].astype(int) - outputs[f"{key}.u8"])
    assert difference.max() <= 3 and (difference > 0).mean() < 0.01
    result, expected = normalized_as_recorded(case, name, pixels, outputs, key, stride)
    torch.testing.assert_close(result, expected, atol=3 / 57 + 1e-5, rtol=0)
