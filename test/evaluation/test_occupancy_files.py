"""Results in the challenge's files, and what may be wrong with them."""

import json

import numpy as np
import pytest
import torch

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import OccupancyLabels, labels_path, write_labels, write_occupancy
from bev_perception.data.records import open_split
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.occupancy_files import read_occupancy, score_occupancy_files
from bev_perception.types import OCC3D_GRID, Occupancy

pytest.importorskip("nuscenes")
SPLIT = ("v1.0-mini", "mini_val")
SHAPE = OCC3D_GRID.shape


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, *SPLIT)


def semantics(seed, classes=18):
    rng = np.random.default_rng(seed)
    grid = np.full(SHAPE, classes - 1, np.uint8)
    grid[:, :, :3] = rng.integers(0, classes - 1, (20, 20, 1)).repeat(10, axis=0).repeat(10, axis=1)
    return grid


def write_all(records, labels, results, classes=18, instances=False):
    """A label and a result for every key frame, the same."""
    for i, (scene, token) in enumerate(zip(records.scenes, records.tokens, strict=True)):
        truth = semantics(i, classes)
        ids = (truth != classes - 1).astype(np.int16) if instances else None
        write_labels(labels_path(labels, scene, token, ""), OccupancyLabels(truth, instances=ids))
        write_occupancy(Occupancy(truth, OCC3D_CLASSES[-classes:], instances=ids), results, token)


def test_files_are_those_of_the_challenge(tmp_path):
    found = Occupancy(semantics(0), OCC3D_CLASSES)
    write_occupancy(found, tmp_path / "new", "abc")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["abc.npz"]
    with np.load(tmp_path / "new" / "abc.npz") as file:
        assert list(file) == ["pred"]
        assert file["pred"].dtype == np.uint8 and file["pred"].shape == (200, 200, 16)
    back = read_occupancy(tmp_path / "new" / "abc.npz", OCC3D_CLASSES)
    np.testing.assert_array_equal(back.semantics, found.semantics)
    assert back.instances is None and back.class_names == OCC3D_CLASSES
    panoptic = Occupancy(found.semantics, OCC3D_CLASSES, instances=(found.semantics * 100).astype(np.int16))
    write_occupancy(panoptic, tmp_path, "abc")
    np.testing.assert_array_equal(read_occupancy(tmp_path / "abc.npz", OCC3D_CLASSES).instances, panoptic.instances)


def test_files_that_are_no_results_are_explained(tmp_path):
    path = tmp_path / "abc.npz"

    def refused(message):
        with pytest.raises(EvaluationError, match=f"abc.npz.*{message}"):
            read_occupancy(path, OCC3D_CLASSES)

    refused("cannot be read")
    path.write_bytes(b"PK")
    refused("cannot be read")
    np.savez(path, semantics=semantics(0))
    refused("no array 'pred' but semantics")
    np.savez(path, pred=semantics(0)[:100])
    refused(r"pred is uint8 of shape \(100, 200, 16\)")
    np.savez(path, pred=semantics(0).astype(float))
    refused("pred is float64")
    np.savez(path, pred=semantics(0) + 1)
    refused("holds class 18, of 18 classes; name the variant")
    np.savez(path, pred=semantics(0), instances=np.full(SHAPE, -1))
    refused("instances is int64 .*from 0 on")
    np.savez(path, pred=semantics(0), instances=np.full(SHAPE, 40_000))
    refused("instances holds 40000.* 0 to 32767")
    np.savez(path, semantics(0), semantics(1))
    with np.load(path) as file:
        assert list(file) == ["arr_0", "arr_1"]
    np.testing.assert_array_equal(read_occupancy(path, OCC3D_CLASSES).semantics, semantics(0))
    np.savez(path, semantics(0), pred=semantics(2))
    np.testing.assert_array_equal(read_occupancy(path, OCC3D_CLASSES).semantics, semantics(2))


def test_files_of_flashocc_are_scored(records, tmp_path):
    write_all(records, tmp_path / "labels", tmp_path / "results")
    for i, (scene, token) in enumerate(zip(records.scenes, records.tokens, strict=True)):
        (tmp_path / "results" / f"{token}.npz").unlink()
        folder = tmp_path / "results" / scene / token
        folder.mkdir(parents=True)
        np.savez_compressed(folder / "pred.npz", pred=semantics(i), gt=semantics(i))
    scores = score_occupancy_files(tmp_path / "results", records, tmp_path, OCC3D_CLASSES, tmp_path / "labels")
    assert scores.summary["RayIoU"] == pytest.approx(1)


