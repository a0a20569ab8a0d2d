"""What is written for the live viewer, read back from the file."""

# ruff: noqa: E402

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

rr = pytest.importorskip("rerun")

from bev_perception import cli
from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES
from bev_perception.data.drive import CAMERAS
from bev_perception.geometry import project
from bev_perception.strict import ConfigError
from bev_perception.types import OCC3D_GRID, Boxes3D, Occupancy, Result
from bev_perception.visualization import viewer as viewers
from bev_perception.visualization.recorder import IMAGE_SIDE, encode_view, labels, visible_voxels
from bev_perception.visualization.viewer import LatestWins, open_viewer, viewer_of

# reading: a module of 0.23, the last one for numpy 1; later ones have another
dataframe = pytest.importorskip("rerun.dataframe", reason="reads files with rerun 0.23")


def boxes(n=2):
    centers = np.array([[12.0, 3.0, 0.8], [20.0, -4.0, 0.8]])[:n]
    sizes, yaws, velocities = np.tile([4.0, 2.0, 1.6], (n, 1)), np.zeros(n), np.tile([5.0, 0.0], (n, 1))
    return Boxes3D(
        centers, sizes, yaws, velocities, np.full(n, 0.87), np.arange(n), NUSCENES_CLASSES, np.array([7, -1])[:n]
    )


def result(frame, found):
    semantics = np.full(OCC3D_GRID.shape, len(OCC3D_CLASSES) - 1, np.uint8)
    semantics[100:103, 100:103, 2:5] = 4
    return Result(frame.stamp, found, Occupancy(semantics, OCC3D_CLASSES), {}, None, {"model": 0.02}, 0)


@pytest.fixture(scope="module")
def recording(bag_frames, tmp_path_factory):
    """Three frames with two boxes each, and one with none."""
    path = tmp_path_factory.mktemp("recorder") / "new" / "drive.rrd"
    viewer = open_viewer(path, every_frame=True)
    for frame in bag_frames[:3]:
        viewer.show(frame, result(frame, boxes()), boxes(1))
    viewer.show(bag_frames[3], result(bag_frames[3], boxes(0)))
    viewer.close()
    return dataframe.load_recording(str(path))


def read(recording, contents):
    """Return stamps and the columns of an entity."""
    table = recording.view(index="stamp", contents=contents).select().read_all()
    stamps = table.column("stamp").cast("int64").to_pylist()
    return stamps, {name.rpartition(":")[2]: table.column(name) for name in table.column_names}


def test_every_entity_is_on_the_timeline_of_stamps(recording, bag_frames):
    paths = {column.entity_path for column in recording.schema().component_columns()}
    views = {f"/world/ego/{camera}{part}" for camera in CAMERAS for part in ("", "/image")}
    results = {"/world/ego/boxes", "/world/ego/truth", "/world/ego/velocities", "/world/ego/occupancy", "/world/trails"}
    assert views | results | {"/world/ego", "/world/path", "/plots/timings/model", "/plots/boxes"} <= paths
    stamps, _ = read(recording, "/world/ego/**")
    assert stamps == [frame.stamp for frame in bag_frames[:4]]


def test_boxes_have_class_id_and_score(recording):
    _, columns = read(recording, "/world/ego/boxes")
    assert columns["Text"].to_pylist()[0] == ["car 7 87%", "truck 87%"]
    half = np.array(columns["HalfSize3D"].to_pylist()[0])
    np.testing.assert_allclose(half, [[2.0, 1.0, 0.8]] * 2)
    assert columns["Text"].to_pylist()[3] in (None, [])  # cleared where nothing was found


def test_voxels_are_those_that_can_be_seen(recording):
    _, columns = read(recording, "/world/ego/occupancy")
    assert len(columns["PoseTranslation3D"].to_pylist()[0]) == 26  # 27 without the one in the middle
    solid = np.ones((3, 3, 3), bool)
    seen = visible_voxels(solid)
    assert seen.sum() == 26 and not seen[1, 1, 1]
    assert not visible_voxels(~solid).any()


