"""Occupancy labels that are made of lidar and boxes, against the voxels of the synthetic world itself."""

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import read_labels
from bev_perception.data.occupancy_preparing import prepare_occupancy
from bev_perception.synth.generate import generate
from bev_perception.synth.settings import VERSION, SynthSettings

#: classes that boxes label; the rest of the world has no label without those of points
LABELLED = OCC3D_CLASSES[1 : OCC3D_CLASSES.index("truck") + 1]


@pytest.mark.slow
def test_labels_agree_with_the_world_where_the_cameras_look(tmp_path):
    settings = SynthSettings(seconds=6.0, seed=2002, camera_rate=2, image_size=(160, 90))
    generate(tmp_path, settings, scenes=2)
    made = prepare_occupancy(tmp_path, VERSION, tmp_path / "made", "boxes", workers=2)
    assert made.written == 24 and not made.without_scan
    free, both, either = OCC3D_CLASSES.index("free"), np.zeros(256), np.zeros(256)
    occupied = np.zeros(2)
    for path in (tmp_path / "made").glob("*/*/labels.npz"):
        found, truth = read_labels(path), read_labels(tmp_path / "gts" / path.relative_to(tmp_path / "made"))
        seen = truth.mask_camera
        a, b = found.semantics[seen], truth.semantics[seen]
        occupied += ((a != free) & (b != free)).sum(), ((a != free) | (b != free)).sum()
        both += np.bincount(a[a == b], minlength=256)
        either += np.bincount(a, minlength=256) + np.bincount(b, minlength=256) - np.bincount(a[a == b], minlength=256)
    labels = [OCC3D_CLASSES.index(name) for name in LABELLED]
    ious = [both[label] / either[label] for label in labels if either[label] > 100]  # of fewer, chance decides
    assert occupied[0] / occupied[1] > 0.75
    assert len(ious) >= 5 and np.mean(ious) > 0.6
