"""Bags and boxes of one's own as a dataroot: what nuscenes-devkit and our reader find in it, and what is refused."""

import json
from functools import partial

import numpy as np
import pytest
from own_robot import CAMERAS, CLASSES, REACH, write_lidar, write_robot

from bev_perception import cli
from bev_perception.config import FramesConfig
from bev_perception.data.folders import FolderError, locked
from bev_perception.data.own_boxes import BoxesError, check_mapped, read_classes, read_own_boxes
from bev_perception.data.own_dataset import VERSION, reference_frame, write_own_dataset
from bev_perception.data.own_recording import OwnRecording
from bev_perception.data.queues import evaluation_queue, read_frame, training_boxes
from bev_perception.data.records import open_split
from bev_perception.data.rosbag import BagReader
from bev_perception.data.synthetic import START, World
from bev_perception.geometry import transform_points
from bev_perception.health import Health
from bev_perception.pipeline.offline import collect_frames
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.strict import ConfigError, UserError

SECONDS = 3.0


def prepare(bag, boxes, classes, out, *more):
    named = ["prepare", "dataset", "--bag", bag, "--cameras", *CAMERAS, "--boxes", boxes, "--classes", classes]
    return cli.main([str(a) for a in [*named, *more, out]])


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return write_robot(tmp_path_factory.mktemp("robot"), SECONDS)


@pytest.fixture(scope="module")
def dataroot(robot, tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "root"
    assert prepare(*robot, out, "--base-height", "0.2") == 0
    return out


def recording_of(bag, others=(), lidar=""):
    reader, settings = BagReader(bag, CAMERAS, others=others), SynchronizerSettings(CAMERAS)
    frames = partial(_frames, reader, settings)
    return OwnRecording("robot", reader, frames, settings, lidar)


def _frames(reader, settings):
    return collect_frames(reader.events(), settings, Health())


def test_the_devkit_loads_it_and_has_the_boxes_where_they_are(dataroot):
    from nuscenes.nuscenes import NuScenes

    devkit = NuScenes(VERSION, str(dataroot), verbose=False)
    (scene,) = devkit.scene
    assert (scene["name"], scene["nbr_samples"]) == ("robot", 6)
    assert {c["name"] for c in devkit.category} == {"vehicle.car", "forklift", "human.pedestrian.adult"}
    sample = devkit.get("sample", scene["first_sample_token"])
    assert set(sample["data"]) == {*(camera.upper() for camera in CAMERAS), "LIDAR_TOP"}
    attributes = {a["token"]: a["name"] for a in devkit.attribute}
    for row in devkit.sample_annotation:
        if row["attribute_tokens"]:
            speed = np.hypot(*devkit.box_velocity(row["token"])[:2])
            assert attributes[row["attribute_tokens"][0]].endswith("moving") == (speed > 0.2)
    assert {name.partition(".")[2] for name in attributes.values()} >= {"moving", "parked"}
    path, boxes, _ = devkit.get_sample_data(sample["data"]["FRONT"])
    assert boxes and (dataroot / path).is_file()


def test_our_reader_has_cameras_poses_boxes_and_queues(dataroot):
    records = open_split(dataroot, VERSION, "own_train")
    assert records.camera_names == CAMERAS and len(records) == 6
    world = World(3)
    for i in range(len(records)):
        stamp = START + i * 500_000_000
        assert records.stamps[i] * 1000 == stamp
        assert np.allclose(records.ego2global(i), world.ego2global(stamp), atol=1e-6)
        assert np.allclose(records.lidar2ego(i), reference_frame(0.2))
        frame = read_frame(records, i)
        assert frame.cameras == CAMERAS and all(abs(view.image.stamp - stamp) < 1e6 for view in frame.views)
        boxes, labels = training_boxes(records, i, ("car", "forklift", "pedestrian"), (-50, -50, -5, 50, 50, 5))
        truth = world.boxes(stamp)
        placed = transform_points(records.lidar2global(i), boxes[:, :3])
        nearest = np.linalg.norm(placed[:, None] - truth.centers, axis=2)
        assert len(boxes) and nearest.min(axis=1).max() < 1e-6
        assert len(boxes) == sum(
            np.linalg.norm((truth.centers - world.ego2global(stamp)[:3, 3])[:, :2], axis=1) < REACH
        )
        found = truth.labels[nearest.argmin(axis=1)]
        assert np.array_equal(np.array([0, 1, None, None, None, None, None, None, 2])[found], labels)
        velocities = boxes[:, 7:9] @ records.lidar2global(i)[:2, :2].T
        known = ~np.isnan(records.annotations(i).velocities).any(axis=1)  # without neighbours it is not known
        assert known.sum() > 10 and np.abs(velocities - truth.velocities[nearest.argmin(axis=1)])[known].max() < 0.4
    queue = evaluation_queue(records, 5, FramesConfig(past=3))
    assert [records.image_stamps(s)[0] for s in queue] == [records.stamps[k] for k in (5, 4, 3, 2)]


def test_lenses_are_straightened(tmp_path):
    bag, boxes, classes = write_robot(tmp_path, 1.0, distortion=(-0.2, 0.05, 0.0, 0.0, 0.0))
    assert prepare(bag, boxes, classes, tmp_path / "out") == 0
    frame = read_frame(open_split(tmp_path / "out", VERSION, "own_val"), 0)
    assert not frame.views[0].calibration.distortion
    sent = next(iter(recording_of(bag).frames())).views[0]
    assert bytes(frame.views[0].image.data) != bytes(sent.image.data)


def test_lidar_points_lie_in_their_boxes_and_come_from_their_origin(tmp_path):
    bag, boxes, classes = write_robot(tmp_path, 1.0)
    write_lidar(tmp_path / "lidar", 1.0)
    recording = recording_of(bag, (tmp_path / "lidar",), "/lidar")
    made = write_own_dataset(tmp_path / "out", [recording], read_own_boxes(boxes), read_classes(classes), 0.1)
    assert made.scenes == {"robot": 2} and not made.remarks
    records = open_split(tmp_path / "out", VERSION, "own_val")
    annotations = records.annotations(1)
    assert (annotations.lidar_points == 1).all()  # the world's points are the middles of its boxes
    points = records.lidar_points(1)
    distance = np.linalg.norm(annotations.boxes[:, None, :3] - points, axis=2).min(axis=1)
    assert distance.max() < 1e-3
    data, mounts = (
        json.loads((tmp_path / "out" / VERSION / f"{name}.json").read_text())
        for name in ("sample_data", "calibrated_sensor")
    )
    scans = [row for row in data if "LIDAR_TOP" in row["filename"]]
    assert [row["is_key_frame"] for row in scans] == [True, False, False, False, False, True]
    origin = next(row for row in mounts if row["token"] == scans[-1]["origin_token"])
    assert np.allclose(origin["translation"], [0.2, 0, 1.1], atol=2e-3)
    with pytest.raises(UserError, match=r"no points on /scan; topics of sensor_msgs/msg/PointCloud2 in it: /lidar"):
        write_own_dataset(
            tmp_path / "b",
            [recording_of(bag, (tmp_path / "lidar",), "/scan")],
            read_own_boxes(boxes),
            read_classes(classes),
        )
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.partial").exists()


def test_an_output_that_exists_or_is_being_written_is_left_alone(robot, dataroot, tmp_path, capsys):
    assert prepare(*robot, dataroot) == 1
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "out.partial").mkdir()
    with locked(tmp_path / "out.partial"), pytest.raises(FolderError):
        write_own_dataset(tmp_path / "out", [recording_of(robot[0])], read_own_boxes(robot[1]), read_classes(robot[2]))


