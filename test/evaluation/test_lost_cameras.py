"""Cameras that are left out of an evaluation, and the study of lost cameras."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bev_perception.data.drive import CAMERAS
from bev_perception.data.folders import FolderError, one_writer
from bev_perception.evaluation import lost_cameras
from bev_perception.evaluation.detection import DetectionScores
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings
from bev_perception.evaluation.lost_cameras import by_number, choose_losses, read_study, study_lost_cameras, study_table
from bev_perception.evaluation.running import leave_out
from bev_perception.types import CameraImage, Frame, View
from bev_perception.visualization.lost_cameras import draw_lost_cameras


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Settings of a study whose scores fall by 5 points with each lost camera; `calls` are the cases evaluated."""
    calls = []

    def evaluate(settings):
        calls.append(settings.without)
        share = (6 - len(settings.without)) / 20
        return DetectionScores(share, share + 0.1, {}, {}, {}, {})

    monkeypatch.setattr(lost_cameras, "evaluate", evaluate)
    monkeypatch.setattr(lost_cameras, "open_split", lambda *_: SimpleNamespace(camera_names=CAMERAS))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"trained")
    return EvalSettings("sparsebev_tiny", weights, tmp_path, "v1.0-mini", "mini_val", tmp_path / "out"), calls


def test_the_cases_are_each_camera_alone_and_fixed_draws():
    cases = choose_losses()
    assert cases[:7] == [(), *((camera,) for camera in CAMERAS)]
    assert {len(case) for case in cases} == set(range(6))
    assert len(cases) == len(set(cases))
    assert cases == choose_losses()
    assert all(set(case) < set(CAMERAS) for case in cases)


def test_a_study_is_tabled_drawn_and_resumed(study, tmp_path):
    settings, calls = study
    studied = study_lost_cameras(settings)
    assert calls == choose_losses()
    assert studied == read_study(settings.out / "lost_cameras.json")
    table = study_table(studied)
    assert "| none | 30.00 | 40.00 |" in table
    assert "| cam_back | 25.00 | 35.00 |" in table
    assert "| 5 | 5.00 (5.00 to 5.00) | 15.00 (15.00 to 15.00) |" in table
    assert next(by_number(studied)) == (0, "mAP", 30.0, 30.0, 30.0)
    draw_lost_cameras(studied, tmp_path / "study.png", "tiny")
    assert (tmp_path / "study.png").stat().st_size > 10_000
    calls.clear()
    assert study_lost_cameras(settings) == studied
    assert calls == []
    lost_cameras._write(settings.out / "lost_cameras.json", lost_cameras._fingerprint(settings), studied[:-2])
    study_lost_cameras(settings)
    assert calls == [case.without for case in studied[-2:]]


@pytest.mark.parametrize("other", [{"max_range": 40.0}, {"nms": "none"}, {"labels": "gts_panoptic"}, {"memory": False}])
def test_a_study_of_other_settings_is_made_anew(study, other):
    settings, calls = study
    study_lost_cameras(settings)
    calls.clear()
    study_lost_cameras(replace(settings, **other))
    assert len(calls) == len(choose_losses())


def test_a_study_of_other_weights_in_the_same_file_is_made_anew(study):
    settings, calls = study
    study_lost_cameras(settings)
    calls.clear()
    study_lost_cameras(replace(settings, device="cpu"))
    assert not calls
    settings.checkpoint.write_bytes(b"trained on")
    study_lost_cameras(settings)
    assert len(calls) == len(choose_losses())


def test_two_processes_do_not_study_into_one_folder(study):
    settings, _ = study
    with one_writer(settings.out), pytest.raises(FolderError, match="another process is writing"):
        study_lost_cameras(settings)


def test_a_damaged_study_is_refused(study):
    settings, _ = study
    settings.out.mkdir()
    (settings.out / "lost_cameras.json").write_text('{"of": {}}')
    with pytest.raises(EvaluationError, match="no study of lost cameras"):
        read_study(settings.out / "lost_cameras.json")


def test_views_are_left_out_of_a_frame():
    views = tuple(View(CameraImage(c, 1, c, "jpeg", b""), None, np.eye(4), np.eye(4)) for c in "ab")
    frame = Frame(1, ("a", "b"), views, np.eye(4))
    assert leave_out(frame, ()) is frame
    left = leave_out(frame, ("b",))
    assert left.views == (views[0], None)
    assert left.missing == {"b": "left out"}
