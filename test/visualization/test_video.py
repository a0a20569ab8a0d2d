"""Videos: H.264 where PyAV is installed, else what OpenCV writes."""

import logging
import sys

import cv2
import numpy as np
import pytest

from bev_perception.visualization.video import write_video

SHADES = [40, 90, 140, 190]


def frames(height=120, width=200):
    return (np.full((height, width, 3), shade, np.uint8) for shade in SHADES)


def check(path, size):
    video = cv2.VideoCapture(str(path))
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(12.0)
    for shade in SHADES:
        ok, frame = video.read()
        assert ok and frame.shape == (*size, 3)
        assert frame.mean() == pytest.approx(shade, abs=6)
    assert not video.read()[0]


@pytest.mark.parametrize("size", [(120, 200), (121, 201)])
def test_h264(tmp_path, caplog, size):
    """An odd row or column is left out."""
    av = pytest.importorskip("av")
    assert write_video(tmp_path / "v.mp4", frames(*size), 12.0) == 4
    check(tmp_path / "v.mp4", (120, 200))
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert not caplog.records


def test_without_pyav_opencv_writes_and_the_extra_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "av", None)
    with caplog.at_level(logging.WARNING):
        assert write_video(tmp_path / "v.mp4", frames(), 12.0) == 4
    assert "pip install bev_perception[video]" in caplog.text
    check(tmp_path / "v.mp4", (120, 200))


def test_videos_that_cannot_be_written(tmp_path):
    sizes = [np.zeros((100, 100, 3), np.uint8), np.zeros((50, 100, 3), np.uint8)]
    with pytest.raises(ValueError, match="the first was"):
        write_video(tmp_path / "v.mp4", iter(sizes), 12.0)
    with pytest.raises(ValueError, match="no pictures"):
        write_video(tmp_path / "v.mp4", iter([]), 12.0)
    with pytest.raises(OSError, match="cannot be written"):
        write_video(tmp_path / "nowhere" / "v.mp4", iter(sizes[:1]), 12.0)
    assert list(tmp_path.iterdir()) == []
