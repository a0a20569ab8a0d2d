"""docs/extending.md, tried: a family is a folder, an entry of the catalog and a YAML file; nothing else changes."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bev_perception.data.rosbag import write_bag

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bev_perception"
FAMILIES = sorted(path.parent.name for path in PACKAGE.glob("families/*/family.py"))

CONFIG = '''
"""The settings of the toy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ToyHead:
    """One box before the vehicle.

    distance: m, of the box
    """

    distance: float = 10.0


@dataclass(frozen=True)
class ToyRecipe:
    """How the toy is trained.

    weight: factor on its loss
    """

    weight: float = 1.0
'''

MODEL = '''
"""One box whose length is learnt from the images, of all frames."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.models.encoder import CameraModel
from bev_perception.models.protocol import NotFiniteError, Perception
from bev_perception.types import Boxes3D, Limits


@dataclass(frozen=True)
class ToyOutput:
    """length: [B] m."""

    length: Tensor
    finite: Tensor


class Toy(CameraModel[ToyOutput]):
    """The toy."""

    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.neck.out_channels, 1)

    def measure(self, levels_by_frame):
        """Return the length [B] that the coarsest levels [B, N, h, w, C] of all frames tell."""
        features = torch.stack([levels[-1].mean(dim=(1, 2, 3)) for levels in levels_by_frame]).mean(dim=0)
        length = 4 + self.head(features)[:, 0]
        return ToyOutput(length, length.isfinite().all())

    def look(self, frames, current):
        return self.measure([[level[None] for level in frame.levels] for frame in frames])

    def decode(self, outputs, limits: Limits) -> Perception:
        length = outputs.length.cpu().numpy()
        if not np.isfinite(length).all():
            raise NotFiniteError("no length")
        centers = np.array([[self.config.head.distance, 0.0, 0.0]])
        sizes = np.array([[length[0], 2.0, 1.5]])
        names = self.config.class_names
        boxes = Boxes3D(centers, sizes, np.zeros(1), np.zeros((1, 2)), np.ones(1), np.zeros(1, int), names)
        return Perception(boxes=boxes)
'''

STEP = '''
"""The training step of the toy."""

from bev_perception.supervision.samples import sample_generators
from bev_perception.supervision.step import TrainingStep


class ToyStep(TrainingStep):
    """Learns that every box is 4.5 m long."""

    loss_names = ("loss_length",)

    def decoder_passes(self):
        return ()

    def forward(self, batch, memory):
        views = self.encode(batch, sample_generators(batch))
        length = self.model.measure(views.levels_by_frame).length
        return {"loss_length": self.recipe.family.weight * (length - 4.5).abs().mean().double()}, memory
'''

FAMILY = '''
"""The toy for the catalog."""

from bev_perception.families.family import BOXES, Family
from bev_perception.families.toy.config import ToyHead, ToyRecipe
from bev_perception.types import Limits


def _build(config):
    from bev_perception.families.toy.model import Toy

    return Toy(config)


def _truths(config, records, labels):
    from bev_perception.supervision.truths import BoxTruths

    return BoxTruths(config.class_names, TOY.area(config), records)


def _steps(config):
    from bev_perception.families.toy.step import ToyStep
    from bev_perception.supervision.parts import TrainedPart

    return {"all": TrainedPart(ToyStep)}


TOY = Family(
    head=ToyHead,
    recipe=ToyRecipe,
    classes=("car", "pedestrian"),
    gives=lambda config: frozenset({BOXES}),
    area=lambda config: (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0),
    limits=lambda config: Limits(0.0, 1),
    grid=lambda config: None,
    build=_build,
    truths=_truths,
    steps=_steps,
)
'''

VARIANT = """
name: toy_tiny
family: toy
image: {height: 64, width: 176}
frames: {past: 1}
backbone: {type: resnet, depth: 10, width: 16, first_level: 1, patches: true}
neck: {out_channels: 64, num_outs: 3}
head: {distance: 12}
training: {epochs: 1, resize: [0.1, 0.12], batch: 2, encoder: scratch, family: {weight: 2}}
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the package with one more family."""
    root = tmp_path / "checkout"
    shutil.copytree(PACKAGE, root / "bev_perception", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "config", root / "config")
    folder = root / "bev_perception" / "families" / "toy"
    folder.mkdir()
    for name, text in {"__init__": "", "config": CONFIG, "model": MODEL, "step": STEP, "family": FAMILY}.items():
        (folder / f"{name}.py").write_text(text.lstrip())
    catalog = folder.parent / "catalog.py"
    text = catalog.read_text()
    entry = re.search(r"FAMILIES: dict\[str, Family\] = \{\n", text).end()
    text = text[:entry] + '    "toy": TOY,\n' + text[entry:]
    line = "from bev_perception.strict import"
    catalog.write_text(text.replace(line, f"from bev_perception.families.toy.family import TOY\n{line}", 1))
    (root / "config" / "models" / "toy_tiny.yaml").write_text(VARIANT)
    return root


@pytest.mark.slow
def test_a_family_is_a_folder_and_an_entry(checkout, small_drive, synthetic_nuscenes, tmp_path):
    bag = tmp_path / "bag"
    write_bag(small_drive, bag, progress=False)
    weights, results, out = tmp_path / "toy.safetensors", tmp_path / "results.jsonl", tmp_path / "out"

    def command(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, "-m", "bev_perception.cli", *map(str, arguments)]
        done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "toy_tiny" in command("variants")
    command("init-weights", "--variant", "toy_tiny", weights)
    run = ("--variant", "toy_tiny", "--checkpoint", weights, "--device", "cpu")
    command("run", *run, "--set", "head.distance=21", "--bag", bag, "--out", results)
    first = json.loads(results.read_text().splitlines()[1])
    # 21 m along x of the lidar, which is mounted ahead of base_link, above it, and turned to the right
    assert first["boxes"][0]["center"] == pytest.approx([0.94, -21.0, 1.84])
    data = ("--data", synthetic_nuscenes, "--split", "mini_val")
    how = ("--precision", "fp32", "--workers", 0, "--batch", 5, "--device", "cpu")
    assert "done" in command("train", "--variant", "toy_tiny", *data, *how, "--out", out)
    assert "loss_length" in (out / "log.jsonl").read_text()
    command("run", "--variant", "toy_tiny", "--checkpoint", out / "weights.safetensors", "--bag", bag, "--out", results)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_outside_of_its_folder_names_a_family(family):
    """Only the catalog, and the names of the variants that are shipped, do."""
    allowed = {PACKAGE / "families" / name for name in ("catalog.py", "variants.py", "reference.py", "family.py")}
    named = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[:2] != ("families", family)
        and path not in allowed
        and "/msg/" not in str(path)
        and family in path.read_text().lower()
    ]
    assert not named, f"these files name {family}; what they ask should be asked of families.family.Family"


def test_nothing_asks_for_the_type_of_a_family():
    """No isinstance on a class of a family outside of its folder."""
    classes = {
        node.name
        for family in FAMILIES
        for path in (PACKAGE / "families" / family).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[:2] in {("families", family) for family in FAMILIES}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                assert not names & classes, f"{path}:{node.lineno} asks for the type of a family"
