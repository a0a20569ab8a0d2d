"""Every variant in config/models: it can be built, has the weights and settings of its publication, and runs."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.cases import ROOT, Case, assert_official_keys
from torch.utils.flop_counter import FlopCounterMode
from vehicle import run_queue

from bev_perception.config import BackboneConfig, ConfigError, EVA02Config
from bev_perception.families.catalog import FAMILIES, build_model
from bev_perception.families.family import BOXES, OCCUPANCY
from bev_perception.families.sparsebev.decode import decode_boxes
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.sparseocc.decode import decode_occupancy
from bev_perception.families.variants import list_variants, load_variant
from bev_perception.models.checkpoints import CheckpointInfo
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.sensing.preprocess import Preprocessor

CPU = torch.device("cpu")


def published():
    """{name of a variant: its case} of the families whose cases describe their variants in this way.

    The others' are compared in test/parity.
    """
    cases = [Case(path.parent) for path in ROOT.glob("*_keys_*/case.json")]
    return {case.info["variant"]: case for case in cases if case.info["system"] in ("sparsebev", "sparseocc")}


def build_without_memory(config):
    with torch.device("meta"):
        return build_model(config)


@pytest.mark.parametrize("name", sorted({*list_variants(), *published()}))
def test_is_built_as_published(name):
    config = load_variant(name)
    model = build_without_memory(config)
    assert not model.training
    case = published().get(name)
    if not case:
        return
    assert_official_keys(model, case.keys)
    if isinstance(config.head, SparseOccHeadConfig):
        assert_published_occupancy(config, model, case)
        return
    if "total_parameters" in case.info:  # its settings are compared in test/parity
        assert size_of(model.parameters()) == case.info["total_parameters"]
        return
    assert_published_sizes(model, case.config["params"])
    assert_published_settings(config, case.config)
    if "feature_shapes" in case.config:
        assert_published_pyramid(model, case.config)


def size_of(parameters):
    return sum(parameter.numel() for parameter in parameters)


def assert_published_occupancy(config, model, case):
    wanted = case.config
    frozen = size_of(model.img_backbone.frozen_parameters())
    assert size_of(model.parameters()) == case.info["parameters"]
    assert size_of(model.parameters()) - frozen == case.info["trainable"]
    assert list(config.class_names) == wanted["class_names"] and len(config.class_names) == wanted["num_classes"]
    assert len(config.frames.offsets) == wanted["num_frames"]
    head = config.head
    assert (list(head.kept_training), list(head.kept_testing)) == (wanted["topk_training"], wanted["topk_testing"])
    for key in ("num_points", "num_groups", "mask_layers", "panoptic"):
        assert getattr(head, key) == wanted[key]
    assert head.num_query == wanted["num_queries"]


def assert_published_sizes(model, wanted):
    head_constants = size_of(
        model.pts_bbox_head.buffers()
    )  # the reference counts the code weights as a frozen parameter
    assert size_of(model.parameters()) + head_constants == wanted["total"]
    for part in ("img_backbone", "img_neck"):
        assert size_of(getattr(model, part).parameters()) == wanted.get(part, 0)
    assert size_of(model.parameters()) - size_of(model.img_backbone.frozen_parameters()) == wanted["trainable"]


def assert_published_settings(config, wanted):
    assert [config.image.height, config.image.width] == wanted["image_size"]
    assert list(config.image.mean) == wanted["img_norm"]["mean"] and list(config.image.std) == wanted["img_norm"]["std"]
    assert (config.image.channel_order == "rgb") == wanted["img_norm"]["to_rgb"]
    assert len(config.frames.offsets) == wanted["num_frames"]
    for key in ("num_query", "num_points", "num_levels", "num_layers"):
        assert getattr(config.head, key) == wanted[key]


def assert_published_pyramid(model, wanted):
    """At full size: tensors without memory still have shapes, and their operations can be counted."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        levels = model.pyramid(torch.empty(1, 3, *wanted["image_size"], device="meta"))
    shapes = [[batch, channels, height, width] for batch, height, width, channels in (lev.shape for lev in levels)]
    assert shapes == wanted["feature_shapes"]
    wanted_gmacs = sum(wanted["gmacs_per_image"].values())
    assert counter.get_total_flops() / 2e9 == pytest.approx(wanted_gmacs, abs=0.01)


def reduced(config):
    """The same variant at a size that runs in a moment."""
    return {"sparsebev": reduced_queries, "sparseocc": reduced_voxels, "sparse4d": reduced_instances}.get(
        config.family, reduced_map
    )(with_small_images(config))


