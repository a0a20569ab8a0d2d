"""Lift, splat: features of images to the grid of the ego frame (Philion and Fidler, ECCV 2020; Huang et al., 2021)."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.families.bevdet.config import PLAIN, BEVDetHeadConfig, DepthConfig, GridConfig
from bev_perception.families.bevdet.depth_net import CameraAwareDepthNet
from bev_perception.ops.bev_pool import PoolPlan, bev_pool, plan_pool
from bev_perception.types import Cameras


def depth_values(config: DepthConfig, device: torch.device) -> Tensor:
    """Return the depths [D] float64, m, which are rounded to float32 as those of training were."""
    if not config.logarithmic:
        values = torch.arange(config.low, config.high, config.step, dtype=torch.float32)
    else:
        low = torch.tensor(config.low, dtype=torch.float32)
        last = torch.tensor(config.high - 1, dtype=torch.float32)
        steps = torch.arange(config.count, dtype=torch.float32) / (config.count - 1)
        values = (low.log() + steps * (last / low).log()).exp()
    return values.to(device, torch.float64)


def pixel_rays(image_size: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the homogeneous pixels (u, v, 1) of an image that a map's cells stand for, [h, w, 3] float64.

    image_size: (height, width) of the image, pixels
    size: (h, w) of the map

    Cells spread from the first to the last pixel of the image, so they do not stand for the middles of their areas;
    rounded to float32 as in training.
    """
    v, u = (torch.linspace(0, n - 1, cells, dtype=torch.float32) for n, cells in zip(image_size, size, strict=True))
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).to(device, torch.float64)


def image2sensor(cameras: Cameras) -> np.ndarray:
    """Return the [..., 4, 4] transforms from depth-scaled pixels of the model's input to the optical frames."""
    intrinsics = np.zeros((*cameras.intrinsics.shape[:-2], 4, 4))
    intrinsics[..., :3, :3] = cameras.intrinsics
    intrinsics[..., 3, 3] = 1.0
    return np.linalg.inv(cameras.source2image @ intrinsics)


def sensor2grid(cameras: Cameras, ego2global: np.ndarray) -> np.ndarray:
    """Return the [B, N, 4, 4] float64 transforms from the optical frames to the ego frame of a map.

    cameras: each matrix [B, N, ...]
    ego2global: [B, 4, 4], of the map

    The numbers are rounded to float32, as those of training were: a point at the border of two cells falls as there.
    Without motion since a camera's exposure they are those of its calibration, free of what rounding would add at every
    place on the globe: the plan of the pooling follows from them.
    """
    moved = (cameras.ego2global != ego2global[:, None]).any(axis=(-2, -1), keepdims=True)  # [B, N, 1, 1]
    since = np.where(moved, np.linalg.inv(ego2global)[:, None] @ cameras.ego2global, np.eye(4))
    transforms = since @ cameras.sensor2ego
    return transforms.astype(np.float32).astype(np.float64)


def lift_points(image2ego: Tensor, rays: Tensor, depths: Tensor) -> Tensor:
    """Return the points [3, B, N, D, h, w], m, of every pixel at every depth; each coordinate lies in one piece.

    image2ego: [B, N, 4, 4], depth-scaled pixels to the ego frame
    rays: [h, w, 3], of pixel_rays
    depths: [D], m
    """
    rotated = torch.einsum("bnij,hwj->bnhwi", image2ego[..., :3, :3], rays).movedim(-1, 0).contiguous()
    shifts = image2ego[..., :3, 3].movedim(-1, 0)  # [3, B, N]
    return rotated[:, :, :, None] * depths[:, None, None] + shifts[..., None, None, None]


def cell_index(points: Tensor, grid: GridConfig) -> Tensor:
    """Return the cell of each point, an index into [B, Z, Y, X], or -1 for none; [B, N, D, h, w] int64.

    points: [3, B, N, D, h, w], m

    Fractions are cut off towards zero, as in training: points up to one cell below the grid fall into its first cell.
    """
    index = torch.arange(points.shape[1], device=points.device, dtype=torch.int32)[:, None, None, None, None]
    inside = torch.ones((), dtype=torch.bool, device=points.device)
    for axis in (2, 1, 0):  # four bytes, and a comparison before the cut: the plan is made at every step of a drive
        places, count = (points[axis] - grid.range[axis]) / grid.cell[axis], grid.size[axis]
        inside = inside & (places > -1) & (places < count)
        index = index * count + places.int()
    return torch.where(inside, index, -1).long()


