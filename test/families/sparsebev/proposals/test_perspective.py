"""What the perspective head should say: boxes planted before cameras of known places, and the losses."""

import math

import pytest
import torch

from bev_perception.families.catalog import build_model
from bev_perception.families.sparsebev.proposals.losses import (
    CODE_WEIGHTS,
    draw_heat,
    find_sightings,
    perspective_losses,
)
from bev_perception.families.sparsebev.proposals.perspective import (
    NUM_CODES,
    PerspectiveHead,
    PerspectiveOutput,
    invert_cameras,
    lift,
    ray_codes,
)
from bev_perception.families.variants import load_variant
from bev_perception.supervision.samples import BoxTruth
from bev_perception.training.train import find_part

SIZE = (128, 256)  # height, width of the images
CELLS = (16, 32)  # of 8 pixels
FOCAL = 100.0


def camera(yaw=0.0):
    """A level camera at the origin that looks along `yaw`: reference frame to depth-scaled pixels, [4, 4]."""
    c, s = math.cos(yaw), math.sin(yaw)
    ahead, right, down = [c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]
    middle = (SIZE[1] / 2, SIZE[0] / 2)
    matrix = torch.eye(4)
    matrix[0, :3] = torch.tensor([FOCAL * r + middle[0] * a for r, a in zip(right, ahead, strict=True)])
    matrix[1, :3] = torch.tensor([FOCAL * d + middle[1] * a for d, a in zip(down, ahead, strict=True)])
    matrix[2, :3] = torch.tensor(ahead)
    return matrix


def box(x, y, z=0.0, yaw=0.0):
    """4 m long, 2 m wide, 1.5 m high."""
    return [x, y, z, 4.0, 2.0, 1.5, yaw, 0.0, 0.0]


def truth(*boxes, labels=None):
    labels = range(len(boxes)) if labels is None else labels
    return BoxTruth(torch.tensor(boxes).reshape(-1, 9), torch.tensor(list(labels), dtype=torch.int64))


def find(known, *matrices, first=0):
    return find_sightings(known, torch.stack(matrices), SIZE, CELLS, first)


def test_a_box_ahead_is_seen_where_it_projects():
    """10 m ahead, 2 m to the left, 1 m up: 20 pixels left of the middle and 10 above it, in cells of 8 pixels."""
    seen = find(truth(box(10.0, 2.0, 1.0), labels=[3]), camera())
    assert seen.image.tolist() == [0] and seen.label.tolist() == [3]
    assert seen.cell[0].tolist() == pytest.approx([108 / 8, 54 / 8])
    offset_x, offset_y, span, length, width, height, cos, sin = seen.codes[0].tolist()
    assert (offset_x, offset_y) == pytest.approx((13.5 - 13 - 0.5, 6.75 - 6 - 0.5))
    assert [math.exp(v) for v in (span, length, width, height)] == pytest.approx([10 / FOCAL, 4, 2, 1.5])
    assert math.atan2(sin, cos) == pytest.approx(-math.atan2(2, 10))  # it heads to the right of its own ray


def test_what_is_turned_alike_against_its_ray_has_the_same_heading():
    """Seen from above, whichever way the camera looks and the ray goes."""
    boxes = [box(10 * math.cos(a), 10 * math.sin(a), yaw=a + math.pi / 3) for a in (0.0, 0.4, -0.5)]
    seen = find(truth(*boxes), camera(), camera(0.1))
    assert len(seen.image) == 6
    expected = torch.tensor([math.cos(math.pi / 3), math.sin(math.pi / 3)]).expand(6, 2)
    assert torch.allclose(seen.codes[:, 6:], expected, atol=1e-5)


def mirrored(matrix):
    """The camera of an image that is flipped."""
    flip = torch.eye(4)
    flip[0, 0], flip[0, 2] = -1, SIZE[1]
    return flip @ matrix


