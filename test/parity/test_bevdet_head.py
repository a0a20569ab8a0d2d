"""The CenterPoint head: decoding, suppression, export, targets and losses against every parity case of them."""

import itertools
import re

import numpy as np
import pytest
import torch

from bev_perception.evaluation import submissions
from bev_perception.families.bevdet.centerpoint_head import CHANNELS, TaskMaps
from bev_perception.families.bevdet.config import CenterPointConfig, GridConfig
from bev_perception.families.bevdet.decode import decode_boxes, find_candidates
from bev_perception.families.bevdet.losses import detection_loss_names, detection_losses
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import TaskTarget, task_targets
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.supervision.samples import BoxTruth
from bev_perception.types import Boxes3D

from .cases import close, numbers, parametrize, subsample


def is_decoding(case):
    heads = case.info.get("cases", {})
    return None if heads and all("test_cfg" in head for head in heads.values()) and "nusc" in case.info else ""


def unit(case, name, shape):
    return case.fill(name, shape) * np.float32(np.sqrt(np.prod(shape[1:])))


def maps_of(case, tag, tasks, batch, size, heatmap):
    """Raw maps of each task, by the formula of the case; heatmap: scale and shift of its values."""
    rules = {
        "reg": (0.25, 0.5),
        "height": (0.6, -0.8),
        "dim": (0.3, np.array([1.2, 0.6, 0.5]).reshape(3, 1, 1)),
        "rot": (1, 0),
        "vel": (2, 0),
        "heatmap": heatmap,
    }
    found = []
    for t, classes in enumerate(tasks):
        maps = {}
        for branch, (scale, shift) in rules.items():
            shape = (batch, {**CHANNELS, "heatmap": len(classes)}[branch], *size)
            values = unit(case, f"pred.{tag}.task{t}.{branch}", shape)
            maps[branch] = torch.from_numpy((values * np.float32(scale) + np.float32(shift)).astype(np.float32))
        found.append(TaskMaps(**maps))
    return found


def heatmap_rule(text):
    """Scale and shift of the heatmap, as in "heatmap=1.6x-6"."""
    return tuple(float(n) for n in re.search(r"heatmap=([\d.]+)x([-+][\d.]+)", text).groups())


def head_of(head, size):
    """The CenterPointConfig and GridConfig of a case's reference settings; size: rows and columns of the maps."""
    cfg, coder = head["test_cfg"], head["bbox_coder"]
    assert cfg["score_threshold"] == coder["score_threshold"] and not cfg["max_pool_nms"]
    tasks = len(head["tasks"])
    factors = [np.broadcast_to(cfg["nms_rescale_factor"][t], len(head["tasks"][t])).tolist() for t in range(tasks)]
    config = CenterPointConfig(
        tasks=tuple(map(tuple, head["tasks"])),
        score_threshold=coder["score_threshold"],
        max_num=coder["max_num"],
        center_range=tuple(coder["post_center_range"]),
        nms=tuple(cfg["nms_type"]),
        nms_threshold=tuple(np.broadcast_to(cfg["nms_thr"], tasks).tolist()),
        nms_factor=tuple(map(tuple, factors)),
        nms_radius=tuple(cfg["min_radius"][:tasks]),
        post_max=cfg["post_max_size"],
    )
    return config, grid_of(coder, size)


def grid_of(coder, size):
    """The GridConfig of maps of this many rows and columns."""
    (x, y), (low_x, low_y) = [coder["out_size_factor"] * v for v in coder["voxel_size"][:2]], coder["pc_range"][:2]
    rows, columns = size
    return GridConfig((low_x, low_y, -5.0, low_x + columns * x, low_y + rows * y, 3.0), (x, y, 8.0))


def sample(maps, b, dtype):
    return [TaskMaps(**{name: value[b : b + 1].to(dtype) for name, value in vars(task).items()}) for task in maps]


