"""A variant over a small nuScenes dataroot: made up, and the real key frames where they are present."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from nuscenes_root import SCENES, write_nuscenes
from vehicle import run_queue

from bev_perception import cli
from bev_perception.config import ConfigError, FramesConfig, ImageConfig, ReferenceFrameConfig
from bev_perception.data.indexing import TABLES
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.queues import read_frame, training_boxes
from bev_perception.data.records import open_split
from bev_perception.evaluation.detection import score_results
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings, _DetectionEvaluation, evaluate
from bev_perception.evaluation.running import run_in_queues, run_rows
from bev_perception.evaluation.submissions import TRACKED_CLASSES, to_submission, write_submission
from bev_perception.families.catalog import build_model
from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.families.variants import load_variant, variants_directory
from bev_perception.geometry import transform_points
from bev_perception.pipeline.loading import load_weights
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.preprocess import Preprocessor
from bev_perception.types import Boxes3D, Limits, Result

pytest.importorskip("nuscenes")
SPLIT = ("v1.0-mini", "mini_val")
CPU = torch.device("cpu")
TINY = load_variant("sparsebev_tiny")
DECODE = DecodeConfig(max_num=50, score_threshold=0.0)  # the scores of untrained weights are all low
CONFIG = dataclasses.replace(
    TINY, image=ImageConfig(height=64, width=176), head=dataclasses.replace(TINY.head, decode=DECODE), nms="none"
)


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, *SPLIT)


@pytest.fixture(scope="module")
def model(untrained):
    return load_weights(CONFIG, untrained, CPU).model  # its norms are folded, as online


@pytest.fixture(scope="module")
def variant(tmp_path_factory):
    """CONFIG as a file of one's own."""
    path = tmp_path_factory.mktemp("variant") / "tiny_low.yaml"
    text = (variants_directory() / "sparsebev_tiny.yaml").read_text()
    text = text.replace("name: sparsebev_tiny", "name: tiny_low")
    text = text.replace("image: {height: 256, width: 704}", "image: {height: 64, width: 176}")
    text = text.replace("nms: distance", "nms: none")
    path.write_text(text.replace("head:\n", "head:\n  decode: {max_num: 50, score_threshold: 0.0}\n"))
    assert dataclasses.replace(load_variant(path), name=CONFIG.name) == CONFIG
    return path


