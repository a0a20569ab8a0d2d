"""SparseBEV against the published reference: every quantity that a case describes, in float64 and in float32."""

import re

import numpy as np
import pytest
import torch
from vehicle import cameras_that_project, run, run_queue

from bev_perception.config import FramesConfig, ImageConfig, NeckConfig, VariantConfig
from bev_perception.families.catalog import build_model
from bev_perception.families.sparsebev.config import DecodeConfig, SparseBEVHeadConfig
from bev_perception.families.sparsebev.decode import decode_boxes
from bev_perception.families.sparsebev.model import time_differences
from bev_perception.models.checkpoints import LEGACY_VERSION
from bev_perception.models.encoder import reference2image
from bev_perception.models.memory import FrameFeatures
from bev_perception.ops.sampling import project_points
from bev_perception.types import ModelInput

from .cases import assert_official_keys, backbone_of, close, mostly_close, numbers, parametrize, subsample

#: pixels of all images of a case times its weights; beyond it every run is slow
LARGE = 1e14
#: the outputs are float64 results rounded to float32: this is that rounding with a margin for six passes
FLOAT64_ATOL, FLOAT64_RTOL = 5e-6, 1e-6
HEAD_KEYS = [
    *("num_query", "num_points", "num_levels", "embed_dims", "num_layers", "num_groups", "num_heads"),
    *("ffn_dim", "mixing_out_points", "code_size"),
]


def reason_to_skip(case):
    if case.info["system"] != "sparsebev" or "_keys_" in case.name:
        return ""
    described = case.info.get("inputs")
    if "num_query" not in case.config or not isinstance(described, dict) or "frame_ids" not in described:
        return ""  # no case of inference: other tests read it
    if backbone_of(case.config["backbone"]) is None:
        return f"the backbone {case.config['backbone']['type']} is not built yet"
    return None


def is_large(case):
    images = len(np.unique(case.inputs["frame_ids"])) * cameras_of(case)
    weights = sum(float(np.prod(shape)) for shape, _ in case.keys.values())
    return images * np.prod(case.config["padded_size"]) * weights > LARGE


def cameras_of(case):
    return case.inputs["lidar2img"].shape[1] // case.config["num_frames"]


def cameras_of_frame(case, sample, t):
    """Matrices [N, 4, 4] to pixels of frame t and stamps [N] ns."""
    cameras = slice(t * cameras_of(case), (t + 1) * cameras_of(case))
    stamps = np.round(case.inputs["timestamp"][sample, cameras] * 1e9).astype(np.int64)
    return case.inputs["lidar2img"][sample, cameras].astype(np.float64), stamps


def frames_of(case):
    """The case's frames: all of the past, or half of them of the future if its order speaks of next ones."""
    others, order = case.config["num_frames"] - 1, case.config.get("frame_order", "")
    future = others // 2 if re.search(r"\bnext", order) else 0
    stamps = np.unique(case.inputs["timestamp"][:, :: cameras_of(case)].round(3))
    return FramesConfig(
        past=others - future,
        future=future,
        interval=float(np.diff(stamps).min()) if len(stamps) > 1 else 0.5,
        order="interleaved" if "interleaved" in order else "sequential",
    )


def variant_of(case):
    """The case's configuration as a variant of this project."""
    c = case.config
    norm = c["img_norm"]
    lower, upper = c["pc_range"][:3], c["pc_range"][3:]
    coder = c["coder"]
    decode = DecodeConfig(coder["max_num"], coder["score_threshold"], tuple(coder["post_center_range"]))
    return VariantConfig(
        name=case.name,
        family="sparsebev",
        image=ImageConfig(
            *c["image_size"], tuple(norm["mean"]), tuple(norm["std"]), "rgb" if norm["to_rgb"] else "bgr"
        ),
        frames=frames_of(case),
        head=SparseBEVHeadConfig(**{key: c[key] for key in HEAD_KEYS}, pc_range=(*lower, *upper), decode=decode),
        backbone=backbone_of(c["backbone"]),
        neck=NeckConfig("fpn" if c["neck"] else "none", c["embed_dims"], c["num_levels"]),
        class_names=tuple(f"class {i}" for i in range(c["num_classes"])),
    )


def model_of(case, dtype):
    model = build_model(variant_of(case))
    assert_official_keys(model, case.keys)
    case.load_weights(model, constants=("code_weights",))
    model.legacy_boxes = LEGACY_VERSION in case.info["variant"]
    return model.to(dtype)


