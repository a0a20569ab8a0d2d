"""The index of nuScenes' tables: what it costs to keep, and what is wrong with tables."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
from nuscenes_root import LIDAR2EGO, SCENES, VERSION, ground_points, write_nuscenes

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.config import FramesConfig
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.queues import evaluation_queue, reference2image, training_boxes, training_queue
from bev_perception.data.records import open_records, open_split
from bev_perception.data.synthetic import World
from bev_perception.geometry import project
from bev_perception.strict import UserError


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, VERSION, "mini_val")


def copy_tables(source, root):
    shutil.copytree(source / VERSION, root / VERSION, ignore=shutil.ignore_patterns("*.npz"))
    return root


def index_files(directory):
    return sorted(path.name for path in directory.glob("*.npz"))


def test_the_index_is_made_once(synthetic_nuscenes, tmp_path, monkeypatch):
    root = copy_tables(synthetic_nuscenes, tmp_path)
    first = open_records(root, VERSION)
    assert len(index_files(root / VERSION)) == 1
    monkeypatch.setattr("bev_perception.data.records.build_index", None)  # would fail if it were called
    second = open_records(root, VERSION)
    assert second.tokens == first.tokens
    np.testing.assert_array_equal(second.sweeps(1), first.sweeps(1))
    assert second.annotations(0).names.tolist() == first.annotations(0).names.tolist()


def test_changed_tables_get_a_new_index(synthetic_nuscenes, tmp_path):
    root = copy_tables(synthetic_nuscenes, tmp_path)
    before = open_records(root, VERSION)
    table = root / VERSION / "sample_annotation.json"
    rows = json.loads(table.read_text())
    rows[0]["num_lidar_pts"] = 0
    table.write_text(json.dumps(rows))
    after = open_records(root, VERSION)
    assert before.annotations(0).valid.all() and (~after.annotations(0).valid).sum() == 1
    assert len(index_files(root / VERSION)) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"\x80\x04pickle"])
def test_a_damaged_index_is_made_again(synthetic_nuscenes, tmp_path, caplog, damage):
    root = copy_tables(synthetic_nuscenes, tmp_path)
    wanted = open_records(root, VERSION).tokens
    (file,) = (root / VERSION).glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert open_records(root, VERSION).tokens == wanted
    assert "is damaged" in caplog.text
    assert len(file.read_bytes()) == len(whole) and len(index_files(root / VERSION)) == 1


def test_where_the_tables_cannot_be_written_the_users_cache_is_taken(synthetic_nuscenes, tmp_path, monkeypatch, caplog):
    root = copy_tables(synthetic_nuscenes, tmp_path / "root")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save = np.savez_compressed

    def only_in_the_cache(path, **arrays):  # root may write anywhere, so permissions would not do
        if (root / VERSION) in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        save(path, **arrays)

    monkeypatch.setattr(np, "savez_compressed", only_in_the_cache)
    open_records(root, VERSION)
    assert "cannot be kept" in caplog.text
    assert index_files(root / VERSION) == [] and len(index_files(tmp_path / "cache" / "bev_perception")) == 1
    caplog.clear()
    monkeypatch.setattr("bev_perception.data.records.build_index", None)
    open_records(root, VERSION)
    assert caplog.text == ""


def test_it_works_without_any_place_to_keep_the_index(synthetic_nuscenes, tmp_path, caplog):
    root = copy_tables(synthetic_nuscenes, tmp_path)
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(open_records(root, VERSION, cache=tmp_path / "file" / "below")) == 10
    assert "cannot be kept" in caplog.text


def test_the_cache_of_the_environment_is_taken_and_the_dataroot_stays(synthetic_nuscenes, tmp_path, monkeypatch):
    root = copy_tables(synthetic_nuscenes, tmp_path / "root")
    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / "own"))
    open_records(root, VERSION)
    assert index_files(root / VERSION) == [] and len(index_files(tmp_path / "own")) == 1
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_an_index_that_others_could_have_written_is_not_used(synthetic_nuscenes, tmp_path, monkeypatch, caplog):
    root = copy_tables(synthetic_nuscenes, tmp_path / "root")
    wanted = open_records(root, VERSION).tokens
    (file,) = (root / VERSION).glob("*.npz")
    file.chmod(0o666)
    assert open_records(root, VERSION).tokens == wanted
    assert "others than you could have written it" in caplog.text and file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    assert open_records(root, VERSION).tokens == wanted
    assert "cannot be kept" in caplog.text and index_files(tmp_path / "shared") == []


def test_names_that_lead_out_and_circles_are_refused(synthetic_nuscenes, tmp_path):
    root = copy_tables(synthetic_nuscenes, tmp_path)

    def refused(table, column, value, reason):
        path = root / VERSION / f"{table}.json"
        kept = path.read_text()
        rows = json.loads(kept)
        path.write_text(json.dumps([row | {column: value(rows, row)} for row in rows]))
        with pytest.raises(UserError, match=reason):
            open_records(root, VERSION)
        path.write_text(kept)

    refused("sample_data", "filename", lambda _, row: f"../{row['filename']}", "does not name a file inside")
    refused("sample_data", "filename", lambda _, row: f"/{row['filename']}", "does not name a file inside")
    refused("scene", "name", lambda _, row: "../../outside", "no name that a sample or a scene")
    refused("scene", "name", lambda _, row: "..", "does not name a file inside")
    refused("sample", "next", lambda rows, row: rows[0]["token"], "go in a circle")
    refused("sample", "next", lambda rows, row: row["token"], "go in a circle")
    refused("ego_pose", "timestamp", lambda _, row: float("nan"), "ego_pose.json is damaged")


def test_tables_that_do_not_fit_are_named(synthetic_nuscenes, tmp_path):
    root = copy_tables(synthetic_nuscenes, tmp_path)
    tables = root / VERSION

    def refused(name, text, reason):
        kept = (tables / name).read_text()
        (tables / name).write_text(text)
        with pytest.raises(NuScenesError, match=reason):
            open_records(root, VERSION)
        (tables / name).write_text(kept)

    refused("ego_pose.json", "[", "ego_pose.json is damaged")
    refused("ego_pose.json", "[]", "do not fit together")
    refused("ego_pose.json", '[{"token": "x"}, 3]', "do not fit together")
    sensors = json.loads((synthetic_nuscenes / VERSION / "calibrated_sensor.json").read_text())
    for place in ([1.0, 2.0], "here"):
        moved = [s | {"translation": place} for s in sensors]
        refused("calibrated_sensor.json", json.dumps(moved), "do not fit together")
    zero = [s | {"rotation": [0.0, 0, 0, 0]} for s in sensors]
    refused("calibrated_sensor.json", json.dumps(zero), "is no rotation")
    refused("sample.json", "[]", "samples is empty")
    shots = json.loads((tables / "sample_data.json").read_text())
    cut = [row for row in shots if not (row["is_key_frame"] and row["calibrated_sensor_token"] == "CAM_BACK")]
    refused("sample_data.json", json.dumps(cut), "has no CAM_BACK")
    (tables / "sensor.json").unlink()
    with pytest.raises(NuScenesError, match="lacks the tables sensor;"):
        open_records(root, VERSION)


def test_splits_and_scenes(records, synthetic_nuscenes):
    assert sorted(set(records.scenes)) == list(SCENES)
    one = records.of_scenes([SCENES[1]])
    assert set(one.scenes) == {SCENES[1]} and len(one) == 5
    with pytest.raises(NuScenesError, match="unknown split 'valid'"):
        open_split(synthetic_nuscenes, VERSION, "valid")
    with pytest.raises(NuScenesError, match="holds no scene of the split 'mini_train'"):
        open_split(synthetic_nuscenes, VERSION, "mini_train")


def test_splits_of_ones_own(synthetic_nuscenes, tmp_path):
    """From splits.json beside the tables, as nuscenes-devkit reads them; official names stay official."""
    root = copy_tables(synthetic_nuscenes, tmp_path)
    file = root / VERSION / "splits.json"
    file.write_text(json.dumps({"mine": [SCENES[1]], "mini_val": []}))
    assert set(open_split(root, VERSION, "mine").scenes) == {SCENES[1]}
    assert set(open_split(root, VERSION, "mini_val").scenes) == set(SCENES)
    for damage, reason in (("{", "is no JSON"), ('{"mine": "all"}', "must hold a list"), ("[]", "must hold a list")):
        file.write_text(damage)
        with pytest.raises(NuScenesError, match=reason):
            open_split(root, VERSION, "mine")


def test_missing_files(synthetic_nuscenes, tmp_path):
    root = write_nuscenes(tmp_path / "root", key_frames=2, image_size=(32, 18))
    records = open_records(root, VERSION)
    sets = [records.cameras(0), *records.sweeps(1)]
    assert records.missing_files(sets) == []
    gone = records.paths(sets[1])[2]
    (root / gone).unlink()
    assert records.missing_files(sets) == [gone]


def test_lidar_points(synthetic_nuscenes, tmp_path):
    root = write_nuscenes(tmp_path / "root", key_frames=2, image_size=(32, 18))
    records = open_records(root, VERSION)
    np.testing.assert_array_equal(records.lidar_points(1), ground_points(1)[:, :3])
    path = next((root / "samples" / "LIDAR_TOP").iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(NuScenesError, match="is damaged: it must hold 5 float32"):
        [records.lidar_points(i) for i in range(2)]
    path.unlink()
    with pytest.raises(NuScenesError, match="is the archive complete"):
        [records.lidar_points(i) for i in range(2)]


def test_objects_keep_their_instance(records):
    """An instance is the same object in every key frame of its scene, and in no other scene."""
    seen = {}
    for i in range(len(records)):
        annotations = records.annotations(i)
        assert len(set(annotations.instances.tolist())) == len(annotations.instances)
        for instance, name, size in zip(
            annotations.instances, annotations.names, annotations.boxes[:, 3:6], strict=True
        ):
            thing = (records.scenes[i], str(name), *size.round(6))
            assert seen.setdefault(int(instance), thing) == thing
    assert len(seen) > 1


def test_boxes_and_matrices_agree_with_the_world(records):
    """The cars of the made-up world, where nuScenes' conventions put them, are where the cameras see them."""
    np.testing.assert_allclose(records.lidar2ego(0), LIDAR2EGO, atol=1e-9)
    world = World(seed=3)
    for i in (0, 4, 7):
        boxes, labels = training_boxes(records, i, NUSCENES_CLASSES, (-51.2, -51.2, -5, 51.2, 51.2, 3))
        truth = world.boxes(records.stamps[i] * 1000)
        lidar2global = records.lidar2global(i)
        centers = boxes[:, :3] @ lidar2global[:3, :3].T + lidar2global[:3, 3]
        at = np.linalg.norm(centers[:, None] - truth.centers, axis=2).argmin(axis=1)
        np.testing.assert_allclose(centers, truth.centers[at], atol=1e-3)
        np.testing.assert_array_equal(labels, truth.labels[at])
        np.testing.assert_allclose(boxes[:, 3:6], truth.sizes[at], atol=1e-9)
        np.testing.assert_allclose(np.hypot(*boxes[:, 7:].T), np.hypot(*truth.velocities[at].T), atol=0.1)
        matrices = reference2image(records, i, [records.cameras(i)])[0]
        seen = np.zeros(len(boxes), int)
        for matrix in matrices:
            pixels, depth = project(matrix, boxes[:, :3])
            seen += (depth > 1) & (pixels > 0).all(axis=1) & (pixels < (400, 225)).all(axis=1)
        assert (seen > 0).mean() > 0.9  # the cameras look all around


