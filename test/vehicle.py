"""A made-up vehicle for tests of the models: cameras in a circle, frames of noise."""

import dataclasses
import math

import numpy as np
import torch

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.types import Cameras, ModelInput

SECOND = 1_000_000_000
START = 1_532_402_927_647_951_000  # ns: with stamps of today, floats of seconds would not do


def rig(cameras, ego=None):
    """Cameras of 352 x 128 pixels in a circle on a vehicle, 1.5 m up."""
    optical2vehicle = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    turns = [rotation_from_yaw(2 * math.pi * camera / cameras) for camera in range(cameras)]
    return Cameras(
        intrinsics=np.tile(np.array([[200.0, 0, 176], [0, 200, 64], [0, 0, 1]]), (cameras, 1, 1)),
        source2image=np.tile(np.eye(4), (cameras, 1, 1)),
        sensor2ego=np.stack([make_transform(turn, np.array([0, 0, 1.5])) @ optical2vehicle for turn in turns]),
        ego2global=np.tile(np.eye(4) if ego is None else ego, (cameras, 1, 1)),
    )


def cameras_that_project(global2image):
    """Cameras with the given matrices [N, 4, 4], from the global frame to depth-scaled pixels."""
    return dataclasses.replace(Cameras.identities(len(global2image)), source2image=np.asarray(global2image, np.float64))


def frame(index, cameras=6, present=None, ego=None):
    """The index-th frame, 0.5 s after the one before, its cameras 8 ms apart."""
    images = torch.randn(cameras, 3, 128, 352, generator=torch.Generator().manual_seed(index))
    ego = np.eye(4) if ego is None else ego
    stamp = START + index * SECOND // 2
    return ModelInput(
        images=images,
        cameras=rig(cameras, ego),
        reference2global=ego,
        present=np.ones(cameras, bool) if present is None else np.array(present),
        stamps=stamp + 8_000_000 * np.arange(cameras),
        stamp=stamp,
    )


@torch.inference_mode()
def run(model, inputs, memory=None):
    """Return the outputs for a frame with its memory, and the memory with the frame in it."""
    memory = memory_of(model) if memory is None else memory
    prediction = model.predict(model.encode(inputs), memory.history(inputs.stamp), inputs, memory.carried)
    return prediction.outputs, memory.after(prediction.entry, prediction.carried, due=True)


def memory_of(model, *entries):
    """A memory of the trained spacing, with these entries in it."""
    return dataclasses.replace(model.new_memory(model.config.frames.interval), entries=entries)


@torch.inference_mode()
def run_queue(model, inputs):
    """Return the outputs for a frame whose neighbours are all at hand, in the order of config.frames.offsets."""
    others = [model.remember(model.encode(other), (), other) for other in inputs[1:]]
    return model.predict(model.encode(inputs[0]), others, inputs[0], None).outputs
