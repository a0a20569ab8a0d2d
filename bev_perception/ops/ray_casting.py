"""Ray casting through voxel grids: which voxel each ray hits first, and which voxels it passes on the way.

Traversal: Amanatides and Woo, A Fast Voxel Traversal Algorithm for Ray Tracing, Eurographics 1987; in float64. The path
of a ray does not depend on which voxels are occupied, so several grids, such as a prediction and its ground truth,
share one pass.

On the CPU, a kernel compiled by numba traces ray by ray. `trace_reference` traces all rays at once with PyTorch; it is
used on a GPU and without numba, and the tests compare the kernel with it. Both start from the same numbers and then
only add and compare, so their results are equal bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bev_perception.ops.compiled import compile_loop
from bev_perception.strict import UserError
from bev_perception.types import VoxelGrid

#: maximum number of voxels that a ray is followed through, including those before it enters the grid
MAX_STEPS = 1001
#: maximum number of grids that share one pass; each takes one bit of a byte
MAX_GRIDS = 8
#: voxels; an origin further from the grid than this cannot be a sensor's
FARTHEST_ORIGIN = 1e6
#: steps after which trace_reference drops the rays that have ended
COMPACT_EVERY = 16

_NEVER = float(np.finfo(np.float64).max)
#: signature of _trace_rays for numba
_SIGNATURE = (
    "void(uint8[:, :, ::1], int64[:, ::1], int64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "int64[:, ::1], float64[:, ::1], boolean[:, :, ::1])"
)


@dataclass(frozen=True)
class RayHits:
    """The first voxel that each ray hits in each grid.

    voxels: [G, R] int64, flat indices; for a ray that hits nothing, the last voxel that it passes in the grid, which is
        free; 0 for a ray that never enters the grid
    depths: [G, R] float64, distance from the origin to where the ray leaves that voxel, in lengths of its direction; -1
        for a ray that never enters the grid. It is also negative if a ray's first voxel lies behind its origin, see
        cast_rays
    """

    voxels: Tensor
    depths: Tensor


@dataclass(frozen=True)
class _Walk:
    """The state in which the traversal of rays starts.

    first: [R, 3] int64, the voxel of the origin
    step: [R, 3] int64, direction along each axis, -1 or 1
    t_max: [R, 3], distance to the first voxel boundary along each axis, in lengths of the ray's direction
    t_delta: [R, 3], distance from one boundary to the next along each axis, in lengths of the ray's direction
    """

    first: Tensor
    step: Tensor
    t_max: Tensor
    t_delta: Tensor


def cast_rays(occupied: Tensor, origins: Tensor, directions: Tensor) -> RayHits:
    """Return what rays hit in G grids, in a single pass for all of them; exact, in float64.

    occupied: [G, X, Y, Z] bool, at most MAX_GRIDS grids
    origins: [R, 3] float64, in voxels from the outer corner of voxel (0, 0, 0)
    directions: [R, 3] float64, in voxels, of any length but 0

    All arguments are on the same device. An origin up to one voxel below or before the grid counts as inside, as in the
    published RayIoU: its coordinates are truncated towards zero. If a ray meets several boundaries at once, it crosses
    the one along z first, then y, then x.

    Raises UserError for origins and directions that no ray can have.
    """
    _check(origins, directions)
    voxels, depths, _ = _trace(occupied, _walk(origins, directions, origins.trunc()))
    return RayHits(voxels, depths)


def observed_voxels(occupied: np.ndarray, grid: VoxelGrid, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return the mask [X, Y, Z] bool of the voxels that rays pass, including the first occupied one of each ray.

    occupied: [X, Y, Z] bool
    grid: where the voxels are
    origins: [R, 3], m, in the grid's frame
    directions: [R, 3], m, in the grid's frame, of any length but 0

    Rays that start outside the grid are followed into it, through MAX_STEPS voxels in all.

    Raises UserError for origins and directions that no ray can have.
    """
    start = torch.from_numpy((np.asarray(origins, np.float64) - grid.origin) / grid.resolution)
    along = torch.from_numpy(np.array(directions, np.float64))
    _check(start, along)
    _, _, seen = _trace(torch.from_numpy(np.asarray(occupied, bool))[None], _walk(start, along, start.floor()))
    return seen.numpy()


def _check(origins: Tensor, directions: Tensor) -> None:
    if not bool((origins.abs() < FARTHEST_ORIGIN).all()):
        raise UserError(f"a ray starts at NaN or over {FARTHEST_ORIGIN:.0e} voxels from the grid; check the poses")
    if not bool((directions.isfinite().all(dim=1) & (directions != 0).any(dim=1)).all()):
        raise UserError("a ray's direction is zero, infinite or NaN; give it one")


def _walk(origins: Tensor, directions: Tensor, first: Tensor) -> _Walk:
    """Return the start of the traversal for rays whose origins lie in the voxels `first` [R, 3]."""
    forward = directions >= 0
    moves = directions != 0
    boundary = first + forward.to(first.dtype)
    t_max = torch.where(moves, (boundary - origins) / directions, _NEVER)
    t_delta = torch.where(moves, (1 / directions).abs(), _NEVER)
    return _Walk(first.long(), torch.where(forward, 1, -1), t_max, t_delta)


