"""Models small enough to be trained in a test, made-up data for them, and a program that trains them."""

import dataclasses
import functools
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bev_perception.config import (
    AveragingConfig,
    BackboneConfig,
    BevAugmentationConfig,
    FramesConfig,
    ImageConfig,
    NeckConfig,
    TrainingConfig,
)
from bev_perception.families.bevdet.config import CenterPointConfig, DepthConfig, EncoderConfig, GridConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.truths import DetectionTruth
from bev_perception.families.catalog import build_model
from bev_perception.families.sparse4d.recipe import DenoisingConfig, Sparse4DRecipe
from bev_perception.families.sparse4d.truths import InstanceTruth
from bev_perception.families.sparsebev.config import SparseBEVRecipe
from bev_perception.families.sparsebev.proposals.config import ProposalsConfig, ProposalsRecipe
from bev_perception.families.sparseocc.config import SparseOccRecipe
from bev_perception.families.sparseocc.targets import mask_targets
from bev_perception.families.variants import load_variant
from bev_perception.supervision.samples import BoxTruth, OccupancyTruth, TrainingSample
from bev_perception.training.train import TrainSettings, train
from bev_perception.types import Cameras

CAMERAS, FRAMES, SIZE = 2, 2, (32, 64)
GRID = (40, 40, 16)  # of 0.4 m
# two cameras that look along +y and -y: optical frame to reference frame
BACK_TO_BACK = np.array([[[s, 0.0, 0, 0], [0, 0, s, 0], [0, -1, 0, 0], [0, 0, 0, 1]] for s in (1, -1)])
ENCODER = {"backbone": BackboneConfig("resnet", 18), "neck": NeckConfig("fpn", 32, 4)}
DECODER = {"num_levels": 4, "embed_dims": 32, "num_heads": 8, "ffn_dim": 32, "mixing_out_points": 8}


def recipe(denoising_groups=2, **proposals):
    return SparseBEVRecipe(denoising_groups, ProposalsRecipe(**proposals))


def small_config(**training):
    """sparsebev_tiny made smaller still, without dropout, so that processes can be compared."""
    tiny = load_variant("sparsebev_tiny")
    return dataclasses.replace(
        tiny,
        image=ImageConfig(*SIZE),
        frames=FramesConfig(past=FRAMES - 1),
        **ENCODER,
        head=dataclasses.replace(
            tiny.head, **DECODER, num_query=16, proposals=ProposalsConfig(), num_layers=2, dropout=0.0
        ),
        training=TrainingConfig(
            **{"epochs": 2, "resize": (1.0, 1.0), "batch": 2, "warmup_steps": 4, "family": recipe()} | training
        ),
    )


def small_occupancy_config(panoptic=False, dropout=0.0, **training):
    """sparseocc_tiny made smaller still, on a small grid."""
    tiny = load_variant("sparseocc_tiny")
    low, high = -0.2 * np.array(GRID), 0.2 * np.array(GRID)
    head = {
        **DECODER,
        **{"num_query": 12, "dropout": dropout},
        **{"kept_training": (60, 200, 500), "kept_testing": (60, 200, 500), "panoptic": panoptic},
        **{"occ_size": GRID, "occ_range": (*low.tolist(), *high.tolist())},
    }
    recipe = {
        **{"epochs": 2, "resize": (1.0, 1.0), "batch": 2, "warmup_steps": 4, "lr_drop_epochs": (1,)},
        **{"grid_mask": False, "bev": BevAugmentationConfig(0.3, (1.0, 1.0), flip=True)},
    }
    return dataclasses.replace(
        tiny,
        image=ImageConfig(*SIZE),
        frames=FramesConfig(past=FRAMES - 1),
        **ENCODER,
        head=dataclasses.replace(tiny.head, **head),
        training=TrainingConfig(**recipe | {"family": SparseOccRecipe()} | training),
    )


def small_instances_config(**training):
    """sparse4d_tiny made smaller still; all groups of denoising instances live on, whatever a process draws."""
    tiny = load_variant("sparse4d_tiny")
    sizes = {"num_anchor": 16, "num_temporal": 10, "num_layers": 2, "num_levels": 4, "depth_levels": 2}
    widths = {"embed_dims": 32, "num_groups": 2, "ffn_dim": 32}
    family = Sparse4DRecipe(denoising=DenoisingConfig(groups=2, remembered=2))
    return dataclasses.replace(
        tiny,
        image=ImageConfig(*SIZE),
        **ENCODER,
        head=dataclasses.replace(tiny.head, **sizes, **widths),
        training=TrainingConfig(
            **{"epochs": 2, "resize": (1.0, 1.0), "batch": 2, "warmup_steps": 4, "family": family} | training
        ),
    )