def network_input(case, frame):
    """Normalised and padded images [N, 3, H, W] float64 of one frame, by the case's formula."""
    norm = case.config["img_norm"]
    height, width = case.config["image_size"]
    rows, columns = height // 16, width // 16
    images = []
    for camera in range(cameras_of(case)):
        z = 10 * (case.fill(f"input.img.{frame}.{camera}", (3 * rows * columns,)).astype(np.float64) - 1)
        blocks = np.clip(np.round(114 + 58 * z), 0, 255).reshape(3, rows, columns)
        images.append(blocks.repeat(16, axis=1).repeat(16, axis=2))
    bgr = np.stack(images)
    ordered = bgr[:, ::-1] if norm["to_rgb"] else bgr
    normalised = (ordered - np.reshape(norm["mean"], (3, 1, 1))) / np.reshape(norm["std"], (3, 1, 1))
    padded_height, padded_width = case.config["padded_size"]
    return np.pad(normalised, ((0, 0), (0, 0), (0, padded_height - height), (0, padded_width - width)))


class Run:
    """The model's answer to a case, with the intermediate results of sample 0 by their names in the case."""

    def __init__(self, case, dtype):
        self.case, self.dtype = case, dtype
        self.model = model_of(case, dtype)
        self.found = {}
        self._encoded = {}  # frame id -> levels
        self._maps = {}  # frame id -> backbone's maps, of the frames that the case asks for
        with torch.inference_mode():
            for sample in range(len(case.inputs["frame_ids"])):
                self._run_sample(sample)

    def _run_sample(self, sample):
        case = self.case
        frame_ids = case.inputs["frame_ids"][sample]
        frames = [self._frame(sample, t, frame) for t, frame in enumerate(frame_ids)]
        if sample == 0:
            self._record_images(frame_ids)
        differences = time_differences(frames)
        self.found.setdefault("time_diff", []).append(differences)
        matrices = torch.from_numpy(reference2image(frames, np.eye(4))[None]).to(self.dtype)
        recorder = DecoderRecorder(self.model, matrices, case.config["padded_size"]) if sample == 0 else None
        outputs = self.model.detect(
            [[level[None] for level in frame.levels] for frame in frames],
            matrices,
            torch.from_numpy(differences[None]).to(self.dtype),
            tuple(case.config["padded_size"]),
        )
        if recorder:
            self.found |= recorder.finish()
        self.found[f"s{sample}.cls"], self.found[f"s{sample}.box"] = outputs.logits[:, 0], outputs.boxes[:, 0]
        config = self.model.config
        self.found[f"s{sample}.boxes"] = decode_boxes(
            *(outputs.logits[-1, 0], outputs.boxes[-1, 0], outputs.finite),
            *(config.head.decode, config.class_names, self.model.legacy_boxes),
        )

    def _frame(self, sample, t, frame_id):
        if frame_id not in self._encoded:
            handle = self.model.img_backbone.register_forward_hook(
                lambda module, args, maps: self._maps.__setitem__(frame_id, maps)
            )
            images = torch.from_numpy(network_input(self.case, frame_id)).to(self.dtype)
            self._encoded[frame_id] = self.model.pyramid(images)
            handle.remove()
            if frame_id not in self._wanted_frames():
                del self._maps[frame_id]
        matrices, stamps = cameras_of_frame(self.case, sample, t)
        return FrameFeatures(self._encoded[frame_id], matrices, np.ones(len(stamps), bool), stamps, int(stamps[0]))

    def _wanted_frames(self):
        places = {int(m[1]) for m in (re.fullmatch(r"bb\d+\.f(\d+)", name) for name in self.case.outputs) if m}
        return {self.case.inputs["frame_ids"][0][t] for t in places}

    def _record_images(self, frame_ids):
        self.found["net_in"] = network_input(self.case, frame_ids[0])
        for t, frame in enumerate(frame_ids):
            for i, level in enumerate(self._encoded[frame]):
                self.found[f"fpn{i}.f{t}"] = level.permute(0, 3, 1, 2)
            for i, maps in enumerate(self._maps.get(frame, ())):
                self.found[f"bb{i}.f{t}"] = maps


