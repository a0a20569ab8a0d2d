"""Bags written from drives and read back, and bags that cannot be read."""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from bev_perception.data import bag_limits
from bev_perception.data.bag_topics import recordings
from bev_perception.data.drive import CAMERAS, CameraRig, Drive, DriveImage, DrivePose
from bev_perception.data.folders import FolderError, one_writer
from bev_perception.data.rosbag import (
    BagError,
    BagReader,
    CalibrationEvent,
    ImageEvent,
    InvalidEvent,
    TransformEvent,
    write_bag,
)
from bev_perception.geometry import make_transform, rotation_from_quaternion
from bev_perception.types import DISTORTION_MODELS, Calibration

STORE = get_typestore(Stores.ROS2_JAZZY)
SLOW = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

unit = st.floats(-1, 1)
quaternions = st.tuples(unit, unit, unit, unit).filter(lambda q: np.linalg.norm(q) > 0.1)
transforms = st.builds(
    lambda q, t: make_transform(rotation_from_quaternion(*q), np.array(t)),
    quaternions,
    st.tuples(*[st.floats(-1e4, 1e4)] * 3),
)
positive = st.floats(1.0, 5000.0)


@st.composite
def calibrations(draw):
    fx, fy, cx, cy = (draw(positive) for _ in range(4))
    model = draw(st.sampled_from(["", *DISTORTION_MODELS]))
    count = DISTORTION_MODELS[model][-1] if model else 0
    d = tuple(draw(unit) for _ in range(count))
    return Calibration(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), draw(st.integers(1, 4000)), 480, model, d)


@st.composite
def drives(draw):
    names = draw(st.lists(st.sampled_from(CAMERAS), min_size=1, max_size=4, unique=True))
    rig = tuple(CameraRig(name, draw(calibrations()), draw(transforms)) for name in names)
    events = []
    for stamp in sorted(draw(st.lists(st.integers(0, 2**31 * 10**9 - 1), min_size=1, max_size=12))):
        if draw(st.booleans()) and (not events or events[-1].stamp != stamp):
            events.append(DrivePose(stamp, draw(transforms)))
        events.append(DriveImage(draw(st.sampled_from(names)), stamp, draw(st.binary(min_size=1, max_size=300))))
    return Drive("random", rig, len(events), lambda: iter(events))


def of_type(events, kind):
    return [event for event in events if isinstance(event, kind)]


@SLOW
@given(drives())
def test_what_is_written_is_read_back(drive):
    with tempfile.TemporaryDirectory() as directory:
        write_bag(drive, Path(directory) / "bag", progress=False)
        bag = BagReader(Path(directory) / "bag")
        events, raw = list(bag.events()), list(bag.raw_messages())

    times = [message.stamp for message in raw]
    assert times == sorted(times)
    assert len(raw) == sum(topic.count for topic in bag.topics)

    written = list(drive)
    images = [event.image for event in of_type(events, ImageEvent)]
    expected = [(e.camera, e.stamp, e.jpeg) for e in of_type(written, DriveImage)]
    assert [(i.camera, i.stamp, bytes(i.data)) for i in images] == expected
    assert all(i.frame_id == i.camera and i.encoding == "jpeg" for i in images)

    rigs = {rig.name: rig for rig in drive.cameras}
    infos = of_type(events, CalibrationEvent)
    assert [info.camera for info in infos] == [image.camera for image in images]
    for info in infos:
        calibration, original = info.calibration, rigs[info.camera].calibration
        assert np.array_equal(calibration.intrinsics, original.intrinsics)
        assert (calibration.width, calibration.height) == (original.width, original.height)
        assert calibration.distortion == original.distortion
        assert not original.distortion or calibration.distortion_model == original.distortion_model

    static = [event for event in of_type(events, TransformEvent) if event.static]
    assert {(e.parent, e.child) for e in static} == {("base_link", name) for name in rigs}
    for event in static:
        np.testing.assert_allclose(event.child2parent, rigs[event.child].sensor2ego, atol=1e-9)
    moving = [event for event in of_type(events, TransformEvent) if not event.static]
    poses = of_type(written, DrivePose)
    assert [(e.parent, e.child, e.stamp) for e in moving] == [("odom", "base_link", p.stamp) for p in poses]
    for event, pose in zip(moving, poses, strict=True):
        np.testing.assert_allclose(event.child2parent, pose.ego2global, atol=1e-9)


