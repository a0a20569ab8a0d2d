"""Rays through small random grids: the kernel against the reference, and both against two other ways to find hits."""

import builtins
import logging
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.ops import compiled, ray_casting
from bev_perception.ops.ray_casting import MAX_STEPS, cast_rays, observed_voxels, trace_reference
from bev_perception.types import OCC3D_GRID, VoxelGrid


@pytest.fixture
def without_kernel(monkeypatch):
    """As where numba is missing."""
    monkeypatch.setattr(ray_casting, "_compiled_kernel", lambda: None)


def random_scene(seed, grids, shape, density, place, rays=40):
    """Occupied [G, X, Y, Z], origins and directions [R, 3] in voxels; place: where the origins are."""
    rng = np.random.default_rng(seed)
    occupied = rng.random((grids, *shape)) < density
    size = np.array(shape)
    origins = rng.uniform(0, size, (rays, 3))
    if place == "above":
        origins[:, 2] = size[2] + rng.uniform(0, 10, rays)
    elif place == "below":
        origins[:, 2] = -rng.uniform(0, 10, rays)
    elif place == "around":
        origins = rng.uniform(-size, 2 * size, (rays, 3))
    elif place == "on boundaries":
        origins = rng.integers(-1, size + 2, (rays, 3)).astype(float)
    directions = rng.normal(size=(rays, 3))
    directions[rng.random((rays, 3)) < 0.2] = 0  # along an axis or in a plane
    if place == "on boundaries":
        directions = np.sign(directions) * 2.0 ** rng.integers(-1, 2, (rays, 3))  # ties at nearly every step
    directions[~directions.any(axis=1)] = [0, 0, -1]
    return torch.from_numpy(occupied), torch.from_numpy(origins), torch.from_numpy(directions)


places = st.sampled_from(["inside", "above", "below", "around", "on boundaries"])
scenes = st.builds(
    random_scene,
    seed=st.integers(0, 2**32),
    grids=st.integers(1, 3),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    density=st.sampled_from([0.0, 0.02, 0.2, 0.8, 1.0]),
    place=places,
)


@settings(max_examples=80, deadline=None)
@given(scenes)
def test_kernel_equals_reference_exactly(scene):
    occupied, origins, directions = scene
    assert ray_casting._compiled_kernel() is not None
    walk = ray_casting._walk(origins, directions, origins.trunc())
    for found, wanted in zip(ray_casting._trace(occupied, walk), trace_reference(occupied, walk), strict=True):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.5]), places)
def test_hits_are_those_of_exact_arithmetic(seed, density, place):
    """Every boundary that a ray crosses, as fractions, in their order."""
    occupied, origins, directions = random_scene(seed, 2, (5, 4, 3), density, place, rays=10)
    if place != "on boundaries":  # powers of two: float64 is then exact, and ties are real ones
        origins = (origins * 8).round() / 8
        directions = directions.sign() * 2.0 ** directions.abs().log2().clamp(-2, 2).round()
    hits = cast_rays(occupied, origins, directions)
    for ray in range(len(origins)):
        path = exact_path(occupied.shape[1:], origins[ray].tolist(), directions[ray].tolist())
        for g in range(2):
            wanted = next((p for p in path if occupied[(g, *p[0])]), path[-1] if path else ((0, 0, 0), -1))
            voxel = np.unravel_index(int(hits.voxels[g, ray]), occupied.shape[1:])
            assert (voxel, hits.depths[g, ray]) == (wanted[0], float(wanted[1]))


