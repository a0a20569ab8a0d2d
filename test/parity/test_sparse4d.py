"""Sparse4D, frame by frame, against the published reference: every quantity that a case describes."""

import dataclasses
import math
import re
from functools import cached_property

import numpy as np
import pytest
import torch

from bev_perception.config import BackboneConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.sparse4d.aggregation import DeformableAggregation
from bev_perception.families.sparse4d.decode import best_class, decode_boxes
from bev_perception.families.sparse4d.identities import Identities
from bev_perception.families.sparse4d.model import handed_down, with_ids
from bev_perception.families.sparse4d.views import Views
from bev_perception.families.variants import load_variant

from .cases import assert_official_keys, close, mostly_close, numbers, parametrize

#: the shipped variant of every published configuration
VARIANTS = {
    "sparse4d_r101_H1": "sparse4dv1_r101_h1",
    "sparse4d_r101_H4": "sparse4dv1_r101_h4",
    "sparse4dv2_r50_HInf_256x704": "sparse4dv2_r50",
    "sparse4dv3_temporal_r50_1x8_bs6_256x704": "sparse4dv3_r50",
}
#: pixels of a frame's images; a case with more is slow
LARGE = 1e6
#: frames that are run where it must be quick: the last of them has two before it
QUICK = 3
#: where the axes that a description subsamples are
AXES = {
    "feat": {"channels": 2, "h": 3, "w": 4},
    "op": {"instances": 1, "channels": 2},
    "bank_feature": {"rows": 1, "channels": 2},
}
#: share of a large case's rows that may be in another order than the reference's, see its tolerance
UNMATCHED = 0.01


def reason_to_skip(case):
    if case.info["system"] != "sparse4d" or "operation_order" not in case.config:
        return ""
    if "frames" not in case.config or "cls{d}" not in case.info["outputs"]:
        return ""  # no case of inference
    return None


def is_large(case):
    return np.prod(case.config["image_hw"]) * 6 > LARGE


def variant_of(case, score_threshold=0.0):
    """The shipped variant at the size of the case."""
    c = case.config
    base = load_variant(VARIANTS[c["reference_config"]])
    shapes = {key: shape for key, (shape, _) in case.keys.items()}
    strides = c["fpn_strides"]
    scale = c["embed_dims"] / base.head.embed_dims
    classes = next(shape[0] for key, shape in shapes.items() if key.endswith("cls_layers.6.bias"))
    head = dataclasses.replace(
        base.head,
        num_anchor=c["num_anchor"],
        num_temporal=c["num_temp_instances"],
        num_layers=c["num_decoder"],
        num_levels=len(strides),
        embed_dims=c["embed_dims"],
        num_groups=c["num_groups"],
        ffn_dim=int(base.head.ffn_dim * scale),
        depth_levels=sum("depth_layers" in key and key.endswith("weight") for key in shapes),
        cameras=case.inputs["projection_mat"].shape[2],
        decode=dataclasses.replace(base.head.decode, max_num=c["decoder_num_output"], score_threshold=score_threshold),
    )
    height, width = c["image_hw"]
    depth = int(re.match(r"ResNet-(\d+)", c["backbone"])[1])
    style = "caffe" if "caffe" in c["backbone"] else "pytorch"
    stages = re.search(r"deformable .* in stages ([\d, and]+)", c["backbone"])
    deformable = tuple(int(n) for n in re.findall(r"\d", stages[1])) if stages else ()
    first = int(math.log2(strides[0])) - 2
    return dataclasses.replace(
        base,
        image=dataclasses.replace(base.image, height=height, width=width),
        frames=dataclasses.replace(base.frames, past=1 if base.head.recurrent else c["past_frames"]),
        backbone=BackboneConfig("resnet", depth, first_level=first, style=style, deformable_stages=deformable),
        neck=dataclasses.replace(base.neck, out_channels=c["embed_dims"], num_outs=len(strides)),
        class_names=tuple(f"class {i}" for i in range(classes)),
        head=head,
    )


def operations(head):
    """The order of layers of a decoder, in the words of the cases."""
    if not head.recurrent:
        return ["gnn", "norm", "deformable", "norm", "ffn", "norm", "refine"] * head.num_layers
    stage = ["deformable", "ffn", "norm", "refine"]
    return stage + ["temp_gnn", "gnn", "norm", *stage] * (head.num_layers - 1)


