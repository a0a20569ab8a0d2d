import math

import pytest
import torch

from bev_perception.config import BackboneConfig, EVA02Config
from bev_perception.models.backbones import build_backbone
from bev_perception.models.backbones.eva02 import Attention, join_windows, rotary_tables, split_windows
from bev_perception.models.checkpoints import CheckpointError, derived_keys, load_checkpoint

CPU = torch.device("cpu")
SMALL = EVA02Config(embed_dim=64, num_heads=2, window=4, trained_size=96, drop_path=0.0)


def build(config=SMALL, depth=3):
    torch.manual_seed(0)
    return build_backbone(BackboneConfig("eva02", depth, eva02=config)).eval()


def test_outputs():
    model = build()
    with torch.inference_mode():
        maps = model(torch.randn(2, 3, 96, 160))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, math.ceil(24 / 2**i), math.ceil(40 / 2**i)) for i, c in enumerate(model.out_channels)
    ]


def test_only_every_third_block_sees_the_whole_image():
    """A change in one corner reaches the opposite corner in a global block, and not before."""
    model = build(depth=4)
    tokens = []
    for block in model.blocks():
        block.register_forward_hook(lambda block, args, out: tokens.append(out))
    images = torch.randn(1, 3, 128, 128)
    changed = images.clone()
    changed[..., :16, :16] += 1
    with torch.inference_mode():
        model(images), model(changed)
    differs = [bool((tokens[i] - tokens[4 + i])[0, -1, -1].abs().max() > 0) for i in range(4)]
    assert differs == [False, False, True, True]


@pytest.mark.parametrize("height, width", [(4, 8), (5, 6), (3, 9), (1, 1)])
def test_windows_come_back(height, width):
    tokens = torch.randn(2, height, width, 5)
    windows = split_windows(tokens, 4)
    assert windows.shape == (2 * math.ceil(height / 4) * math.ceil(width / 4), 16, 5)
    assert torch.equal(join_windows(windows, 4, (2, height, width)), tokens)
    assert windows.abs().sum().item() == pytest.approx(tokens.abs().sum().item(), rel=1e-5)  # padded with zeros


def test_attention_depends_on_where_tokens_are_to_each_other():
    """The weight between two tokens stays when both move by as much, and changes when only one does."""
    tables = rotary_tables((8, 8), 8, 32, CPU)
    torch.manual_seed(0)
    attention = Attention(32, 1)
    query, key = torch.randn(32), torch.randn(32)

    def weight(of, at):
        tokens = torch.zeros(1, 2, 32)
        turned = tables[:, [of[0] * 8 + of[1], at[0] * 8 + at[1]]]
        pair = torch.stack([query, key])
        even, odd = pair[:, ::2], pair[:, 1::2]
        across = torch.stack([-odd, even], dim=-1).flatten(-2)
        q, k = pair * turned[0] + across * turned[1]
        assert attention(tokens, turned).shape == tokens.shape
        return (q @ k).item()

    assert weight((1, 2), (3, 5)) == pytest.approx(weight((4, 1), (6, 4)), abs=1e-4)
    assert abs(weight((1, 2), (3, 5)) - weight((1, 2), (4, 5))) > 1e-3


def test_branches_are_left_out_in_training_only():
    model = build(EVA02Config(embed_dim=64, num_heads=2, window=4, trained_size=96, drop_path=0.9))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images)[0], model(images)[0])
        model.train()
        assert not torch.equal(model(images)[0], model(images)[0])
    assert [block.drop_path for block in model.blocks()] == pytest.approx([0.0, 0.45, 0.9])


def test_gradients_reach_every_weight():
    model = build().train()
    sum(m.square().mean() for m in model(torch.randn(1, 3, 64, 96))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    model, images = build(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype):
            rough = model(images)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).abs().mean() < 0.05 * a.abs().mean()


def official(model):
    """What the official checkpoint would hold: the tables too, here laid out for another image size."""
    return model.state_dict() | {key: torch.ones(3, 5) for key in derived_keys(model)}


def test_the_tables_of_a_checkpoint_are_not_needed_and_not_read(tmp_path):
    source, path = build(), tmp_path / "weights.pth"
    torch.save({"state_dict": official(source)}, path)
    model = build(depth=3)
    with torch.no_grad():
        model.backbone["net"].pos_embed.zero_()
    load_checkpoint(model, path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
    torch.save(source.state_dict(), path)
    load_checkpoint(model, path)


def test_only_those_tables_are_passed_over(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(official(build()) | {"backbone.net.blocks.3.attn.rope.freqs_cos": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected:\n  backbone.net.blocks.3.attn.rope.freqs_cos"):
        load_checkpoint(build(), path)