def test_a_mirrored_image_mirrors_the_heading_and_lift_knows():
    known = truth(box(10.0, 1.0, 0.2, yaw=1.0))
    plain, flipped = (find(known, m).codes[0] for m in (camera(), mirrored(camera())))
    assert flipped[[2, 3, 4, 5, 6]].tolist() == pytest.approx(plain[[2, 3, 4, 5, 6]].tolist(), abs=1e-6)
    assert flipped[7].item() == pytest.approx(-plain[7].item()) and plain[7] > 0.5
    matrices = mirrored(camera())[None, None]
    boxes, _ = lift(perfect((known,), matrices), invert_cameras(matrices), SIZE, 1)
    assert torch.atan2(boxes[0, 0, 6], boxes[0, 0, 7]).item() == pytest.approx(1.0, abs=1e-4)


def test_the_heat_spreads_with_the_height_in_the_image_within_limits():
    seen = find(truth(box(2.0, 0.0), box(6.0, 0.0), box(50.0, 0.0)), camera())
    heights = [FOCAL * 1.5 / d / 8 for d in (2, 6, 50)]  # cells
    assert seen.spread.tolist() == pytest.approx([0.15 * heights[0], 0.5, 0.5])
    assert find(truth(box(1.5, 0.0)), camera()).spread.tolist() == pytest.approx([0.15 * FOCAL / 8])


@pytest.mark.parametrize("place", [(-10.0, 0.0), (0.5, 0.0), (10.0, 20.0), (10.0, -20.0), (10.0, 0.0, 9.0)])
def test_boxes_behind_the_camera_and_outside_of_the_image_are_not_seen(place):
    seen = find(truth(box(*place), box(10.0, 0.0), labels=[1, 2]), camera())
    assert seen.label.tolist() == [2] and seen.codes.isfinite().all()


def test_each_camera_sees_its_own_and_images_are_counted_from_the_first_of_the_sample():
    ahead, left, behind = box(10.0, 0.0), box(0.0, 10.0), box(-10.0, 0.0)
    between = box(10.0, 10.0)  # at 45 degrees: at the border of two images that are 52 degrees wide to either side
    cameras = [camera(yaw) for yaw in (0.0, math.pi / 2, math.pi)]
    seen = find(truth(ahead, left, behind, between), *cameras, first=6)
    pairs = sorted(zip(seen.image.tolist(), seen.label.tolist(), strict=True))
    assert pairs == [(6, 0), (6, 3), (7, 1), (7, 3), (8, 2)]


def test_the_heat_is_one_at_its_cell_and_falls_around_it():
    seen = find(truth(box(10.0, 2.0, 1.0), box(10.0, 1.2, 1.0), labels=[3, 3]), camera(), camera(math.pi))
    heat = draw_heat(seen, torch.Size([2, 5, *CELLS]))
    x, y = 13, 6
    assert heat[0, 3, y, x] == 1 and heat[0, 3, y, 14] == 1
    assert heat[0, 3, y, 12] == pytest.approx(math.exp(-1 / (2 * 0.5**2)))
    assert heat[0, 3, y + 1, x] == heat[0, 3, y, 12] > heat[0, 3, y + 2, x]
    assert heat[0, [0, 1, 2, 4]].sum() == 0 and heat[1].sum() == 0
    assert heat.max() == 1


def perfect(truths, matrices):
    """What a head without a fault would say."""
    cameras = len(matrices[0])
    output = PerspectiveOutput(
        torch.full((len(truths), cameras, 10, *CELLS), -20.0), torch.zeros(len(truths), cameras, NUM_CODES, *CELLS)
    )
    for b, known in enumerate(truths):
        seen = find_sightings(known, matrices[b], SIZE, CELLS, 0)
        for image, label, cell, codes in zip(seen.image, seen.label, seen.cell.long(), seen.codes, strict=True):
            output.heat[b, image, label, cell[1], cell[0]] = 20.0
            output.codes[b, image, :, cell[1], cell[0]] = codes
    return output


@pytest.fixture
def two_samples():
    matrices = torch.stack([torch.stack([camera(), camera(math.pi)]), torch.stack([camera(0.3), camera(-2.0)])])
    return (truth(box(10.0, 2.0), box(-12.0, 1.0)), truth(box(8.0, 1.0), labels=[7])), matrices


def test_a_perfect_answer_costs_nothing(two_samples):
    truths, matrices = two_samples
    losses = perspective_losses(perfect(truths, matrices), truths, matrices, SIZE)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"loss_heat": 0, "loss_codes": 0}, abs=1e-4
    )
    swapped = perspective_losses(perfect(truths, matrices), truths[::-1], matrices, SIZE)
    assert swapped["loss_heat"] > 10 and swapped["loss_codes"] > 0.1


