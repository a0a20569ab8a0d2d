"""The variants and inputs of BEVDet's parity cases, for the tests of inference and of training."""

import re

import numpy as np
import torch

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import (
    BackboneConfig,
    FramesConfig,
    ImageConfig,
    NeckConfig,
    ReferenceFrameConfig,
    VariantConfig,
)
from bev_perception.families.bevdet.config import (
    BEVDetHeadConfig,
    CenterPointConfig,
    DepthConfig,
    EncoderConfig,
    GridConfig,
    OccupancyConfig,
)
from bev_perception.families.catalog import build_model
from bev_perception.geometry import make_transform
from bev_perception.types import Cameras

from .cases import assert_official_keys, backbone_of

DEPTH_NETS = {
    "LSSViewTransformer": "plain",
    "LSSViewTransformerBEVDepth": "camera",
    "LSSViewTransformerBEVStereo": "stereo",
}
#: keys of weights that the networks compute themselves
CONSTANTS = ("relative_position_index",)


def variant_of(case):
    """The VariantConfig that a case's reference settings amount to."""
    c = case.config
    view, stages = c["img_view_transformer"], c["img_bev_encoder_backbone"]
    volumetric = stages["type"] == "CustomResNet3D"
    assert view["downsample"] == 16 and not view.get("depthnet_cfg", {}).get("use_dcn", False)
    assert view["in_channels"] == c["img_neck"]["out_channels"] and view.get("collapse_z", True) != volumetric
    net = view.get("depthnet_cfg", {})
    low, high, cell = zip(*(view["grid_config"][axis] for axis in "xyz"), strict=True)
    pre = c["pre_process"]
    encoder = EncoderConfig(
        volumetric=volumetric,
        pre_blocks=pre["num_layer"][0] if pre else 0,
        blocks=tuple(stages.get("num_layer", (2, 2, 2))),
        channels=tuple(stages["num_channels"]),
        strides=tuple(stages.get("stride", (2, 2, 2))),
        out_channels=c["img_bev_encoder_neck"]["out_channels"],
    )
    head = BEVDetHeadConfig(
        grid=GridConfig((*low, *high), cell),
        depth=DepthConfig(*view["grid_config"]["depth"], logarithmic=view.get("sid", False)),
        depth_net=DEPTH_NETS[view["type"]],
        context=view["out_channels"],
        aspp_channels=net.get("aspp_mid_channels", 96),
        unmatched_cost=net.get("bias", 5.0),
        encoder=encoder,
        boxes=boxes_of(c) if "pts_bbox_head" in c else None,
        occupancy=None if "pts_bbox_head" in c else OccupancyConfig(),
    )
    names = OCC3D_CLASSES if head.boxes is None else tuple(name for task in head.boxes.tasks for name in task)
    neck = "fpn" if c["img_neck"]["type"] == "CustomFPN" else "lss"
    return VariantConfig(
        name=case.info["variant"].split()[0],
        family="bevdet",
        image=ImageConfig(*c["input_size"], channel_order="bgr"),
        frames=FramesConfig(c["frames_in_input"] - 1, missing="current"),
        head=head,
        backbone=image_backbone_of(c["img_backbone"], head.stereo),
        neck=NeckConfig(neck, c["img_neck"]["out_channels"], 1),
        reference_frame=ReferenceFrameConfig("base_link", (0, 0, 0), 0),
        class_names=names,
    )


def image_backbone_of(config, stereo):
    if config["type"] != "ResNet":
        return backbone_of(
            {**config, "use_abs_pos_embed": config.get("use_abs_pos_embed", False), "return_stereo_feat": stereo}
        )
    assert config["out_indices"] == ([0, 2, 3] if stereo else [2, 3])
    return BackboneConfig("resnet", config["depth"], first_level=2, with_first=stereo)


def boxes_of(config):
    """The CenterPointConfig of a case's reference settings."""
    head, test = config["pts_bbox_head"], config["test_cfg"]
    tasks, coder = len(head["tasks"]), head["bbox_coder"]
    factors = [np.broadcast_to(test["nms_rescale_factor"][t], len(head["tasks"][t])).tolist() for t in range(tasks)]
    return CenterPointConfig(
        tasks=tuple(map(tuple, head["tasks"])),
        shared_channels=head["share_conv_channel"],
        score_threshold=coder["score_threshold"],
        max_num=coder["max_num"],
        center_range=tuple(coder["post_center_range"]),
        nms=tuple(test["nms_type"]),
        nms_threshold=tuple(np.broadcast_to(test["nms_thr"], tasks).tolist()),
        nms_factor=tuple(map(tuple, factors)),
        nms_radius=tuple(test["min_radius"][:tasks]),
        post_max=test["post_max_size"],
    )


def model_of(case):
    model = build_model(variant_of(case))
    assert_official_keys(model, case.keys)
    case.load_weights(model, constants=CONSTANTS)
    return model


