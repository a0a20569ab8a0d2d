"""The fast sampling against its plain twin, forward and backward, and both against values by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.ops.sampling import project_points, sample_features, sample_features_reference

BOTH = pytest.mark.parametrize("sample", [sample_features, sample_features_reference])


def random_scene(seed, batch, frames, cameras, queries, groups, per_group, sizes, spread):
    """Random features, points about `spread` m around random cameras (so half of them behind), and weights; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    levels = [[normal(batch, cameras, h, w, groups * 3) for h, w in sizes] for _ in range(frames)]
    points = normal(batch, frames, queries, groups, per_group, 3) * spread
    rotation, _ = torch.linalg.qr(normal(batch, frames, cameras, 3, 3))
    intrinsics = torch.tensor([[40.0, 0, 48], [0, 40, 32], [0, 0, 1]], dtype=torch.float64)
    matrices = torch.eye(4, dtype=torch.float64).repeat(batch, frames, cameras, 1, 1)
    matrices[..., :3, :3] = intrinsics @ rotation
    matrices[..., :3, 3] = (intrinsics @ normal(batch, frames, cameras, 3, 1))[..., 0]
    weights = normal(batch, frames, queries, groups, per_group, len(sizes)).softmax(-1)
    return levels, points, matrices, weights, (64, 96)


scenes = st.builds(
    random_scene,
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 2),
    frames=st.integers(1, 5),
    cameras=st.integers(1, 7),
    queries=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    spread=st.sampled_from([0.0, 1e-9, 0.5, 10.0, 1e9]),
)


