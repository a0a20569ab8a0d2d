"""The demo and the bench end to end, made short."""

import itertools
import json

import cv2
import numpy as np
import pytest
from kit import new_domain
from safetensors.torch import load_file, save_file

from bev_perception import cli
from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.evaluation.timing import made_up_key_frames
from bev_perception.geometry import transform_points
from bev_perception.ros.interfaces import ensure_interfaces
from bev_perception.ros.tools import demo
from bev_perception.types import Boxes3D

ensure_interfaces()


@pytest.fixture(autouse=True)
def own_domain(monkeypatch):
    """Tests beside this one would hear the demo and the bench on a domain that these choose for themselves."""
    for module in ("demo", "bench"):
        monkeypatch.setattr(f"bev_perception.ros.tools.{module}.new_domain", new_domain)


@pytest.fixture
def nothing_shipped(monkeypatch):
    monkeypatch.setattr("bev_perception.ros.tools.demo.shipped_weights", lambda name: None)


@pytest.mark.timeout(500)
def test_demo_on_a_made_up_drive(tmp_path, capsys, nothing_shipped):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--seconds", "0.6"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert str(out) in last and "UNTRAINED" in last
    check_pictures(out, frames=7, rate=12)
    assert cli.main(["demo", "--out", str(out), "--seconds", "0.3"]) == 0  # once more over the old one


@pytest.mark.timeout(500)
def test_demo_on_real_keyframes(tmp_path, nuscenes_root, nothing_shipped):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--nuscenes", str(nuscenes_root)]) == 0
    check_pictures(out, frames=5, rate=2)


@pytest.fixture
def both_shipped(tmp_path, monkeypatch):
    """Weights that are said to be trained: of the detector such that find something, of occupancy on its encoder."""
    from bev_perception.pipeline.loading import write_initial_weights

    paths = {name: tmp_path / f"{name}.safetensors" for name in ("sparsebev_tiny", "sparseocc_tiny")}
    for name, path in paths.items():
        write_initial_weights(name, path, seed=0)
    boxes, occupancy = (load_file(path) for path in paths.values())
    boxes["pts_bbox_head.transformer.decoder.decoder_layer.cls_branch.6.bias"] += 3.0
    occupancy |= {key: value for key, value in boxes.items() if key.startswith(("img_backbone.", "img_neck."))}
    for path, state in zip(paths.values(), (boxes, occupancy), strict=True):
        save_file(state, path, {"trained": "true"})
    monkeypatch.setattr("bev_perception.ros.tools.demo.shipped_weights", paths.get)


@pytest.mark.slow  # compiles the made-up world
@pytest.mark.timeout(900)
def test_demo_with_shipped_weights_drives_in_the_made_up_world(tmp_path, capsys, both_shipped):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--seconds", "1"]) == 0
    *_, coverage, scores, last = capsys.readouterr().out.strip().splitlines()
    assert coverage == "scored on 2 of the 2 key frames of synth-078-0000"
    assert scores.startswith("boxes within 40 m: mAP ") and "; occupancy: RayIoU " in scores
    assert "UNTRAINED" not in last and scores in (out / "latency.txt").read_text()
    detections = json.loads((out / "detections.json").read_text())
    assert len(detections) == 7 and all(d["boxes"] for d in detections)  # every sweep, 12 Hz
    assert (np.diff([d["stamp"] for d in detections]) < 90e6).all()
    picture = cv2.imread(str(out / "demo.png"))
    assert picture.shape[0] > 1400 and np.std(picture[-700:]) > 10
    video = cv2.VideoCapture(str(out / "demo.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 3


def test_ids_and_trails_are_drawn(tmp_path, monkeypatch):
    """Of an object that the car approaches; the trail is in the global frame."""
    frames = list(itertools.islice(made_up_key_frames(4), 3))
    one = (np.ones((1, 3)), np.zeros(1), np.zeros((1, 2)), np.full(1, 0.9), np.zeros(1, np.int64), NUSCENES_CLASSES)
    boxes = Boxes3D(np.array([[9.0, 2.0, 1.0]]), *one, np.array([47]))
    shown, draw = [], demo.draw_frame

    def drawn(frame, images, boxes, note, trails, **how):
        shown.append((boxes.track_ids.tolist(), trails))
        return draw(frame, images, boxes, note, trails=trails, **how)

    monkeypatch.setattr(demo, "draw_frame", drawn)
    heard = demo._Heard({frame.stamp: boxes for frame in frames}, {}, {})
    assert demo._draw(tmp_path, frames, heard, demo._Models({}, trained=True, occupancy=False)) == 3
    assert [ids for ids, _ in shown] == [[47]] * 3
    way = [transform_points(frame.ego2global, boxes.centers)[0] for frame in frames]
    np.testing.assert_allclose(shown[-1][1][47], way)
    assert np.linalg.norm(way[2] - way[0]) > 1


def test_the_demo_needs_boxes(tmp_path, both_shipped, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--variant", "sparseocc_tiny"]) == 1
    assert "the demo needs a variant that detects" in capsys.readouterr().err


def check_pictures(out, frames, rate):
    detections = json.loads((out / "detections.json").read_text())
    assert len(detections) == frames and all(0 < len(d["boxes"]) <= 300 for d in detections)
    picture = cv2.imread(str(out / "demo.png"))
    assert picture.shape[1] > 2000 and np.std(picture) > 20
    video = cv2.VideoCapture(str(out / "demo.mp4"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == frames
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=0.02)
    table = (out / "latency.txt").read_text()
    assert all(stage in table for stage in ("preprocess", "model", "decode", "publish", "total"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bench_says_something_of_everything(tmp_path, capsys):
    from bev_perception.ros.tools import bench

    counts = bench.Counts(warm_up=0, full_frames=0, small_frames=3, cast_samples=1, latency_sets=3, stream_sets=12)
    text = bench.run_bench(tmp_path, counts)
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["stages"]["sparsebev_tiny"]["ms"]["network"][0] > 1
    for transport in ("raw", "compressed"):
        latency, stream = figures[f"latency, {transport}"], figures[f"12 Hz, {transport}"]
        assert latency["end to end ms"][0] > latency["preprocess + model + decode p50 ms"] * 0.5
        assert stream["sets"] == stream["detected"] + stream["given up, model busy"] + stream["lost on the way"]
    assert figures["stages"]["sparseocc_tiny"]["ms"]["network"][0] > 1
    assert figures["RayIoU, 8 origins, prediction and truth"]["samples/s on one core"] > 0.1
    assert figures["occupancy messages, made-up street"]["occupancy bytes"] < 100_000
    assert "sparsebev_tiny, fp32 on" in text and "latency, raw:" in text