class ViewTransform(nn.Module):
    """The depth net, and the pooling of lifted features into the grid.

    The plan of the pooling is kept and used again until a camera's matrices change. While the vehicle moves, those of
    cameras that expose one after the other change at every step: each has its own pose in the frame of the grid. They
    stay where all cameras expose at the stamp of the frame.
    """

    def __init__(self, head: BEVDetHeadConfig, in_channels: int) -> None:
        """Build the transform of features with `in_channels` channels."""
        super().__init__()
        self.head = head
        self.depth_net: nn.Module
        if head.depth_net == PLAIN:
            self.depth_net = nn.Conv2d(in_channels, head.depth.count + head.context, 1)
        else:
            self.depth_net = CameraAwareDepthNet(head, in_channels)
        self._planned: tuple[object, PoolPlan] | None = None

    def plan(
        self,
        cameras: Cameras,
        sensor2ego: np.ndarray,
        image_size: tuple[int, int],
        size: tuple[int, int],
        device: torch.device,
    ) -> PoolPlan:
        """Return where each point falls.

        cameras: of one frame, each matrix [B, N, ...]
        sensor2ego: [B, N, 4, 4], optical frame to the frame of the grid, augmentation included
        image_size: (height, width) of the images, pixels
        size: (h, w) of their maps
        device: of the maps
        """
        matrices = tuple(getattr(cameras, item.name).tobytes() for item in fields(cameras)[:2])
        key = (matrices, sensor2ego.tobytes(), sensor2ego.shape, image_size, size, device)
        if self._planned is None or self._planned[0] != key:
            # a plan outlives the step: of inference tensors, a later training step could not use it
            with torch.inference_mode(False), torch.no_grad():
                self._planned = (key, self._plan(cameras, sensor2ego, image_size, size, device))
        return self._planned[1]

    def _plan(
        self,
        cameras: Cameras,
        sensor2ego: np.ndarray,
        image_size: tuple[int, int],
        size: tuple[int, int],
        device: torch.device,
    ) -> PoolPlan:
        """Return a new plan; arguments as of `plan`."""
        image2ego = torch.from_numpy(sensor2ego @ image2sensor(cameras)).to(device)  # float64: see cell_index
        points = lift_points(image2ego, pixel_rays(image_size, size, device), depth_values(self.head.depth, device))
        x, y, z = self.head.grid.size
        return plan_pool(cell_index(points, self.head.grid), len(sensor2ego) * x * y * z)

    def forward(
        self,
        features: Tensor,
        plan: PoolPlan,
        vectors: Tensor,
        cost: Tensor | None = None,
        present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the grid's map and the distributions over the depths [B, N, D, h, w].

        features: [B, N, C, h, w]
        plan: of `plan`
        vectors: [B, N, 27], see camera_vector; a plain depth net ignores them
        cost: [B * N, D, 4h, 4w], the cost volume of a stereo net
        present: [B, N] bool, False for a camera that adds nothing; None: all are there

        The map is [B, C, Z, Y, X], or [B, C, Y, X] for a bird's eye view.
        """
        batch, cameras = features.shape[:2]
        flat = features.flatten(0, 1)
        if self.head.depth_net == PLAIN:
            logits = self.depth_net(flat)
        else:
            logits = self.depth_net(flat, vectors.flatten(0, 1), cost)
        depth, context = logits.unflatten(0, (batch, cameras)).split([self.head.depth.count, self.head.context], dim=2)
        depth = depth.softmax(dim=2)
        if present is not None:
            context = context * present[:, :, None, None, None]
        x, y, z = self.head.grid.size
        pooled = bev_pool(depth, context, plan).view(batch, z, y, x, self.head.context).permute(0, 4, 1, 2, 3)
        return (pooled if self.head.encoder.volumetric else pooled.squeeze(2)).contiguous(), depth