def test_codes_are_learnt_in_the_cell_of_the_middle_alone():
    corner = truth(box(10.0, 12.5, 6.2))
    seen = find(corner, camera())
    assert seen.cell.floor().tolist() == [[0, 0]]
    codes = (torch.ones(1, 1, NUM_CODES, *CELLS) * 9).requires_grad_()
    output = PerspectiveOutput(torch.zeros(1, 1, 10, *CELLS), codes)
    perspective_losses(output, (corner,), camera()[None, None], SIZE)["loss_codes"].backward()
    torch.testing.assert_close(codes.grad[0, 0, :, 0, 0], torch.tensor(CODE_WEIGHTS))
    assert codes.grad.count_nonzero() == NUM_CODES


def test_losses_are_averaged_over_the_objects_seen(two_samples):
    """Two samples of one object each cost what the mean of the two costs."""
    _, matrices = two_samples
    truths = truth(box(10.0, 2.0)), truth(box(8.0, 1.0), labels=[7])
    output = PerspectiveHead(8, 10, -1.5)(torch.randn(2, 2, *CELLS, 8), invert_cameras(matrices), SIZE)
    both = perspective_losses(output, truths, matrices, SIZE)
    parts = [
        perspective_losses(
            PerspectiveOutput(output.heat[b : b + 1], output.codes[b : b + 1]),
            truths[b : b + 1],
            matrices[b : b + 1],
            SIZE,
        )
        for b in range(2)
    ]
    for name, loss in both.items():
        assert loss.item() == pytest.approx(sum(part[name].item() for part in parts) / 2, rel=1e-4)