def test_what_nobody_knows_costs_a_perfect_result_nothing(records, tmp_path):
    write_all(records, tmp_path / "labels", tmp_path / "results")
    for i, (scene, token) in enumerate(zip(records.scenes, records.tokens, strict=True)):
        truth = semantics(i)
        truth[:90] = 255
        write_labels(labels_path(tmp_path / "labels", scene, token, ""), OccupancyLabels(truth))
    scores = score_occupancy_files(tmp_path / "results", records, tmp_path, OCC3D_CLASSES, tmp_path / "labels")
    assert scores.summary["RayIoU"] == pytest.approx(1)


def test_files_equal_to_the_labels_score_full_marks(records, tmp_path):
    write_all(records, tmp_path / "labels", tmp_path / "results", instances=True)
    threads = torch.get_num_threads()
    scores = score_occupancy_files(tmp_path / "results", records, tmp_path, OCC3D_CLASSES, tmp_path / "labels")
    assert scores.samples == len(records) == 10 and torch.get_num_threads() == threads
    assert scores.summary == pytest.approx(dict.fromkeys(scores.summary, 1.0)) and "RayPQ" in scores.summary
    assert json.loads((tmp_path / "occupancy_metrics.json").read_text())["scores"] == scores.summary


def test_the_command_scores_files(synthetic_nuscenes, records, tmp_path, capsys):
    """Of one scene, and of a variant with classes of its own."""
    scene = records.of_scenes(["scene-0916"])
    write_all(scene, tmp_path / "labels", tmp_path / "results", classes=17)
    folders = {"--occupancy-results": tmp_path / "results", "--labels": tmp_path / "labels", "--out": tmp_path / "out"}
    where = {"--data": synthetic_nuscenes, "--version": SPLIT[0], "--split": SPLIT[1], "--scenes": "scene-0916"}
    of = {"--variant": "r50_nuimg_704x256_8f_openocc"}
    arguments = ["eval", *(str(a) for pair in (folders | where | of).items() for a in pair)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "5 samples" in printed and "RayIoU                       100.00" in printed
    assert sum(line.startswith(("car ", "vegetation ", "others ")) for line in printed.splitlines()) == 2
    assert (tmp_path / "out" / "occupancy_metrics.json").is_file()
    without_scene = [a for a in arguments if a not in ("--scenes", "scene-0916")]
    assert cli.main(without_scene) == 1
    assert "lacks the results of 5 of the 10 samples" in capsys.readouterr().err


def test_what_is_missing_is_counted_before_anything_is_scored(records, tmp_path):
    labels, results = tmp_path / "labels", tmp_path / "results"

    def refused(message, error=EvaluationError):
        with pytest.raises(error, match=message):
            score_occupancy_files(results, records, tmp_path, OCC3D_CLASSES, labels)
        assert not (tmp_path / "occupancy_metrics.json").exists()

    refused(r"lacks the results of 10 of the 10 samples .* \(complete here: none\)")
    write_all(records, labels, results)
    gone = [labels_path(labels, records.scenes[i], records.tokens[i], "") for i in (1, 3)]
    for path in gone:
        path.unlink()
    refused(rf"2 of 10 key frames have no occupancy labels, such as {gone[0]}.*--labels.*labels here: scene-0916\)")
    for path in gone:
        path.write_bytes(b"no labels")
    refused(f"{gone[0]} is damaged", NuScenesError)


def test_a_result_that_its_labels_cannot_judge_names_its_sample(records, tmp_path):
    labels, results = tmp_path / "labels", tmp_path / "results"
    write_all(records, labels, results)
    odd = Occupancy(semantics(4), OCC3D_CLASSES, instances=np.zeros(SHAPE, np.int16))
    write_occupancy(odd, results, records.tokens[4])
    with pytest.raises(EvaluationError, match=f"sample {records.tokens[4]} of .*prepare panoptic-occ"):
        score_occupancy_files(results, records, tmp_path, OCC3D_CLASSES, labels)
