"""Anchors from clusters of boxes, and their files."""

import numpy as np
import pytest

from bev_perception.cli import main
from bev_perception.data.anchors import cluster_anchors, read_anchors, write_anchors
from bev_perception.strict import UserError

PLACES = np.array([[10.0, 0, 0], [-20.0, 5, 1], [0.0, 30, -1]])


def boxes():
    """Ten boxes around each of three places, and one that is too far."""
    rng = np.random.default_rng(0)
    centers = np.repeat(PLACES, 10, axis=0) + rng.normal(0, 0.1, (30, 3))
    sizes = np.tile([4.0, 2.0, 1.5], (30, 1)) * rng.uniform(0.9, 1.1, (30, 1))
    near = np.concatenate([centers, sizes, np.zeros((30, 1))], axis=1)
    return np.concatenate([near, [[54.0, 20.0, 0, 100.0, 100.0, 100.0, 0]]])


def test_anchors_are_at_the_clusters():
    anchors = cluster_anchors(boxes(), count=3, max_distance=55.0, seed=0)
    assert anchors.shape == (3, 11)
    found = anchors[anchors[:, 0].argsort(), :3]
    np.testing.assert_allclose(found, PLACES[PLACES[:, 0].argsort()], atol=0.2)
    np.testing.assert_allclose(anchors[:, 3:6], np.log(boxes()[:-1, 3:6].mean(axis=0))[None].repeat(3, 0), rtol=1e-5)
    assert anchors[:, 6:].tolist() == [[0, 1, 0, 0, 0]] * 3
    again = cluster_anchors(boxes(), count=3, max_distance=55.0, seed=0)
    assert np.array_equal(anchors, again)


def test_too_few_boxes():
    with pytest.raises(UserError, match="but there are 30; use more scenes"):
        cluster_anchors(boxes(), count=31, max_distance=55.0, seed=0)


def test_files(tmp_path):
    anchors = cluster_anchors(boxes(), count=3, max_distance=55.0, seed=0)
    write_anchors(anchors, tmp_path / "new" / "anchors.npy")
    assert np.array_equal(read_anchors(tmp_path / "new" / "anchors.npy", 3), anchors)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["anchors.npy"]


def test_unusable_files(tmp_path):
    path = tmp_path / "anchors.npy"
    with pytest.raises(UserError, match=r"cannot be read .* prepare anchors --count 5"):
        read_anchors(path, 5)
    np.save(path, np.zeros((4, 11)))
    with pytest.raises(UserError, match="does not hold 5 anchors of 11 numbers"):
        read_anchors(path, 5)
    np.save(path, np.full((5, 11), np.nan))
    with pytest.raises(UserError, match="holds NaN"):
        read_anchors(path, 5)
    path.write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match="cannot be read"):
        read_anchors(path, 5)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_anchors(path, 5)


def test_command(synthetic_nuscenes, tmp_path, capsys):
    out = tmp_path / "anchors.npy"
    arguments = ["--data", str(synthetic_nuscenes), "--split", "mini_val", "--count", "4", "--out", str(out)]
    assert main(["prepare", "anchors", *arguments]) == 0
    assert "wrote 4 anchors" in capsys.readouterr().out
    anchors = read_anchors(out, 4)
    assert (np.linalg.norm(anchors[:, :3], axis=1) < 55).all()
