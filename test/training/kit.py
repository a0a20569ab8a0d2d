"""A model small enough to be trained in a test, made-up data for it, and a program that trains it."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np

from bev_perception.config import FramesConfig, ImageConfig, NeckConfig, TrainingConfig, load_variant
from bev_perception.training.samples import TrainingSample
from bev_perception.training.train import TrainSettings, train

CAMERAS, FRAMES, SIZE = 2, 2, (32, 64)


def small_config(**training):
    """sparsebev_tiny made smaller still, without dropout, so that processes can be compared."""
    tiny = load_variant("sparsebev_tiny")
    return dataclasses.replace(
        tiny,
        image=ImageConfig(*SIZE),
        frames=FramesConfig(past=FRAMES - 1),
        neck=NeckConfig("fpn", 32, 4),
        head=dataclasses.replace(
            tiny.head, num_query=16, embed_dims=32, num_layers=2, ffn_dim=32, mixing_out_points=8, dropout=0.0
        ),
        training=TrainingConfig(
            **{"epochs": 2, "resize": (1.0, 1.0), "batch": 2, "warmup_steps": 4, "denoising_groups": 2} | training
        ),
    )


class MadeUpData:
    """Noise as images, and as many boxes in every sample."""

    def __init__(self, samples=8, boxes=3):
        self.samples, self.boxes = samples, boxes

    def __len__(self):
        return self.samples

    def sample(self, index, rng):
        ahead = np.array([[50.0, 0, 32, 0], [0, 50, 16, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        turned = [ahead @ [[s, 0, 0, 0], [0, 0, -1, 0], [0, s, 0, 0], [0, 0, 0, 1]] for s in (1, -1)]
        boxes = np.concatenate(
            [rng.uniform(-40, 40, (self.boxes, 2)), np.zeros((self.boxes, 1)), rng.uniform(1, 4, (self.boxes, 6))],
            axis=1,
        )
        return TrainingSample(
            images=rng.integers(256, size=(FRAMES, CAMERAS, *SIZE, 3), dtype=np.uint8),
            reference2image=np.stack([turned] * FRAMES),
            time_differences=np.array([0.0, 0.5]),
            boxes=boxes,
            labels=rng.integers(10, size=self.boxes),
        )


class SlowData(MadeUpData):
    """Tells when the training has begun, and then goes slowly, so that it can be interrupted in the middle."""

    def __init__(self, marker, **kwargs):
        super().__init__(**kwargs)
        self.marker, self.read = marker, 0

    def sample(self, index, rng):
        self.read += 1
        if self.read >= 7:
            self.marker.touch()
            time.sleep(0.3)
        return super().sample(index, rng)


def settings(out, **changes):
    return TrainSettings(
        out=Path(out), **{"device": "cpu", "precision": "fp32", "workers": 0, "log_every": 1} | changes
    )


if __name__ == "__main__":  # OUT [MARKER]: train; under torchrun without a marker
    out, *marker = map(Path, sys.argv[1:])
    if marker:
        train(small_config(), SlowData(marker[0], samples=12), settings(out))
    else:
        train(small_config(epochs=1, image_augmentation=False), MadeUpData(), settings(out))