def small_grid_config(**training):
    """bevdet_tiny made smaller still, with balanced classes and averaged weights."""
    tiny = load_variant("bevdet_tiny")
    head = dataclasses.replace(
        tiny.head,
        grid=GridConfig((-48, -48, -4, 48, 48, 4), (6.0, 6.0, 8.0)),
        depth=DepthConfig(1, 17, 2),
        context=8,
        aspp_channels=8,
        encoder=EncoderConfig(pre_blocks=1, blocks=(1, 1, 1), channels=(8, 12, 16), out_channels=8),
        boxes=CenterPointConfig(shared_channels=8),
    )
    given = {"epochs": 2, "resize": (1.0, 1.0), "batch": 2, "warmup_steps": 4, "encoder": "scratch"}
    given |= {"averaging": AveragingConfig(0.5, 1.0), "family": BEVDetRecipe(depth_weight=3.0, balanced=True)}
    return dataclasses.replace(
        tiny,
        image=ImageConfig(*SIZE),
        backbone=dataclasses.replace(tiny.backbone, width=8),
        neck=NeckConfig("fpn", 16, 1),
        head=head,
        training=TrainingConfig(**given | training),
    )


class MadeUpData:
    """Noise as images, and as many boxes in every sample."""

    def __init__(self, samples=8, boxes=3):
        self.samples, self.boxes = samples, boxes

    def __len__(self):
        return self.samples

    def sequences(self):
        return [list(range(self.samples))]

    def classes(self, index):
        return {0}

    def sample(self, index, rng, augmentation=None):
        identities = np.tile(np.eye(4), (FRAMES, CAMERAS, 1, 1))
        return TrainingSample(
            images=rng.integers(256, size=(FRAMES, CAMERAS, *SIZE, 3), dtype=np.uint8),
            cameras=Cameras(
                intrinsics=np.tile(np.array([[50.0, 0, 32], [0, 50, 16], [0, 0, 1]]), (FRAMES, CAMERAS, 1, 1)),
                source2image=identities,
                sensor2ego=np.stack([BACK_TO_BACK] * FRAMES),
                ego2global=identities,
            ),
            reference2global=np.eye(4),
            time_differences=np.array([0.0, 0.5]),
            stamp=index * 500_000_000,
            world=np.eye(4),
            truth=self.truth(rng),
        )

    def truth(self, rng):
        boxes = np.concatenate(
            [rng.uniform(-40, 40, (self.boxes, 2)), np.zeros((self.boxes, 1)), rng.uniform(1, 4, (self.boxes, 6))],
            axis=1,
        )
        return BoxTruth(torch.from_numpy(boxes).float(), torch.from_numpy(rng.integers(10, size=self.boxes)))


class EncodableMadeUpData(MadeUpData):
    """The same images in every epoch, or what an encoder has made of them."""

    def __init__(self, samples=8, boxes=20, features=()):
        super().__init__(samples, boxes)
        self.features = features

    def sample(self, index, rng, augmentation=None):
        sample = super().sample(index, np.random.default_rng(index))
        return dataclasses.replace(sample, images=self.features[index]) if self.features else sample

    def encoded(self, encode, folder, part, parts):
        folder.mkdir(exist_ok=True)
        features = []
        for index in range(self.samples):
            frames = [encode(pixels) for pixels in self.sample(index, None).images]
            levels = zip(*frames, strict=True)
            features.append(tuple(np.stack([level.numpy().astype(np.float16) for level in frame]) for frame in levels))
        return EncodableMadeUpData(self.samples, self.boxes, features)


class MadeUpOccupancy(MadeUpData):
    """As many blocks of random classes over a road, everything else free; at the border nothing is known."""

    def truth(self, rng):
        classes = load_variant("sparseocc_tiny").class_names
        semantics = np.full(GRID, classes.index("free"), np.uint8)
        semantics[:, :20, 3] = classes.index("driveable_surface")
        instances = np.zeros(GRID, np.uint8)
        for k in range(self.boxes):
            i, j = rng.integers(32, size=2)
            block = (slice(i, i + 8), slice(j, j + 4), slice(4, 8))
            semantics[block], instances[block] = rng.integers(11), k + 1
        places, class_ids = mask_targets(semantics, instances, classes)
        semantics[0] = 255
        return OccupancyTruth(*map(torch.from_numpy, (semantics, places, class_ids)))


