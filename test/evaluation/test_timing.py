import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from bev_perception.data.drive import CAMERAS
from bev_perception.data.synthetic import World
from bev_perception.evaluation.timing import (
    TimingSettings,
    _by_stage,
    _load,
    count_operations,
    made_up_key_frames,
    time_variant,
)
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant, variants_directory
from bev_perception.ops.bev_pool import PoolPlan
from bev_perception.types import Cameras, ModelInput


@pytest.fixture(scope="module")
def timing(untrained):
    return time_variant(TimingSettings("sparsebev_tiny", untrained, device="cpu", frames=3, warm_up=0))


def operations(config):
    """Two a multiply-add: of every convolution of backbone and neck, and of the head's linear layers."""
    with torch.device("meta"):
        model = build_model(config).eval()
        counts = {"img_backbone": 0, "img_neck": 0}
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Conv2d):

                def note(module, _, output, name=name):
                    counts[name.split(".")[0]] += 2 * module.weight.numel() * output[:, 0].numel()

                module.register_forward_hook(note)
        model.pyramid(torch.zeros(len(CAMERAS), 3, config.image.height, config.image.width))
    head = config.head
    linear = [m.weight.numel() for m in model.pts_bbox_head.decoder_layer.modules() if isinstance(m, torch.nn.Linear)]
    cells = len(CAMERAS) * (config.image.height // 8) * (config.image.width // 8)  # of the finest level
    dense = [m.weight.numel() for m in model.perspective_head.modules() if isinstance(m, torch.nn.Conv2d)]
    wide = [m.weight[:, : config.neck.out_channels].numel() for m in model.perspective_head.wide_layers()]
    queries = (head.num_query + head.proposals.queries) * head.num_layers
    frames = len(config.frames.offsets)  # the perspective head sees all of them, but looks at each image once
    seen = cells * (sum(wide) + frames * (sum(dense) - sum(wide)))
    return *counts.values(), 2 * (queries * sum(linear) + seen)


@pytest.mark.slow
def test_operations_and_parameters_are_those_of_the_layers(timing):
    backbone, neck, layers = operations(load_variant("sparsebev_tiny"))
    assert (timing.flops["backbone"], timing.flops["neck"]) == (backbone, neck)
    assert layers < timing.flops["head"] < 1.5 * layers  # and attention and mixing
    assert timing.parameters == {"backbone": 1_227_072, "neck": 139_648, "head": 340_543}


def meta_frame(config, step):
    """Six cameras at the origin, on tensors without memory."""
    count, identity = len(CAMERAS), np.tile(np.eye(4), (len(CAMERAS), 1, 1))
    images = torch.empty(count, 3, config.image.height, config.image.width, device="meta")
    cameras = Cameras(identity[:, :3, :3], identity, identity, identity)
    stamp = step * 500_000_000
    return ModelInput(images, cameras, np.eye(4), np.ones(count, bool), np.full(count, stamp), stamp)


#: GMAC of backbone, neck, depth net, pre-processing, stages, their neck and the head, then of a whole queue of frames
PUBLISHED = {"bevdet-r50-4dlongterm-depth-cbgs": ((88.1, 13.3, 77.1, 4.7, 18.9, 45.2, 6.2), 1719)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_work_of_each_stage_is_the_published_one(name, monkeypatch):
    config = load_variant(name)
    with torch.device("meta"):
        model = build_model(config).eval()
    point = torch.zeros(
        1, dtype=torch.int64, device="meta"
    )  # the number of points depends on values, which are not there
    plan = PoolPlan(point, point, point, point, math.prod(config.head.grid.size))
    monkeypatch.setattr(model.img_view_transformer, "plan", lambda *_: plan)
    queue = [meta_frame(config, -k) for k in range(1 + config.frames.past)]
    with torch.inference_mode():
        past = [model.remember(model.encode(inputs), [], inputs) for inputs in queue[1:]]
        one = count_operations(model, lambda: model.predict(model.encode(queue[0]), past, queue[0], None))
        anew = count_operations(model, lambda: model.recompute(queue))
    stages, whole = PUBLISHED[name]
    assert list(one) == ["backbone", "neck", "depth net", "pre-process", "BEV backbone", "BEV neck", "head"]
    assert [count / 2e9 for count in one.values()] == pytest.approx(stages, rel=0.02)
    assert sum(anew.values()) / 2e9 == pytest.approx(whole, rel=0.02)


def test_a_decoder_in_stages():
    """Every parameter of inference belongs to one of them; what they share is the rest."""
    with torch.device("meta"):
        model = build_model(load_variant("sparse4dv3_r50"))
    counts = _by_stage(model)
    assert list(counts) == ["backbone", "neck", *(f"stage {k}" for k in range(6)), "head"]
    assert counts["stage 1"] == counts["stage 5"] > counts["stage 0"] > 0
    unused = sum(p.numel() for name in model.training_only for p in model.get_submodule(name).parameters())
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters()) - unused


def test_times_fit_together(timing):
    assert timing.frames == 3 and timing.warm_up == timing.history == load_variant("sparsebev_tiny").frames.past
    assert list(timing.ms) == ["network", "post-processing", "total", "preprocess", "with loading"]
    assert all(0 < median <= p95 for median, p95 in timing.ms.values())
    for name, rate in timing.fps.items():
        median, p95 = timing.ms[name]  # of three: the mean lies between a third of the median and the slowest
        assert 1000 / (1.5 * p95) < rate < 3000 / median
    assert timing.fps["with loading"] < timing.fps["total"]
    assert 100 < timing.peak_mb < 5000 and 0 < timing.memory_mb < timing.peak_mb


def test_figures_are_written_and_shown(timing, tmp_path):
    path = timing.write(tmp_path / "new")
    assert path.name == "sparsebev_tiny_fp32.json"
    document = json.loads(path.read_text())
    assert document == json.loads(json.dumps(dataclasses.asdict(timing)))
    table = timing.table()
    assert "sparsebev_tiny, fp32 on cpu, UNTRAINED weights" in table and timing.machine["cpu"] in table
    share = sum(timing.flops.values()) / 1e6 / timing.ms["network"][0] / timing.limits.gflops
    assert f"computes at {share:.0%} of the matrix product's" in table and 0 < share < 1.5
    assert (
        dataclasses.replace(timing, engine="compile").table().startswith("sparsebev_tiny, fp32 on cpu, engine compile")
    )
    assert f"{timing.fps['with loading']:10.2f}" in table and f"{timing.flops['backbone'] / 1e9:10.1f}" in table


def test_frames_are_those_of_a_drive_with_key_frames():
    first, second = made_up_key_frames(2)
    assert second.stamp - first.stamp == 500_000_000
    assert [view.image.camera for view in second.views] == list(CAMERAS)
    for view in second.views:
        np.testing.assert_array_equal(view.ego2global, World().ego2global(view.image.stamp))


def test_without_a_checkpoint_shipped_weights_are_timed_or_initial_ones(shipped, tmp_path):
    pipeline = _load(TimingSettings("sparsebev_tiny", device="cpu"))
    assert pipeline.variants[0].checkpoint.path == shipped
    pipeline.close()
    path = tmp_path / "mine.yaml"
    text = (variants_directory() / "sparsebev_tiny.yaml").read_text()
    path.write_text(text.replace("name: sparsebev_tiny", "name: mine"))
    pipeline = _load(TimingSettings(str(path), device="cpu"))
    assert pipeline.variants[0].checkpoint.path.name == "initial.safetensors" and not pipeline.trained
    pipeline.close()


def test_at_least_one_frame_counts():
    with pytest.raises(ValueError, match="at least 1"):
        TimingSettings("sparsebev_tiny", frames=0)
