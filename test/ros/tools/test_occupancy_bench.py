"""The figures of the occupancy messages."""

import kit  # noqa: F401  (makes the messages importable)
import numpy as np

from bev_perception.ros.tools import occupancy_bench


def test_figures_of_a_street_and_of_the_real_label(monkeypatch, nuscenes_root):
    monkeypatch.setattr(occupancy_bench, "REPEATS", 2)
    figures = occupancy_bench.measure_occupancy(next(nuscenes_root.glob("gts/*/*/labels.npz")))
    assert set(figures) == {"made-up street", "label of Occ3D"}
    for figure in figures.values():
        assert 8 * figure["occupancy bytes"] < figure["dense bytes"] == 640_000
        assert 40_000 < figure["costmap bytes"] < 40_200
        assert 0 <= figure["occupancy_points bytes"] - 20 * figure["occupied voxels"] < 300
        times = np.array([value for name, value in figure.items() if name.endswith(" ms")])
        assert times.shape == (6, 2) and (times[:, 0] <= times[:, 1]).all() and times.min() > 0


def test_the_street_is_as_full_as_a_label():
    street = occupancy_bench.made_up_street()
    assert 30_000 < street.occupied.sum() < 50_000
    assert len(np.unique(street.semantics)) == 7