def test_a_camera_shows_points_where_its_picture_does(bag_frames):
    """A large, distorted image is written small and straight, with the camera that belongs to it."""
    view = bag_frames[0].views[0]
    assert encode_view(view)[0] == bytes(view.image.data)  # passed on as it is
    calibration = view.calibration
    distorted = replace(
        view, calibration=replace(calibration, distortion_model="plumb_bob", distortion=(-0.1, 0, 0, 0))
    )
    jpeg, camera, size = encode_view(distorted)
    assert jpeg != bytes(view.image.data) and max(size) <= IMAGE_SIDE
    points = np.array([[1.0, 0.5, 8.0], [-2.0, 0.2, 10.0]])
    full = np.eye(4)
    full[:3, :3] = camera
    pixels, _ = project(full, points)
    ours = np.eye(4)
    ours[:3, :3] = calibration.intrinsics
    expected = (project(ours, points)[0] + 0.5) * size[0] / calibration.width
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    damaged = replace(view, image=replace(view.image, data=b"no picture"))
    assert encode_view(damaged) is None


def test_labels_say_only_what_is_known():
    assert labels(boxes(1), scores=False) == ["car 7"]
    assert labels(replace(boxes(1), track_ids=None), scores=True) == ["car 87%"]


class Slow:
    """A viewer that takes its time, or fails."""

    def __init__(self, error=None):
        self.begun, self.go, self.shown, self.closed, self.error = (
            threading.Event(),
            threading.Event(),
            [],
            False,
            error,
        )

    def show(self, frame, result=None, truth=None):
        self.begun.set()
        self.go.wait(10)
        if self.error:
            raise self.error
        self.shown.append(frame)

    def close(self):
        self.closed = True


def test_the_newest_frame_wins_and_nobody_waits():
    slow = Slow()
    viewer = LatestWins(slow)
    viewer.show("first")
    assert slow.begun.wait(10)
    before = time.perf_counter()
    for name in ("second", "third", "last"):
        viewer.show(name)
    assert time.perf_counter() - before < 1.0
    slow.go.set()
    viewer.close()
    assert slow.shown == ["first", "last"] and slow.closed


def test_an_error_of_the_viewer_is_logged_and_costs_nothing(caplog):
    slow = Slow(ValueError("no more room"))
    slow.go.set()
    viewer = LatestWins(slow)
    viewer.show("first")
    viewer._thread.join(10)
    viewer.show("second")
    viewer.close()
    assert "no more room" in caplog.text


def test_the_nodes_parameter(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(viewers, "open_viewer", lambda *path: opened.append(path))
    assert viewer_of("") is None
    viewer_of("window")
    viewer_of(str(tmp_path / "a.rrd"))
    assert opened == [(), (tmp_path / "a.rrd",)]
    with pytest.raises(ConfigError, match="window"):
        viewer_of("screen")


def test_view_writes_a_bag(bag, bag_frames, tmp_path, capsys):
    out = tmp_path / "drive.rrd"
    assert cli.main(["view", "--bag", str(bag), "--save", str(out)]) == 0
    assert f"showed {len(bag_frames)} frames" in capsys.readouterr().out
    stamps, _ = read(dataframe.load_recording(str(out)), "/world/ego/**")
    assert len(stamps) == len(bag_frames)


def test_run_and_show_write_what_they_find(bag, bag_frames, untrained, tmp_path, capsys):
    out = tmp_path / "drive.rrd"
    common = ["--bag", str(bag), "--variant", "sparsebev_tiny", "--checkpoint", str(untrained), "--device", "cpu"]
    assert cli.main(["run", *common, "--out", str(tmp_path / "r.jsonl"), "--save", str(out)]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    paths = {column.entity_path for column in dataframe.load_recording(str(out)).schema().component_columns()}
    assert {"/world/ego/boxes", "/plots/timings/model", "/plots/boxes"} <= paths