class DecoderRecorder:
    """Collects a decoder's intermediate results with hooks, pass by pass."""

    def __init__(self, model, matrices, image_size):
        layer = model.pts_bbox_head.decoder_layer
        self.matrices, self.image_size = matrices, image_size
        self.stages = {}
        after = {
            "pos_enc": layer.position_encoder,
            "norm1": layer.norm1,
            "norm2": layer.norm2,
            "norm3": layer.norm3,
            "reg": layer.reg_branch,
            "tau": layer.self_attn.gen_tau,
            "where": layer.sampling,
        }
        before = {"self_attn": layer.norm1, "sampled": layer.mixing, "mixing": layer.norm2}
        self.handles = [
            m.register_forward_hook(lambda m, i, out, name=name: self._add(name, out)) for name, m in after.items()
        ]
        self.handles += [
            m.register_forward_pre_hook(lambda m, i, name=name: self._add(name, i[0])) for name, m in before.items()
        ]

    def _add(self, name, value):
        self.stages.setdefault(name, []).append(value)

    def finish(self):
        """Remove the hooks; return {name.stage: value without the batch}."""
        for handle in self.handles:
            handle.remove()
        found = {}
        for name, values in self.stages.items():
            for stage, value in enumerate(values):
                if name == "where":
                    found |= self._projected(stage, value[0])
                else:
                    found[f"{name}.{stage}"] = value[0]
        return found

    def _projected(self, stage, points):
        _, frames, queries, groups, per_group, _ = points.shape
        uv, depth, visible = project_points(points.flatten(2, 4), self.matrices, self.image_size)
        shape = (frames, depth.shape[2], queries, groups * per_group)
        projected = torch.cat([uv, depth[..., None, :]], dim=-2)[0].transpose(-1, -2)
        return {f"points.{stage}": projected.reshape(*shape, 3), f"valid.{stage}": visible[0].reshape(shape)}


class Comparison:
    """One run against its case: collects what disagrees."""

    def __init__(self, run):
        self.run, self.case = run, run.case
        self.exact = run.dtype == torch.float64
        tolerance = self.case.info["tolerance"]
        self.stage0 = (FLOAT64_ATOL, FLOAT64_RTOL) if self.exact else numbers(tolerance["stage0"].split("for")[0])
        share, self.query_atol, self.query_limit = numbers(tolerance["final"])[:3]
        self.share = share / 100
        self.score_atol, self.score_margin, _ = numbers(tolerance["decoded"])
        self.points_atol = numbers(tolerance["points"])[-1]
        self.last_stage = self.case.config["num_layers"] - 1

    def problems(self):
        problems = {}
        for name, (wanted, description) in self.case.outputs.items():
            problem = self._compare(name, wanted, description)
            if problem:
                problems[name] = problem
        return problems

    def _compare(self, name, wanted, description):
        kind, _, suffix = name.partition(".")
        if name == "time_diff":
            return close(np.stack(self.run.found[name]), wanted, 2e-6, 0)
        if suffix in ("boxes", "scores", "labels"):
            return self._compare_decoded(kind) if suffix == "boxes" else None  # all three at once
        if suffix in ("cls", "box"):
            return self._compare_prediction(self.run.found[name], wanted, description)
        found = subsample(self.run.found[name], description)
        if kind == "points":
            valid, _ = self.case.outputs[f"valid.{suffix}"]
            seen = valid.astype(bool)
            # a later pass's points have moved with the boxes: the queries' tolerance bounds them
            atol = self.points_atol if suffix == "0" else self.query_limit
            return close(
                found[seen], wanted[seen], *((FLOAT64_ATOL, FLOAT64_RTOL) if self.exact else (atol, self.stage0[1]))
            )
        if kind == "valid":
            return self._compare_valid(found.numpy(), wanted)
        if self.exact or suffix == "0" or suffix.startswith("f") or name == "net_in":
            return close(found, wanted, *self.stage0)
        # one such query may always be among the few that are recorded
        share = min(self.share, (len(wanted) - 1) / len(wanted))
        return mostly_close(found, wanted, share, self.query_atol, self.query_limit)

    def _compare_prediction(self, found, wanted, description):
        """Layers by what the case says: the first at the tolerance of stage 0, the others query by query."""
        meaning = description["meaning"]
        if "of the last layer" in meaning:
            found, wanted, layers = found[-1:], wanted[None], [self.last_stage]
        elif "layers 0 and last" in meaning:
            found, layers = found[[0, -1]], [0, self.last_stage]
        else:
            layers = range(len(wanted))
        for layer, f, w in zip(layers, found, wanted, strict=True):
            f = subsample(f, description)
            if self.exact or layer == 0:
                problem = close(f, w, *self.stage0)
            else:
                problem = mostly_close(f, w, self.share, self.query_atol, self.query_limit)
            if problem:
                return f"layer {layer}: {problem}"
        return None

    def _compare_valid(self, found, wanted):
        wrong = (found != wanted.astype(bool)).mean()
        # rounding may move a point over a border; in float64 there is none to speak of
        allowed = 0.0 if self.exact else 1e-3
        return None if wrong <= allowed else f"{wrong:.2%} of the points differ"

    def _compare_decoded(self, sample):
        """Match by label and box, both ways; only what is at the edge of being kept may lack a partner."""
        found = self.run.found[f"{sample}.boxes"]
        bottoms = found.centers - [0, 0, 0.5] * found.sizes
        ours = np.c_[bottoms, found.sizes, found.yaws, found.velocities], found.scores, found.labels
        theirs = tuple(self.case.outputs[f"{sample}.{k}"][0].astype(np.float64) for k in ("boxes", "scores", "labels"))
        limit, score_atol = (1e-4, 1e-5) if self.exact else (self.query_limit, self.score_atol)
        coder = self.case.config["coder"]
        edges = [coder["score_threshold"]]
        if len(theirs[1]) == coder["max_num"]:
            edges.append(theirs[1].min())
        for side, one, other in (("missing", theirs, ours), ("unexpected", ours, theirs)):
            partner = _has_partner(one, other, limit, score_atol)
            margin = np.abs(one[1][:, None] - np.array(edges)).min(axis=1)
            lost = ~partner & (margin > (0 if self.exact else self.score_margin))
            if lost.any():
                return f"{lost.sum()} of {len(lost)} boxes {side}"
        order = np.diff(found.scores)
        return None if (order <= 0).all() else "not in descending order of score"


