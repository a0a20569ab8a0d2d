"""Training steps of every kind of network on made-up key frames."""

import dataclasses

import numpy as np
import pytest
import torch
from made_up_labels import write_all_labels
from nuscenes_root import VERSION
from training.kit import settings

from bev_perception.config import AveragingConfig, BevAugmentationConfig, TrainingConfig
from bev_perception.data.records import open_records
from bev_perception.families.bevdet.config import GridConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.step import BEVDetStep, cameras_by_frame
from bev_perception.families.bevdet.view_transform import image2sensor
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.geometry import transform_points
from bev_perception.supervision.order import Draw
from bev_perception.supervision.step import freeze
from bev_perception.training.dataset import NuScenesTraining
from bev_perception.training.loading import LoadedBatches
from bev_perception.training.train import train
from bev_perception.types import OCC3D_GRID

from .small import small_config


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_records(synthetic_nuscenes, VERSION)


@pytest.fixture(scope="module")
def labels(records, tmp_path_factory):
    return write_all_labels(records.of_scenes(records.scenes[:1]), tmp_path_factory.mktemp("labels"))


def config(depth_net="camera", head="boxes", past=1, **family):
    small = small_config(depth_net, head, past)
    changes = {"grid": GridConfig((-48, -48, -4, 48, 48, 4), (6.0, 6.0, 8.0))}
    bev = BevAugmentationConfig(0.4, (0.95, 1.05), flip=True)
    if head == "columns":
        occupancy = dataclasses.replace(small.head.occupancy, heights=OCC3D_GRID.shape[2])
        changes = {"grid": GridConfig((*OCC3D_GRID.origin, 40, 40, 5.4), (0.4, 0.4, 6.4)), "occupancy": occupancy}
        bev = BevAugmentationConfig(0.0, (1, 1), flip=True)
    recipe = TrainingConfig(
        epochs=1,
        resize=(0.06, 0.08),
        encoder="scratch",
        batch=2,
        warmup_steps=2,
        backbone_lr=1.0,
        key_frames=(1, 1),
        image_rotation=5.4,
        augment_cameras_apart=True,
        color_augmentation=False,
        grid_mask=False,
        bev=bev,
        averaging=AveragingConfig(),
        family=BEVDetRecipe(**{"depth_weight": 3.0 * (depth_net != "plain"), **family}),
    )
    return dataclasses.replace(small, head=dataclasses.replace(small.head, **changes), training=recipe)


def step_of(variant, precision="fp32"):
    torch.manual_seed(0)
    model = build_model(variant)
    freeze(model, variant.training.encoder)
    return BEVDetStep(model, variant.training, precision).train()


def batch_of(variant, records, labels="gts", indices=(1, 2)):
    data = NuScenesTraining(variant, records, labels)
    rows = [[Draw(index, (7, index)) for index in indices]]
    return next(LoadedBatches(data, rows, workers=0, pin_memory=False))


KINDS = [("plain", "boxes", 0), ("camera", "boxes", 1), ("stereo", "boxes", 1), ("plain", "columns", 1)]


@pytest.mark.parametrize(("depth_net", "head", "past"), KINDS)
def test_every_loss_has_its_name_and_every_parameter_learns(records, labels, depth_net, head, past):
    variant = config(depth_net, head, past)
    batch = batch_of(variant, records, labels)
    assert batch.images.shape[1] == 1 + past + (depth_net == "stereo")
    step = step_of(variant)
    losses, memory = step(batch, None)
    assert memory is None
    assert losses.keys() == set(step.loss_names)
    assert ("loss_depth" in losses) == (depth_net != "plain")
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in step.model.named_parameters() if p.grad is None]


def test_past_frames_are_left_out_in_the_first_epochs(records):
    variant = config(past_from=2)
    batch, step = batch_of(variant, records), step_of(variant)
    calls = []
    step.model.img_neck.register_forward_hook(lambda *_: calls.append(None))
    found, prepared, prepare = {}, [], step.prepare_images

    def noting(images, *others):
        prepared.append(images.shape[1])
        return prepare(images, *others)

    step.prepare_images = noting
    for epoch in range(3):
        torch.manual_seed(0)  # of dropout
        step.epoch = epoch
        found[epoch] = step(batch, None)[0]
    assert len(calls) == 1 + 1 + 2 and prepared == [1, 1, 2]
    assert found[0]["task0.loss_heatmap"] == found[1]["task0.loss_heatmap"] != found[2]["task0.loss_heatmap"]


def test_the_world_of_images_and_boxes_is_one(records):
    """Boxes of the augmented world, seen through the step's matrices, lie where the images show them."""
    variant = config(depth_net="plain", past=0)
    batch = batch_of(variant, records)
    (cameras,) = cameras_by_frame(batch.geometry)
    for b, truth in enumerate(batch.truths):
        world = batch.geometry.world[b].numpy()
        reference2global = batch.geometry.reference2global[b].numpy() @ world
        for n in range(6):
            sensor2ego = np.linalg.inv(reference2global) @ cameras.ego2global[b, n] @ cameras.sensor2ego[b, n]
            image2world = world @ sensor2ego @ image2sensor(cameras)[b, n]
            centers = truth.boxes[:, :3].double().numpy()
            wanted = transform_points(batch.reference2image[b, 0, n].double().numpy(), centers)
            np.testing.assert_allclose(transform_points(np.linalg.inv(image2world), centers), wanted, atol=0.05)


def test_low_precision_changes_losses_little(records):
    variant = config("stereo")
    batch = batch_of(variant, records)
    losses = []
    for precision in ("fp32", "bf16"):
        step = step_of(variant, precision)
        for module in step.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        losses.append(torch.stack(list(step(batch, None)[0].values())))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.05)
    assert not torch.equal(losses[1], losses[0])


def test_activations_can_be_computed_twice(records):
    variant = config()
    batch = batch_of(variant, records)
    gradients, statistics = [], []
    for twice in (False, True):
        step = step_of(variant)
        if twice:
            step.compute_twice()
        torch.manual_seed(0)
        sum(step(batch, None)[0].values()).backward()
        gradients.append([p.grad for p in step.model.parameters()])
        statistics.append(list(step.model.buffers()))
    torch.testing.assert_close(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))  # of norms, taken up once


def test_training_of_balanced_classes(records, tmp_path):
    variant = config(balanced=True)
    data = NuScenesTraining(variant, records)
    result = train(variant, data, settings(tmp_path))
    held = [data.classes(index) for index in range(len(data))]
    drawn = len(set().union(*held)) * int(sum(map(len, held)) / len(variant.class_names))  # of each class that occurs
    assert result.finished and result.steps == -(-drawn // 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bevdet_tiny", "bevdetocc_tiny"])
def test_shipped_variants(records, labels, tmp_path, name):
    variant = load_variant(name)
    data = NuScenesTraining(variant, records.of_scenes(records.scenes[:1]), labels)
    result = train(variant, data, settings(tmp_path, epochs=1))
    assert result.finished and result.steps == 2