@pytest.fixture(scope="module")
def settings(variant, untrained, synthetic_nuscenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return EvalSettings(str(variant), untrained, synthetic_nuscenes, *SPLIT, out, "cpu")


def check_same(found, wanted):
    for name in ("labels", "scores", "centers", "sizes", "yaws", "velocities"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5, err_msg=name)


def check_online_equals_offline(records, rows, untrained, model):
    online = [(i, result.boxes) for i, result in run_rows(CONFIG, untrained, CPU, records, rows)]
    offline = [(i, result.boxes) for i, result in run_in_queues(CONFIG, model, CPU, records, rows)]
    assert [i for i, _ in online] == [i for i, _ in offline] == list(rows)
    for results in (online, offline):
        of_scene = {}
        for i, boxes in results:
            of_scene.setdefault(records.scenes[i], set()).update(boxes.track_ids.tolist())
        assert sum(map(len, of_scene.values())) == len(set.union(*of_scene.values()))  # no id is in two scenes
    for (_, found), (_, wanted) in zip(online, offline, strict=True):
        assert len(found) == 50
        check_same(found, wanted)
    return [boxes for _, boxes in online]


def test_memory_and_whole_queue_give_the_same_boxes(records, untrained, model):
    found = check_online_equals_offline(records, range(6), untrained, model)
    # the frames remembered do count, and those of another scene do not
    (_, alone), (_, first) = run_rows(CONFIG, untrained, CPU, records, [2, 5])
    assert np.abs(alone.boxes.centers - found[2].centers).max() > 1e-3
    check_same(first.boxes, found[5])


def test_memory_and_whole_queue_agree_on_real_key_frames(nuscenes_root, tmp_path, untrained, model):
    root = five_key_frames(nuscenes_root, tmp_path)
    records = open_split(root, *SPLIT)
    assert len(records) == 5
    check_online_equals_offline(records, range(5), untrained, model)


def test_future_frames(records, monkeypatch):
    """Frames are encoded once for all queues that they are in; the boxes are those of queues encoded afresh."""
    config = dataclasses.replace(CONFIG, frames=FramesConfig(past=2, future=2, order="interleaved"))
    torch.manual_seed(0)
    model = build_model(config).eval()
    encode, encoded = model.encode, []
    monkeypatch.setattr(model, "encode", lambda inputs: encoded.append(inputs) or encode(inputs))
    found = dict(run_in_queues(config, model, CPU, records, [1, 2]))
    assert len(encoded) == 5  # the frames 0 to 4
    preprocess = Preprocessor(config, CPU)
    for i, result in found.items():
        wanted = [i, i - 1, i + 1, max(i - 2, 0), i + 2]
        inputs = [preprocess(read_frame(records, i, records.cameras(j)))[0] for j in wanted]
        check_same(result.reference_boxes, model.decode(run_queue(model, inputs), Limits()).boxes)
    preprocess.close()


def test_without_memory_each_frame_is_as_the_first(records, untrained):
    alone = [next(run_rows(CONFIG, untrained, CPU, records, [i]))[1] for i in range(3)]
    forgotten = [result for _, result in run_rows(CONFIG, untrained, CPU, records, range(3), memory=False)]
    assert [result.history for result in forgotten] == [0, 0, 0]
    for found, wanted in zip(forgotten, alone, strict=True):
        check_same(found.boxes, wanted.boxes)
    future = dataclasses.replace(CONFIG, frames=FramesConfig(past=0, future=CONFIG.frames.past))
    with pytest.raises(EvaluationError, match="sparsebev_tiny looks ahead: its frames are read, not remembered"):
        next(run_rows(future, untrained, CPU, records, [0], memory=False))


def test_precision_of_the_encoder(records, untrained):
    with pytest.raises(ConfigError, match="'tf32' is a format of NVIDIA's GPUs"):
        next(run_rows(CONFIG, untrained, CPU, records, [0], PipelineSettings(precision="tf32")))
    config = dataclasses.replace(CONFIG, frames=FramesConfig(past=1, future=1))
    torch.manual_seed(0)
    model = build_model(config).eval()
    (full,), (half,) = (
        [result.boxes for _, result in run_in_queues(config, model, CPU, records, [1], precision)]
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(full.centers, half.centers)
    assert np.abs(full.scores - half.scores).max() < 1e-3


def five_key_frames(source, root):
    """The key frames of scene-0103 that have their images, with the tables cut down to them."""
    tables = {path.stem: json.loads(path.read_text()) for path in (source / SPLIT[0]).glob("*.json")}
    here = {row["sample_token"] for row in tables["sample_data"] if row["filename"].endswith(".jpg")} & {
        row["sample_token"] for row in tables["sample_data"] if (source / row["filename"]).with_suffix(".jpg").is_file()
    }
    tables["sample"] = [row for row in tables["sample"] if row["token"] in here]
    for name in ("sample_data", "sample_annotation"):
        tables[name] = [row for row in tables[name] if row["sample_token"] in here]
    for name in ("sample", "sample_data", "sample_annotation"):
        kept = {row["token"] for row in tables[name]}
        for row in tables[name]:
            row.update({side: row[side] if row[side] in kept else "" for side in ("prev", "next")})
    (root / SPLIT[0]).mkdir()
    for name, rows in tables.items():
        (root / SPLIT[0] / f"{name}.json").write_text(json.dumps(rows))
    for name in ("samples", "maps"):
        (root / name).symlink_to(source / name)
    return root


def test_the_frame_is_where_the_lidar_is(records, untrained):
    """The reference is the lidar's real place, not the variant's nominal one; boxes are in base_link all the same."""
    frame = read_frame(records, 0)
    np.testing.assert_allclose(frame.lidar2global, records.lidar2global(0))
    assert frame.stamp == records.stamps[0] * 1000 and all(view is not None for view in frame.views)
    pipeline = Pipeline([load_weights(CONFIG, untrained, CPU)], CPU)
    nominal = dataclasses.replace(frame, lidar2global=None)
    real, mounted = (pipeline.step(f) for f in (frame, nominal))
    pipeline.close()
    # learnt queries start at the floor of the range, 5 m below the frame that they are in
    for result, height in ((real, records.lidar2ego(0)[2, 3]), (mounted, 1.84)):
        np.testing.assert_allclose(result.reference_boxes.centers[:, 2].min(), -5, atol=0.1)
        np.testing.assert_allclose(result.boxes.centers[:, 2].min(), -5 + height, atol=0.4)  # the lidar may be tilted
    moved = transform_points(records.lidar2ego(0), real.reference_boxes.centers)
    np.testing.assert_allclose(real.boxes.centers, moved, atol=1e-9)


def test_evaluate_writes_and_scores(settings, records, curves):
    scores = evaluate(settings)
    document = json.loads((settings.out / "results_nusc.json").read_text())
    assert list(document["results"]) == records.tokens
    assert any(document["results"].values()) and 0 <= scores.nds < 0.3
    assert set(scores.errors) == {"mATE", "mASE", "mAOE", "mAVE", "mAAE"}
    assert (settings.out / "metrics_summary.json").is_file() and (settings.out / "plots" / "curves.png").is_file()


def test_tracks_of_a_detector_without_ids_are_the_trackers(settings, records, tmp_path, capsys):
    """Scored beside the boxes by the command; the file alone gets the same scores."""
    pytest.importorskip("motmetrics")
    command = ["eval", "--data", settings.data, "--version", SPLIT[0], "--device", "cpu"]
    run = ["--variant", settings.variant, "--checkpoint", settings.checkpoint, "--tracking", "--out", tmp_path]
    assert cli.main([*map(str, [*command, *run])]) == 0
    printed = capsys.readouterr().out
    assert "NDS  " in printed and "AMOTA" in printed
    boxes, tracks = (
        json.loads((tmp_path / name).read_text())["results"] for name in ("results_nusc.json", "tracking_nusc.json")
    )
    assert list(boxes) == list(tracks) == records.tokens
    ids = [{entry["tracking_id"] for entry in tracks[token]} for token in records.tokens]
    assert ids[0] & ids[1] and not set.union(*ids[:5]) & set.union(*ids[5:])  # another scene has other tracks
    tracked = [entry for entry in boxes[records.tokens[0]] if entry["detection_name"] in TRACKED_CLASSES]
    assert [entry["translation"] for entry in tracked] == [e["translation"] for e in tracks[records.tokens[0]]]
    file = ["--results", tmp_path / "tracking_nusc.json", "--out", tmp_path / "again"]
    assert cli.main([*map(str, [*command, *file])]) == 0
    again, table = capsys.readouterr().out, printed[printed.index("all: over the ") :]
    assert again.splitlines()[:-1] == table.splitlines()[:-1]  # the last line says where they are


def test_tracks_need_a_memory(settings, tmp_path):
    pytest.importorskip("motmetrics")
    with pytest.raises(EvaluationError, match="leave out one of --no-memory and --tracking"):
        evaluate(dataclasses.replace(settings, out=tmp_path, tracking=True, memory=False))


def test_a_single_scene(settings, tmp_path):
    scores = evaluate(dataclasses.replace(settings, out=tmp_path, scenes=(SCENES[1],)))
    assert scores is not None
    results = json.loads((tmp_path / "results_nusc.json").read_text())["results"]
    assert {token.rsplit("-", 1)[0] for token in results} == {SCENES[1]}
    with pytest.raises(NuScenesError, match="no scene scene-0001 here; there are scene-0103"):
        evaluate(dataclasses.replace(settings, scenes=("scene-0001",)))


def test_truth_of_the_made_up_drive_scores_full_marks(records, synthetic_nuscenes, tmp_path):
    results = {}
    for i, token in enumerate(records.tokens):
        boxes, labels = training_boxes(records, i, CONFIG.class_names, [-np.inf] * 3 + [np.inf] * 3)
        n = len(boxes)
        truth = Boxes3D(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.ones(n), labels, CONFIG.class_names)
        results[token] = to_submission(truth, token, records.lidar2ego(i), records.ego2global(i))
    write_submission(results, tmp_path / "results.json")
    scores = score_results(tmp_path / "results.json", synthetic_nuscenes, *SPLIT, tmp_path)
    for name in ("car", "truck", "pedestrian"):
        assert scores.class_aps[name] == pytest.approx(1.0)
        assert max(scores.class_errors[name].values()) < 1e-4  # level ground: nothing is lost between the frames


def test_boxes_of_either_reference_frame_are_written_alike(settings, records):
    boxes, labels = training_boxes(records, 1, CONFIG.class_names, [-np.inf] * 3 + [np.inf] * 3)
    n = len(boxes)
    in_lidar = Boxes3D(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.ones(n), labels, CONFIG.class_names)
    in_base = to_ego(in_lidar, records.lidar2ego(1))
    base_link = ReferenceFrameConfig("base_link", (0.0, 0.0, 0.0), 0.0)
    written = []
    for reference, found in ((CONFIG.reference_frame, in_lidar), (base_link, in_base)):
        evaluation = _DetectionEvaluation(settings, dataclasses.replace(CONFIG, reference_frame=reference), records)
        evaluation.add(1, Result(0, in_base, None, {}, None, {}, 0, reference_boxes=found))
        ((entries,),) = evaluation.part.values()
        written.append(entries)
    assert len(written[0]) == len(written[1]) > 3
    for first, second in zip(*written, strict=True):
        for name in ("translation", "rotation", "velocity"):
            wanted = np.array(second[name]) * (np.sign(np.dot(first[name], second[name])) if name == "rotation" else 1)
            np.testing.assert_allclose(first[name], wanted, atol=1e-6)


@pytest.mark.slow
def test_what_is_beyond_the_range_does_not_count(settings, records, synthetic_nuscenes, curves, tmp_path):
    """Truth up to 15 m from the car and nothing beyond: full marks within 15 m, and fewer without that limit."""
    results, near = {}, 0
    for i, token in enumerate(records.tokens):
        boxes, labels = training_boxes(records, i, CONFIG.class_names, [-np.inf] * 3 + [np.inf] * 3)
        ahead = records.lidar2ego(i)[0, 3]
        kept = np.hypot(boxes[:, 0] + ahead, boxes[:, 1]) < 15.0
        boxes, labels = boxes[kept], labels[kept]
        n = len(boxes)
        truth = Boxes3D(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:], np.ones(n), labels, CONFIG.class_names)
        results[token] = to_submission(truth, token, records.lidar2ego(i), records.ego2global(i))
        near += n
    path = tmp_path / "results.json"
    write_submission(results, path)
    cut, whole = (
        score_results(path, synthetic_nuscenes, *SPLIT, tmp_path / str(limit), max_range=limit)
        for limit in (15.0, None)
    )
    assert near > 10 and cut.class_aps["car"] == pytest.approx(1.0) and whole.class_aps["car"] < 0.9
    assert cut.table().startswith("within 15 m of the car\n") and not whole.table().startswith("within")
    assert json.loads((tmp_path / "15.0" / "metrics_summary.json").read_text())["cfg"]["class_range"]["car"] == 15.0
    wide = score_results(path, synthetic_nuscenes, *SPLIT, tmp_path / "wide", max_range=1000.0)
    assert wide.class_aps == whole.class_aps
    with pytest.raises(EvaluationError, match="a range of 0 m leaves nothing"):
        score_results(path, synthetic_nuscenes, *SPLIT, tmp_path, max_range=0)


def test_the_command_forgets_and_limits_the_range(settings, untrained, tmp_path, capsys):
    """Version and split follow from what the dataroot holds."""
    command = ["eval", "--variant", settings.variant, "--checkpoint", untrained, "--data", settings.data]
    command += ["--device", "cpu", "--scenes", SCENES[0], "--max-range", "40"]
    for out, more in (("with", []), ("without", ["--no-memory"])):
        assert cli.main([*map(str, command), "--out", str(tmp_path / out), *more]) == 0
        assert "within 40 m of the car\nmeans over the 3 of 10 classes" in capsys.readouterr().out
    remembered, forgotten = (
        json.loads((tmp_path / out / "results_nusc.json").read_text())["results"] for out in ("with", "without")
    )
    first, second, *_ = remembered
    assert remembered[first] == forgotten[first] and remembered[second] != forgotten[second]


def test_missing_files_are_counted_before_anything_runs(settings, tmp_path):
    root = write_nuscenes(tmp_path / "root", key_frames=2, image_size=(160, 90))
    files = sorted((root / "samples" / "CAM_BACK").glob("*.jpg"), key=lambda path: int(path.stem))
    for path in files[:2]:
        path.unlink()
    broken = dataclasses.replace(settings, data=root, out=tmp_path / "out")
    with pytest.raises(EvaluationError, match=r"2 of 24 images are missing .*with all their images here: scene-0916"):
        evaluate(broken)
    assert not broken.out.exists()


@pytest.mark.parametrize("damage", ["one", "all"])
def test_damaged_files_are_named(settings, tmp_path, damage):
    root = write_nuscenes(tmp_path / "root", key_frames=2, image_size=(160, 90))
    records = open_split(root, *SPLIT)
    paths = records.paths(records.cameras(1))
    for path in paths if damage == "all" else paths[3:4]:
        (root / path).write_bytes((root / path).read_bytes()[:500])
    with pytest.raises(EvaluationError, match=f"{records.tokens[1]}.*{paths[3] if damage == 'one' else 'cam_back'}"):
        evaluate(dataclasses.replace(settings, data=root, out=tmp_path / "out"))


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_results_of_one(settings, tmp_path):
    evaluate(dataclasses.replace(settings, out=tmp_path / "one"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "bev_perception.cli", "eval", "--variant", settings.variant, "--checkpoint", settings.checkpoint]
    command += ["--data", settings.data, "--version", SPLIT[0], "--split", SPLIT[1], "--device", "cpu"]
    done = subprocess.run(
        [*torchrun, *map(str, [*command, "--out", tmp_path / "two"])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("NDS  ") == 1  # the first process alone scores
    one, two = (json.loads((tmp_path / n / "results_nusc.json").read_text())["results"] for n in ("one", "two"))
    assert list(one) == list(two)
    for token in one:
        for a, b in zip(one[token], two[token], strict=True):
            assert a["detection_name"] == b["detection_name"]
            np.testing.assert_allclose(a["translation"], b["translation"], atol=1e-3)


def test_tables_of_the_made_up_root_are_complete(synthetic_nuscenes):
    assert {path.stem for path in (synthetic_nuscenes / SPLIT[0]).glob("*.json")} >= set(TABLES)


def test_cameras_are_left_out_as_if_they_had_sent_nothing(records, variant, untrained):
    """Lost cameras are no damaged files; what is left gives other boxes."""
    config, rows = load_variant(variant), range(2)
    whole = [result for _, result in run_rows(config, untrained, CPU, records, rows)]
    part = [result for _, result in run_rows(config, untrained, CPU, records, rows, without=("cam_front",))]
    assert all(result.missing == {"cam_front": "left out"} for result in part)
    assert not np.array_equal(whole[0].reference_boxes.scores, part[0].reference_boxes.scores)
    with pytest.raises(EvaluationError, match="cam_top: there is no such camera"):
        next(run_rows(config, untrained, CPU, records, rows, without=("cam_top",)))
    with pytest.raises(EvaluationError, match="no camera would be left"):
        next(
            run_rows(
                config, untrained, CPU, records, rows, without=[v.image.camera for v in read_frame(records, 0).views]
            )
        )
