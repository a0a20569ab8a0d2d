"""SparseOcc against the published reference: every quantity that a case describes, in float64 and in float32.

Voxels are compared by location: which of two nearly equal ones comes first is rounding. As their order decides which
voxels of its mask a query looks at, the reference's choice takes the place of ours where the two differ.
"""

import re

import numpy as np
import pytest
import torch
from vehicle import cameras_that_project, run

from bev_perception.config import (
    BackboneConfig,
    FramesConfig,
    ImageConfig,
    NeckConfig,
    ReferenceFrameConfig,
    VariantConfig,
)
from bev_perception.families.catalog import build_model
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.sparseocc.decode import decode_occupancy, merge_panoptic, merge_semantics
from bev_perception.families.sparseocc.mask_decoder import pick_voxels
from bev_perception.families.sparseocc.voxel_decoder import CUBE_SIDES, all_cubes
from bev_perception.models.encoder import reference2image
from bev_perception.models.query_layers import EncodedViews, decode_centers
from bev_perception.sensing.image_transform import ImageTransform, image_transform
from bev_perception.sensing.preprocess import Preprocessor, normalize_images
from bev_perception.types import Calibration, CameraImage, Frame, ModelInput, View

from .cases import assert_official_keys, close, numbers, parametrize, subsample

CAMERAS = 6
EGO = ReferenceFrameConfig("base_link", (0.0, 0.0, 0.0), 0.0)
#: pixels of all images of a case times its weights; beyond it there is no float64 run, and the float32 run is slow
LARGE = 1e14
#: the reference's chosen voxels are stored rounded: to as many voxels, and so much it moves what is sampled there
STORED_VOXEL = 1e-4
#: output -> the name of its deviation in the case
DEVIATIONS = {
    r"stage(\d)_(seg|feat)": r"stage\1.\2",
    r"(mask|class)(\d)": r"\1\2",
    r"fpn(\d)": r"neck\1",
    r"vd0_selfattn": "vd0.norm1.0",
    r"vd0_sampled": "vd0.sampled.0",
    r"vd0_mixed": "vd0.norm2.0",
    r"vd0_out": "vd0.out.0",
    r"vd\d_sampled": "vd0.sampled.0",
    r"vd(\d)_.*": r"stage\1.feat",
    r"md(\d)_selfattn": r"md.norm1.\1",
    r"md(\d)_sampled": r"md.sampled.\1",
    r"md(\d)_out": r"md.norm3.\1",
}
#: the outputs are float32 results: how much further from them float64 may be than the case says of its own
MARGIN = 2.0


def has_outputs(*names, of=""):
    """The rule for `parametrize` that takes the cases whose descriptions name these outputs, and the input `of`."""

    def reason_to_skip(case):
        described = case.info.get("outputs")
        ours = case.info["system"] == "sparseocc" and isinstance(described, dict) and set(names) <= described.keys()
        ours = ours and of in str(case.info.get("inputs"))
        return None if ours else ""

    return reason_to_skip


end_to_end = has_outputs("stage0_loc", "sem_pred")


def is_large(case):
    pixels = float(np.prod(case.info["inputs"]["img_shape"]))
    return pixels / 3 * sum(float(np.prod(shape)) for shape, _ in case.keys.values()) > LARGE


def variant_of(case):
    """The case's configuration as a variant of this project."""
    c = case.config
    assert c["voxel_layers"] == len(CUBE_SIDES)
    return VariantConfig(
        name=case.name,
        family="sparseocc",
        image=ImageConfig(*c["final_dim"], tuple(c["img_mean_rgb"]), tuple(c["img_std_rgb"]), pad=c["pad_divisor"]),
        frames=FramesConfig(past=c["num_frames"] - 1),
        head=SparseOccHeadConfig(
            num_query=c["num_queries"],
            **{key: c[key] for key in ("num_points", "num_levels", "embed_dims", "mask_layers", "num_groups")},
            **{key: c[key] for key in ("score_threshold", "overlap_threshold", "panoptic")},
            kept_training=tuple(c["topk_training"]),
            kept_testing=tuple(c["topk_testing"]),
            occ_range=tuple(map(float, c["pc_range"])),
            occ_size=tuple(c["occ_size"]),
        ),
        backbone=BackboneConfig("resnet", int(re.match(r"resnet(\d+)", c["backbone"])[1])),
        neck=NeckConfig("fpn", c["fpn"]["out_channels"], c["fpn"]["num_outs"]),
        reference_frame=EGO,
        class_names=tuple(c["class_names"]),
    )