def test_queues_of_the_published_kinds(records):
    current = records.cameras(4)
    past = FramesConfig(past=7)
    queue = evaluation_queue(records, 4, past)
    wanted = [4, 3, 2, 1, 0, 0, 0, 0]
    assert [s.tolist() for s in queue] == [records.cameras(j).tolist() for j in wanted]
    assert [s.tolist() for s in evaluation_queue(records, 0, past)] == [records.cameras(0).tolist()] * 8
    interleaved = FramesConfig(past=2, future=2, order="interleaved")
    queue = evaluation_queue(records, 2, interleaved)
    assert [s.tolist() for s in queue] == [records.cameras(j).tolist() for j in (2, 1, 3, 0, 4)]
    draws = [training_queue(records, 4, FramesConfig(past=3), np.random.default_rng(k)) for k in range(8)]
    assert all(len(queue) == 4 and (queue[0] == current).all() for queue in draws)
    assert len({tuple(np.ravel(queue).tolist()) for queue in draws}) > 1
    again = training_queue(records, 4, FramesConfig(past=3), np.random.default_rng(0))
    assert np.array_equal(draws[0], again)


def test_the_real_tables(nuscenes_root, tmp_path):
    records = open_split(nuscenes_root, "v1.0-mini", "mini_val", cache=tmp_path)
    assert len(records) == 81 and sum(len(records.annotations(i).boxes) for i in range(81)) == 4495
    for k, stamp in enumerate(records.stamps):
        shots = records.images(records.cameras(k))
        assert max(abs(shot.stamp - stamp) for shot in shots) < 60_000
        assert len({shot.path for shot in shots}) == 6
    assert not [name for name in os.listdir(nuscenes_root / "v1.0-mini") if name.endswith(".npz")]