@SLOW
@given(drives())
def test_the_pose_of_an_image_comes_before_it(drive):
    with tempfile.TemporaryDirectory() as directory:
        write_bag(drive, Path(directory) / "bag", progress=False)
        events = list(BagReader(Path(directory) / "bag").events())
    assert events[0].static
    seen = set()
    pose_stamps = {event.stamp for event in drive if isinstance(event, DrivePose)}
    for event in events:
        if isinstance(event, TransformEvent):
            seen.add(event.stamp)
        elif isinstance(event, ImageEvent) and event.image.stamp in pose_stamps:
            assert event.image.stamp in seen


@pytest.fixture(scope="module")
def bag(tmp_path_factory, small_drive):
    path = tmp_path_factory.mktemp("bag") / "drive"
    write_bag(small_drive, path, progress=False)
    return path


def test_topics_and_qos(bag):
    topics = {topic.name: topic for topic in BagReader(bag).topics}
    assert len(topics) == 14
    assert topics["/bev_perception/input/cam_back/image/compressed"].type_name == "sensor_msgs/msg/CompressedImage"
    assert topics["/bev_perception/input/cam_back/image/compressed"].count == 6
    assert topics["/tf_static"].qos[0].durability == QosDurability.TRANSIENT_LOCAL
    assert topics["/tf"].qos[0].durability == QosDurability.VOLATILE
    metadata = (bag / "metadata.yaml").read_text()
    assert "version: 9" in metadata
    assert "durability: transient_local" in metadata


def test_the_single_file_reads_like_the_directory(bag):
    def stamps(path):
        return [event.image.stamp for event in BagReader(path).events() if isinstance(event, ImageEvent)]

    assert stamps(bag / "drive.mcap") == stamps(bag)


def test_an_existing_path_is_kept(bag, small_drive):
    before = sorted((p, p.stat().st_mtime_ns) for p in bag.iterdir())
    with pytest.raises(BagError, match="exists already"):
        write_bag(small_drive, bag, progress=False)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in bag.iterdir())


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("disk full"), FolderError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_failure_leaves_nothing_behind(tmp_path, small_drive, error, raised):
    def events():
        yield from list(small_drive)[:3]
        raise error

    with pytest.raises(raised):
        write_bag(Drive("broken", small_drive.cameras, 4, events), tmp_path / "bag", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_has_left_is_in_nobodys_way(tmp_path, small_drive):
    (tmp_path / "bag.partial" / "bag").mkdir(parents=True)
    (tmp_path / "bag.partial" / "bag" / "bag.mcap").write_bytes(b"half")
    write_bag(small_drive, tmp_path / "bag", progress=False)
    assert list(tmp_path.iterdir()) == [tmp_path / "bag"]
    assert len(list(BagReader(tmp_path / "bag").events()))


def test_two_writers_of_one_bag(tmp_path, small_drive):
    with one_writer(tmp_path / "bag.partial"), pytest.raises(FolderError, match="another process is writing"):
        write_bag(small_drive, tmp_path / "bag", progress=False)


@pytest.mark.parametrize(
    ("events", "reason"), [([], "no events"), ([DrivePose(2, np.eye(4)), DrivePose(1, np.eye(4))], "comes after")]
)
def test_drives_that_are_refused(tmp_path, events, reason):
    with pytest.raises(BagError, match=reason):
        write_bag(Drive("odd", (), len(events), lambda: iter(events)), tmp_path / "bag", progress=False)
    assert not (tmp_path / "bag").exists()


# ---- bags of others


class Recorder:
    """Writes a bag message by message."""

    def __init__(self, path, storage=StoragePlugin.MCAP):
        self.writer = Writer(path, version=9, storage_plugin=storage)
        self.writer.open()
        self.connections = {}

    def write(self, topic, type_name, stamp, **fields):
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, type_name, typestore=STORE)
        data = STORE.serialize_cdr(STORE.types[type_name](**fields), type_name)
        self.writer.write(self.connections[topic], stamp, data)

    def close(self):
        self.writer.close()