def model_of(case, dtype):
    model = build_model(variant_of(case))
    assert_official_keys(model, case.keys)
    case.load_weights(model)
    return model.to(dtype)


def images_of(case):
    """BGR pixels [B, T, N, 3, h, w] float32 by the case's formula, which is one of float32."""
    formula = r"clip\(round\((\d+)\*fill\('([^']+)', shape, seed\) \+ (\d+)\), 0, 255\)"
    scale, key, shift = re.search(formula, case.info["inputs"]["img"]).groups()
    values = case.fill(key, case.info["inputs"]["img_shape"])
    pixels = np.clip(np.round(np.float32(scale) * values + np.float32(shift)), 0, 255)
    return pixels.reshape(len(pixels), -1, CAMERAS, *pixels.shape[2:])


def network_input(images, config):
    """Normalised images [N, 3, H, W] of pixels [N, 3, h, w]."""
    return normalize_images(torch.from_numpy(images).permute(0, 2, 3, 1), config.image)


def matrices_of(case):
    """[B, T, N, 4, 4] float64: ego frame to pixels of the network's input."""
    batch = case.info["inputs"]["img_shape"][0]
    lidar2image = case.inputs["lidar2img"].astype(np.float64).reshape(batch, -1, CAMERAS, 4, 4)
    return lidar2image @ case.inputs["ego2lidar"].astype(np.float64).reshape(batch, 1, 1, 4, 4)


class Run:
    """The model's answer to a case, with the intermediate results by their names in the case, batch first."""

    def __init__(self, case, dtype):
        self.case, self.dtype = case, dtype
        self.model = model_of(case, dtype)
        self.found = {}
        self.differently_chosen = []  # of each mask layer, the share of voxels
        handles = [*self._record_voxel_decoder(), *self._record_mask_decoder()]
        with torch.inference_mode():
            output = self.model.pts_bbox_head(self._encode(), self._choose)
        for handle in handles:
            handle.remove()
        self._record(output)

    def _encode(self):
        config = self.model.config
        levels_by_frame = []
        for frame in images_of(self.case).swapaxes(0, 1):  # [B, N, 3, h, w]
            images = network_input(frame.reshape(-1, *frame.shape[2:]), config)
            levels = self.model.pyramid(images.to(self.dtype))
            levels_by_frame.append([level.unflatten(0, frame.shape[:2]) for level in levels])
        for i, levels in enumerate(zip(*levels_by_frame, strict=True)):
            self.found[f"fpn{i}"] = torch.stack(levels, dim=1).permute(0, 1, 2, 5, 3, 4)  # [B, T, N, C, h, w]
        matrices = torch.from_numpy(matrices_of(self.case)).to(self.dtype)
        return EncodedViews(levels_by_frame, matrices, tuple(images.shape[-2:]))

    def _choose(self, inside, locations):
        """Our choice for the case's random numbers, but the reference's where the two differ."""
        layer = len(self.differently_chosen)
        ranks, places = (torch.from_numpy(self.case.inputs[name][layer]) for name in ("u_idx", "u_pad"))
        own = pick_voxels(inside, locations, ranks, places, self.model.config.head.occ_size)
        reference = torch.from_numpy(self.case.outputs[f"md{layer}_sampled_voxels"][0])
        same = (own - reference).abs().amax(dim=-1, keepdim=True) < STORED_VOXEL
        self.differently_chosen.append(1 - same.double().mean().item())
        self.found[f"md{layer}_mask_count"] = inside.sum(dim=-1)
        return torch.where(same, own, reference)

    def _record_voxel_decoder(self):
        for i, layer in enumerate(self.model.pts_bbox_head.transformer["voxel_decoder"].decoder_layers):
            modules = [("mixed", layer.norm2), ("out", layer.norm3)]
            modules += [("selfattn", layer.norm1)] if layer.self_attn is not None else []
            for name, module in modules:
                yield module.register_forward_hook(lambda m, args, out, key=f"vd{i}_{name}": self._keep(key, out))
            yield layer.mixing.register_forward_pre_hook(lambda m, args, key=f"vd{i}_sampled": self._keep(key, args[0]))
            if i > 0:  # what a layer is given is what the stage before has kept
                yield layer.register_forward_pre_hook(
                    lambda m, args, key=f"stage{i - 1}_feat": self._keep(key, args[0])
                )

    def _record_mask_decoder(self):
        decoder = self.model.pts_bbox_head.transformer["decoder"]
        layer = decoder.decoder_layer
        yield decoder.register_forward_pre_hook(lambda m, args: self._keep("stage2_feat", args[0]))
        for name, module in (("selfattn", layer.norm1), ("out", layer.norm3)):
            yield module.register_forward_hook(lambda m, args, out, name=name: self._keep_pass(name, out))
        yield layer.mixing.register_forward_pre_hook(lambda m, args: self._keep_pass("sampled", args[0]))

    def _keep(self, key, value):
        self.found[key] = value

    def _keep_pass(self, name, value):
        self.found[f"md{len(self.differently_chosen) - 1}_{name}"] = value

    def _record(self, output):
        config = self.model.config
        for i, stage in enumerate(output.stages):
            self.found |= {f"stage{i}_loc": stage.locations, f"stage{i}_seg": stage.logits}
        for j, (classes, masks) in enumerate(zip(output.class_logits, output.mask_logits, strict=True)):
            self.found |= {f"class{j}": classes, f"mask{j}": masks}
        threshold = config.head.score_threshold
        last = list(zip(output.class_logits[-1], output.mask_logits[-1], strict=True))
        self.found["sem_pred"] = torch.stack([merge_semantics(*sample, threshold) for sample in last])
        panoptic = [
            merge_panoptic(*sample, config.class_names, threshold, config.head.overlap_threshold) for sample in last
        ]
        self.found["pano_sem"], self.found["pano_inst"] = (torch.stack(part) for part in zip(*panoptic, strict=True))
        self.output = output


