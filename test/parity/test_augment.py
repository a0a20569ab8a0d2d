"""Training augmentation against every parity case that records its draws (schema of sparsebev_augment)."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bev_perception.config import ImageConfig
from bev_perception.data.augment import (
    BevDraw,
    GridMaskDraw,
    PhotometricDraw,
    augment_boxes,
    augment_matrices,
    distort_colors,
    draw_image_transform,
    grid_mask,
    rgb_to_hsv,
    train_transform,
)
from bev_perception.sensing.preprocess import resample_image

PARITY = Path(os.environ.get("BEV_PARITY", Path(__file__).resolve().parents[3] / "shared" / "parity"))
SOURCE = (900, 1600)


def find_cases():
    found = []
    for path in sorted(PARITY.glob("*/case.json")):
        info = json.loads(path.read_text())
        if {"random_transform", "bev", "grid_mask", "photometric"} <= info.keys():
            found.append(pytest.param((info, np.load(path.parent / "outputs.npz")), id=path.parent.name))
    return found


CASES = find_cases()
pytestmark = pytest.mark.skipif(not CASES, reason=f"no augmentation case in $BEV_PARITY or {PARITY}")


def picture(case):
    """Return the picture [900, 1600, 3] that a case defines by a formula, which ends with the number of a camera."""
    (camera,) = re.findall(r"with cam=(\d+)$", case["random_transform"]["image"])
    y, x = np.mgrid[: SOURCE[0], : SOURCE[1], :1][:2]
    tiles = 40 * ((x // 40 + y // 30) % 2)
    return ((7 * x + 13 * y + 50 * np.arange(3) + x * y // 97 + tiles + 31 * int(camera)) % 256).astype(np.uint8)


def image_config(crop):
    return ImageConfig(crop[3] - crop[1], crop[2] - crop[0])


def check_transform(transform, wanted):
    left, top = transform.crop
    assert transform.resize == wanted["resize"]
    assert list(transform.resized) == wanted["resize_dims"]
    assert [left, top, left + transform.size[0], top + transform.size[1]] == wanted["crop"]
    assert transform.flip == wanted["flip"]
    assert wanted["rotate"] == 0


@pytest.mark.parametrize("case", CASES)
def test_image_transform(case):
    info, outputs = case
    source = picture(info)
    for i, wanted in enumerate(info["random_transform"]["cases"]):
        config = image_config(wanted["crop"])
        transform = train_transform(SOURCE, config, wanted["resize"], wanted["crop"][0], wanted["flip"])
        check_transform(transform, wanted)
        np.testing.assert_allclose(transform.ida, outputs[f"rt{i}.ida"], rtol=1e-6)
        pixels = resample_image(source, transform)
        np.testing.assert_array_equal(pixels[::11, ::11], outputs[f"rt{i}.u8"])
        np.testing.assert_array_equal(pixels.sum((0, 1), dtype=np.int64), outputs[f"rt{i}.checksum"])


class Replay:
    """A generator that gives the recorded numbers and checks the ranges that it is asked for."""

    def __init__(self, draws):
        self.draws = [
            d for d in draws if d[0] == "choice" or d[1] != [0.0, 0.0]
        ]  # draws from an empty range say nothing

    def uniform(self, low, high):
        name, arguments, value = self.draws.pop(0)
        assert (name, arguments) == ("uniform", [low, high])
        return value

    def integers(self, high):
        name, arguments, value = self.draws.pop(0)
        assert (name, arguments) == ("choice", [list(range(high))])
        return value


@pytest.mark.parametrize("case", CASES)
def test_image_transform_draws(case):
    for sampled in case[0]["random_transform"]["sampled"].values():
        replay = Replay(sampled["draws"])
        resize_range = tuple(sampled["draws"][0][1])
        check_transform(
            draw_image_transform(replay, SOURCE, image_config(sampled["result"]["crop"]), resize_range, flip=True),
            sampled["result"],
        )
        assert not replay.draws


@pytest.mark.parametrize("case", CASES)
def test_bev(case):
    info, outputs = case
    draw = BevDraw(info["bev"]["rot"], info["bev"]["scale"])
    np.testing.assert_allclose(
        augment_boxes(outputs["bev.boxes_in"].astype(np.float64), draw), outputs["bev.boxes_out"], atol=1e-5
    )
    np.testing.assert_allclose(
        augment_matrices(outputs["bev.l2i_in"], draw), outputs["bev.l2i_out"], rtol=1e-6, atol=1e-4
    )


@pytest.mark.parametrize("case", CASES)
def test_grid_mask(case):
    info, outputs = case
    for i, wanted in enumerate(info["grid_mask"]["cases"]):
        mask = grid_mask(wanted["h"], wanted["w"], GridMaskDraw(wanted["d"], wanted["st_h"], wanted["st_w"]))
        np.testing.assert_array_equal(np.packbits(mask, axis=1), outputs[f"gm{i}.mask"])
        assert mask.mean() == pytest.approx(wanted["kept_fraction"])


def replay_photometric(draws, n):
    """The recorded numbers in the order in which the case says that they were drawn."""
    draws = iter(draws)

    def take(name):
        kind, _, value = next(draws)
        assert kind == name
        return value

    def maybe(name, neutral):
        return take(name) if take("randint") else neutral

    modes = [take("randint") for _ in range(n)]
    brightness, contrast, saturation, hue = np.zeros(n), np.ones(n), np.ones(n), np.zeros(n)
    channels = np.tile(np.arange(3), (n, 1))
    for i in range(n):
        brightness[i] = maybe("uniform", 0.0)
        if modes[i] == 0:
            contrast[i] = maybe("uniform", 1.0)
    for i in range(n):
        saturation[i] = maybe("uniform", 1.0)
        hue[i] = maybe("uniform", 0.0)
    for i in range(n):
        if modes[i] == 1:
            contrast[i] = maybe("uniform", 1.0)
        channels[i] = maybe("permutation", channels[i])
    assert next(draws, None) is None
    values = (torch.from_numpy(v).float() for v in (brightness, contrast, saturation, hue))
    return PhotometricDraw(torch.tensor(modes) == 1, *values, torch.from_numpy(channels))


@pytest.mark.parametrize("case", CASES)
def test_photometric(case):
    info, outputs = case
    images = torch.from_numpy(outputs["photo.in"]).float()
    draw = replay_photometric(info["photometric"]["draws"], info["photometric"]["n_images"])
    torch.testing.assert_close(distort_colors(images, draw), torch.from_numpy(outputs["photo.out"]), atol=1e-2, rtol=0)
    torch.testing.assert_close(rgb_to_hsv(images[:2]), torch.from_numpy(outputs["photo.hsv"]), atol=1e-2, rtol=0)
