"""Small networks of every kind, and what their cameras see."""

import dataclasses

import numpy as np
import torch

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.config import (
    BackboneConfig,
    FramesConfig,
    ImageConfig,
    NeckConfig,
    ReferenceFrameConfig,
    VariantConfig,
)
from bev_perception.families.bevdet.config import (
    BEVDetHeadConfig,
    CenterPointConfig,
    DepthConfig,
    EncoderConfig,
    GridConfig,
    OccupancyConfig,
)
from bev_perception.families.catalog import build_model
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.types import Cameras, ModelInput

SIZE = (64, 96)
SECOND = 1_000_000_000


def small_config(depth_net="plain", head="boxes", past=1):
    """head: "boxes", "voxels" or "columns"; past: maps of past frames."""
    stereo = depth_net == "stereo"
    height = 2.0 if head == "voxels" else 8.0
    return VariantConfig(
        name="small",
        family="bevdet",
        image=ImageConfig(*SIZE),
        frames=FramesConfig(past + stereo),
        backbone=BackboneConfig("resnet", 10, width=8, first_level=2, with_first=stereo, patches=True),
        neck=NeckConfig("fpn", 16, 1),
        reference_frame=ReferenceFrameConfig("base_link", (0, 0, 0), 0),
        class_names=NUSCENES_CLASSES if head == "boxes" else OCC3D_CLASSES,
        head=BEVDetHeadConfig(
            grid=GridConfig((-16, -16, -4, 16, 16, 4), (2.0, 2.0, height)),
            depth=DepthConfig(1, 17, 2, logarithmic=stereo),
            depth_net=depth_net,
            context=8,
            aspp_channels=8,
            encoder=EncoderConfig(
                volumetric=head == "voxels",
                pre_blocks=1,
                blocks=(1, 1, 1),
                channels=(8, 12, 16),
                strides=(1, 2, 2) if head == "voxels" else (2, 2, 2),
                out_channels=8,
            ),
            boxes=CenterPointConfig(shared_channels=8) if head == "boxes" else None,
            occupancy=None if head == "boxes" else OccupancyConfig(8, heights=4 if head == "columns" else 0),
        ),
    )


def small_model(*args, seed=0, **kwargs):
    """A network in which features keep their size from layer to layer, so that every input shows in the outputs."""
    torch.manual_seed(seed)
    model = build_model(small_config(*args, **kwargs))
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    return model.eval()


def rig(count=4):
    """Cameras all around, each matrix [N, ...], in a vehicle at the origin."""
    k = np.array([[60.0, 0, 60], [0, 60, 40], [0, 0, 1]])
    optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # x right, y down, z forward -> x forward, y left, z up
    poses = [
        make_transform(rotation_from_yaw(yaw) @ optical, np.array([0.5, 0.1 * i, 1.5]))
        for i, yaw in enumerate(np.linspace(0, 2 * np.pi, count, endpoint=False))
    ]
    source2image = np.diag([0.8, 0.8, 1, 1])
    source2image[:2, 2] = 0, -1
    return Cameras(
        np.tile(k, (count, 1, 1)),
        np.tile(source2image, (count, 1, 1)),
        np.stack(poses),
        np.tile(np.eye(4), (count, 1, 1)),
    )


def at(step, cameras=None):
    """The rig after `step` half seconds of a drive around a bend; all its images are taken at once."""
    cameras = cameras or rig()
    ego2global = make_transform(rotation_from_yaw(0.1 * step), np.array([100 + 2.0 * step, 50 + 0.3 * step, 0]))
    return dataclasses.replace(cameras, ego2global=np.tile(ego2global, (len(cameras.intrinsics), 1, 1)))


def frame_at(step, cameras=None, present=None, seed=None):
    """The input of the frame after `step` half seconds."""
    cameras = at(step, cameras)
    count = len(cameras.intrinsics)
    generator = torch.Generator().manual_seed(step if seed is None else seed)
    present = np.ones(count, bool) if present is None else np.array(present)
    images = torch.randn(count, 3, *SIZE, generator=generator) * torch.from_numpy(present)[:, None, None, None]
    stamp = step * SECOND // 2
    return ModelInput(images, cameras, cameras.ego2global[0], present, np.full(count, stamp), stamp)


def without(inputs, camera):
    """The same input without one camera, as if the vehicle had never had it."""
    keep = np.arange(len(inputs.present)) != camera
    return dataclasses.replace(
        inputs,
        images=inputs.images[torch.from_numpy(keep)],
        cameras=inputs.cameras.select(keep),
        present=inputs.present[keep],
        stamps=inputs.stamps[keep],
    )


def stream(model, frames, interval=0.5):
    """The predictions for frames one after the other, all of which are remembered."""
    memory, predictions = model.new_memory(interval), []
    with torch.inference_mode():
        for inputs in frames:
            predictions.append(model.predict(model.encode(inputs), memory.history(inputs.stamp), inputs, None))
            memory = memory.after(predictions[-1].entry, None, due=True)
    return predictions


def raw(outputs):
    """All that a head says, in one tensor."""
    if outputs.occupancy is not None:
        return outputs.occupancy
    return torch.cat([value for task in outputs.tasks for value in (task.codes, task.heatmap)], dim=1)


def distance(found, wanted):
    """How far two answers are apart, as a share of the largest number: 1e-4 is rounding, as matching is sharp."""
    found, wanted = (x if isinstance(x, torch.Tensor) else raw(x) for x in (found, wanted))
    return ((found - wanted).abs().max() / wanted.abs().max()).item()