class Comparison:
    """One run against its case: collects what disagrees."""

    def __init__(self, run):
        self.run, self.case = run, run.case
        self.exact = run.dtype == torch.float64
        self.batch = self.case.info["inputs"]["img_shape"][0]
        suggested = self.case.info["tolerance"]["note"].split("suggested:")[1]
        self.rtol, self.atol = numbers(suggested)[:2]
        self.deviation = self.case.info["tolerance"]["deviation"]
        self.rows = {f"stage{i}": self._rows(f"stage{i}_loc") for i in range(3)}

    def _locations(self, name):
        """The case's locations [B, K, 3]."""
        wanted, _ = self.case.outputs[name]
        return wanted.reshape(self.batch, -1, 3).astype(np.int64)

    def _rows(self, name):
        """[B, K]: in which row we have the voxel that is the reference's k-th, -1 where we have not kept it."""
        found = self.run.found[name].tolist()
        places = [{tuple(location): row for row, location in enumerate(sample)} for sample in found]
        wanted = self._locations(name).tolist()
        return np.array([[p.get(tuple(at), -1) for at in w] for p, w in zip(places, wanted, strict=True)])

    def problems(self):
        problems = {name: self._compare(name, *entry) for name, entry in self.case.outputs.items()}
        problems["chosen voxels"] = self._compare_choice()
        return {name: problem for name, problem in problems.items() if problem}

    def _compare_choice(self):
        """In float64 ours must be the reference's, if its own order does not depend on rounding."""
        safe = self.exact and self.deviation["stage2.order_mismatch"] == 0
        shares = self.run.differently_chosen
        return f"{shares} differ" if max(shares) > (0 if safe else 0.05) else None

    def _compare(self, name, wanted, description):
        if name.endswith("_loc"):
            return self._compare_locations(name)
        if name.endswith("_sampled_voxels"):
            return None  # see _compare_choice
        found = self._in_reference_order(name, description)
        if name.endswith("mask_count"):
            return close(found, wanted, 1, 0)  # a logit may be 0 but for rounding
        known = ~np.isnan(found)
        if found.shape != wanted.shape:
            return f"shape {found.shape}, wanted {wanted.shape}"
        if name in ("sem_pred", "pano_sem", "pano_inst"):
            wrong = (found != wanted)[known].mean()
            return f"{wrong:.2%} of the labels differ" if wrong > 1e-3 else None
        return close(found[known], wanted[known], *self._tolerance(name))

    def _tolerance(self, name):
        atol, rtol = self.atol, self.rtol
        if self.exact:
            pattern = next(pattern for pattern in DEVIATIONS if re.fullmatch(pattern, name))
            deviation = self.deviation.get(re.sub(pattern, DEVIATIONS[pattern], name))
            atol, rtol = (self.atol, self.rtol) if deviation is None else (MARGIN * deviation, 0)
        return (atol + STORED_VOXEL, rtol) if re.fullmatch(r"md\d_sampled", name) else (atol, rtol)

    def _compare_locations(self, name):
        stage = name.removesuffix("_loc")
        missing = (self.rows[stage] < 0).sum()
        allowed = self.deviation[f"{stage}.set_mismatch"]
        if not self.exact:  # voxels at the cut may change places
            allowed = max(1, allowed, round(1e-4 * self._locations(name).shape[1]))
        if len({tuple(location) for location in self.run.found[name][0].tolist()}) != self.run.found[name].shape[1]:
            return "a voxel is there twice"
        return f"{missing} voxels are others" if missing > allowed else None

    def _in_reference_order(self, name, description):
        """What we found as the case records it; NaN for voxels that we have not kept."""
        found = self.run.found[name].double().numpy()  # [B, ...]
        if name.startswith("fpn"):
            full_shape = re.search(r"full shape (\[[\d, ]+\])", description["subsample"])[1]
            return subsample(found.reshape([int(n) for n in numbers(full_shape)]), description)
        rows, axis = self._rows_of(name)
        if rows is not None:
            found = np.stack([_take(sample, row, axis) for sample, row in zip(found, rows, strict=True)])
        keeps_batch = self.batch > 1 or name.endswith("mask_count")
        return subsample(found if keeps_batch else found[0], description)

    def _rows_of(self, name):
        """Which rows [B, K] the reference's order takes, and along which axis of a sample."""
        if name.startswith("vd"):  # the queries of a layer are the voxels of the stage before, or all cubes in order
            return (self.rows[f"stage{int(name[2]) - 1}"], 0) if name[2] != "0" else (None, 0)
        if name.startswith("stage"):
            return self.rows[name[:6]], 0
        if name.startswith("mask"):
            return self.rows["stage2"], 1
        return (self.rows["stage2"], 0) if name in ("sem_pred", "pano_sem", "pano_inst") else (None, 0)


