"""Augmentation on its own: what is drawn, and that pictures, matrices and boxes stay together."""

import cv2
import numpy as np
import pytest
import torch

from bev_perception.config import BevAugmentationConfig, ImageConfig
from bev_perception.data.augment import (
    BevDraw,
    augment_boxes,
    augment_grid,
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
from bev_perception.geometry import box_corners
from bev_perception.sensing.preprocess import resample_image

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
    def draw(seed, flip=True):
        return draw_image_transform(np.random.default_rng(seed), (225, 400), CONFIG, (0.38, 0.55), flip)

    draws = [draw(k) for k in range(200)]
    assert all(0.38 <= d.resize <= 0.55 for d in draws)
    assert all(0 <= d.crop[0] <= max(0, d.resized[0] - 176) and d.crop[1] == d.resized[1] - 64 for d in draws)
    assert 60 < sum(d.flip for d in draws) < 140
    assert draws[5] == draw(5)
    assert not any(draw(k, flip=False).flip for k in range(20))


WORLD = BevAugmentationConfig(max_rotation=0.4, scale=(0.9, 1.1), flip=True)
FLIPS = [(False, False), (True, False), (False, True), (True, True)]


def test_world_draws_stay_in_range():
    draws = [draw_bev(np.random.default_rng(k), WORLD) for k in range(200)]
    assert all(abs(d.rotation) <= 0.4 and 0.9 <= d.scale <= 1.1 for d in draws)
    assert max(d.rotation for d in draws) > 0.3 and min(d.rotation for d in draws) < -0.3
    for flips in FLIPS:
        assert 25 < sum((d.flip_x, d.flip_y) == flips for d in draws) < 75
    plain = BevAugmentationConfig(max_rotation=0.0, scale=(1.0, 1.0))
    assert draw_bev(np.random.default_rng(0), plain) == BevDraw(0.0)


@pytest.mark.parametrize("flips", FLIPS)
def test_changed_boxes_stay_on_their_pixels(flips):
    rng = np.random.default_rng(0)
    boxes = rng.normal(size=(20, 9)) * 10
    boxes[:, 3:6] = np.abs(boxes[:, 3:6])
    matrices = rng.normal(size=(6, 4, 4))
    draw = BevDraw(0.3, 1.1, *flips)
    changed = augment_boxes(boxes, draw)
    moves = augment_matrices(np.eye(4), draw)  # changed to unchanged
    for before, after in (
        (boxes[:, :3], changed[:, :3]),
        (boxes[:, :3] + np.c_[boxes[:, 7:9], np.zeros(20)], changed[:, :3] + np.c_[changed[:, 7:9], np.zeros(20)]),
    ):
        projected = augment_matrices(matrices, draw) @ np.c_[after, np.ones(20)].T
        np.testing.assert_allclose(projected, matrices @ np.c_[before, np.ones(20)].T, atol=1e-9)
    corners = [box_corners(b[:, :3], b[:, 3:6], b[:, 6]) for b in (boxes, changed)]
    back = corners[1] @ moves[:3, :3].T
    away = np.linalg.norm(corners[0][:, :, None] - back[:, None], axis=-1)  # [n, 8, 8]
    np.testing.assert_allclose(away.min(axis=2), 0, atol=1e-9)  # the same corners, mirrored ones in another order
    front, turned_front = corners[0][:, [0, 3, 4, 7]].mean(1), back[:, [0, 3, 4, 7]].mean(1)
    np.testing.assert_allclose(turned_front, front, atol=1e-9)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("rotation", [0.0, 0.35, -0.2, np.pi / 2])
def test_labels_of_voxels_stay_on_their_pixels(rotation, flips):
    """A voxel's label is found again where the changed matrices say that the voxel has gone."""
    rng = np.random.default_rng(0)
    grid = rng.integers(100, size=(40, 40, 2))
    draw = BevDraw(rotation, 1.0, *flips)
    changed = augment_grid(grid, draw, outside=255)
    index = np.argwhere(np.ones_like(grid))
    places = np.c_[index[:, :2] - 19.5, index[:, 2:]]  # middles, in voxels from the middle of the grid
    sources = places @ augment_matrices(np.eye(4), draw)[:3, :3].T + [19.5, 19.5, 0]
    inside = ((sources > -0.499) & (sources < 39.499)).all(axis=1)
    nearest = sources.round().astype(int)
    sure = inside & (np.abs(sources - nearest).max(axis=1) < 0.49)
    assert sure.mean() > 0.7
    np.testing.assert_array_equal(changed[tuple(index[sure].T)], grid[tuple(nearest[sure].T)])
    outside = ((sources[:, :2] < -0.501) | (sources[:, :2] > 39.501)).any(axis=1)
    assert (changed[tuple(index[outside].T)] == 255).all()


def test_labels_of_voxels_cannot_be_scaled():
    with pytest.raises(ValueError, match=r"cannot be scaled by 1.1; let the variant's training.bev.scale be 1"):
        augment_grid(np.zeros((4, 4, 1)), BevDraw(0.0, 1.1), 255)


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