def _trace(occupied: Tensor, walk: _Walk) -> tuple[Tensor, Tensor, Tensor]:
    """Return voxels and depths as in RayHits, and the mask [X, Y, Z] bool of voxels passed until all grids are hit."""
    if len(occupied) > MAX_GRIDS:
        raise ValueError(f"{len(occupied)} grids for one pass; it takes {MAX_GRIDS}")
    kernel = _compiled_kernel() if occupied.device.type == "cpu" else None
    if kernel is None:
        return trace_reference(occupied, walk)
    grids, rays = len(occupied), len(walk.first)
    bits = (1 << torch.arange(grids, dtype=torch.uint8))[:, None, None, None]
    codes = (occupied * bits).sum(dim=0, dtype=torch.uint8)  # [X, Y, Z]: bit g is set where grid g is occupied
    voxels = torch.zeros(grids, rays, dtype=torch.int64)
    depths = torch.full((grids, rays), -1.0, dtype=torch.float64)
    seen = torch.zeros(codes.shape, dtype=torch.bool)
    arrays = (codes, walk.first, walk.step, walk.t_max, walk.t_delta, voxels, depths, seen)
    kernel(*(tensor.contiguous().numpy() for tensor in arrays))
    return voxels, depths, seen


def trace_reference(occupied: Tensor, walk: _Walk) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as the compiled kernel on any device, moving all rays one step at a time."""
    grids, rays = len(occupied), len(walk.first)
    device = occupied.device
    size = torch.tensor(occupied.shape[1:], device=device)
    strides = torch.tensor([occupied.shape[2] * occupied.shape[3], occupied.shape[3], 1], device=device)
    filled = occupied.flatten(1)  # [G, X*Y*Z]
    all_voxels = torch.zeros(grids, rays, dtype=torch.int64, device=device)
    all_depths = torch.full((grids, rays), -1.0, dtype=torch.float64, device=device)
    outside = filled.shape[1]
    seen = torch.zeros(outside + 1, dtype=torch.bool, device=device)

    ray = torch.arange(rays, device=device)  # [L]: the rays that have not ended
    at, step, t_max, t_delta = walk.first, walk.step, walk.t_max, walk.t_delta  # [L, 3]
    voxels, depths = all_voxels.clone(), all_depths.clone()  # [G, L]
    pending = torch.ones(grids, rays, dtype=torch.bool, device=device)  # nothing hit yet
    for count in range(1, MAX_STEPS + 1):
        inside = ((at >= 0) & (at < size)).all(dim=1)
        voxel = (at * strides).sum(dim=1).where(inside, 0)
        here = inside & pending  # [G, L]; the last such voxel is the result: the one hit, or the last one inside
        seen[voxel.where(here.any(dim=0), outside)] = True
        voxels = torch.where(here, voxel, voxels)
        depths = torch.where(here, t_max.amin(dim=1), depths)
        pending = pending & ~(here & filled[:, voxel])

        x, y, z = t_max.unbind(dim=1)
        along_x, along_y = (x < y) & (x < z), (x >= y) & (y < z)
        moved = torch.stack([along_x, along_y, ~(along_x | along_y)], dim=1)  # [L, 3], one axis each
        at = torch.where(moved, at + step, at)
        t_max = torch.where(moved, t_max + t_delta, t_max)
        if count % COMPACT_EVERY == 0 or count == MAX_STEPS:
            all_voxels[:, ray], all_depths[:, ray] = voxels, depths
            beside = ((at < 0) & (step < 0) | (at >= size) & (step > 0)).any(dim=1)  # outside, moving away
            alive = torch.nonzero(pending.any(dim=0) & ~beside).squeeze(1)
            if not len(alive):
                break
            ray, at, step, t_max, t_delta = (a[alive] for a in (ray, at, step, t_max, t_delta))
            voxels, depths, pending = (a[:, alive] for a in (voxels, depths, pending))
    return all_voxels, all_depths, seen[:outside].view(occupied.shape[1:])


def _trace_rays(
    codes: np.ndarray,
    first: np.ndarray,
    step: np.ndarray,
    t_max: np.ndarray,
    t_delta: np.ndarray,
    voxels: np.ndarray,
    depths: np.ndarray,
    seen: np.ndarray,
) -> None:
    """Trace ray by ray (numba compiles this); fill in voxels and depths [G, R] and seen [X, Y, Z]."""
    size_x, size_y, size_z = codes.shape
    grids = len(voxels)
    for ray in range(len(first)):
        x, y, z = first[ray, 0], first[ray, 1], first[ray, 2]
        step_x, step_y, step_z = step[ray, 0], step[ray, 1], step[ray, 2]
        t_x, t_y, t_z = t_max[ray, 0], t_max[ray, 1], t_max[ray, 2]
        delta_x, delta_y, delta_z = t_delta[ray, 0], t_delta[ray, 1], t_delta[ray, 2]
        pending = (1 << grids) - 1
        entered = False
        voxel, depth = 0, -1.0
        for _ in range(MAX_STEPS):
            if 0 <= x < size_x and 0 <= y < size_y and 0 <= z < size_z:
                entered = True
                voxel, depth = (x * size_y + y) * size_z + z, min(t_x, t_y, t_z)
                seen[x, y, z] = True
                hit = codes[x, y, z] & pending
                if hit:
                    for g in range(grids):
                        if hit >> g & 1:
                            voxels[g, ray], depths[g, ray] = voxel, depth
                    pending ^= hit
                    if not pending:
                        break
            elif entered:
                break
            if t_x < t_y:
                if t_x < t_z:
                    x += step_x
                    t_x += delta_x
                else:
                    z += step_z
                    t_z += delta_z
            elif t_y < t_z:
                y += step_y
                t_y += delta_y
            else:
                z += step_z
                t_z += delta_z
        for g in range(grids):
            if pending >> g & 1:
                voxels[g, ray], depths[g, ray] = voxel, depth


@functools.cache
def _compiled_kernel() -> Callable[..., None] | None:
    """Return _trace_rays compiled by numba; without numba, warn once and return None."""
    return compile_loop(_trace_rays, _SIGNATURE, "rays are cast")