def _has_partner(one, other, limit, score_atol):
    """For every box of one: is there a box of the same label, near in all columns and in score, in the other?"""
    boxes, scores, labels = (a[:, None] - b[None] for a, b in zip(one, other, strict=True))
    boxes[..., 6] = (boxes[..., 6] + np.pi) % (2 * np.pi) - np.pi
    return ((np.abs(boxes).max(axis=-1) <= limit) & (np.abs(scores) <= score_atol) & (labels == 0)).any(axis=1)


def input_of(case, sample, t):
    """The model's input for frame t of a sample, and its number among the case's images."""
    frame_id = case.inputs["frame_ids"][sample, t]
    matrices, stamps = cameras_of_frame(case, sample, t)
    return frame_id, ModelInput(
        torch.from_numpy(network_input(case, frame_id)).float(),
        # the current LiDAR frame stands still here, so it can serve as the global frame
        cameras_that_project(matrices),
        np.eye(4),
        np.ones(len(stamps), bool),
        stamps,
        int(stamps[0]),
    )


def assert_final_layer(case, sample, outputs):
    share, atol, limit = numbers(case.info["tolerance"]["final"])[:3]
    for suffix, found in (("cls", outputs.logits[-1, 0]), ("box", outputs.boxes[-1, 0])):
        wanted, _ = case.outputs[f"s{sample}.{suffix}"]
        wanted = wanted if wanted.ndim == 2 else wanted[-1]
        assert mostly_close(found, wanted, share / 100, atol, limit) is None


@pytest.mark.slow
@parametrize(reason_to_skip)
def test_float64(case):
    assert not Comparison(Run(case, torch.float64)).problems()


@parametrize(reason_to_skip, slow=is_large)
def test_float32(case):
    assert not Comparison(Run(case, torch.float32)).problems()


@parametrize(lambda case: None if reason_to_skip(case) is None and not frames_of(case).future else "", slow=is_large)
def test_online(case):
    """Frame by frame with memory, as a robot runs it, the last frame gets what the reference computes."""
    model = model_of(case, torch.float32)
    for sample, frame_ids in enumerate(case.inputs["frame_ids"]):
        memory = None
        newest_place = {frame: t for t, frame in reversed(list(enumerate(frame_ids)))}
        for _, t in sorted(newest_place.items()):
            outputs, memory = run(model, input_of(case, sample, t)[1], memory)
        assert_final_layer(case, sample, outputs)


@parametrize(lambda case: None if reason_to_skip(case) is None and frames_of(case).future else "", slow=is_large)
def test_offline(case):
    """A variant that looks ahead, through the queue of all its frames."""
    model = model_of(case, torch.float32)
    for sample in range(len(case.inputs["frame_ids"])):
        distinct, queue = {}, []
        for t in range(case.config["num_frames"]):
            frame_id, inputs = input_of(case, sample, t)
            queue.append(distinct.setdefault(frame_id, inputs))
        if len(distinct) == len(queue):
            assert np.array_equal(np.argsort([f.stamp for f in queue]), np.argsort(model.config.frames.offsets))
        outputs = run_queue(model, queue)
        assert_final_layer(case, sample, outputs)