@parametrize(is_decoding)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_boxes(case, dtype):
    batch, *size = (int(n) for n in re.search(r"B=(\d+), (\d+)x(\d+)", case.info["inputs"]).groups())
    tolerance = {key: float(case.info["tolerance"][key]) for key in ("boxes", "scores")}
    if dtype == torch.float64:
        tolerance = {"boxes": 5e-6, "scores": 1e-6}  # outputs are stored as float32
    finite = torch.tensor(True)
    for tag, head in case.info["cases"].items():
        config, grid = head_of(head, size)
        names = tuple(itertools.chain(*head["tasks"]))
        maps = maps_of(case, tag, head["tasks"], batch, size, heatmap_rule(case.info["inputs"]))
        for b in range(batch):
            own = sample(maps, b, dtype)
            for t, task in enumerate(own):
                count = len(find_candidates(task, finite, config, grid).scores)
                assert count == case.arrays[f"{tag}.pre_nms_count.task{t}"][b]
            found = decode_boxes(own, finite, config, grid, names)
            wanted = {name: case.arrays[f"{tag}.{name}.{b}"] for name in ("boxes", "scores", "labels")}
            starts = np.cumsum([0, *map(len, head["tasks"])])
            order = np.argsort(np.searchsorted(starts, found.labels, side="right"), kind="stable")  # task by task
            found = found.select(order)
            np.testing.assert_array_equal(found.labels, wanted["labels"])
            np.testing.assert_allclose(found.scores, wanted["scores"], atol=tolerance["scores"], rtol=0)
            bottom = found.centers - [0, 0, 0.5] * found.sizes[:, 2:]
            boxes = np.c_[bottom, found.sizes, found.yaws, found.velocities]
            boxes[:, 6] = wanted["boxes"][:, 6] + np.angle(np.exp(1j * (boxes[:, 6] - wanted["boxes"][:, 6])))
            np.testing.assert_allclose(boxes, wanted["boxes"], atol=tolerance["boxes"], rtol=1e-6)


@parametrize(is_decoding)
def test_submission(case, monkeypatch):
    """The reference writes the middle of the bottom as a box's centre; we write the middle of the box itself.

    It leaves out no box for its distance.
    """
    monkeypatch.setattr(submissions, "CLASS_RANGE", dict.fromkeys(submissions.CLASS_RANGE, np.inf))
    info, found = case.info["nusc"], {k.removeprefix("nusc."): v for k, v in case.arrays.items() if "nusc." in k}
    rotation = rotation_from_quaternion(*info["ego2global_rotation_wxyz"])
    ego2global = make_transform(rotation, np.array(info["ego2global_translation"]))
    columns = found["in_boxes"].astype(np.float64)
    boxes = Boxes3D(
        columns[:, :3],
        columns[:, 3:6],
        columns[:, 6],
        columns[:, 7:9],
        np.arange(len(columns), dtype=float),  # tells the boxes apart
        found["in_labels"],
        tuple(case.info["class_names"]),
    )
    entries = submissions.to_submission(boxes, "token", np.eye(4), ego2global)
    rows = [int(entry["detection_score"]) for entry in entries]
    assert rows and rows == list(range(len(columns)))
    for name in ("detection_name", "attribute_name"):
        assert [entry[name] for entry in entries] == [info[name][row] for row in rows]
    for ours, name, atol in (
        ("translation", "translation", 1e-4),
        ("size", "size_wlh", 1e-6),
        ("velocity", "velocity", 1e-5),
    ):
        np.testing.assert_allclose([entry[ours] for entry in entries], found[name][rows], atol=atol, rtol=1e-6)
    for entry, row in zip(entries, rows, strict=True):
        sign = np.sign(np.dot(entry["rotation"], found["rotation_wxyz"][row]))
        np.testing.assert_allclose(sign * np.array(entry["rotation"]), found["rotation_wxyz"][row], atol=1e-6, rtol=0)


def is_training(case):
    heads = case.info.get("cases", {})
    return None if heads and all("train_cfg" in head for head in heads.values()) else ""


def recipe_of(head):
    """The BEVDetRecipe of a case's reference settings."""
    cfg = head["train_cfg"]
    return BEVDetRecipe(
        heatmap_weight=head["loss_cls"].get("loss_weight", 1.0),
        box_weight=head["loss_bbox"].get("loss_weight", 1.0),
        code_weights=tuple(cfg["code_weights"]),
        gaussian_overlap=cfg["gaussian_overlap"],
        gaussian_radius=cfg["min_radius"],
        max_objects=cfg["max_objs"],
    )