def header(stamp, frame_id="cam_front"):
    time = STORE.types["builtin_interfaces/msg/Time"](sec=0, nanosec=stamp)
    return STORE.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id)


def raw_image(stamp):
    size = {"height": 2, "width": 2, "step": 6}
    return {"header": header(stamp), "encoding": "rgb8", "is_bigendian": 0, "data": np.zeros(12, np.uint8)} | size


def compressed_image(stamp, image_format="jpeg"):
    return {"header": header(stamp), "format": image_format, "data": np.array([1, 2, 3], np.uint8)}


IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_raw_images_are_found(tmp_path, storage):
    recorder = Recorder(tmp_path / "bag", storage)
    recorder.write("/bev_perception/input/cam_front/image", IMAGE, 5, **raw_image(5))
    recorder.write("/chatter", "std_msgs/msg/String", 6, data="ignored")
    recorder.close()
    (event,) = BagReader(tmp_path / "bag").events()
    assert (event.image.camera, event.image.encoding, event.image.width, event.image.step) == (
        "cam_front",
        "rgb8",
        2,
        6,
    )


def test_compressed_images_win_over_raw_ones(tmp_path):
    recorder = Recorder(tmp_path / "bag")
    recorder.write("/bev_perception/input/cam_front/image", IMAGE, 5, **raw_image(5))
    recorder.write("/bev_perception/input/cam_front/image/compressed", COMPRESSED, 6, **compressed_image(6))
    recorder.close()
    (event,) = BagReader(tmp_path / "bag").events()
    assert event.image.encoding == "jpeg"


def test_own_cameras_prefix_and_remap(tmp_path):
    recorder = Recorder(tmp_path / "bag")
    recorder.write("/car/left/image/compressed", COMPRESSED, 5, **compressed_image(5))
    recorder.write("/other/image_raw", IMAGE, 6, **raw_image(6))
    recorder.close()
    remap = {"/other/image_raw": "/car/right/image"}
    events = list(BagReader(tmp_path / "bag", ("left", "right"), "/car", remap).events())
    assert [event.image.camera for event in events] == ["left", "right"]
    with pytest.raises(BagError, match=r"no images of cam_front") as error:
        BagReader(tmp_path / "bag").events()
    assert "/other/image_raw [sensor_msgs/msg/Image] 1 messages" in str(error.value)
    assert "remap" in str(error.value)


def test_a_calibration_knows_the_topic_of_its_images(tmp_path):
    """By which the synchronizer tells rectified images with the raw camera's info."""
    recorder = Recorder(tmp_path / "bag")
    roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    info = {
        **{"width": 4, "height": 4, "distortion_model": "plumb_bob", "binning_x": 0, "binning_y": 0},
        **{"d": np.array([-0.3, 0.1, 0.0, 0.0, 0.0]), "k": np.array([4.0, 0, 2, 0, 4, 2, 0, 0, 1])},
        **{"r": np.eye(3).ravel(), "p": np.zeros(12), "roi": STORE.types["sensor_msgs/msg/RegionOfInterest"](**roi)},
    }
    for stamp in (5, 6):
        recorder.write("/cam/image_rect_color", IMAGE, stamp, **raw_image(stamp))
        recorder.write("/cam/camera_info", "sensor_msgs/msg/CameraInfo", stamp, header=header(stamp), **info)
    recorder.close()
    remap = {"/cam/image_rect_color": "/car/left/image", "/cam/camera_info": "/car/left/camera_info"}
    events = list(BagReader(tmp_path / "bag", ("left",), "/car", remap).events())
    topics = [event.image_topic for event in events if isinstance(event, CalibrationEvent)]
    assert len(events) == 4 and topics == ["/cam/image_rect_color"] * 2