def exact_path(shape, origin, direction):
    """[(voxel, where the ray leaves it)] inside the grid; at an edge or a corner z is crossed first, then y."""
    reach = 200
    crossings = []
    for axis in range(3):
        o, d = Fraction(origin[axis]), Fraction(direction[axis])
        for k in range(-reach, reach) if d else ():
            boundary = int(o) + (1 + k if d > 0 else -k)  # int() truncates, as the metric does
            if k >= 0:
                crossings.append(((boundary - o) / d, -axis, axis))
    at = [int(Fraction(o)) for o in origin]
    path = []
    for t, _, axis in sorted(crossings):
        if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
            path.append((tuple(at), t))
        elif path:
            break
        at[axis] += 1 if direction[axis] >= 0 else -1
    return path


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.2, 0.8]), st.sampled_from(["inside", "above", "around"]))
def test_hits_are_the_first_boxes_on_the_way(seed, density, place):
    """Every occupied voxel is a box that is cut with every ray, without any walking."""
    occupied, origins, directions = random_scene(seed, 1, (8, 7, 5), density, place)
    origins = origins.where((origins >= 0) | (origins <= -1), 0.5)  # truncated or not, the same voxel
    hits = cast_rays(occupied, origins, directions)
    voxels = np.argwhere(occupied[0].numpy())  # [V, 3]
    o, d = origins.numpy()[:, None], directions.numpy()[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (voxels - o) / d, (voxels + 1 - o) / d  # [R, V, 3]
        within = np.where((d == 0) & (voxels <= o) & (o < voxels + 1), True, d != 0)
    enter = np.where(d == 0, -np.inf, np.minimum(a, b)).max(axis=2)
    leave = np.where(d == 0, np.inf, np.maximum(a, b)).min(axis=2)
    length = leave - np.maximum(enter, 0)  # of the ray in the box
    crossed = within.all(axis=2) & (length > 0)
    for ray in range(len(origins)):
        if (np.abs(length[ray]) < 1e-9).any():
            continue  # it grazes a box: too close to tell
        boxes = np.flatnonzero(crossed[ray])
        voxel = np.unravel_index(int(hits.voxels[0, ray]), occupied.shape[1:])
        if len(boxes):
            first = boxes[leave[ray, boxes].argmin()]
            assert voxel == tuple(voxels[first])
            assert hits.depths[0, ray] == pytest.approx(leave[ray, first], rel=1e-12, abs=1e-12)
        else:
            assert not occupied[(0, *voxel)] or hits.depths[0, ray] == -1


def cast_one(occupied, origin, direction):
    hits = cast_rays(occupied, *(torch.tensor([v], dtype=torch.float64) for v in (origin, direction)))
    voxel = np.unravel_index(int(hits.voxels[0, 0]), occupied.shape[1:])
    return tuple(map(int, voxel)), float(hits.depths[0, 0])


@pytest.mark.parametrize("kernel", [True, False])
def test_by_hand(kernel, request):
    if not kernel:
        request.getfixturevalue("without_kernel")
    grid = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    grid[0, 3, 1, 0] = True
    assert cast_one(grid, [0.5, 1.5, 0.5], [1, 0, 0]) == ((3, 1, 0), 3.5)  # the face where it leaves
    assert cast_one(grid, [0.5, 1.5, 0.5], [-2, 0, 0]) == ((0, 1, 0), 0.25)  # nothing: the last voxel inside
    assert cast_one(grid, [3.5, 1.5, 2.5], [0, 0, -1]) == ((3, 1, 0), 2.5)
    assert cast_one(grid, [3.5, 1.5, 9.0], [0, 0, 1]) == ((0, 0, 0), -1)  # never enters
    assert cast_one(grid, [3.5, 1.5, 9.0], [0, 0, -1]) == ((3, 1, 0), 9)
    # just below the grid counts as inside it: what is left of the voxel lies behind
    assert cast_one(grid, [3.5, 1.5, -0.5], [0, 0, -1]) == ((3, 1, 0), -0.5)
    assert cast_one(grid, [1.5, 1.5, -0.5], [0, 0, -0.125]) == ((1, 1, 0), -4)
    # further than a ray is followed
    assert cast_one(grid, [3.5, 1.5, MAX_STEPS - 0.5], [0, 0, -1]) == ((3, 1, 0), MAX_STEPS - 0.5)
    assert cast_one(grid, [3.5, 1.5, MAX_STEPS + 0.5], [0, 0, -1])[0] == ((3, 1, 1))
    assert cast_one(grid, [3.5, 1.5, MAX_STEPS + 3.5], [0, 0, -1]) == ((0, 0, 0), -1)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("place", ["inside", "above", "below", "around"])
def test_observed_voxels(place, kernel, request):
    """All that lies on the way to a voxel that is seen is seen and free; a wall hides what is behind it."""
    if not kernel:
        request.getfixturevalue("without_kernel")
    grid = VoxelGrid((-2.0, 1.0, -1.0), 0.5, (9, 8, 4))
    occupied, origins, directions = random_scene(5, 1, grid.shape, 0.1, place, rays=60)
    occupied = occupied[0].numpy()
    start = np.array(grid.origin) + grid.resolution * origins.numpy()
    seen = observed_voxels(occupied, grid, start, directions.numpy())
    assert seen.shape == grid.shape and seen.dtype == bool and 0 < seen.sum() < seen.size
    wanted = np.zeros(grid.shape, bool)
    for origin, direction in zip(origins.numpy(), directions.numpy(), strict=True):
        steps = np.arange(0, 40, 1e-3)[:, None] * direction / np.abs(direction).max()  # of a thousandth of a voxel
        voxels = np.floor(origin + steps).astype(int)
        passed = tuple(voxels[((voxels >= 0) & (voxels < grid.shape)).all(axis=1)].T)
        hits = np.flatnonzero(occupied[passed])
        wanted[tuple(axis[: hits[0] + 1 if len(hits) else None] for axis in passed)] = True
    assert not (wanted & ~seen).any()
    assert (seen & ~wanted).sum() <= 2  # corners cut by less than a step


def test_an_origin_below_the_grid_sees_nothing_beside_it():
    """Unlike in cast_rays, where the published metric truncates."""
    grid = VoxelGrid((0.0, 0.0, 0.0), 1.0, (3, 3, 3))
    empty = np.zeros(grid.shape, bool)
    below = np.array([[1.5, 1.5, -0.5]])
    assert not observed_voxels(empty, grid, below, np.array([[0.0, 0, -1]])).any()
    assert observed_voxels(empty, grid, below, np.array([[0.0, 0, 1]])).sum() == 3
    assert not observed_voxels(empty, grid, np.zeros((0, 3)), np.zeros((0, 3))).any()


def test_rays_that_are_none_are_refused():
    grid = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    one = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="check the poses"):
        cast_rays(grid, one * float("nan"), one)
    with pytest.raises(ValueError, match="check the poses"):
        cast_rays(grid, one * 1e300, one)
    for bad in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="direction is zero, infinite or NaN"):
            cast_rays(grid, one, one * bad)
        with pytest.raises(ValueError, match="direction is zero, infinite or NaN"):
            observed_voxels(grid[0].numpy(), OCC3D_GRID, one.numpy(), bad * one.numpy())
    with pytest.raises(ValueError, match="9 grids for one pass; it takes 8"):
        cast_rays(grid.expand(9, 2, 2, 2), one, one)