class HeadRun:
    """Targets, losses and gradients of one head of a case."""

    def __init__(self, case, tag, dtype):
        head = case.info["cases"][tag]
        cfg, recipe = head["train_cfg"], recipe_of(head)
        size = [n // cfg["out_size_factor"] for n in cfg["grid_size"][:2]][::-1]
        coder = {**cfg, "pc_range": cfg["point_cloud_range"]}
        config = CenterPointConfig(
            tuple(map(tuple, head["tasks"])),
            **{name: (value,) * len(head["tasks"]) for name, value in (("nms", "rotate"), ("nms_threshold", 0.2))},
            nms_radius=(0.0,) * len(head["tasks"]),
            nms_factor=tuple((1.0,) * len(task) for task in head["tasks"]),
        )
        batch = sum(name.startswith("gt_boxes.") for name in case.inputs)
        truths = [
            BoxTruth(*(torch.from_numpy(case.inputs[f"gt_{name}.{b}"]) for name in ("boxes", "labels")))
            for b in range(batch)
        ]
        self.targets = [task_targets(truth, config, grid_of(coder, size), recipe) for truth in truths]
        maps = maps_of(case, tag, head["tasks"], batch, size, heatmap_rule(case.info["inputs"]))
        self.maps = [
            TaskMaps(**{name: value.to(dtype).requires_grad_() for name, value in vars(task).items()}) for task in maps
        ]
        targets = [[TaskTarget(t.heatmap.to(dtype), t.cells, t.codes.to(dtype)) for t in one] for one in self.targets]
        self.losses = detection_losses(self.maps, targets, recipe)
        sum(self.losses.values()).backward()
        assert set(self.losses) == set(detection_loss_names(len(head["tasks"])))


def of_case(case):
    return [(tag, dtype) for tag in case.info["cases"] for dtype in (torch.float64, torch.float32)]


@parametrize(is_training)
def test_targets(case):
    tolerance = float(case.info["tolerance"]["targets"])
    for tag, head in case.info["cases"].items():
        run = HeadRun(case, tag, torch.float32)
        for t in range(len(head["tasks"])):
            for b, found in enumerate(sample[t] for sample in run.targets):
                sums = case.arrays[f"{tag}.target_heatmap_sum.task{t}"][b]
                np.testing.assert_allclose(found.heatmap.sum(dim=(1, 2)), sums, rtol=tolerance, atol=tolerance)
                wanted = {name: case.arrays[f"{tag}.{name}.task{t}"][b] for name in ("mask", "ind", "anno_box")}
                slots = wanted["mask"].astype(bool)
                np.testing.assert_array_equal(found.cells[: slots.sum()], wanted["ind"][slots])
                np.testing.assert_allclose(
                    found.codes[: slots.sum()], wanted["anno_box"][slots], atol=tolerance, rtol=tolerance
                )
                assert len(found.cells) == slots.sum() or len(slots) < recipe_of(head).max_objects
            name = f"{tag}.target_heatmap.task{t}"
            heatmaps = torch.stack([sample[t].heatmap for sample in run.targets])
            wanted, description = case.outputs[name]
            assert close(subsample(heatmaps, description), wanted, tolerance, tolerance) is None, name


@parametrize(is_training)
def test_losses_and_gradients(case):
    atol, rtol = numbers(case.info["tolerance"]["grads"])
    for tag, dtype in of_case(case):
        head = case.info["cases"][tag]
        run = HeadRun(case, tag, dtype)
        exact = dtype == torch.float64
        limit = 1e-6 if exact else numbers(case.info["tolerance"]["losses"])[0]
        found = [run.losses[name].item() for name in head["loss_names"]]
        np.testing.assert_allclose(found, case.arrays[f"{tag}.losses"], rtol=limit)
        assert sum(found) == pytest.approx(head["total"], rel=limit)
        for name in (name for name in case.arrays if name.startswith(f"{tag}.grad.")):
            task, branch = re.fullmatch(rf"{tag}.grad.task(\d+).(\w+)", name).groups()
            wanted, description = case.outputs[name]
            gradient = subsample(getattr(run.maps[int(task)], branch).grad, description)
            assert close(gradient, wanted, 1e-8 if exact else atol, 1e-5 if exact else rtol) is None, name
