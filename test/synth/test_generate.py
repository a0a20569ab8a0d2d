"""A whole data set: nuscenes-devkit takes it, it does not depend on how it was made, and it is made once."""

import dataclasses
import hashlib
import json
import os

import cv2
import numpy as np
import pytest
from small_world import SETTINGS

from bev_perception import cli
from bev_perception.config import FramesConfig
from bev_perception.data.nuscenes import known_splits, open_scene
from bev_perception.data.queues import evaluation_queue, training_queue
from bev_perception.data.records import open_records, open_split
from bev_perception.synth.generate import generate
from bev_perception.synth.settings import RIGS, TRIGGER_MS, SynthError, SynthSettings, make_schedule
from bev_perception.synth.tables import CATEGORIES, splits_of

VERSION = "v1.0-synth"


def digests(root):
    files = (path for path in root.rglob("*") if (path.is_file() and path.suffix != ".npz") or "gts" in path.parts)
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}


def test_the_devkit_loads_it(devkit, dataroot):
    assert [scene["nbr_samples"] for scene in devkit.scene] == [4, 4]
    for row in devkit.sample_data:
        assert (dataroot / row["filename"]).is_file()
    for scene in devkit.scene:
        location = devkit.get("log", scene["log_token"])["location"]
        assert location == scene["name"]
    seen = {row["category_name"] for row in devkit.sample_annotation}
    assert seen <= set(CATEGORIES) and len(seen) >= 8
    for sample in devkit.sample:
        for token in sample["data"].values():
            devkit.get_sample_data(token)


def test_pictures_and_sweeps_are_what_the_tables_say(devkit, dataroot):
    for row in devkit.sample_data:
        if row["sensor_modality"] == "camera":
            image = cv2.imread(str(dataroot / row["filename"]))
            assert image.shape == (row["height"], row["width"], 3) == (225, 400, 3)
            assert image.std() > 10, "an empty picture"
        else:
            points = np.fromfile(dataroot / row["filename"], np.float32).reshape(-1, 5)
            assert len(points) > 10_000
            assert set(np.unique(points[:, 4])) <= set(range(32))
            assert 1 < np.linalg.norm(points[:, :3], axis=1).max() < 100


