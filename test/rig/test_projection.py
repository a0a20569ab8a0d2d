"""Rays and pixels of every lens model are each other's inverse."""

import numpy as np
import pytest

from bev_perception.rig.projection import border, project_rays, rays_of
from rig.kit import calibration

LENSES = [
    calibration(),
    calibration(model="plumb_bob", d=(-0.28, 0.08, 0.0004, -0.0003, 0.0)),
    calibration(model="rational_polynomial", d=(0.3, 0.02, 1e-4, 1e-4, 0.001, 0.6, 0.05, 0.004)),
    calibration(focal=250.0, size=(800, 800), model="equidistant", d=(-0.01, 0.004, -0.002, 0.0003)),
]


@pytest.mark.parametrize("lens", LENSES)
def test_there_and_back(lens):
    u, v = np.meshgrid(np.linspace(0, lens.width - 1, 23), np.linspace(0, lens.height - 1, 17))
    pixels = np.stack([u.ravel(), v.ravel()], 1)
    rays = rays_of(lens, pixels)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1.0)
    back, seen = project_rays(lens, 7.0 * rays)
    assert seen.all()
    np.testing.assert_allclose(back, pixels, atol=0.05)


@pytest.mark.parametrize("lens", LENSES)
def test_what_is_behind_or_outside_is_not_seen(lens):
    assert not project_rays(lens, np.array([[0, 0, -1.0], [0.3, 0, -1.0]]))[1].any()
    assert len(border(lens)) > 20


@pytest.mark.parametrize("lens", LENSES[:3])
def test_what_is_beside_the_picture_is_not_seen(lens):
    assert not project_rays(lens, np.array([[0, 40, 1.0], [-3, 0, 1.0]]))[1].any()