@settings(max_examples=60, deadline=None)
@given(scenes)
def test_fast_equals_reference(scene):
    found = sample_features(*scene)
    assert found.isfinite().all()
    torch.testing.assert_close(found, sample_features_reference(*scene), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(scenes)
def test_fast_equals_reference_in_float32(scene):
    levels, points, matrices, weights, size = scene
    scene = ([[m.float() for m in maps] for maps in levels], points.float(), matrices.float(), weights.float(), size)
    found, wanted = sample_features(*scene), sample_features_reference(*scene)
    assert found.isfinite().all()
    # both round their pixel positions, differently: a cell's slope times that
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("frames, cameras", [(1, 3), (3, 6)])
@pytest.mark.parametrize("spread", [0.5, 10.0])
def test_gradients_equal_the_reference(frames, cameras, spread):
    levels, points, matrices, weights, size = random_scene(
        7, 2, frames, cameras, 5, 4, 3, [(6, 9), (3, 5), (2, 2)], spread
    )
    leaves = [*(m for maps in levels for m in maps), points, weights]
    for leaf in leaves:
        leaf.requires_grad_()
    found = sample_features(levels, points, matrices, weights, size)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fast = torch.autograd.grad((found * direction).sum(), leaves)
    reference = sample_features_reference(levels, points, matrices, weights, size)
    slow = torch.autograd.grad((reference * direction).sum(), leaves)
    assert all(g.abs().sum() > 0 for g in fast)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_gradcheck():
    levels, points, matrices, weights, size = random_scene(3, 1, 2, 3, 2, 2, 2, [(4, 5), (2, 3)], 3.0)
    maps = [m.requires_grad_() for frame in levels for m in frame]

    def run(points, weights, *maps):
        return sample_features([maps[:2], maps[2:]], points, matrices, weights, size)

    assert torch.autograd.gradcheck(run, (points.requires_grad_(), weights.requires_grad_(), *maps))


def forward_camera(width=8.0, height=4.0):
    """A camera at the origin that looks along z, of 8 x 4 pixels and 90 degrees across."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 0] = matrix[1, 1] = width / 2
    matrix[0, 2], matrix[1, 2] = width / 2, height / 2
    return matrix


def one_point(x, y, z):
    return torch.tensor([x, y, z], dtype=torch.float64).view(1, 1, 1, 1, 1, 3)


def constant_level(*values, size=(5, 9)):
    """One level of one camera a value: [1, N, h, w, 1]."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1, 1).expand(-1, -1, *size, -1).contiguous()


ONE = torch.ones(1, 1, 1, 1, 1, 1, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize(
    "point, column, row",
    [((0.0, 0.0, 5.0), 4.0, 2.0), ((2.5, 0.0, 5.0), 6.0, 2.0), ((0.0, -1.25, 5.0), 4.0, 1.0)],
)
def test_position_in_the_map(sample, point, column, row):
    """The image's corners are the middles of the corner cells."""
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(9.0), indexing="ij")
    level = torch.stack([x, y], -1).double()[None, None]
    # with one group the two channels come together: column, row
    found = sample([[level]], one_point(*point), forward_camera()[None, None, None], ONE, (4, 8))
    torch.testing.assert_close(found.flatten(), torch.tensor([column, row], dtype=torch.float64))


@BOTH
def test_the_first_camera_that_sees_the_point_is_taken(sample):
    backward = forward_camera() @ torch.diag(torch.tensor([1.0, 1, -1, 1], dtype=torch.float64))
    cameras = torch.stack([backward, forward_camera(), forward_camera()])[None, None]
    level = constant_level(10.0, 20.0, 30.0)
    assert sample([[level]], one_point(0, 0, 5), cameras, ONE, (4, 8)).item() == 20.0
    assert sample([[level]], one_point(0, 0, -5), cameras, ONE, (4, 8)).item() == 10.0


@BOTH
def test_unseen_points_fade_at_the_border_of_camera_0(sample):
    """No camera sees the point, but it is half a cell left of the first column of camera 0."""
    cameras = forward_camera()[None, None, None]
    half_a_cell_left = one_point(-5.0 * (1 + 0.5 / 4), 0, 5)  # the image is 8 cells wide between the outer middles
    level = constant_level(10.0)
    assert sample([[level]], half_a_cell_left, cameras, ONE, (4, 8)).item() == pytest.approx(5.0)
    assert sample([[level]], one_point(-20.0, 0, 5), cameras, ONE, (4, 8)).item() == 0.0


@BOTH
def test_a_camera_of_zeros_sees_nothing(sample):
    cameras = torch.stack([torch.zeros(4, 4, dtype=torch.float64), forward_camera()])[None, None]
    level = constant_level(0.0, 20.0)
    assert sample([[level]], one_point(0, 0, 5), cameras, ONE, (4, 8)).item() == 20.0
    assert sample([[level]], one_point(0, 0, -5), cameras, ONE, (4, 8)).item() == 0.0


def test_groups_frames_and_levels_stay_apart():
    """Group g of frame t reads its own channel of its own frame; levels add up by their weights."""
    frames, groups = 3, 2
    channels = torch.tensor([1.0, 2.0], dtype=torch.float64)
    levels = [
        [(100.0 * t + channels + 0.1 * i).expand(1, 1, 3, 3, groups).contiguous() for i in range(2)]
        for t in range(frames)
    ]
    points = one_point(0, 0, 5).expand(1, frames, 1, groups, 1, 3)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(1, frames, 1, groups, 1, 2)
    found = sample_features(levels, points, forward_camera().expand(1, frames, 1, 4, 4), weights, (4, 8))
    assert found.shape == (1, 1, groups, frames, 1)
    wanted = torch.tensor([[1.075, 101.075, 201.075], [2.075, 102.075, 202.075]], dtype=torch.float64)
    torch.testing.assert_close(found[0, 0, ..., 0], wanted)


def test_project_points():
    points = torch.tensor([[[0.0, 0, 5], [5, 0, 5], [0, 0, -5], [1, 1, 0]]], dtype=torch.float64)[:, None]
    uv, depth, visible = project_points(points, forward_camera()[None, None, None], (4, 8))
    assert uv[0, 0, 0, :, 0].tolist() == [0.5, 0.5]
    assert depth[0, 0, 0].tolist() == [5.0, 5.0, 1e-5, 1e-5]
    assert visible[0, 0, 0].tolist() == [True, False, False, False]  # the border itself is outside