def test_the_devkit_renders_it(devkit, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    sample = devkit.sample[1]
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        out = tmp_path / f"{channel}.png"
        devkit.render_sample_data(sample["data"][channel], out_path=str(out), verbose=False)
        assert out.stat().st_size > 10_000


def test_the_map_says_where_the_road_is(devkit):
    for scene in devkit.scene:
        (record,) = [m for m in devkit.map if scene["log_token"] in m["log_tokens"]]
        lidar = devkit.get("sample", scene["first_sample_token"])["data"]["LIDAR_TOP"]
        pose = devkit.get("ego_pose", devkit.get("sample_data", lidar)["ego_pose_token"])
        x, y = pose["translation"][:2]
        assert record["mask"].is_on_mask(x, y).all()
        share = record["mask"].mask().mean() / 255
        assert 0.02 < share < 0.5


def test_the_files_do_not_depend_on_how_they_were_made(tmp_path, monkeypatch):
    """Two processes make what one makes; what is complete is not made again, what was interrupted is."""
    settings = SynthSettings(seconds=1.0, seed=5, camera_rate=12, image_size=(160, 90))
    one, two = tmp_path / "one", tmp_path / "two"
    assert generate(two, settings, scenes=2, workers=2) == 2
    wanted = digests(two)

    assert generate(one, settings, scenes=1) == 1
    stamps = {path: os.stat(path).st_mtime_ns for path in (one / "samples").rglob("*.*")}
    # the second scene as an interrupted call leaves it: files, one of them cut off, and no word that it is complete
    half = one / next(name for name in wanted if name.startswith("samples/CAM_FRONT/") and "-0001__" in name)
    half.write_bytes(b"cut off")
    assert generate(one, settings, scenes=2) == 1
    assert digests(one) == wanted
    assert all(os.stat(path).st_mtime_ns == stamp for path, stamp in stamps.items())

    check_images_between_key_frames(one)
    monkeypatch.setattr("bev_perception.synth.generate.make_scene", None)  # would fail if it were called
    assert generate(one, settings, scenes=1) == 0
    assert len(open_records(one, VERSION)) == 2
    counts = [len(list((one / folder).rglob("*.jpg"))) for folder in ("samples", "sweeps")]
    assert counts == [2 * 2 * 6, 2 * 5 * 6]


def test_what_has_a_box_does_not_depend_on_the_width_of_the_pictures(dataroot, tmp_path):
    generate(tmp_path, dataclasses.replace(SETTINGS, image_size=(1200, 675)), scenes=1)
    narrow, wide = (boxes_of_the_first_scene(root) for root in (dataroot, tmp_path))
    assert len(narrow) > 100 and len(narrow ^ wide) < 0.06 * len(narrow | wide)


def boxes_of_the_first_scene(root):
    """Stamps of key frames and centres of boxes."""
    records = open_records(root, VERSION)
    rows = [i for i, scene in enumerate(records.scenes) if scene == records.scenes[0]]
    return {(i, *box[:3].round(2)) for i in rows for box in records.annotations(i).boxes}


def check_images_between_key_frames(root):
    """Those of the devkit are linked in the order of time, and belong to the key frame that they lead to."""
    from nuscenes.nuscenes import NuScenes

    devkit = NuScenes(VERSION, str(root), verbose=False)
    for scene in devkit.scene:
        row = devkit.get("sample_data", devkit.get("sample", scene["first_sample_token"])["data"]["CAM_FRONT"])
        chain = [row]
        while row["next"]:
            row = devkit.get("sample_data", row["next"])
            assert row["prev"] == chain[-1]["token"]
            chain.append(row)
        assert [row["is_key_frame"] for row in chain] == [True] + 5 * [False] + [True]
        assert (np.diff([row["timestamp"] for row in chain]) > 0).all()
        for row in chain[1:]:
            assert row["sample_token"] == scene["last_sample_token"]
        # boxes of an image between two key frames lie between theirs
        boxes = [{b.token: b.center for b in devkit.get_boxes(chain[k]["token"])} for k in (0, 3, 6)]
        names = [{devkit.get("sample_annotation", t)["instance_token"]: c for t, c in b.items()} for b in boxes]
        both = names[0].keys() & names[1].keys() & names[2].keys()
        assert both
        for name in both:
            before, between, after = (centers[name] for centers in names)
            assert np.abs(between - (before + after) / 2).max() < 0.05 + 0.2 * np.abs(after - before).max()


def test_other_settings_are_refused(dataroot):
    with pytest.raises(SynthError, match="seconds 2.0 instead of 3.0; choose another directory"):
        generate(dataroot, SynthSettings(3.0, 3, 2, (400, 225)), scenes=1)
    for wrong in ({"camera_rate": 3}, {"seconds": 0.2}, {"seed": -1}, {"image_size": (1000, 562)}):
        with pytest.raises(SynthError, match="choose"):
            SynthSettings(**wrong)
    with pytest.raises(SynthError, match="at least 1"):
        generate(dataroot, SETTINGS, scenes=0)


def test_splits():
    splits = splits_of([f"s{k}" for k in range(7)])
    assert splits.pop("synth_all") == [f"s{k}" for k in range(7)]
    assert splits == {"synth_train": ["s1", "s2", "s3", "s4", "s6"], "synth_val": ["s0", "s5"]}


def test_our_records_and_splits(dataroot, devkit):
    from nuscenes.utils.splits import get_scenes_of_split

    names = [scene["name"] for scene in devkit.scene]
    for split, wanted in (("synth_val", names[:1]), ("synth_train", names[1:])):
        assert get_scenes_of_split(split, devkit) == known_splits(dataroot, VERSION)[split] == wanted
        records = open_split(dataroot, VERSION, split)
        assert sorted(set(records.scenes)) == wanted and len(records) == 4
        assert records.missing_files([records.cameras(i) for i in range(4)]) == []


def test_queues_over_key_frames_alone(dataroot):
    """Who steps back by a number of images gets to the key frame that is nearest to that time."""
    records = open_split(dataroot, VERSION, "synth_val")
    frames = FramesConfig(past=3)
    keys = [records.cameras(i).tolist() for i in range(4)]
    stamps = [[image.stamp for image in records.images(records.cameras(i))] for i in range(4)]
    assert [q.tolist() for q in evaluation_queue(records, 3, frames)] == keys[::-1]
    seen = [[image.stamp for image in records.images(s)] for s in records.sweeps(3)]
    assert seen == [stamps[3]] * 2 + [stamps[2]] * 3
    for seed in range(8):
        queue = training_queue(records, 3, frames, np.random.default_rng(seed))
        times = [records.images(s)[0].stamp for s in queue]
        assert times == sorted(times, reverse=True) and times[0] - times[-1] > 900_000


def test_a_drive_has_each_picture_once(dataroot, devkit):
    drive = open_scene(dataroot, VERSION, devkit.scene[0]["name"])
    images = [event for event in drive if hasattr(event, "jpeg")]
    assert len(images) == 24 and len({(i.camera, i.stamp) for i in images}) == 24


def test_times():
    """Cameras fire as those of nuScenes do, at 12 Hz, the sixth image of each with a key frame."""
    schedule = make_schedule(SynthSettings(seconds=20.0), 1_000_000_000, np.random.default_rng(0))
    assert len(schedule.key_stamps) == 40 and len(schedule.shots) == 6 * (39 * 6 + 1)
    assert np.diff(schedule.key_stamps).mean() == pytest.approx(500_000, abs=200)
    for channel, offset in TRIGGER_MS.items():
        stamps = np.array([shot.stamp for shot in schedule.shots if shot.channel == channel])
        assert np.abs(np.diff(stamps) - 1e6 / 12).max() < 12_000
        keyed = np.array(
            [s.stamp - schedule.key_stamps[s.key] for s in schedule.shots if s.channel == channel and s.key >= 0]
        )
        assert len(keyed) == 40
        assert keyed.mean() / 1e3 == pytest.approx(offset, abs=1.0) and 1.0 < keyed.std() / 1e3 < 2.2
    assert all(sorted(rig) == sorted(RIGS[0]) for rig in RIGS)


def test_command_line(tmp_path, capsys):
    arguments = ["synth", str(tmp_path / "new"), "--scenes", "1", "--seconds", "1", "--camera-rate", "2"]
    assert cli.main([*arguments, "--workers", "1"]) == 0
    assert "1 scenes; version v1.0-synth" in capsys.readouterr().out
    rows = json.loads((tmp_path / "new" / VERSION / "sample_data.json").read_text())
    assert {(r["width"], r["height"]) for r in rows if r["fileformat"] == "jpg"} == {(1600, 900)}
    assert cli.main([*arguments, "--workers", "1"]) == 0
    assert "0 scenes, 1 were there already" in capsys.readouterr().out
    assert cli.main([*arguments, "--seed", "-2"]) == 1
    assert "the seed -2 is negative" in capsys.readouterr().err
