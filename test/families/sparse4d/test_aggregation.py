"""The sampling of past frames, of samples of which each has a history of its own."""

import numpy as np
import pytest
import torch

from bev_perception.families.catalog import build_model
from bev_perception.families.sparse4d.views import Views
from bev_perception.geometry import make_transform

from .kit import maps_config

CAMERAS, SAMPLES = 6, 3


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = build_model(maps_config()).head.eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return head


def frame(age, exists, levels=3):
    """A frame of three streams, each of which drives at its own speed."""
    generator = torch.Generator().manual_seed(round(10 * age))
    matrices = torch.eye(4).repeat(SAMPLES, CAMERAS, 1, 1)
    matrices[..., :3, :] = torch.randn(SAMPLES, CAMERAS, 3, 4, generator=generator) * 30
    poses = np.stack([make_transform(np.eye(3), (-age * speed, 0, 0)) for speed in range(SAMPLES)])
    stamps = np.full(SAMPLES, 10**18 - round(age * 1e9))
    maps = [torch.randn(SAMPLES, CAMERAS, 8 >> k, 20 >> k, 32, generator=generator) for k in range(levels)]
    present = torch.ones(SAMPLES, CAMERAS, dtype=torch.bool)
    return Views(maps, matrices, (64, 160), present, poses, stamps, np.array(exists))


def of(views, sample):
    """One stream's frame by itself."""
    row = slice(sample, sample + 1)
    return Views(
        *([level[row] for level in views.levels], views.reference2image[row], views.image_size, views.present[row]),
        *(views.reference2global[row], views.stamps[row]),
    )


def test_each_sample_has_its_own_history(head):
    """A batch whose samples have 2, 1 and no past frames gives what each gives alone."""
    frames = [frame(0.0, [True] * 3), frame(0.5, [True, True, False]), frame(1.0, [True, False, False])]
    together = head(frames)
    for sample, past in enumerate((2, 1, 0)):
        alone = head([of(views, sample) for views in frames[: 1 + past]])
        for ours, theirs in zip(together.stages, alone.stages, strict=True):
            torch.testing.assert_close(ours.boxes[sample], theirs.boxes[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(alone.last.boxes[0], head([of(frames[0], sample)]).last.boxes[0]) or past == 0


def test_a_frame_that_does_not_exist_teaches_nothing(head):
    """Gradients do not depend on what it holds."""
    found = []
    for scale in (1.0, 1e3):
        past = frame(0.5, [True, False, True])
        past.levels[0][1] *= scale
        head.zero_grad()
        head([frame(0.0, [True] * 3), past]).last.boxes.sum().backward()
        found.append({name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_history_of_no_sample_is_as_no_history(head):
    current = frame(0.0, [True] * 3)
    nothing = frame(0.5, [False] * 3)
    torch.testing.assert_close(head([current, nothing]).last.boxes, head([current]).last.boxes)