def with_small_images(config):
    backbone = config.backbone
    if backbone.type == "eva02":
        backbone = BackboneConfig("eva02", 3, eva02=EVA02Config(embed_dim=64, num_heads=2, window=4, trained_size=96))
    if backbone.type == "swin":
        swin = dataclasses.replace(backbone.swin, embed_dim=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8))
        backbone = dataclasses.replace(backbone, depth=8, swin=swin)
    image = dataclasses.replace(config.image, height=32, width=80)
    return dataclasses.replace(config, image=image, backbone=backbone)


def with_head(config, **changes):
    return dataclasses.replace(config, head=dataclasses.replace(config.head, **changes))


def reduced_queries(config):
    return with_head(config, num_query=16, num_layers=2)


def reduced_voxels(config):
    grid = {"occ_size": (40, 40, 16), "occ_range": (-8.0, -8.0, -1.0, 8.0, 8.0, 5.4)}
    kept = (60, 100, 200)
    return with_head(config, num_query=16, kept_training=kept, kept_testing=kept, **grid)


def reduced_instances(config):
    return with_head(config, num_anchor=24, num_temporal=16, num_layers=2)


def reduced_map(config):
    grid, depth = config.head.grid, dataclasses.replace(config.head.depth, step=4.0)
    reach = 8 * grid.cell[0]
    grid = dataclasses.replace(grid, range=(-reach, -reach, grid.range[2], reach, reach, grid.range[5]))
    config = dataclasses.replace(config, neck=dataclasses.replace(config.neck, out_channels=16))
    return with_head(config, grid=grid, depth=depth, context=16, aspp_channels=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_variants())
def test_a_few_steps_at_reduced_size(name, frames):
    config = reduced(load_variant(name))
    torch.manual_seed(0)
    model = build_model(config)
    loaded = LoadedVariant(config, model, CheckpointInfo(Path("fresh"), False, None, {}))

    if config.family in ("sparsebev", "sparseocc"):  # their variants may look ahead
        preprocess = Preprocessor(config, CPU)
        inputs = [preprocess(f)[0] for f in frames[2:5]]
        preprocess.close()
        outputs = run_queue(model, [inputs[1 + np.sign(offset)] for offset in config.frames.offsets])
        if isinstance(config.head, SparseOccHeadConfig):
            assert_occupancy_outputs(config, outputs)
        else:
            assert_detection_outputs(config, outputs)
    if config.frames.future:
        with pytest.raises(ConfigError, match=f"{config.frames.future} frames into the future"):
            Pipeline([loaded], CPU)
        return
    pipeline = Pipeline([loaded], CPU, PipelineSettings(0.0, 5, nms="none"))
    results = [pipeline.step(f) for f in frames[:2]]
    pipeline.close()
    assert results[1].history == (1 if config.frames.past else 0)
    gives = FAMILIES[config.family].gives(config)
    for result in results:
        assert (result.boxes is not None) == (BOXES in gives)
        assert (result.occupancy is not None) == (OCCUPANCY in gives)
        if result.boxes is not None:
            assert len(result.boxes) <= 5 and np.isfinite(result.boxes.centers).all()
        if result.occupancy is not None:
            assert result.occupancy.semantics.shape == FAMILIES[config.family].grid(config).shape
    if config.family == "sparsebev":
        assert [len(result.boxes) for result in results] == [5, 5]


def assert_detection_outputs(config, outputs):
    queries = 16 + config.head.proposals.queries
    assert outputs.logits.shape == (2, 1, queries, len(config.class_names))
    assert outputs.boxes.shape == (2, 1, queries, 10)
    assert outputs.logits.isfinite().all() and outputs.boxes.isfinite().all()
    own = (config.head.decode, config.class_names, False)
    boxes = decode_boxes(outputs.logits[-1, 0], outputs.boxes[-1, 0], outputs.finite, *own)
    assert (boxes.sizes > 0).all()


def assert_occupancy_outputs(config, outputs):
    assert outputs.class_logits.shape == (3, 1, 16, len(config.class_names) - 1)
    assert outputs.class_logits.isfinite().all()
    assert outputs.mask_logits.shape == (3, 1, 16, 200) and outputs.mask_logits.isfinite().all()
    occupancy = decode_occupancy(outputs, config.head, config.class_names)
    assert occupancy.semantics.shape == (40, 40, 16) and occupancy.semantics.max() <= occupancy.free
    assert (occupancy.instances is not None) == config.head.panoptic
