"""Augmentation on its own: what is drawn, and that pictures, matrices and boxes stay together."""

import cv2
import numpy as np
import pytest
import torch

from bev_perception.config import ImageConfig
from bev_perception.data.augment import (
    BEV_SCALE,
    MAX_BEV_ROTATION,
    BevDraw,
    augment_boxes,
    augment_matrices,
    distort_colors,
    draw_bev,
    draw_grid_mask,
    draw_image_transform,
    draw_photometric,
    grid_mask,
    hsv_to_rgb,
    rgb_to_hsv,
    train_transform,
)
from bev_perception.preprocess import resample_image

CONFIG = ImageConfig(height=64, width=176)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resize", [0.4, 0.5, 0.63])
def test_a_dot_lands_where_the_matrices_say(flip, resize):
    picture = np.zeros((225, 400, 3), np.uint8)
    dot = np.array([203.0, 180.0])
    cv2.circle(picture, (203, 180), 4, (255, 255, 255), -1)
    transform = train_transform((225, 400), CONFIG, resize, left=7.9, flip=flip)
    light = resample_image(picture, transform)[..., 0].astype(float)
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    found = np.array([(x * light).sum(), (y * light).sum()]) / light.sum()
    np.testing.assert_allclose(found, (transform.source2output @ [*dot, 1])[:2], atol=0.1)
    np.testing.assert_allclose(found, (transform.ida @ [*dot, 1, 1])[:2], atol=1.1)  # the reference's half pixels


def test_image_draws_stay_in_range_and_follow_the_seed():
    draws = [draw_image_transform(np.random.default_rng(k), (225, 400), CONFIG, (0.38, 0.55)) for k in range(200)]
    assert all(0.38 <= d.resize <= 0.55 for d in draws)
    assert all(0 <= d.crop[0] <= max(0, d.resized[0] - 176) and d.crop[1] == d.resized[1] - 64 for d in draws)
    assert 60 < sum(d.flip for d in draws) < 140
    assert draws[5] == draw_image_transform(np.random.default_rng(5), (225, 400), CONFIG, (0.38, 0.55))


def test_turned_boxes_stay_on_their_pixels():
    rng = np.random.default_rng(0)
    boxes = rng.normal(size=(20, 9)) * 10
    matrices = rng.normal(size=(6, 4, 4))
    draw = draw_bev(rng)
    assert abs(draw.rotation) <= MAX_BEV_ROTATION and BEV_SCALE[0] <= draw.scale <= BEV_SCALE[1]
    before = matrices @ np.c_[boxes[:, :3], np.ones(20)].T
    after = augment_matrices(matrices, draw) @ np.c_[augment_boxes(boxes, draw)[:, :3], np.ones(20)].T
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_a_quarter_turn():
    box = np.array([[1.0, 0, 2, 4, 2, 1, 0.5, 3, 0]])
    turned = augment_boxes(box, BevDraw(np.pi / 2, 2.0))
    np.testing.assert_allclose(turned, [[0, 2, 4, 8, 4, 2, 0.5 + np.pi / 2, 0, 6]], atol=1e-12)


def test_colors_survive_the_round_trip_and_undrawn_images_their_colors():
    images = 255 * torch.rand((4, 3, 9, 11), generator=generator())
    torch.testing.assert_close(hsv_to_rgb(rgb_to_hsv(images)), images, atol=1e-3, rtol=0)
    grey = torch.full((1, 3, 2, 2), 70.0)
    torch.testing.assert_close(hsv_to_rgb(rgb_to_hsv(grey)), grey)


def test_color_draws_differ_between_images_and_follow_the_seed():
    draw = draw_photometric(400, generator())
    for values, neutral, low, high in (
        (draw.brightness, 0, -32, 32),
        (draw.contrast, 1, 0.5, 1.5),
        (draw.saturation, 1, 0.5, 1.5),
        (draw.hue, 0, -18, 18),
    ):
        assert 130 < (values == neutral).sum() < 270
        assert values.min() >= low and values.max() <= high and values.unique().numel() > 100
    assert (draw.channels.sort(dim=1).values == torch.arange(3)).all()
    assert draw.channels.unique(dim=0).shape[0] == 6
    images = 255 * torch.rand((400, 3, 2, 2), generator=generator(1))
    torch.testing.assert_close(distort_colors(images, draw), distort_colors(images, draw_photometric(400, generator())))


def test_grid_masks_are_drawn_seven_times_in_ten():
    source = generator()
    draws = [draw_grid_mask(96, 256, source) for _ in range(300)]
    drawn = [draw for draw in draws if draw is not None]
    assert 170 < len(drawn) < 250
    shares = [grid_mask(96, 256, draw).mean() for draw in drawn]
    assert all(grid_mask(96, 256, draw).shape == (96, 256) for draw in drawn[:5])
    assert 0.65 < np.mean(shares) < 0.85