def _take(found, rows, axis):
    """The rows of found along an axis; NaN where a row is -1."""
    taken = found.take(rows, axis=axis)
    taken[(slice(None),) * axis + (rows < 0,)] = np.nan
    return taken


def assert_dense(run):
    """decode_occupancy puts the labels of the voxels where they are, and free space everywhere else."""
    config = run.model.config
    output = run.output
    occupancy = decode_occupancy(output, config.head, config.class_names)
    x, y, z = output.stages[-1].locations[0].T.numpy()
    labels = run.found["pano_sem" if config.head.panoptic else "sem_pred"][0].numpy()
    assert (occupancy.semantics[x, y, z] == labels).all()
    assert occupancy.occupied.sum() == (labels != occupancy.free).sum()
    if config.head.panoptic:
        assert (occupancy.instances[x, y, z] == run.found["pano_inst"][0].numpy()).all()
        assert (occupancy.instances > 0).sum() == (run.found["pano_inst"][0] > 0).sum()


@parametrize(lambda case: "" if end_to_end(case) == "" or is_large(case) else None)
def test_float64(case):
    assert not Comparison(Run(case, torch.float64)).problems()


@pytest.mark.timeout(1800)
@parametrize(end_to_end, slow=is_large)
def test_float32(case):
    run = Run(case, torch.float32)
    assert not Comparison(run).problems()
    assert_dense(run)