def test_a_batch_without_objects_has_finite_losses_and_gradients(two_samples):
    _, matrices = two_samples
    head = PerspectiveHead(8, 10, -1.5)
    output = head(torch.randn(2, 2, *CELLS, 8), invert_cameras(matrices), SIZE)
    losses = perspective_losses(output, (truth(), truth()), matrices, SIZE)
    assert losses["loss_codes"] == 0 and losses["loss_heat"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_the_head_learns_a_planted_box(two_samples):
    truths, matrices = two_samples
    torch.manual_seed(0)
    head, features = PerspectiveHead(8, 10, -1.5), torch.randn(2, 2, *CELLS, 8)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    found = []
    for _ in range(40):
        loss = sum(perspective_losses(head(features, invert_cameras(matrices), SIZE), truths, matrices, SIZE).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.5 * found[0]
    assert head(features, invert_cameras(matrices), SIZE).heat.shape == (2, 2, 10, *CELLS)


def test_the_count_is_that_of_all_processes(two_samples, monkeypatch):
    """Where another process has seen twice as many, each object here weighs less."""
    truths, matrices = two_samples
    output = PerspectiveHead(8, 10, -1.5)(torch.randn(2, 2, *CELLS, 8), invert_cameras(matrices), SIZE)
    alone = perspective_losses(output, truths, matrices, SIZE)
    target = "bev_perception.families.sparsebev.proposals.losses.average_count"
    monkeypatch.setattr(target, lambda counts, device: 2 * torch.tensor(counts, dtype=torch.float32))
    shared = perspective_losses(output, truths, matrices, SIZE)
    for name in alone:
        assert shared[name].item() == pytest.approx(alone[name].item() / 2, rel=1e-4)


def test_rays_meet_the_ground_where_it_is():
    """A level camera 1.5 m up: 30 pixels below the middle the ground is 100 * 1.5 / 30 m away; above there is none."""
    rays = ray_codes(invert_cameras(camera()[None, None]), SIZE, CELLS, ground=-1.5)[0, 0]  # [h, w, 2]
    rows = (torch.arange(CELLS[0]) + 0.5) * 8 - 64  # pixels below the middle
    assert torch.allclose(rays[..., 0], (-5 * rows / FOCAL)[:, None].expand(CELLS), atol=1e-5)
    depth = FOCAL * (4 * rays[..., 1]).exp()
    below = rows > 2
    assert torch.allclose(depth[below], (FOCAL * 1.5 / rows[below])[:, None].expand(-1, CELLS[1]), rtol=1e-4)
    assert torch.allclose(depth[rows < 0], torch.tensor(100.0))


def test_what_is_lifted_is_what_was_seen(two_samples):
    """lift inverts find_sightings: known boxes come back in the reference frame, each with its class."""
    truths, matrices = two_samples
    boxes, labels = lift(perfect(truths, matrices), invert_cameras(matrices), SIZE, 2)
    assert boxes.shape == (2, 2, 8) and labels.shape == (2, 2)
    for known, found, classes in zip(truths, boxes, labels, strict=True):
        for box_, label in zip(known.boxes, known.labels, strict=True):
            here = found[classes == label][0]
            yaw = torch.atan2(here[6], here[7])
            assert torch.cat([here[:3], here[3:6].exp(), yaw[None]]).tolist() == pytest.approx(
                box_[:7].tolist(), abs=1e-3
            )


def test_only_peaks_of_cameras_that_are_there_are_lifted(two_samples):
    truths, matrices = two_samples
    seen = perfect(truths[:1], matrices[:1])
    ahead = find(truths[0], matrices[0, 0])
    x, y = ahead.cell[0].long().tolist()
    seen.heat[0, 0, 0, y, x + 1] = 19.0  # beside the peak, and higher than all else
    seen.heat[0, 0, 5, 2, 2] = 1.0
    _, labels = lift(seen, invert_cameras(matrices[:1]), SIZE, 3)
    assert labels[0].tolist() in ([0, 1, 5], [1, 0, 5])
    blind = matrices[:1].clone()
    blind[0, 1] = 0.0  # the camera that sees the second box is missing
    boxes, labels = lift(seen, invert_cameras(blind), SIZE, 2)
    assert labels[0].tolist() == [0, 5] and boxes.isfinite().all()


def test_wild_codes_are_lifted_to_boxes_in_reach(two_samples):
    _, matrices = two_samples
    wild = PerspectiveOutput(torch.randn(2, 2, 10, *CELLS), 1e4 * torch.randn(2, 2, NUM_CODES, *CELLS))
    boxes, _ = lift(wild, invert_cameras(matrices), SIZE, 20)
    assert boxes.isfinite().all() and boxes[..., 3:6].abs().max() <= 3.5


def test_in_bf16_its_wide_layers_are_lowered_and_what_it_says_is_float32():
    config = load_variant("sparsebev_tiny")
    torch.manual_seed(0)
    features = torch.randn(1, 1, 4, 8, config.neck.out_channels)
    back = invert_cameras(camera()[None, None])
    taken, said = [], []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(1)
        model = build_model(config)
        find_part(config, "encoder").step(model, config.training, precision)
        head = model.perspective_head
        with torch.no_grad():
            for branch in (head.heat, head.codes):
                branch[2].weight *= 10  # untrained, it says much the same everywhere
        head.heat[1].register_forward_hook(lambda _, values, __: taken.append(values[0]))
        said.append(head(features, back, SIZE))
    assert taken[0].dtype == taken[1].dtype == torch.float32
    assert torch.equal(taken[1], taken[1].bfloat16().float()) and not torch.equal(taken[0], taken[0].bfloat16().float())
    assert said[1].heat.dtype == said[1].codes.dtype == torch.float32
    torch.testing.assert_close(said[1].heat, said[0].heat, atol=0.05, rtol=0.02)
    torch.testing.assert_close(said[1].codes, said[0].codes, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("cameras", [1, 3])
def test_what_is_remembered_of_an_image_serves_from_any_pose(cameras):
    config = load_variant("sparsebev_tiny")
    torch.manual_seed(0)
    head = build_model(config).perspective_head
    features = torch.randn(1, cameras, 4, 8, config.neck.out_channels)
    looked = head.look(features[0])[None]
    for shift in (0.0, 3.0):
        pose = camera()
        pose[:3, 3] += shift
        back = invert_cameras(pose.expand(1, cameras, -1, -1))
        anew, remembered = head(features, back, SIZE), head.predict(looked, back, SIZE)
        torch.testing.assert_close(remembered.heat, anew.heat, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(remembered.codes, anew.codes, atol=1e-5, rtol=1e-5)
