import dataclasses

import pytest
import torch
from torch import nn

from bev_perception.config import BackboneConfig, ConfigError, NeckConfig, SwinConfig
from bev_perception.models.backbones import build_backbone
from bev_perception.models.backbones.swin import BLOCKED, relative_index, resize_bias_table, shift_mask
from bev_perception.models.checkpoints import CheckpointError, load_pretrained
from bev_perception.models.necks import build_neck

SMALL = SwinConfig(embed_dim=8, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), windows=(4, 4, 4, 3))


def small(first_level=2, with_first=True, **changes):
    config = BackboneConfig(
        "swin", 8, first_level=first_level, with_first=with_first, swin=dataclasses.replace(SMALL, **changes)
    )
    torch.manual_seed(0)
    return build_backbone(config).eval()


def in_model(backbone):
    return nn.ModuleDict({"img_backbone": backbone})


@pytest.mark.parametrize("changes", [{}, {"shifted": False, "positions": True}])
def test_outputs(changes):
    model = small(**changes)
    maps = model(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 32, 4, 6), (2, 64, 2, 3)]
    assert model.out_channels == (8, 32, 64)
    assert len(model.blocks()) == 8 and not model.frozen_parameters()
    assert [b.drop for b in model.blocks()][::7] == [0.0, 0.1]


def test_odd_sizes_are_padded():
    assert [tuple(m.shape[2:]) for m in small(0, False)(torch.randn(1, 3, 36, 52))] == [(9, 13), (5, 7), (3, 4), (2, 2)]


def test_a_shift_lets_windows_see_their_neighbours():
    """A change in one window of the map reaches another one only with shifted windows."""
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[..., :4, :4] += 1  # the first token of the first window
    for shifted in (True, False):
        model = small(shifted=shifted)
        with torch.no_grad():
            change = (model.first_map(changed) - model.first_map(images)).abs().sum(dim=1)[0]
        assert bool(change[4:, 4:].any()) == shifted


def test_masks_keep_apart_what_only_the_shift_has_joined():
    mask = shift_mask(8, 8, 4, 2, torch.device("cpu"))
    assert shift_mask(8, 8, 4, 2, torch.device("cpu")) is mask  # made once
    assert mask.shape == (4, 16, 16) and not mask[0].any()  # the first window is in one piece
    assert mask[3, 0, 15] == BLOCKED and mask[3, 0, 5] == 0  # the last one in four
    assert set(mask.unique().tolist()) == {0.0, BLOCKED}


def test_a_mask_of_inference_serves_training():
    shift_mask.cache_clear()
    model, images = small(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        model(images)
    model(images)[-1].sum().backward()


def test_relative_index():
    index = relative_index(2)  # tokens (0, 0), (0, 1), (1, 0), (1, 1)
    assert index[0].tolist() == [4, 3, 1, 0] and index[3].tolist() == [8, 7, 5, 4]


def test_bias_tables_of_other_windows():
    table = torch.randn(49, 2)
    assert resize_bias_table(table, 7) is table
    steep = (torch.arange(-6.0, 7)[:, None].abs() + torch.arange(-6.0, 7).abs()).reshape(-1, 1)
    for side, farthest in ((7, 3), (31, 6)):  # in smaller windows tokens keep theirs, larger ones are stretched to
        resized = resize_bias_table(steep, side).reshape(side, side)
        middle = side // 2
        assert resized[middle, middle].item() == pytest.approx(0, abs=1e-4)
        assert resized[0, middle].item() == pytest.approx(farthest, rel=0.02)
        torch.testing.assert_close(resized, resized.T, rtol=1e-3, atol=1e-3)


def official(model):
    """A model's weights as the paper's release names and orders them."""
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith("norm"):
            continue
        if ".downsample." in name:
            value = value.unflatten(-1, (-1, 2, 2)).transpose(-1, -2).movedim(-3, -1).flatten(-3)
        for new, old in (
            ("stages.", "layers."),
            (".attn.w_msa.", ".attn."),
            (".ffn.layers.0.0.", ".mlp.fc1."),
            (".ffn.layers.1.", ".mlp.fc2."),
            ("patch_embed.projection.", "patch_embed.proj."),
        ):
            name = name.replace(new, old)
        state[name] = value
    return {"model": {**state, "norm.weight": torch.ones(64), "head.weight": torch.ones(3, 64)}}


def test_the_release_of_the_paper(tmp_path):
    trained, fresh, path = small(), small(), tmp_path / "swin.pth"
    for parameter in trained.parameters():
        parameter.data.normal_()
    torch.save(official(trained), path)
    wanted = {"norm2.weight": torch.ones(32), "norm3.bias": torch.zeros(64)}  # of these it has none
    load_pretrained(in_model(fresh), path, "img_backbone")
    for name, value in fresh.state_dict().items():
        if not name.startswith("norm"):
            assert torch.equal(value, trained.state_dict()[name]), name
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in wanted.items())


