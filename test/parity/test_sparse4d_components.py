"""Sparse4D's layers one by one against the published reference."""

import json
import re

import numpy as np
import pytest
import torch

from bev_perception.families.sparse4d import depth
from bev_perception.families.sparse4d.aggregation import (
    DeformableAggregation,
    LinearFusion,
    TemporalAggregation,
    project,
)
from bev_perception.families.sparse4d.anchors import (
    CENTER,
    FIXED_POINTS,
    VELOCITY,
    AnchorEncoder,
    KeyPoints,
    move_anchors,
    move_points,
)
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.families.sparse4d.decode import best_class
from bev_perception.families.sparse4d.depth import DepthBranch, DepthReweighting
from bev_perception.families.sparse4d.identities import Identities
from bev_perception.families.sparse4d.instances import InstanceBank, Instances, take_rows
from bev_perception.families.sparse4d.layers import AsymmetricFeedForward, Refinement
from bev_perception.families.sparse4d.model import handed_down, with_ids
from bev_perception.families.sparse4d.outputs import Sparse4DOutput, Stage
from bev_perception.families.sparse4d.views import Views
from bev_perception.ops.deformable_aggregation import aggregate_features

from .cases import close, numbers, parametrize

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def is_components(case):
    return case.info["system"] == "sparse4d" and "refine_v1/v2/v3" in case.info.get("outputs", ())


class Components:
    """What a case gives: its layers with their weights, and its inputs."""

    def __init__(self, case, dtype):
        self.case, self.dtype, c = case, dtype, case.config
        assert c["points"] == len(FIXED_POINTS) + c["learnable_points"]
        by_component = json.loads((case.path / "keys.json").read_text())
        self.shapes = {key: shape for keys in by_component.values() for key, shape in keys.items()}
        self.inputs = {
            name: torch.from_numpy(value).to(dtype) if value.dtype == np.float32 else value
            for name, value in case.inputs.items()
        }
        self.feature, self.anchor, self.embed = (self.inputs[name] for name in ("feature", "anchor", "embed"))
        described = case.info["outputs"]
        self.head = Sparse4DHeadConfig(
            embed_dims=c["embed_dims"],
            num_groups=c["groups"],
            num_levels=c["levels"],
            cameras=c["cams"],
            learned_points=c["learnable_points"],
            depth_levels=sum(re.fullmatch(r"fmap\d", name) is not None for name in self.inputs),
        )
        self.focal = torch.tensor(
            numbers(described["dense_depth0/1, dense_depth_loss"]["meaning"].split("focal")[1].split("]]")[0]),
            dtype=dtype,
        ).view(len(self.anchor), -1)
        self.intervals = torch.tensor(
            numbers(described["refine_v1/v2/v3"]["meaning"])[-len(self.anchor) :], dtype=dtype
        )
        self.fusion_seconds = torch.tensor(numbers(described["linear_fusion"]["meaning"]), dtype=dtype)

    def load(self, name, layer):
        """The layer with the weights of component `name`."""
        shapes = self.shapes
        prefix = f"comp.{name}."
        own = layer.state_dict()
        assert {prefix + key for key in own} == {
            key for key in shapes if key.startswith(prefix) and not key.endswith("fix_scale")
        }
        state = {key: torch.from_numpy(self.case.fill(prefix + key, shapes[prefix + key])) for key in own}
        layer.load_state_dict(state)
        return layer.to(self.dtype).eval()

    @property
    def views(self):
        height, width = self._image_size()
        matrices = self.inputs["projection_mat"]
        names = sorted(name for name in self.inputs if re.fullmatch(r"fmap\d", name))
        return Views(
            [self.inputs[name].permute(0, 1, 3, 4, 2).contiguous() for name in names],
            matrices,
            (height, width),
            torch.ones(matrices.shape[:2], dtype=torch.bool),
            np.tile(np.eye(4), (len(matrices), 1, 1)),
            np.zeros(len(matrices), np.int64),
        )

    def step(self, name):
        """Every how many channels of an output are there."""
        return int(re.search(r"channels ::(\d+)", self.case.info["outputs"][name]["meaning"])[1])

    def _image_size(self):
        width, height = re.search(r"image size (\d+)x(\d+)", self.case.info["inputs"]).groups()
        return int(height), int(width)

    def past(self, i):
        """Transform to past frame i, and seconds since."""
        seconds = self.inputs["timestamp"] - self.inputs["past_timestamp"][i]
        return tuple(torch.from_numpy(x).to(self.dtype) for x in (self.inputs["T_cur2past"][i], seconds))


def anchors_and_points(given):
    found = {"kps": given.load("kps", KeyPoints(given.head.embed_dims, given.head.learned_points))}
    points = found["kps"] = found["kps"](given.anchor, given.feature)
    for i in range(len(given.inputs["T_cur2past"])):
        found[f"kps_past{i}"] = move_points(points, given.anchor[..., VELOCITY], *given.past(i))
        found[f"v2.proj{i}"] = move_anchors(given.anchor, *given.past(i))
        found[f"v3.proj{i}"] = move_anchors(given.anchor, *given.past(i), swap_yaw=True)
    found["points_2d"] = project(points, given.views).permute(0, 3, 1, 2, 4)
    dims = given.head.embed_dims
    found["encoder_add"] = given.load("encoder_add", AnchorEncoder(dims, False))(given.anchor)
    found["encoder_cat"] = given.load("encoder_cat", AnchorEncoder(dims, True))(given.anchor)
    return found


