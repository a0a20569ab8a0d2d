"""A small untrained variant of occupancy over the made-up dataroot, and the truth in its place."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import OccupancyLabels, labels_path, read_labels, write_labels
from bev_perception.data.queues import read_frame
from bev_perception.data.records import open_split
from bev_perception.evaluation import evaluate as module
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings, evaluate
from bev_perception.evaluation.occupancy_files import read_occupancy, score_occupancy_files
from bev_perception.evaluation.running import Processes, run_rows
from bev_perception.families.variants import load_variant, variants_directory
from bev_perception.pipeline.loading import load_pipeline, write_initial_weights
from bev_perception.types import OCC3D_GRID, Occupancy, Result

pytest.importorskip("nuscenes")
SPLIT = ("v1.0-mini", "mini_val")
FREE = 17


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, *SPLIT)


@pytest.fixture(scope="module")
def labels(records, tmp_path_factory):
    """A folder of made-up labels with objects, another one a key frame."""
    folder = tmp_path_factory.mktemp("labels")
    for i, (scene, token) in enumerate(zip(records.scenes, records.tokens, strict=True)):
        rng = np.random.default_rng(i)
        semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
        semantics[:, :, :3] = rng.integers(11, 17, (200, 1, 1))
        semantics[90 + i : 99 + i, 105:110, 3:8] = 4
        mask = rng.random(semantics.shape) < 0.5
        truth = OccupancyLabels(semantics, ~mask, mask, (semantics == 4).astype(np.uint8))
        write_labels(labels_path(folder, scene, token, ""), truth)
    return folder


@pytest.fixture(scope="module")
def settings(synthetic_nuscenes, labels, tmp_path_factory):
    """For a panoptic variant of sparseocc_tiny that is smaller still, as a file of one's own."""
    directory = tmp_path_factory.mktemp("variant")
    path, checkpoint = directory / "occ_low.yaml", directory / "occ_low.safetensors"
    values = yaml.safe_load((variants_directory() / "sparseocc_tiny.yaml").read_text())
    values |= {"name": "occ_low", "image": {"height": 64, "width": 176}}
    values["head"] |= {"num_query": 20, "kept_testing": [100, 400, 1600], "panoptic": True}
    values["head"] |= {"score_threshold": 0.0, "overlap_threshold": 0.0}  # untrained masks are sure of nothing
    path.write_text(yaml.safe_dump(values))
    write_initial_weights(path, checkpoint, seed=0)
    out = tmp_path_factory.mktemp("out")
    return EvalSettings(str(path), checkpoint, synthetic_nuscenes, *SPLIT, out, "cpu", labels=labels)


def test_evaluate_saves_and_scores(settings, records, tmp_path):
    """The saved files, scored by themselves, get the same scores."""
    scene = records.of_scenes(["scene-0916"])
    saved = tmp_path / "saved"
    scores = evaluate(dataclasses.replace(settings, out=tmp_path, scenes=("scene-0916",), save_occupancy=saved))
    assert scores.samples == 5 and 0 <= scores.summary["RayPQ"] <= scores.summary["RayIoU"] < 0.2
    assert json.loads((tmp_path / "occupancy_metrics.json").read_text())["samples"] == 5
    assert {path.stem for path in saved.iterdir()} == set(scene.tokens)
    again = score_occupancy_files(saved, scene, tmp_path / "again", OCC3D_CLASSES, settings.labels)
    assert again.summary == pytest.approx(scores.summary, rel=1e-12)
    found = [read_occupancy(saved / f"{token}.npz", OCC3D_CLASSES) for token in scene.tokens]
    assert all(f.occupied.any() and f.instances.max() > 0 for f in found)
    # what the evaluation gets is what the pipeline says, frame after frame
    pipeline = load_pipeline(settings.variant, settings.checkpoint, "cpu")
    for i in range(2):
        result = pipeline.step(read_frame(scene, i))
        assert result.history == i
        np.testing.assert_array_equal(result.occupancy.semantics, found[i].semantics)
    pipeline.close()


def use_truth(monkeypatch, settings, noise=0.0):
    """Let evaluations get the labels as results, with some voxels changed, and tell which rows they asked for."""
    asked = []

    def run_rows(config, checkpoint, device, records, rows, *_):
        for i in rows:
            asked.append(i)
            truth = read_labels(labels_path(records.root, records.scenes[i], records.tokens[i], settings.labels))
            semantics = truth.semantics.copy()
            semantics[np.random.default_rng(i).random(semantics.shape) < noise] = 3
            found = Occupancy(semantics, config.class_names, instances=truth.instances)
            yield i, Result(records.stamps[i] * 1000, None, found, {}, None, {}, 0)

    monkeypatch.setattr(module, "run_rows", run_rows)
    return asked