class Run:
    """The frames of a case, fed in order, with everything that the case describes by its name there.

    prefix: "", or that of a run with other settings: "grid." or "thr."
    frames: how many of the frames; None: all
    """

    def __init__(self, case, dtype, prefix="", frames=None):
        self.case, self.dtype, self.prefix = case, dtype, prefix
        self.frames = min(frames or case.config["frames"], case.config["frames"])
        threshold = numbers(case.info["outputs"]["thr.*"]["meaning"])[0] if prefix == "thr." else 0.0
        self.config = variant_of(case, threshold)
        assert operations(self.config.head) == case.config["operation_order"]
        self.model = build_model(self.config)
        assert_official_keys(self.model, case.keys)
        case.load_weights(self.model)
        self.model = self.model.to(dtype)
        if prefix == "grid.":
            for module in self.model.modules():
                if isinstance(module, DeformableAggregation):
                    module.gate = False
        self.found = {}
        with torch.inference_mode():
            self._run()

    def mine(self, name):
        """Whether this run gives an output of the case."""
        found = re.match(rf"{re.escape(self.prefix)}f(\d+)\.", name)
        return found is not None and int(found[1]) < self.frames

    def _run(self):
        past, history, identities = None, [], Identities()
        for t in range(self.frames):
            handles = self._hooks(t)
            views = self._views(t)
            output = self.model.detect([views, *history], past)
            for handle in handles:
                handle.remove()
            if self.config.head.track_ids:
                scores = best_class(output.last.logits)[0].numpy()
                threshold = self.config.head.decode.score_threshold
                ids, next_id = identities.name(handed_down(past, output), scores, threshold)
                output, identities = with_ids(output, ids), Identities(next_id)
                self._note(t, {"instance_id": ids, "prev_id": next_id})
            self._note_recalled(t, views, past)
            self._note_output(t, output)
            past = output.instances
            history = [views, *history][: self.config.frames.past] if not self.config.head.recurrent else []

    @cached_property
    def _batch(self):
        return self.case.config["batch"]

    def _views(self, t):
        inputs = self.case.inputs
        matrices = inputs["projection_mat"][t]
        height, width = self.case.config["image_hw"]
        shape = (*matrices.shape[:2], 3, height, width)
        images = self.case.fill(f"input.img.{t}", shape) * np.sqrt(np.prod(shape[1:]))
        levels = self.model.pyramid(torch.from_numpy(images).to(self.dtype).flatten(0, 1))
        levels = [level.unflatten(0, shape[:2]) for level in levels]
        self._note(t, {f"feat{i}": level.permute(0, 1, 4, 2, 3) for i, level in enumerate(levels)})
        return Views(
            levels,
            torch.from_numpy(matrices).to(self.dtype),
            (height, width),
            torch.ones(shape[:2], dtype=torch.bool),
            inputs["T_global"][t],
            np.round(inputs["timestamp"][t] * 1e9).astype(np.int64),
        )

    def _hooks(self, t):
        def hook(name):
            return lambda module, args, out: self._note(t, {name: out})

        described = (re.fullmatch(rf"{re.escape(self.prefix)}f{t}\.(op(\d+)_\w+)", name) for name in self.case.arrays)
        layers = self.model.head.layers
        return [layers[int(m[2])].register_forward_hook(hook(m[1])) for m in described if m]

    def _note(self, t, found):
        self.found |= {f"{self.prefix}f{t}.{name}": value for name, value in found.items()}

    def _note_recalled(self, t, views, past):
        bank = self.model.head.instance_bank
        if past is None:
            self._note(t, {"time_interval": np.full(self._batch, bank.interval)})
            return
        recalled = bank.recall(past, views.reference2global, views.stamps)
        self._note(t, {"temp_anchor": recalled.anchors, "mask": recalled.valid, "time_interval": recalled.intervals})

    def _note_output(self, t, output):
        for d, stage in enumerate(output.stages):
            self._note(t, {f"box{d}": stage.boxes, f"cls{d}": stage.logits, f"quality{d}": stage.quality})
        if output.instances is not None:
            kept = output.instances
            bank = {"confidence": kept.confidences, "anchor": kept.anchors, "feature": kept.features}
            self._note(t, {f"bank_{name}": value for name, value in bank.items()})
        head = self.config.head
        for b in range(self._batch):
            decoded = decode_boxes(output, head.decode, self.config.class_names, head.track_ids, b)
            boxes = decoded.boxes
            columns = np.c_[boxes.centers, boxes.sizes, boxes.yaws, boxes.velocities]
            self._note(t, {f"s{b}.boxes_3d": columns, f"s{b}.scores_3d": boxes.scores, f"s{b}.labels_3d": boxes.labels})
            self._note(t, {f"s{b}.cls_scores": decoded.class_scores, f"s{b}.instance_ids": boxes.track_ids})