def layers(given):
    dims, found = given.head.embed_dims, {}
    for version in (1, 2, 3):
        name = f"refine_v{version}"
        classes = given.shapes[f"comp.{name}.cls_layers.6.bias"][0]
        layer = given.load(name, Refinement(dims, classes, version > 1, version > 2))
        stage = layer(given.feature, given.anchor, given.embed, given.intervals, True)
        found |= {f"{name}.box": stage.boxes, f"{name}.cls": stage.logits}
        if stage.quality is not None:
            found[f"{name}.quality"] = stage.quality
    shapes = given.case.config["asym_ffn"]
    feed_forward = given.load("asym_ffn", AsymmetricFeedForward(shapes["out"], shapes["hidden"], 0.0))
    found["asym_ffn"] = feed_forward(torch.cat([given.feature, given.embed], dim=-1))
    fusion = given.load("linear_fusion", LinearFusion(dims))
    found["linear_fusion"] = fusion(given.feature, given.embed, given.fusion_seconds)
    reweight = given.load("depth_reweight", DepthReweighting(dims))
    centers = given.anchor[..., CENTER]
    found["depth_confidence"] = reweight.confidence(given.feature, centers)[..., None]
    found["depth_reweight"] = reweight(given.feature, centers)
    bins = given.case.config["depth_reweight"]
    assert (bins["min"], bins["step"]) == (depth.FIRST, depth.STEP)
    assert bins["max"] == depth.FIRST + depth.STEP * (depth.BINS - 1)
    branch = given.load("dense_depth", DepthBranch(dims, given.head.depth_levels))
    for i, level in enumerate(branch(given.views.levels, given.focal)):
        found[f"dense_depth{i}"] = level.flatten(0, 1)[:, None]
    return found


def aggregation(given):
    first = given.load("dfa_v1", TemporalAggregation(given.head, True))
    third = given.load("dfa_v3", DeformableAggregation(given.head))
    points = given.load("kps", KeyPoints(given.head.embed_dims, given.head.learned_points))
    views = given.views
    weights = first.weights(given.feature, given.embed, views)  # [B, N, P, V, L, G]
    uv = project(points(given.anchor, given.feature), views)
    by_source = []
    for camera in range(weights.shape[3]):
        for level in range(weights.shape[4]):
            alone = torch.zeros_like(weights)
            alone[:, :, :, camera, level] = 1
            by_source.append(aggregate_features(views.levels, uv, alone, False, per_point=True))
    return {
        "weights_v1": weights.permute(0, 1, 3, 4, 2, 5),
        "weights_v3": third.weights(given.feature, given.embed, views).permute(0, 1, 3, 4, 2, 5),
        "sampled_v1": torch.stack(by_source, dim=2).unflatten(2, weights.shape[3:5])[..., :: given.step("sampled_v1")],
        "fused_v1": aggregate_features(views.levels, uv, weights, False, per_point=True)[
            ..., :: given.step("fused_v1")
        ],
        "dfa_v1": first([views], given.feature, given.anchor, given.embed, None, None),
        "dfa_v3": third(views, given.feature, given.anchor, given.embed),
    }


@DTYPES
@pytest.mark.parametrize("compute", [anchors_and_points, layers, aggregation])
@parametrize(lambda case: None if is_components(case) else "")
def test_components(case, compute, dtype):
    given = Components(case, dtype)
    with torch.inference_mode():
        found = compute(given)
    tolerance = case.info["tolerance"]
    problems = {}
    for name, value in found.items():
        wanted = case.arrays[name]
        if name == "points_2d":  # behind a camera they are unbounded
            scaled = torch.einsum("bvij,bnpj->bvnpi", given.views.reference2image[..., :3, :3], found["kps"])
            seen = (scaled + given.views.reference2image[:, :, None, None, :3, 3])[..., 2].numpy() > 0.1
            value, wanted = value.numpy()[seen], wanted[seen]
        problem = close(value, wanted, tolerance["atol"], tolerance["rtol"])
        if problem:
            problems[name] = problem
    assert not problems


@parametrize(lambda case: None if is_components(case) else "")
def test_ids_follow_the_rows(case):
    """The bank's rules for ids and confidences, frame by frame."""
    text = case.info["outputs"]["track_ids/track_confidence"]["meaning"]
    anchors, temporal, threshold, decay = numbers(text)[:4]
    head = Sparse4DHeadConfig(num_anchor=int(anchors), num_temporal=int(temporal), decay=decay, embed_dims=8)
    bank = InstanceBank(head, 0.5, 2.0)
    past, identities, ids, confidences = None, Identities(), [], []
    for logits, time in zip(case.inputs["track_cls"], case.inputs["track_time"], strict=True):
        logits = torch.from_numpy(logits)
        stamps, poses = np.full(len(logits), round(time * 1e9)), np.tile(np.eye(4), (len(logits), 1, 1))
        features, boxes = bank.start(len(logits))
        chosen, kept = bank.select(logits, None if past is None else past.confidences)
        valid = None if past is None else bank.recall(past, poses, stamps).valid
        entry = Instances(take_rows(features, chosen), take_rows(boxes, chosen), kept, poses, stamps)
        stage = Stage(boxes, logits, None)
        output = Sparse4DOutput((stage,), (), features, None, entry, chosen, valid, torch.tensor(True))
        found, next_id = identities.name(handed_down(past, output), best_class(logits)[0].numpy(), threshold)
        past, identities = with_ids(output, found).instances, Identities(next_id)
        ids.append(found)
        confidences.append(kept)
    assert np.array_equal(ids, case.arrays["track_ids"])
    assert close(torch.stack(confidences), case.arrays["track_confidence"], 1e-6, 0) is None