def test_truth_scores_full_marks(settings, monkeypatch, tmp_path):
    use_truth(monkeypatch, settings)
    scores = evaluate(dataclasses.replace(settings, out=tmp_path, scenes=("scene-0103",)))
    assert scores.samples == 5 and scores.summary == pytest.approx(dict.fromkeys(scores.summary, 1.0))


def test_processes_that_share_the_scenes_give_the_scores_of_one(settings, records, monkeypatch, tmp_path):
    asked = use_truth(monkeypatch, settings, noise=0.001)
    settings = dataclasses.replace(settings, out=tmp_path)
    alone = evaluate(settings)
    assert asked == list(range(10)) and 0.1 < alone.summary["RayIoU"] < 0.9
    parts, shares = [], [Processes(rank, 3).share(records) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == asked and shares[2] == []  # two scenes for three processes
    config = load_variant(settings.variant)
    for share in shares:
        evaluation = module._evaluation(settings, config, records, torch.device("cpu"))
        for i, result in module.run_rows(config, settings.checkpoint, None, records, share):
            evaluation.add(i, result)
        parts.append(evaluation.part)
    assert parts[2] is None
    together = evaluation.finish(parts)
    assert together.samples == 10 and together.summary == pytest.approx(alone.summary, rel=1e-12)


def test_missing_labels_are_counted_before_anything_runs(settings, monkeypatch, tmp_path):
    asked = use_truth(monkeypatch, settings)
    broken = dataclasses.replace(
        settings, labels=tmp_path / "none", out=tmp_path / "out", save_occupancy=tmp_path / "out"
    )
    with pytest.raises(EvaluationError, match="10 of 10 key frames have no occupancy labels"):
        evaluate(broken)
    assert asked == [] and not broken.out.exists()


def test_objects_need_labels_with_objects(settings, records, monkeypatch, tmp_path):
    asked = use_truth(monkeypatch, settings)
    for scene, token in zip(records.scenes, records.tokens, strict=True):
        truth = read_labels(labels_path(records.root, scene, token, settings.labels))
        write_labels(labels_path(tmp_path, scene, token, ""), dataclasses.replace(truth, instances=None))
    with pytest.raises(EvaluationError, match="prepare panoptic-occ"):
        evaluate(dataclasses.replace(settings, labels=tmp_path, out=tmp_path / "out"))
    assert asked == []


def test_the_secret_split_is_saved_and_not_scored(settings, records, monkeypatch, tmp_path):
    use_truth(monkeypatch, settings)
    monkeypatch.setattr(module, "SECRET_SPLIT", SPLIT[1])
    secret = dataclasses.replace(settings, out=tmp_path)
    with pytest.raises(EvaluationError, match="no public labels; say where to save results"):
        evaluate(secret)
    assert evaluate(dataclasses.replace(secret, save_occupancy=tmp_path / "saved")) is None
    assert len(list((tmp_path / "saved").iterdir())) == 10 and not (tmp_path / "occupancy_metrics.json").exists()


def test_a_detector_has_no_occupancy_to_save(settings, untrained, tmp_path):
    detector = dataclasses.replace(
        settings, variant="sparsebev_tiny", checkpoint=untrained, out=tmp_path, save_occupancy=tmp_path
    )
    with pytest.raises(EvaluationError, match="sparsebev_tiny gives no occupancy"):
        evaluate(detector)


def test_occupancy_has_no_range(settings):
    with pytest.raises(EvaluationError, match="occ_low gives no boxes, which alone have a range"):
        evaluate(dataclasses.replace(settings, max_range=40.0))


def test_without_memory_each_frame_is_as_the_first(settings, records):
    """The second key frame, run after the first without a memory, is what it is alone."""
    config = load_variant(settings.variant)
    run = partial(run_rows, config, settings.checkpoint, torch.device("cpu"), records)
    ((_, alone),) = run([1])
    (_, (_, forgotten)), (_, (_, remembered)) = run([0, 1], memory=False), run([0, 1])
    assert (alone.history, forgotten.history, remembered.history) == (0, 0, 1)
    np.testing.assert_array_equal(forgotten.occupancy.semantics, alone.occupancy.semantics)
    assert not np.array_equal(remembered.occupancy.semantics, alone.occupancy.semantics)