def test_the_parts_of_a_split_recording_are_one_in_order_of_time(tmp_path):
    """Also where they overlap, or are given in another order; what is only in one of them is there."""
    prefix = "/car/left/image/compressed"
    for name, stamps in (("first", (5, 7)), ("second", (6, 9, 11))):
        recorder = Recorder(tmp_path / name)
        for stamp in stamps:
            recorder.write(prefix, COMPRESSED, stamp, **compressed_image(stamp))
        if name == "second":
            recorder.write("/car/right/image", IMAGE, 8, **raw_image(8))
        recorder.close()
    for parts in (("first", "second"), ("second", "first")):
        first, *others = (tmp_path / part for part in parts)
        bag = BagReader(first, ("left", "right"), "/car", others=tuple(others))
        assert {topic.name: topic.count for topic in bag.topics} == {prefix: 5, "/car/right/image": 1}
        assert [event.image.stamp for event in bag.events()] == [5, 6, 7, 8, 9, 11]
    with pytest.raises(BagError, match="nowhere does not exist"):
        BagReader(tmp_path / "first", ("left",), "/car", others=(tmp_path / "nowhere",))


def split_bag(tmp_path, stamps_of_files):
    """A bag of several files, as `ros2 bag record` splits it, listed in this order."""
    names = [f"part{number}" for number in range(len(stamps_of_files))]
    for name, stamps in zip(names, stamps_of_files, strict=True):
        recorder = Recorder(tmp_path / name)
        for stamp in stamps:
            recorder.write("/car/left/image/compressed", COMPRESSED, stamp, **compressed_image(stamp))
        recorder.close()
        (tmp_path / name / f"{name}.mcap").rename(tmp_path / f"{name}.mcap")
    text = (tmp_path / name / "metadata.yaml").read_text()
    files = "".join(rf"\1- {name}.mcap\n" for name in names)
    text, found = re.subn(r"(?m)^( *)- part\d\.mcap\n", files, text)
    assert found == 1
    (tmp_path / "metadata.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("stamps", [[(5, 7), (9, 11)], [(9, 11), (5, 7)], [(5, 9), (7, 11)]])
def test_the_files_of_a_bag_are_one_in_order_of_time(tmp_path, stamps):
    bag = BagReader(split_bag(tmp_path, stamps), ("left",), "/car")
    assert [event.image.stamp for event in bag.events()] == [5, 7, 9, 11]
    assert [message.stamp for message in bag.raw_messages()] == [5, 7, 9, 11]


def test_bags_without_tf_static_are_parts_of_the_one_before(tmp_path):
    """Whatever the order that they are given in; where each has its own, they are recordings of their own."""
    for name, stamp, static in (
        ("a1", 5, True),
        ("a2", 9, False),
        ("b1", 20, True),
        ("b2", 30, False),
        ("c", 1, False),
    ):
        recorder = Recorder(tmp_path / name)
        recorder.write("/car/left/image/compressed", COMPRESSED, stamp, **compressed_image(stamp))
        if static:
            recorder.write("/tf_static", "tf2_msgs/msg/TFMessage", stamp, transforms=[])
        recorder.close()
    a1, a2, b1, b2, c = (tmp_path / name for name in ("a1", "a2", "b1", "b2", "c"))
    assert recordings([b1, a1]) == [(b1,), (a1,)]
    assert recordings([b2, a2, b1, a1]) == [(a1, a2), (b1, b2)]
    assert recordings([a1, c]) == [(c,), (a1,)]
    with pytest.raises(BagError, match="does not exist"):
        recordings([a1, tmp_path / "nowhere"])


def test_of_a_bag_with_a_damaged_file_the_others_are_read(tmp_path):
    path = split_bag(tmp_path, [(5, 7), (9, 11), (13,)])
    content = bytearray((path / "part1.mcap").read_bytes())
    at = content.index(b"jpeg") - 60  # within the first chunk
    content[at - 40 : at + 90] = b"\xff" * 130
    (path / "part1.mcap").write_bytes(content)
    read = []
    with pytest.raises(BagError):
        for event in BagReader(path, ("left",), "/car").events():
            read.append(event)
    assert [event.image.stamp for event in read] == [5, 7, 13]


def test_messages_that_cannot_be_used_are_told(tmp_path, small_drive):
    recorder = Recorder(tmp_path / "bag")
    prefix = "/bev_perception/input/cam_front"
    recorder.write(f"{prefix}/image/compressed", COMPRESSED, 5, **compressed_image(5, "16UC1; compressedDepth"))
    types = STORE.types
    zero = types["geometry_msgs/msg/Transform"](
        translation=types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=0.0),
        rotation=types["geometry_msgs/msg/Quaternion"](x=0.0, y=0.0, z=0.0, w=0.0),
    )
    stamped = types["geometry_msgs/msg/TransformStamped"](
        header=header(6, "odom"), child_frame_id="base_link", transform=zero
    )
    recorder.write("/tf", "tf2_msgs/msg/TFMessage", 6, transforms=[stamped])
    region = types["sensor_msgs/msg/RegionOfInterest"](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    recorder.write(
        f"{prefix}/camera_info",
        "sensor_msgs/msg/CameraInfo",
        7,
        header=header(7),
        width=4,
        height=4,
        distortion_model="",
        d=np.zeros(0),
        k=np.zeros(9),
        r=np.zeros(9),
        p=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=region,
    )
    recorder.writer.write(recorder.connections["/tf"], 8, b"\x00\x01\x00\x00\xff\xff\xff\xff")
    recorder.close()
    depth, tf, info, damaged = BagReader(tmp_path / "bag").events()
    assert isinstance(depth, InvalidEvent) and "depth image" in depth.error
    assert isinstance(tf, InvalidEvent) and "odom -> base_link" in tf.error and tf.topic == "/tf"
    assert info.camera == "cam_front" and info.calibration is None and "all-zero K" in info.error
    assert isinstance(damaged, InvalidEvent) and "damaged" in damaged.error


def test_paths_that_are_no_bags(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        BagReader(tmp_path / "nowhere")
    with pytest.raises(BagError, match=r"no metadata\.yaml"):
        BagReader(tmp_path)
    (tmp_path / "text.mcap").write_text("hello")
    with pytest.raises(BagError, match="cannot be read as a bag"):
        BagReader(tmp_path / "text.mcap")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(BagError, match="cannot be read as a bag"):
        BagReader(tmp_path / "photo.jpg")


def test_a_bag_without_messages(tmp_path):
    Recorder(tmp_path / "bag").close()
    with pytest.raises(BagError, match="holds no messages"):
        BagReader(tmp_path / "bag")


def read_all(path):
    """Read everything; whatever is damaged must come as a BagError."""
    try:
        bag = BagReader(path)
        list(bag.raw_messages())
        list(bag.events())
    except BagError as error:
        return str(error)
    return ""


def compressed_bag(path, mode, content):
    """A bag of one image of these bytes; mode: of rosbag2's compression, or "chunk" for that of mcap."""
    storage = StoragePlugin.SQLITE3 if mode == "sqlite" else StoragePlugin.MCAP
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(
        {"chunk": CompressionMode.STORAGE, "file": CompressionMode.FILE}.get(mode, CompressionMode.MESSAGE),
        CompressionFormat.ZSTD,
    )
    with writer:
        image = writer.add_connection("/a", "sensor_msgs/msg/CompressedImage", typestore=STORE)
        writer.write(image, 1, content)
    return path


@pytest.mark.parametrize("mode", ["chunk", "message", "file", "sqlite"])
def test_compressed_bags_are_read_and_bombs_are_not(tmp_path, mode, monkeypatch):
    (message,) = BagReader(compressed_bag(tmp_path / "good", mode, b"x" * 1000)).raw_messages()
    assert message.data == b"x" * 1000
    bomb = compressed_bag(tmp_path / "bomb", mode, bytes(3_000_000))
    assert sum(path.stat().st_size for path in bomb.iterdir()) < 50_000
    monkeypatch.setattr(bag_limits, "MAX_PIECE", 1_000_000)
    monkeypatch.setattr(bag_limits, "MAX_FILE", 1_000_000)
    with pytest.raises(BagError, match="is not read: a (part|file) of it"):
        list(BagReader(bomb).raw_messages())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"a: &a [x]\nb: *a", "aliases"),
        (b"a: " + b"[" * 20 + b"]" * 20, "nested"),
        (b"a: " + b"x" * (1 << 22), "more than 4194304 bytes"),
        (b"a: [", "cannot be read as a bag"),
        (b"\xff", "cannot be read as a bag"),
        (b"a: 1", "cannot be read as a bag"),
    ],
)
def test_metadata_is_checked_before_it_is_read(tmp_path, metadata, message):
    (tmp_path / "metadata.yaml").write_bytes(metadata)
    with pytest.raises(BagError, match=message):
        BagReader(tmp_path)


