"""The fast aggregation against its reference, forward and backward, and both against values by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.ops.deformable_aggregation import aggregate_features, aggregate_features_reference

BOTH = pytest.mark.parametrize("aggregate", [aggregate_features, aggregate_features_reference])


def random_scene(seed, batch, cameras, instances, points, groups, sizes, spread):
    """Random features, positions about `spread` image sizes around the middle, and weights; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = [normal(batch, cameras, h, w, groups * 3) for h, w in sizes]
    uv = 0.5 + spread * normal(batch, instances, points, cameras, 2)
    return levels, uv, normal(batch, instances, points, cameras, len(sizes), groups)


scenes = st.builds(
    random_scene,
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 2),
    cameras=st.integers(1, 4),
    instances=st.integers(1, 5),
    points=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 0.5, 10.0, 1e12]),
)


class TestFastAgainstReference:
    @settings(max_examples=60, deadline=None)
    @given(scenes, st.booleans(), st.booleans())
    def test_forward(self, scene, gate, per_point):
        found = aggregate_features(*scene, gate, per_point)
        torch.testing.assert_close(found, aggregate_features_reference(*scene, gate, per_point), rtol=1e-9, atol=1e-9)

    @settings(max_examples=30, deadline=None)
    @given(scenes, st.booleans())
    def test_forward_in_float32(self, scene, gate):
        levels, uv, weights = scene
        scene = ([level.float() for level in levels], uv.float(), weights.float())
        found, wanted = aggregate_features(*scene, gate), aggregate_features_reference(*scene, gate)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("gate", [True, False])
    @pytest.mark.parametrize("per_point", [True, False])
    def test_gradients(self, gate, per_point):
        levels, uv, weights = random_scene(7, 2, 3, 5, 4, 4, [(6, 9), (3, 5), (2, 2)], 0.4)
        leaves = [*levels, uv, weights]
        for leaf in leaves:
            leaf.requires_grad_()
        gradients = []
        for aggregate in (aggregate_features, aggregate_features_reference):
            out = aggregate(levels, uv, weights, gate, per_point)
            direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            gradients.append(torch.autograd.grad((out * direction).sum(), leaves))
        for fast, slow in zip(*gradients, strict=True):
            assert fast.abs().sum() > 0
            torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def ones(*uv, size=(2, 4)):
    """A map of ones, points at uv of one instance, and weights of one."""
    at = torch.tensor(uv, dtype=torch.float64).view(1, 1, len(uv), 1, 2)
    return [torch.ones(1, 1, *size, 2, dtype=torch.float64)], at, torch.ones(*at.shape[:4], 1, 1, dtype=torch.float64)


class TestReferenceAlone:
    @BOTH
    def test_interpolates_between_middles_of_cells(self, aggregate):
        level = torch.arange(8.0, dtype=torch.float64).view(1, 1, 2, 4, 1)
        _, uv, weights = ones((0.125, 0.25), (0.25, 0.25), (0.375, 0.5))
        found = aggregate([level], uv, weights, True, True)
        torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64))

    @BOTH
    def test_outside_of_the_image_only_the_gate_differs(self, aggregate):
        scene = ones((-0.0625, 0.5), (0.0, 0.5), (0.5, 1.125), (0.5, 1.0), (7.0, 0.5))
        assert not aggregate(*scene, True, True).any()
        found = aggregate(*scene, False, True)[0, 0, :, 0]
        torch.testing.assert_close(found, torch.tensor([0.25, 0.5, 0.25, 0.5, 0.0], dtype=torch.float64))

    @BOTH
    def test_groups_have_their_own_weights(self, aggregate):
        levels, uv, weights = ones((0.5, 0.5), (0.25, 0.25))
        weights = weights.expand(-1, -1, -1, -1, -1, 2) * torch.tensor([2.0, 3.0], dtype=torch.float64)
        torch.testing.assert_close(
            aggregate(levels, uv, weights, True), torch.tensor([[[4.0, 6.0]]], dtype=torch.float64)
        )

    @BOTH
    @pytest.mark.parametrize("count", [0, 3])
    def test_nothing_to_see(self, aggregate, count):
        levels, uv, weights = random_scene(0, 2, 2, count, 2, 2, [(3, 4)], 0.0)
        levels[0].requires_grad_()
        found = aggregate(levels, uv + 5, weights, True)
        assert found.shape == (2, count, 6) and not found.any()
        found.sum().backward()
        assert not levels[0].grad.any()

    @BOTH
    @pytest.mark.parametrize("gate", [True, False])
    def test_gradcheck(self, aggregate, gate):
        levels, uv, weights = random_scene(3, 1, 2, 2, 2, 2, [(3, 4), (2, 2)], 0.3)
        leaves = [leaf.requires_grad_() for leaf in (*levels, uv, weights)]
        assert torch.autograd.gradcheck(lambda a, b, at, w: aggregate([a, b], at, w, gate), leaves)
