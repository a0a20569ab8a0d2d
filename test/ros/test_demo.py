"""The demo and the bench end to end, made short."""

import json

import cv2
import numpy as np
import pytest

from bev_perception import cli
from bev_perception.ros.interfaces import ensure_interfaces

ensure_interfaces()


@pytest.mark.timeout(200)
def test_demo_on_a_made_up_drive(tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--seconds", "0.6"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert str(out) in last and "UNTRAINED" in last
    check_pictures(out, frames=7)
    assert cli.main(["demo", "--out", str(out), "--seconds", "0.3"]) == 0  # once more over the old one


@pytest.mark.timeout(200)
def test_demo_on_real_keyframes(tmp_path, nuscenes_root):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--nuscenes", str(nuscenes_root)]) == 0
    check_pictures(out, frames=5)


def check_pictures(out, frames):
    detections = json.loads((out / "detections.json").read_text())
    assert len(detections) == frames and all(len(d["boxes"]) == 300 for d in detections)
    picture = cv2.imread(str(out / "demo.png"))
    assert picture.shape[1] > 2000 and np.std(picture) > 20
    video = cv2.VideoCapture(str(out / "demo.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == frames
    table = (out / "latency.txt").read_text()
    assert all(stage in table for stage in ("preprocess", "model", "decode", "publish", "total"))


@pytest.mark.timeout(300)
def test_bench_says_something_of_everything(tmp_path, capsys):
    from bev_perception.ros import bench

    counts = bench.Counts(
        warm_up=0, full_frames=0, small_frames=3, cast_samples=1, latency_sets=3, stream_sets=12, growth_sets=10
    )
    text = bench.run_bench(tmp_path, counts)
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["stages"]["sparsebev_tiny"]["ms"]["model"][0] > 1
    for transport in ("raw", "compressed"):
        latency, stream = figures[f"latency, {transport}"], figures[f"12 Hz, {transport}"]
        assert latency["end to end ms"][0] > latency["preprocess + model + decode p50 ms"] * 0.5
        assert stream["sets"] == stream["detected"] + stream["given up, model busy"] + stream["lost on the way"]
    assert figures["stages"]["sparseocc_tiny"]["ms"]["model"][0] > 1
    assert figures["RayIoU, 8 origins, prediction and truth"]["samples/s on one core"] > 0.1
    assert figures["occupancy messages, made-up street"]["occupancy bytes"] < 100_000
    assert figures["growth"]["sets"] == 10 and len(figures["growth"]["resident MB"]) == 10
    assert "sparsebev_tiny, fp32 on" in text and "latency, raw:" in text
