"""A made-up vehicle for tests of the models: cameras in a circle, frames of noise."""

import dataclasses
import math

import numpy as np
import torch

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.types import ModelInput

SECOND = 1_000_000_000
START = 1_532_402_927_647_951_000  # ns: with stamps of today, floats of seconds would not do


def rig(cameras, seed=0):
    """Cameras in a circle, 1.5 m up: reference frame to pixels of 352 x 128 images, [N, 4, 4]."""
    optical2vehicle = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = np.array([[200.0, 0, 176, 0], [0, 200, 64, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    matrices = []
    for camera in range(cameras):
        turn = make_transform(rotation_from_yaw(2 * math.pi * camera / cameras), np.array([0, 0, 1.5]))
        matrices.append(intrinsics @ np.linalg.inv(turn @ optical2vehicle))
    return np.stack(matrices)


def frame(index, cameras=6, present=None, ego=None):
    """The index-th frame, 0.5 s after the one before, its cameras 8 ms apart."""
    images = torch.randn(cameras, 3, 128, 352, generator=torch.Generator().manual_seed(index))
    ego = np.eye(4) if ego is None else ego
    stamp = START + index * SECOND // 2
    return ModelInput(
        images=images,
        global2image=rig(cameras) @ np.linalg.inv(ego),
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