def test_the_files_of_a_bag_are_in_its_folder(tmp_path, small_drive):
    write_bag(small_drive, tmp_path / "other", progress=False)
    write_bag(small_drive, tmp_path / "bag", progress=False)
    metadata = tmp_path / "bag" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("- bag.mcap", "- ../other/other.mcap"))
    with pytest.raises(BagError, match="missing"):
        BagReader(tmp_path / "bag")


def test_a_bag_is_found_through_links(tmp_path, bag):
    (tmp_path / "link").symlink_to(bag)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in bag.iterdir():
        (moved / file.name).symlink_to(file)
    topics = BagReader(bag).topics
    assert BagReader(tmp_path / "link").topics == BagReader(moved).topics == topics


@pytest.mark.parametrize(
    "name", ["/etc/hostname", "../../etc/hostname", "..", ".", "''", "a/../..", "[x]", "{a: 1}", "5"]
)
def test_metadata_names_no_files_elsewhere(tmp_path, bag, name):
    text = (bag / "metadata.yaml").read_text()
    assert "- drive.mcap" in text
    (tmp_path / "metadata.yaml").write_text(text.replace("- drive.mcap", f"- {name}"))
    with pytest.raises(BagError):
        BagReader(tmp_path)


@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.97])
def test_messages_that_were_cut_cost_themselves_alone(tmp_path, bag, part):
    """Of every topic, at any place; of another type than their topic's, the message is damaged or nonsense, as well."""
    whole = list(itertools.islice(BagReader(bag).raw_messages(), 30))
    recorder = Recorder(tmp_path / "cut")
    for message in whole:
        topic = message.topic
        if topic.name not in recorder.connections:
            connection = recorder.writer.add_connection(topic.name, topic.type_name, typestore=STORE)
            recorder.connections[topic.name] = connection
        connection = recorder.connections[topic.name]
        recorder.writer.write(connection, message.stamp, message.data[: int(len(message.data) * part)])
        recorder.writer.write(connection, message.stamp, whole[len(message.data) % len(whole)].data)
        recorder.writer.write(connection, message.stamp, message.data)
    recorder.close()
    events = list(BagReader(tmp_path / "cut").events())
    images = [event.image for event in events if isinstance(event, ImageEvent)]
    assert len([e for e in events if isinstance(e, InvalidEvent)]) >= len(whole)
    assert len(images) >= sum("compressed" in message.topic.name for message in whole) > 0