@parametrize(lambda case: "" if end_to_end(case) == "" or not is_large(case) else None)
def test_beginning_of_a_large_case(case):
    """One image through the encoder, and what the first voxel layer does before it looks at any."""
    model = model_of(case, torch.float32)
    voxel_decoder = model.pts_bbox_head.transformer["voxel_decoder"]
    layer, found = voxel_decoder.decoder_layers[0], []
    layer.norm1.register_forward_hook(lambda m, args, out: found.append(out))
    images = network_input(images_of(case)[0, 0, :1], model.config)
    with torch.inference_mode():
        levels = model.pyramid(images)
        cubes = all_cubes(voxel_decoder.first_grid, images.device)[None]
        frames = case.config["num_frames"]  # all the same here: the images come in only later
        views = EncodedViews(
            [[level[None] for level in levels]] * frames,
            torch.eye(4).expand(1, frames, 1, 4, 4),
            tuple(images.shape[-2:]),
        )
        layer(images.new_zeros(1, cubes.shape[1], voxel_decoder.dims), cubes, views)
    tolerance = numbers(case.info["tolerance"]["note"].split("suggested:")[1])[:2][::-1]
    for i, level in enumerate(levels):
        wanted, description = case.outputs[f"fpn{i}"]
        first = subsample(level.permute(0, 3, 1, 2).numpy(), description)
        assert close(first, wanted[:1], *tolerance) is None
    wanted, description = case.outputs["vd0_selfattn"]
    assert close(subsample(found[0][0].numpy(), description), wanted, *tolerance) is None


@parametrize(lambda case: "" if end_to_end(case) == "" or is_large(case) else None)
def test_online(case):
    """Frame by frame with memory, as a robot runs it; what is drawn at random begins after the first prediction."""
    model = model_of(case, torch.float32)
    matrices = matrices_of(case)[0]
    pixels = images_of(case)[0]
    memory = None
    for t in reversed(range(case.config["num_frames"])):
        stamp = -t * 500_000_000
        images = network_input(pixels[t], model.config)
        # the current ego frame stands still here, so it can serve as the global frame
        stamps = np.full(CAMERAS, stamp)
        cameras = cameras_that_project(matrices[t])
        inputs = ModelInput(images, cameras, np.eye(4), np.ones(CAMERAS, bool), stamps, stamp)
        output, memory = run(model, inputs, memory)
    rows = {tuple(location): row for row, location in enumerate(output.stages[-1].locations[0].tolist())}
    wanted, _ = case.outputs["stage2_loc"]
    order = [rows[tuple(location)] for location in wanted.reshape(-1, 3).tolist()]
    rtol, atol = numbers(case.info["tolerance"]["note"].split("suggested:")[1])[:2]
    assert len(rows) == len(order)
    for name, found in (("class0", output.class_logits), ("mask0", output.mask_logits[..., order])):
        wanted, description = case.outputs[name]
        assert close(subsample(found[0, 0].numpy(), description), wanted, atol, rtol) is None


@parametrize(has_outputs("sem_pred", "pano_inst", "pano_sem", of="class_logits"))
def test_merging(case):
    c = case.config
    for b, (classes, masks) in enumerate(zip(case.inputs["class_logits"], case.inputs["mask_logits"], strict=True)):
        logits = torch.from_numpy(classes), torch.from_numpy(masks)
        semantics = merge_semantics(*logits, c["score_threshold"]).numpy()
        assert (semantics != case.arrays["sem_pred"][b]).sum() <= 2
        labels, ids = merge_panoptic(*logits, c["class_names"], c["score_threshold"], c["overlap_threshold"])
        assert (labels.numpy() == case.arrays["pano_sem"][b]).all()
        assert (ids.numpy() == case.arrays["pano_inst"][b]).all()


