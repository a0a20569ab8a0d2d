"""Bags that are not plain recordings of ROS 2."""

import shutil
import struct

import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import storage_mcap
from rosbags.typesys import Stores, get_typestore

from bev_perception.data.rosbag import BagError, BagReader, write_bag
from bev_perception.data.synthetic import synthetic_drive


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("bags") / "drive"
    write_bag(synthetic_drive(0.2, image_size=(64, 36)), path, progress=False)
    return path


def text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def record(op: int, body: bytes) -> bytes:
    return bytes([op]) + struct.pack("<Q", len(body)) + body


def foreign_mcap(path, ros: bool, profile: str = "ros2"):
    """An mcap file without an index: a protobuf and a JSON topic, and one of ROS 2 beside them."""
    channels = [
        ("/map", "map_info", "jsonschema", "json"),
        ("/camera", "foxglove.CompressedImage", "protobuf", "protobuf"),
    ]
    if ros:
        channels.append(("/words", "std_msgs/msg/String", "ros2msg", "cdr"))
    out = b"\x89MCAP0\r\n" + record(1, text(profile) + text("test"))
    for number, (topic, schema, encoding, message_encoding) in enumerate(channels, 1):
        definition = "string data" if encoding == "ros2msg" else "x"
        out += record(3, struct.pack("<H", number) + text(schema) + text(encoding) + text(definition))
        out += record(
            4, struct.pack("<HH", number, number) + text(topic) + text(message_encoding) + struct.pack("<I", 0)
        )
    for number in range(1, len(channels) + 1):
        data = b"\x00\x01\x00\x00" + struct.pack("<I", 3) + b"hi\x00"
        out += record(5, struct.pack("<HIQQ", number, 0, number, number) + data)
    out += record(15, struct.pack("<I", 0)) + record(2, struct.pack("<QQI", 0, 0, 0)) + b"\x89MCAP0\r\n"
    path.write_bytes(out)
    return path


@pytest.mark.parametrize("profile", ["ros2", "", "x"])
def test_foreign_topics_are_left_out_and_named(tmp_path, profile):
    reader = BagReader(foreign_mcap(tmp_path / "mixed.mcap", ros=True, profile=profile))
    assert [topic.name for topic in reader.topics] == ["/words"]
    assert reader.foreign == ("/camera [protobuf]", "/map [json]")
    assert "/camera [protobuf], /map [json]" in reader.hints()[0]
    assert [message.topic.name for message in reader.raw_messages()] == ["/words"]


def test_a_file_without_any_topic_of_ros_2_is_named(tmp_path):
    with pytest.raises(BagError, match=r"no topics of ROS 2, but /camera \[protobuf\], /map \[json\]"):
        BagReader(foreign_mcap(tmp_path / "protobuf.mcap", ros=False))


def test_rosbags_is_left_as_it_was(tmp_path, bag):
    before = storage_mcap.read_string, storage_mcap.get_msgdef
    BagReader(bag)
    (tmp_path / "broken.mcap").write_bytes(b"\x89MCAP0\r\n\x01")
    with pytest.raises(BagError, match="mcap recover"):
        BagReader(tmp_path / "broken.mcap")
    assert (storage_mcap.read_string, storage_mcap.get_msgdef) == before


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.mcap", b"", "a.mcap is empty; copy the recording again"),
        ("a.mcap", b"hello, world, this is no bag", "neither mcap nor sqlite3"),
        ("a.db3", b"SQLite format 3\0" + bytes(50), r"sqlite3 a.db3 .recover"),
        ("a.mcap", b"\x89MCAP0\r\n" + bytes(50), "mcap recover"),
        ("a.mcap.zstd", b"\x28\xb5\x2f\xfd" + bytes(9), "zstd -t a.mcap.zstd"),
    ],
)
def test_the_remedy_fits_what_the_file_is(tmp_path, name, content, remedy):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BagError, match=remedy):
        BagReader(tmp_path / name)


def test_a_bag_of_ros_1_names_the_converter(tmp_path):
    types = get_typestore(Stores.ROS1_NOETIC)
    with Ros1Writer(tmp_path / "drive.bag") as writer:
        writer.add_connection("/words", "std_msgs/msg/String", typestore=types)
    for path in (tmp_path / "drive.bag", tmp_path):
        with pytest.raises(BagError, match="bag of ROS 1; convert it with `rosbags-convert --src .*drive.bag --dst"):
            BagReader(path)


def test_a_bag_without_tf_static_asks_for_the_first_file(bag, tmp_path):
    assert BagReader(bag).hints() == []
    remapped = BagReader(bag, remap={"/tf_static": "/elsewhere"})
    assert any("no /tf_static: give the first file as well" in hint for hint in remapped.hints())


def test_a_directory_with_foreign_topics_names_the_way_out(bag, tmp_path):
    shutil.copytree(bag, tmp_path / "drive")
    metadata = tmp_path / "drive" / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("serialization_format: cdr", "serialization_format: protobuf", 1))
    with pytest.raises(BagError, match="give the mcap file in it instead"):
        BagReader(tmp_path / "drive")
