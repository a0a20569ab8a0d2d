"""Recorded scores against measured ones, by the command, with untrained weights on the small made-up dataroot."""

import pytest
from made_up_labels import write_all_labels
from safetensors.torch import load_file, save_file

from bev_perception import cli
from bev_perception.cli import evaluation
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.data.records import open_split
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.regression import compare, measure, read_scores, scores_file, write_scores
from bev_perception.pipeline.loading import write_initial_weights

RECORDED = {"a": {"mAP": 20.0, "NDS": 30.0}, "b": {"RayIoU": 10.0}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "scores.yaml"
    write_scores(RECORDED, path)
    assert read_scores(path) == RECORDED and path.read_text().startswith("# Percent")


@pytest.mark.parametrize("text", [None, "[", "3", "a: 3", "a: {mAP: high}"])
def test_scores_that_cannot_be_read_name_the_remedy(tmp_path, text):
    path = tmp_path / "scores.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EvaluationError, match="eval-demo --record` writes it"):
        read_scores(path)


def test_scores_may_fall_by_the_tolerance_and_no_more():
    table, worse = compare(RECORDED, {"a": {"mAP": 19.5, "NDS": 35.0}, "b": {"RayIoU": 9.49}})
    assert worse == ["RayIoU of b is 9.49, recorded are 10.00"]
    assert len(table.splitlines()) == 4 and "    20.00    19.50" in table
    assert compare(RECORDED, {"a": {"mAP": float("nan")}})[1] == ["mAP of a is nan, recorded are 20.00"]
    with pytest.raises(EvaluationError, match="no mIoU of b is recorded"):
        compare(RECORDED, {"b": {"mIoU": 1.0}})


@pytest.fixture
def drives(synthetic_nuscenes, shipped, tmp_path, monkeypatch):
    """What stands for the held-out drives and for trained weights: those that find something by chance.

    Returns the dataroot and the folders in which drives were to be made up.
    """
    pytest.importorskip("nuscenes")
    root = tmp_path / "root"
    root.mkdir()
    for path in synthetic_nuscenes.iterdir():
        (root / path.name).symlink_to(path)
    write_all_labels(open_split(root, "v1.0-mini", "mini_val"), LABELS_FOLDER)
    state = load_file(shipped)
    state["pts_bbox_head.transformer.decoder.decoder_layer.cls_branch.6.bias"] += 3.0
    shipped.unlink()
    save_file(state, shipped, {"trained": "true"})
    write_initial_weights("sparseocc_tiny", shipped.with_name("sparseocc_tiny.safetensors"), seed=0)
    folders = []

    def held_out(folder):
        assert folder.is_dir() and not any(folder.iterdir())  # drives of older code would be scored as they are
        (folder / "of_this_run").touch()
        folders.append(folder)
        return root, "v1.0-mini", "mini_val"

    monkeypatch.setattr(evaluation, "_held_out", held_out)
    return root, folders


@pytest.mark.slow
def test_the_command_records_and_compares(drives, curves, tmp_path, capsys, monkeypatch):
    command = ["eval-demo", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    assert "the recorded scores cannot be read" in capsys.readouterr().err
    assert cli.main([*command, "--record"]) == 0
    recorded = read_scores(scores_file())
    assert recorded.keys() == {"sparsebev_tiny", "sparseocc_tiny"}
    assert recorded["sparsebev_tiny"].keys() == {"mAP", "NDS"} and recorded["sparseocc_tiny"].keys() == {"RayIoU"}
    capsys.readouterr()
    measured = dict(recorded, sparseocc_tiny=dict(recorded["sparseocc_tiny"]))  # to measure again takes long
    monkeypatch.setattr("bev_perception.evaluation.regression.measure", lambda *_: measured)
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "no score is lower than recorded" in printed and "sparseocc_tiny    RayIoU" in printed
    recorded["sparseocc_tiny"]["RayIoU"] += 3.0
    write_scores(recorded, scores_file())
    assert cli.main(command) == 1
    assert "RayIoU of sparseocc_tiny is " in (said := capsys.readouterr().out) and "Mend what has changed" in said
    _, folders = drives
    assert len(folders) == 3 and not any(folder.exists() for folder in folders)


def test_drives_without_truth_cannot_be_measured_on(drives, monkeypatch, tmp_path):
    monkeypatch.setattr("bev_perception.evaluation.regression.evaluate", lambda settings: None)
    with pytest.raises(EvaluationError, match="no truth of the split 'test'"):
        measure(["sparsebev_tiny"], drives[0], "v1.0-mini", "test", tmp_path)
