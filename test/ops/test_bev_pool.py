import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.ops.bev_pool import bev_pool, bev_pool_reference, plan_pool


def case(seed, shape=(2, 3, 4, 2, 5), channels=3, count=7, dtype=torch.float64):
    """Probabilities, vectors and cells [B, N, D, h, w]; some points lie in no cell."""
    generator = torch.Generator().manual_seed(seed)
    batch, cameras, _, height, width = shape
    depth = torch.rand(shape, generator=generator, dtype=dtype).softmax(dim=2)
    context = torch.randn(batch, cameras, channels, height, width, generator=generator, dtype=dtype)
    return depth, context, torch.randint(-1, count, shape, generator=generator), count


class TestAgainstTheReference:
    @settings(max_examples=25, deadline=None)
    @given(
        st.tuples(*(st.integers(1, n) for n in (2, 3, 4, 3, 5))),
        st.integers(1, 4),
        st.integers(1, 9),
        st.integers(0, 99),
    )
    def test_forward_and_backward(self, shape, channels, count, seed):
        depth, context, index, count = case(seed, shape, channels, count)
        results = []
        for pool in (
            lambda d, c: bev_pool(d, c, plan_pool(index, count)),
            lambda d, c: bev_pool_reference(d, c, index, count),
        ):
            arguments = [x.clone().requires_grad_() for x in (depth, context)]
            pooled = pool(*arguments)
            gradients = torch.autograd.grad((pooled * torch.arange(pooled.numel()).view_as(pooled)).sum(), arguments)
            results.append((pooled, *gradients))
        for found, wanted in zip(*results, strict=True):
            torch.testing.assert_close(found, wanted)

    def test_in_single_precision(self):
        depth, context, index, count = case(0, (1, 6, 16, 4, 11), 8, 100, torch.float32)
        found = bev_pool(depth, context, plan_pool(index, count))
        torch.testing.assert_close(found, bev_pool_reference(depth, context, index, count))
        assert torch.equal(found, bev_pool(depth, context, plan_pool(index, count)))

    def test_a_point_that_is_nowhere_and_gradients_of_nothing(self):
        depth, context, index, count = case(0)
        arguments = [x.requires_grad_() for x in (depth, context)]
        pooled = bev_pool(*arguments, plan_pool(torch.full_like(index, -1), count))
        assert pooled.shape == (count, 3) and not pooled.any()
        assert not any(g.any() for g in torch.autograd.grad(pooled.sum(), arguments))

    def test_a_plan_of_a_plan(self):
        _, _, index, count = case(3)
        plan = plan_pool(index, count)
        assert plan.count == count and (plan.cells.diff() > 0).all()
        in_order = index.flatten()[plan.points]
        assert (in_order >= 0).all() and (in_order.diff() >= 0).all() and len(in_order) == (index >= 0).sum()


class TestTheReference:
    def test_by_hand(self):
        """Two pixels at two depths: the first puts all it has into cell 0, the second shares between 0 and 2."""
        depth = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).view(1, 1, 2, 1, 2)
        context = torch.tensor([[1.0, 10.0], [2.0, 20.0]]).view(1, 1, 2, 1, 2)  # vectors (1, 2) and (10, 20)
        index = torch.tensor([[0, 0], [0, 2]]).view(1, 1, 2, 1, 2)
        pooled = bev_pool_reference(depth, context, index, 3)
        assert pooled.tolist() == [[6.0, 12.0], [0.0, 0.0], [5.0, 10.0]]

    @pytest.mark.parametrize("which", [0, 1])
    def test_gradcheck(self, which):
        depth, context, index, count = case(1, (1, 2, 3, 2, 2), 2, 4)
        arguments = [depth, context]
        arguments[which].requires_grad_()
        assert torch.autograd.gradcheck(lambda *a: bev_pool_reference(*a, index, count), arguments)
        assert torch.autograd.gradcheck(lambda *a: bev_pool(*a, plan_pool(index, count)), arguments)