class Comparison:
    """A run against its case: collects what disagrees.

    A large case says that its rows may be in another order: they are then matched by their boxes.
    """

    def __init__(self, run):
        self.run, self.case = run, run.case
        self.unordered = "nearest box" in self.case.info["tolerance"]["note"]
        self._orders = {}

    def problems(self):
        names = [name for name in self.case.arrays if self.run.mine(name)]
        assert names
        found = {name: self._compare(name, self.case.arrays[name]) for name in names}
        return {name: problem for name, problem in found.items() if problem}

    def _compare(self, name, wanted):
        what = name.rpartition(".")[2]
        found = self._ordered(name, what, np.asarray(self.run.found[name]))
        found = self._subsample(found, what)
        if what == "boxes_3d":
            wanted = wanted[:, : found.shape[1]]
            apart = (found[:, 6] - wanted[:, 6] + np.pi) % (2 * np.pi) - np.pi
            found = np.c_[found[:, :6], wanted[:, 6] + apart, found[:, 7:]]
        exact = what in ("mask", "prev_id", "instance_id", "labels_3d", "instance_ids")
        atol, rtol = (0, 0) if exact else self._tolerance(what)
        if not self.unordered or what in ("mask", "prev_id", "time_interval", "cls_scores") or what.startswith("feat"):
            return close(found, wanted, atol, rtol)
        if what.startswith("s") or wanted.ndim == 1:
            found, wanted = found[None], wanted[None]
        rows = [x.reshape(-1, *x.shape[2:]) if x.ndim > 2 else x.reshape(-1, 1) for x in (found, wanted)]
        share = min(1 - UNMATCHED, 1 - 1 / len(rows[1]))  # one such row may always be among the few that are recorded
        return mostly_close(*rows, share, atol + rtol * np.abs(wanted).max(), np.inf)

    def _ordered(self, name, what, found):
        """The rows in the order of the case's, where they may be in another one."""
        frame = name.rpartition(".")[0]
        leading = {"bank_": "bank_anchor", "temp_anchor": "temp_anchor"}
        stage = re.match(r"(?:box|cls|quality|op)(\d+)", what)
        if not self.unordered or what == "cls_scores":
            return found
        key = next((leading[start] for start in leading if what.startswith(start)), None)
        if re.search(r"\.s\d+$", frame):
            return found[self._order(f"{frame}.boxes_3d")[0]]
        if what == "instance_id" or (stage and int(stage[1]) >= (4 if what.startswith("op") else 1)):
            key = f"box{self.run.config.head.num_layers - 1}"
        if key is None:
            return found
        return np.stack([rows[order] for rows, order in zip(found, self._order(f"{frame}.{key}"), strict=True)])

    def _order(self, name):
        """For every sample, which row of the found boxes is nearest to each wanted one."""
        if name not in self._orders:
            pairs = [self._places(name, boxes) for boxes in (self.run.found, self.case.arrays)]
            self._orders[name] = [
                np.abs(wanted[:, None] - found).max(axis=-1).argmin(axis=1)
                for found, wanted in zip(*pairs, strict=True)
            ]
        return self._orders[name]

    def _places(self, name, outputs):
        """Where the rows of boxes are, [B, n, columns]; of decoded ones, which come for several classes, with these."""
        boxes = np.asarray(outputs[name])
        if boxes.ndim == 3:
            return boxes[..., :6]
        return np.c_[boxes[:, :6], 100 * np.asarray(outputs[name.replace("boxes_3d", "labels_3d")])][None]

    def _subsample(self, found, what):
        kind = re.match(r"feat|op|bank_feature|", what)[0]
        if not kind:
            return found
        described = {"feat": "feat{l}", "op": "opII_NAME"}.get(kind, "bank_confidence/bank_anchor/bank_feature")
        index = [slice(None)] * found.ndim
        for axis, step in re.findall(r"(\w+) ::(\d+)", self.case.info["outputs"][described]["subsample"]):
            index[AXES[kind][axis]] = slice(None, None, int(step))
        return found[tuple(index)]

    def _tolerance(self, what):
        box, scores = "box/temp_anchor/bank_anchor", "scores"
        groups = {"feat": "feat", "box": box, "temp": box, "bank_anchor": box, "bank_conf": scores}
        groups |= {"scores": scores, "cls_scores": scores}
        key = next((group for start, group in groups.items() if what.startswith(start)), "cls/quality/op")
        own = self.case.info["tolerance"][key]
        return own["atol"], own.get("rtol", 0)


def assert_agrees(case, dtype, prefix="", frames=None):
    run = Run(case, dtype, prefix, frames)
    assert not Comparison(run).problems()


@parametrize(reason_to_skip, slow=is_large)
def test_first_frames(case):
    assert_agrees(case, torch.float32, frames=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@parametrize(reason_to_skip)
def test_all_frames(case, dtype):
    assert_agrees(case, dtype)


def has_run(prefix):
    return lambda case: reason_to_skip(case) if any(key.startswith(prefix) for key in case.info["outputs"]) else ""


@pytest.mark.slow
@parametrize(lambda case: has_run("grid.")(case) if reason_to_skip(case) is None else "")
def test_without_the_gate(case):
    """Plain sampling in place of the operator: points just outside of an image count in part."""
    assert_agrees(case, torch.float64, "grid.")


@pytest.mark.slow
@parametrize(lambda case: has_run("thr.")(case) if reason_to_skip(case) is None else "")
def test_with_a_score_threshold(case):
    """Only instances above it get ids, and are decoded."""
    assert_agrees(case, torch.float64, "thr.")