@SLOW
@given(st.floats(0, 0.999))
def test_a_recording_that_was_cut_off(bag, part):
    content = (bag / "drive.mcap").read_bytes()
    with tempfile.TemporaryDirectory() as directory:
        cut = Path(directory) / "cut.mcap"
        cut.write_bytes(content[: int(len(content) * part)])
        error = read_all(cut)
    assert "mcap recover" in error or (len(content) * part < 8 and "copy the recording again" in error)


@SLOW
@given(st.data())
def test_damaged_bytes_cost_no_more_than_an_error(bag, data):
    content = bytearray((bag / "drive.mcap").read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "odd.mcap"
        path.write_bytes(content)
        read_all(path)  # anything but BagError fails the test


@pytest.mark.parametrize("function", ["camera_image", "calibration", "transform"])
def test_an_error_of_numpy_costs_the_message_alone(small_drive, tmp_path, monkeypatch, function):
    """As it comes of an array that is too short; it is no UserError."""
    write_bag(small_drive, tmp_path / "bag", progress=False)

    def fails(*_):
        raise ValueError("cannot reshape array of size 8 into shape (3,3)")

    monkeypatch.setattr(f"bev_perception.data.messages.{function}", fails)
    events = list(BagReader(tmp_path / "bag").events())
    lost = [e for e in events if isinstance(e, InvalidEvent) or (isinstance(e, CalibrationEvent) and e.error)]
    assert lost and all("cannot reshape" in event.error for event in lost) and len(lost) < len(events)
