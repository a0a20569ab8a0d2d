"""The bank's rules, worked out by hand; the parity cases have them over whole drives."""

import numpy as np
import torch

from bev_perception.families.sparse4d.anchors import move_anchors
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.families.sparse4d.instances import InstanceBank, Instances
from bev_perception.geometry import make_transform, rotation_from_yaw

SECOND = 1_000_000_000


def bank(**settings):
    head = Sparse4DHeadConfig(num_anchor=5, num_temporal=3, embed_dims=8, **settings)
    return InstanceBank(head, interval=0.5, max_gap=2.0)


def past(*stamps, pose=None):
    """Instances of the past, one stream for each stamp (s): rows at x = 0, 1, 2, as fast as 10 m/s along x."""
    count = len(stamps)
    anchors = torch.zeros(count, 3, 11)
    anchors[..., 0], anchors[..., 7], anchors[..., 8] = torch.arange(3.0), 1.0, 10.0
    return Instances(
        torch.full((count, 3, 8), 7.0),
        anchors,
        torch.tensor([[0.9, 0.5, 0.1]]).expand(count, -1),
        np.tile(np.eye(4) if pose is None else pose, (count, 1, 1)),
        np.array([round(stamp * SECOND) for stamp in stamps]),
    )


def now(seconds, count=1):
    return np.tile(np.eye(4), (count, 1, 1)), np.full(count, round(seconds * SECOND))


def test_past_instances_move_and_tell_their_age():
    recalled = bank().recall(past(0.0, 0.0), *now(0.4, 2))
    assert torch.allclose(recalled.anchors[0, :, 0], torch.tensor([4.0, 5.0, 6.0]))
    assert recalled.valid.tolist() == [True, True]
    assert torch.allclose(recalled.intervals, torch.tensor([0.4, 0.4]))


def test_streams_are_apart_and_what_is_too_old_moves_all_the_same():
    recalled = bank().recall(past(0.0, 3.0, 4.0, 4.5), *now(4.0, 4))
    assert recalled.valid.tolist() == [False, True, True, True]
    assert recalled.intervals.tolist() == [0.5, 1.0, 0.5, -0.5]  # of a sequence played backwards, too
    assert recalled.anchors[:, 0, 0].tolist() == [40.0, 10.0, 0.0, -5.0]


def test_stamps_of_today_are_precise():
    far = 1_700_000_000.0
    recalled = bank().recall(past(far), *now(far + 0.05))
    assert torch.allclose(recalled.intervals, torch.tensor([0.05]), atol=1e-6)


def test_the_vehicle_turns():
    pose = make_transform(rotation_from_yaw(np.pi / 2), np.array([0.0, 2.0, 0.0]))
    for swapped in (False, True):
        anchors = bank(swap_projected_yaw=swapped).recall(past(0.0, pose=pose), *now(0.1)).anchors[0, 1]
        assert torch.allclose(anchors[:3], torch.tensor([0.0, 4.0, 0.0]), atol=1e-6)
        assert torch.allclose(anchors[8:], torch.tensor([0.0, 10.0, 0.0]), atol=1e-5)
        sin, cos = anchors[[7, 6]] if swapped else anchors[[6, 7]]
        assert abs(sin - 1) < 1e-6 and abs(cos) < 1e-6


def test_moving_there_and_back_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(2, 4, 11, generator=generator, dtype=torch.float64)
    there = np.stack([make_transform(rotation_from_yaw(angle), np.array([3.0, angle, 1.0])) for angle in (0.3, 2.0)])
    seconds = torch.tensor([0.5, -1.0], dtype=torch.float64)
    away = move_anchors(anchors, torch.from_numpy(there), seconds)
    torch.testing.assert_close(move_anchors(away, torch.from_numpy(np.linalg.inv(there)), -seconds), anchors)


def test_the_best_current_instances_follow_the_past_ones():
    own = torch.arange(5.0).view(1, 5, 1)
    logits = torch.tensor([[[0.0, -1], [3, -9], [-5, 1], [2, 2.5], [-9, -9]]]).expand(2, -1, -1)
    features, anchors = own.expand(2, -1, 8), 100 + own.expand(2, -1, 11)
    recalled = bank().recall(past(3.5, 0.0), *now(4.0, 2))
    merged, moved = bank().merge(recalled, features, anchors, logits)
    assert merged[..., 0].tolist() == [[7, 7, 7, 1, 3], [0, 1, 2, 3, 4]]  # the other stream's past is too old
    assert moved[0, :, 1].tolist() == [0, 0, 0, 101, 103] and moved[1, :, 1].tolist() == [100, 101, 102, 103, 104]


def test_confidences_fade_slowly():
    logits = torch.logit(torch.tensor([[[0.2], [0.6], [0.3], [0.55], [0.1]]]))
    chosen, confidences = bank().select(logits, None)
    assert chosen.tolist() == [[1, 3, 2]] and torch.allclose(confidences, torch.tensor([[0.6, 0.55, 0.3]]))
    chosen, confidences = bank().select(logits, torch.tensor([[0.95, 0.2, 0.9]]))
    assert chosen.tolist() == [[1, 0, 3]]
    assert torch.allclose(confidences, torch.tensor([[0.6, 0.57, 0.55]]))


def test_features_are_learnt_with_maps_alone():
    maps = InstanceBank(Sparse4DHeadConfig(temporal="maps", num_anchor=5, num_temporal=3, embed_dims=8), 0.5, 2.0)
    assert maps.instance_feature.requires_grad and maps.instance_feature.any()
    assert not bank().instance_feature.requires_grad and not bank().instance_feature.any()
    assert bank().anchor.requires_grad