def unit(case, name, shape):
    return case.fill(name, shape) * np.float32(np.sqrt(np.prod(shape[1:])))


def images_of(case):
    """Network inputs of each frame, [B, N, 3, H, W] float32, by the case's formula; the current frame first."""
    height, width = case.config["input_size"]
    shape = (batch_of(case), case.config["num_cams"], 3)
    coarse = unit(case, "input.img.lo", (*shape, height // 16, width // 16))
    coarse = coarse.repeat(16, axis=-2).repeat(16, axis=-1)
    return [
        unit(case, f"input.img.{t}", (*shape, height, width)) + coarse for t in range(case.config["frames_in_input"])
    ]


def batch_of(case):
    """Number of samples; cases of training say it by the shapes of their matrices."""
    return case.info["inputs"].get("batch") or len(case.inputs["bda"])


def by_sample(case, name):
    """A matrix of the inputs, float64, with the samples in front: [B, F, N, ...], [B, N, ...] or [B, 3, 3]."""
    values = case.inputs[name].astype(np.float64)
    dims = {"sensor2ego": 5, "ego2global": 5, "intrins": 4, "post_rot": 4, "post_tran": 3, "bda": 3}[name]
    if values.ndim < dims:
        values = np.repeat(values[None], batch_of(case), axis=0)
    return values


def cameras_of(case):
    """Cameras of each frame, each matrix [B, N, ...]."""
    rotation, translation = by_sample(case, "post_rot"), by_sample(case, "post_tran")
    source2image = np.tile(np.eye(4), (*rotation.shape[:2], 1, 1))
    source2image[..., :2, :2] = rotation[..., :2, :2]
    source2image[..., :2, 2] = translation[..., :2]
    sensor2ego, ego2global = by_sample(case, "sensor2ego"), by_sample(case, "ego2global")
    return [
        Cameras(by_sample(case, "intrins"), source2image, sensor2ego[:, t], ego2global[:, t])
        for t in range(sensor2ego.shape[1])
    ]


def augmentation_of(case):
    """[B, 4, 4]."""
    return np.stack([make_transform(a, np.zeros(3)) for a in by_sample(case, "bda")])


class Run:
    """The network's answer to a case in one mode, with the intermediate results by their names in the case."""

    def __init__(self, case, model, dtype, alignment):
        self.case, self.model, self.found = case, model, {}
        handles = list(self._record())
        cameras = cameras_of(case)
        images = [torch.from_numpy(x).to(dtype) for x in images_of(case)]
        with torch.inference_mode():
            self.output = model.perceive(
                images, cameras, [c.ego2global[:, 0] for c in cameras], augmentation_of(case), alignment
            )
        for handle in handles:
            handle.remove()
        for t, task in enumerate(self.output.tasks):
            self.found |= {f"head.{t}.{branch}": value for branch, value in vars(task).items()}
        if self.output.occupancy is not None:
            self.found["occ_logits"] = self.output.occupancy
            self.found["occ_class"] = self.output.occupancy[0].argmax(dim=-1)

    def _record(self):
        model = self.model
        order = list(range(1 + model.past_maps))  # in which the frames come
        if model.head.stereo:
            order.reverse()
        view = model.img_view_transformer

        def of_frame(name, pick=lambda args, out: out):
            calls = []

            def hook(module, args, out):
                self.found[f"{name}.f{order[len(calls)]}"] = pick(args, out)
                calls.append(None)

            return hook

        def backbone(module, args, out):
            t = order[len([name for name in self.found if re.fullmatch(r"backbone\.f\d+\.0", name)])]
            self.found |= {f"backbone.f{t}.{i}": x for i, x in enumerate(out)}

        yield model.img_backbone.register_forward_hook(lambda m, a, out: backbone(m, a, list(out)))
        yield model.img_neck.register_forward_hook(of_frame("img_neck", lambda args, out: out[0]))
        yield view.depth_net.register_forward_hook(of_frame("depth_net"))
        if model.head.stereo:
            net = view.depth_net.cost_volumn_net
            yield net.register_forward_hook(of_frame("cost_volume", lambda args, out: args[0]))
            yield net.register_forward_hook(of_frame("cost_volume_net"))
        yield view.register_forward_hook(of_frame("bev", lambda args, out: out[0]))
        yield view.register_forward_hook(of_frame("depth_prob", lambda args, out: out[1].flatten(0, 1)))
        if model.head.encoder.pre_blocks:
            yield model.pre_process_net.register_forward_hook(of_frame("pre_process", lambda args, out: out[0]))
        stages = model.img_bev_encoder_backbone
        yield stages.register_forward_pre_hook(lambda m, args: self.found.update(bev_encoder_in=args[0]))
        yield stages.register_forward_hook(
            lambda m, args, out: self.found.update({f"bev_backbone.{i}": x for i, x in enumerate(out)})
        )
        yield model.img_bev_encoder_neck.register_forward_hook(lambda m, args, out: self.found.update(bev_neck=out[0]))