LINE = {
    "stamp": START,
    "frame": "map",
    "class": "auto",
    "track_id": 1,
    "center": [1, 2, 3],
    "size": [1, 1, 1],
    "yaw": 0.0,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stamp": START // 10**9}, "whole ns"),
        ({"centre": [1, 2, 3]}, "did you mean 'center'"),
        ({"size": [1, 1]}, "3 numbers"),
        ({"size": [1, 0, 1]}, "positive"),
        ({"yaw": 90}, "not in degrees"),
        ({"frame": None}, "frame is missing"),
        ({"track_id": True}, "number or a name"),
        ({"velocity": ["a", 1]}, "2 numbers"),
    ],
)
def test_lines_that_are_no_boxes_are_named(tmp_path, change, said):
    path = tmp_path / "boxes.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps({**LINE, **change})}\n")
    with pytest.raises(BoxesError, match=f"line 2: .*{said}"):
        read_own_boxes(path)


def test_files_of_other_times_frames_and_classes_are_refused(robot, tmp_path):
    path = tmp_path / "boxes.jsonl"
    for text, said in (("", "is empty"), ("{", "no JSON"), (f"{json.dumps(LINE)}\n" * 2, "two boxes")):
        path.write_text(text)
        with pytest.raises(BoxesError, match=said):
            read_own_boxes(path)
    classes = tmp_path / "classes.yaml"
    classes.write_text("person: pedestrain\n")
    with pytest.raises(ConfigError, match="did you mean 'pedestrian'"):
        read_classes(classes)
    classes.write_text("person: pedestrian\n")
    path.write_text(json.dumps(LINE))
    with pytest.raises(ConfigError, match="does not say what becomes of auto"):
        check_mapped(read_own_boxes(path), read_classes(classes), classes)
    classes.write_text(CLASSES)
    for change, said in (
        ({"stamp": START + 10**13}, "has no box of robot"),
        ({"frame": "mapp"}, "does not connect mapp"),
        ({"bag": "other"}, "names the bag other"),
    ):
        path.write_text(json.dumps({**LINE, **change}))
        with pytest.raises(UserError, match=said):
            write_own_dataset(tmp_path / "out", [recording_of(robot[0])], read_own_boxes(path), read_classes(classes))
    assert not (tmp_path / "out").exists()


def test_a_moment_without_objects_is_a_key_frame(robot, tmp_path):
    path = tmp_path / "boxes.jsonl"
    rows = [{**LINE, "frame": "base_link", "stamp": START}, {"stamp": START + 500_000_000, "class": None}]
    path.write_text("\n".join(map(json.dumps, rows)))
    write_own_dataset(tmp_path / "out", [recording_of(robot[0])], read_own_boxes(path), read_classes(robot[2]))
    records = open_split(tmp_path / "out", VERSION, "own_val")
    assert [len(records.annotations(i).boxes) for i in range(2)] == [1, 0]
    center = transform_points(records.lidar2ego(0), records.annotations(0).boxes[:, :3])
    assert np.allclose(center, [[1, 2, 3]])