def test_more_grids_share_a_pass():
    occupied, origins, directions = random_scene(1, 8, (6, 6, 6), 0.2, "inside")
    together = cast_rays(occupied, origins, directions)
    for g in range(8):
        alone = cast_rays(occupied[g : g + 1], origins, directions)
        assert torch.equal(alone.voxels[0], together.voxels[g]) and torch.equal(alone.depths[0], together.depths[g])


def test_without_numba_the_reference_is_used_and_said_once(monkeypatch, caplog):
    genuine = builtins.__import__

    def no_numba(name, *args, **kwargs):
        if name == "numba":
            raise ImportError("No module named 'numba'")
        return genuine(name, *args, **kwargs)

    occupied, origins, directions = random_scene(2, 2, (6, 6, 6), 0.2, "inside")
    wanted = cast_rays(occupied, origins, directions)
    ray_casting._compiled_kernel.cache_clear()
    try:
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(builtins, "__import__", no_numba)
            found = [cast_rays(occupied, origins, directions) for _ in range(2)]
        said = [record.message for record in caplog.records if record.name == compiled.__name__]
        assert len(said) == 1 and "numba cannot be imported (No module named 'numba'); install it" in said[0]
        assert all(torch.equal(f.voxels, wanted.voxels) and torch.equal(f.depths, wanted.depths) for f in found)
    finally:
        ray_casting._compiled_kernel.cache_clear()


def test_the_kernel_runs_where_nothing_can_be_written(tmp_path):
    """An installation that is read-only, of a user without a home."""
    source = Path(ray_casting.__file__)
    ops = tmp_path / "bev_perception" / "ops"
    ops.mkdir(parents=True)
    beside = (source.with_name("compiled.py"), source.with_name("__init__.py"), source.parents[1] / "types.py")
    for file in (source, *beside):
        shutil.copy(file, tmp_path / "bev_perception" / file.relative_to(source.parents[1]))
    (ops / "__pycache__").write_text("no directory can be made here")
    script = (
        "import logging, torch\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from bev_perception.ops import ray_casting\n"
        "one = torch.ones(1, 3, dtype=torch.float64)\n"
        "print(ray_casting.__file__, ray_casting.cast_rays(torch.ones(1, 2, 2, 2, dtype=torch.bool), one / 4, one))\n"
    )
    homeless = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "NUMBA_CACHE_DIR": ""}
    environment = {**os.environ, **homeless, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(ops) in done.stdout and "depths=tensor([[0.75" in done.stdout
    assert "compiled anew at every start" in done.stderr