class MadeUpInstances(MadeUpData):
    """The same objects, in other places, in every sample, and a wall 20 m ahead of the cameras."""

    def truth(self, rng):
        truth = super().truth(rng)
        depths = tuple(torch.full((CAMERAS, SIZE[0] // s, SIZE[1] // s), 20.0) for s in (4, 8))
        return InstanceTruth(truth.boxes, truth.labels, torch.arange(self.boxes), depths)


class MadeUpGrid(MadeUpData):
    """Boxes of three classes in every sample, other ones in the next, and depths of every cell of the images."""

    def classes(self, index):
        return {index % 3, 3 + index % 3, 6 + index % 3}

    def truth(self, rng):
        truth = super().truth(rng)
        depths = torch.from_numpy(rng.integers(8, size=(CAMERAS, SIZE[0] // 16, SIZE[1] // 16)))
        return DetectionTruth(truth.boxes, truth.labels, depths)


def augmented(config):
    """The variant with a recipe that changes images and world as published ones do."""
    wild = {"resize": (0.20, 0.26), "image_flip": True}
    world = (
        BevAugmentationConfig(scale=(1.0, 1.0), flip=True) if config.family == "sparseocc" else BevAugmentationConfig()
    )
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **wild, bev=world))


def encoder_config(**training):
    """small_config with a perspective head."""
    config = small_config(**training)
    return dataclasses.replace(
        config, head=dataclasses.replace(config.head, proposals=ProposalsConfig(perspective=True))
    )


FAMILIES = {"sparsebev": (small_config, MadeUpData), "sparseocc": (small_occupancy_config, MadeUpOccupancy)}
# so many boxes that each process sees some: a mean of less than one counts as one
TRAININGS = FAMILIES | {
    "encoder": (encoder_config, functools.partial(MadeUpData, boxes=20)),
    "decoder": (encoder_config, EncodableMadeUpData),
    "sparse4d": (small_instances_config, MadeUpInstances),
}
#: two processes see other statistics than one with the same batch
WITH_BATCH_NORMS = {"bevdet": (small_grid_config, MadeUpGrid)}


class SlowData(MadeUpData):
    """Tells when the training has begun, and then goes slowly, so that it can be interrupted in the middle."""

    def __init__(self, marker, **kwargs):
        super().__init__(**kwargs)
        self.marker, self.read = marker, 0

    def sample(self, index, rng, augmentation=None):
        self.read += 1
        if self.read >= 7:
            self.marker.touch()
            time.sleep(0.3)
        return super().sample(index, rng)


def settings(out, **changes):
    return TrainSettings(
        out=Path(out), **{"device": "cpu", "precision": "fp32", "workers": 0, "log_every": 1} | changes
    )


def only(name, out):
    """Return the settings of a part that is trained alone; a decoder starts from weights beside `out`."""
    if name != "decoder":
        return {"part": "encoder" if name == "encoder" else "all"}
    init = Path(out).parent / "init.pth"
    if not init.exists():
        torch.manual_seed(3)
        torch.save(build_model(encoder_config()).state_dict(), init)
    return {"part": "decoder", "init": init}


def failing(data, reads):
    """Data whose n-th sample cannot be read by this process."""
    sample, count = data.sample, itertools.count(1)

    def fail_once(*arguments):
        if next(count) == reads:
            raise OSError("the disk is gone")
        return sample(*arguments)

    data.sample = fail_once
    return data


if __name__ == "__main__":  # OUT TRAINING [cut | resume | MARKER]: train; under torchrun without a marker
    out, name, *how = sys.argv[1:]
    make_config, data = (TRAININGS | WITH_BATCH_NORMS)[name]
    if how and how[0] not in ("cut", "resume"):
        train(make_config(), SlowData(Path(how[0]), samples=12), settings(out, workers=1))
    else:
        config = make_config(epochs=1, color_augmentation=False, grid_mask=False)
        given = failing(data(), reads=4) if how == ["cut"] else data()
        train(config, given, settings(out, **only(name, out), save_every=2, resume=how == ["resume"]))