@parametrize(has_outputs("points", "voxels"))
def test_points_of_masks(case):
    locations = torch.from_numpy(case.inputs["loc"])
    count = locations.shape[1]
    inside = torch.from_numpy(np.unpackbits(case.inputs["valid"], axis=-1, count=count).astype(bool))
    ranks, places = (torch.from_numpy(case.inputs[name]) for name in ("u_idx", "u_pad"))
    size = case.config["occ_size"]
    voxels = pick_voxels(inside, locations, ranks, places, size)
    assert close(voxels, case.arrays["voxels"], case.info["tolerance"], 0) is None
    moved = (voxels + torch.from_numpy(case.inputs["offset"])) / torch.tensor(size)
    points = decode_centers(moved, case.config["pc_range"])
    assert close(points, case.arrays["points"], case.info["tolerance"], 0) is None


@parametrize(has_outputs("lidar2img", "ego2img"))
def test_geometry(case):
    """The matrices of our preprocessing, from frames as a recording gives them."""
    inputs, tolerance = case.inputs, case.info["tolerance"]
    height, width = case.config["final_dim"]
    config = VariantConfig(
        "geometry", "sparseocc", ImageConfig(height, width), FramesConfig(3), SparseOccHeadConfig(), reference_frame=EGO
    )
    current2global = inputs["ego2global"] @ inputs["lidar2ego"]
    poses = [current2global @ stack(inputs["sensor2lidar_rotation"], inputs["sensor2lidar_translation"])]
    # the reference stores these rotations transposed
    rotations = inputs["sensor2global_rotation"].swapaxes(-1, -2)
    poses += [stack(*pair) for pair in zip(rotations, inputs["sensor2global_translation"], strict=True)]
    preprocess = Preprocessor(config, "cpu")
    prepared = [preprocess(frame_of(case, sensor2global))[0] for sensor2global in poses]
    preprocess.close()
    wanted = case.arrays["ida0"] @ case.arrays["ego2img"]
    found = reference2image(prepared, prepared[0].reference2global).reshape(-1, 4, 4)
    assert_relatively_close(found, wanted, tolerance["ego2img_rel"])
    lidar2image = reference2image(prepared, current2global).reshape(-1, 4, 4)
    assert_relatively_close(lidar2image, case.arrays["ida0"] @ case.arrays["lidar2img"], tolerance["lidar2img_rel"])


def stack(rotations, translations):
    """[N, 4, 4] of rotations [N, 3, 3] and translations [N, 3]."""
    transforms = np.tile(np.eye(4), (len(rotations), 1, 1))
    transforms[:, :3, :3], transforms[:, :3, 3] = rotations, translations
    return transforms


def frame_of(case, sensor2global, width=1600, height=900):
    """A frame of black images whose cameras are at sensor2global [N, 4, 4]; the vehicle is where it is now."""
    names = tuple(case.config["cams"])
    ego2global = case.inputs["ego2global"]
    sensor2ego = np.linalg.inv(ego2global) @ sensor2global
    black = np.zeros(3 * width * height, np.uint8)
    views = tuple(
        View(CameraImage(name, 0, name, "bgr8", black, width, height, 3 * width), Calibration(k, width, height), *pose)
        for name, k, *pose in zip(
            names, case.inputs["cam_intrinsic"], sensor2ego, [ego2global] * len(names), strict=True
        )
    )
    return Frame(0, names, views, ego2global)


def assert_relatively_close(found, wanted, relative):
    """Each matrix to so much of its largest element."""
    error = np.abs(found - wanted).max(axis=(-1, -2)) / np.abs(wanted).max(axis=(-1, -2))
    assert error.max() <= relative


@parametrize(has_outputs("ida_k", "ego2img"))
def test_image_transforms(case):
    height, width = case.config["final_dim"]
    taken = 0
    for name in [name for name in case.arrays if re.fullmatch(r"ida\d+", name)]:
        wanted, parameters = case.arrays[name], case.arrays[f"{name}_param"]
        resize, *rest, angle = parameters.tolist()
        new_width, new_height, left, top, right, bottom, flip = (int(n) for n in rest)
        transform = ImageTransform(
            (1600, 900), resize, (new_width, new_height), (left, top), (right - left, bottom - top), bool(flip)
        )
        if angle == 0:  # no variant turns images
            assert close(transform.ida, wanted, case.info["tolerance"]["ida_abs"], 0) is None
            taken += 1
        if name == "ida0":
            assert transform == image_transform((900, 1600), ImageConfig(height, width))
    assert taken > 0