def test_merging_takes_its_pixels_in_the_order_of_the_release():
    """Column by column: (0, 0), (1, 0), (0, 1), (1, 1), each with all of its channels."""
    model = small()
    rows = torch.arange(4.0).repeat_interleave(8)[None].repeat(16, 1)  # which pixel an input of the release is of
    adapted = model.adapt_pretrained({"layers.0.downsample.reduction.weight": rows})
    assert adapted["stages.0.downsample.reduction.weight"][0, :4].tolist() == [0, 2, 1, 3]  # row by row


def test_geomim(tmp_path):
    """Its file holds a whole model, with windows of another size in the last stage."""
    path = tmp_path / "geomim.pth"
    trained = small(shifted=False, positions=True, windows=(4, 4, 4, 4))
    state = {f"encoders.camera.backbone.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": {**state, "decoder.weight": torch.ones(2)}}, path)
    model = small(shifted=False, positions=True)
    for parameter in model.parameters():
        parameter.data.zero_()
    load_pretrained(in_model(model), path, "img_backbone")
    found, wanted = model.state_dict(), trained.state_dict()
    last = "stages.3.blocks.0.attn.w_msa."
    assert found[f"{last}relative_position_bias_table"].shape == (25, 8)
    assert torch.equal(found[f"{last}relative_position_index"], relative_index(3))
    same = [name for name in found if not name.endswith(("index", "table"))]
    assert all(torch.equal(found[name], wanted[name]) for name in same)
    with pytest.raises(CheckpointError, match="lacks 1 of the"):
        state.pop("encoders.camera.backbone.absolute_pos_embed")
        torch.save({"state_dict": state}, path)
        load_pretrained(in_model(model), path, "img_backbone")


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: BackboneConfig("swin", 12), "must be the sum of swin.depths, 24"),
        (lambda: BackboneConfig("resnet", 50, swin=SMALL), "swin has no meaning"),
        (lambda: BackboneConfig("resnet", 50, with_first=True), "given already"),
        (lambda: BackboneConfig("vovnet", 99, first_level=2, with_first=True), "first_level and with_first cannot"),
        (lambda: dataclasses.replace(SMALL, heads=(3, 2, 4, 8)), "heads of a stage must divide"),
        (lambda: dataclasses.replace(SMALL, drop_path=1.0), "drop_path"),
        (lambda: dataclasses.replace(SMALL, depths=(0, 2, 2, 2)), "must be positive"),
        (lambda: build_neck(NeckConfig("lss", 8, 2), (4, 8)), "'lss' makes one map of two"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        wrong()


def test_the_neck_joins_two_maps():
    neck = build_neck(NeckConfig("lss", 8, 1), (4, 6)).eval()
    (joined,) = neck([torch.randn(2, 4, 6, 10), torch.randn(2, 6, 3, 5)])
    assert joined.shape == (2, 8, 6, 10)


def test_a_pyramid_may_have_fewer_levels_than_maps():
    neck = build_neck(NeckConfig("fpn", 8, 1), (4, 6))
    (level,) = neck([torch.randn(2, 4, 6, 10), torch.randn(2, 6, 3, 5)])
    assert level.shape == (2, 8, 6, 10) and len(neck.fpn_convs) == 1


def test_layers_for_learning_rates():
    """Patches and positions, then block by block; merging goes with the block after it, output norms come last."""
    model = small(positions=True)
    blocks = [
        name
        for stage in range(4)
        for name in (f"stages.{stage}.blocks.{k}" for k in range(len(model.stages[stage]["blocks"])))
    ]
    assert model.layer_count == len(blocks) + 1
    found = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert {found[name] for name in found if name.startswith(("patch_embed", "absolute_pos_embed"))} == {0}
    for k, block in enumerate(blocks):
        assert {layer for name, layer in found.items() if name.startswith(f"{block}.")} == {k + 1}
    first = len(model.stages[0]["blocks"])
    assert {layer for name, layer in found.items() if name.startswith("stages.0.downsample")} == {first + 1}
    assert found["norm3.weight"] == model.layer_count
