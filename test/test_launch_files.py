"""What the launch files make of their arguments, with stand-ins for launch, which ROS 2 distributions have."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Kept:
    """Whatever is made by launch: its arguments, kept."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        self.name = args[0] if args else ""

    def perform(self, context):
        return context[self.name]

    def items(self):
        return self.kwargs.items()


@pytest.fixture
def load(monkeypatch):
    """load(file) -> the launch file as a module; load.packages: those that are installed."""
    packages = {"rviz2"}

    class NotFoundError(Exception):
        pass

    def prefix(package):
        if package not in packages:
            raise NotFoundError
        return "/opt"

    contents = {
        "launch": {"LaunchContext": dict, "LaunchDescription": Kept},
        "launch.actions": dict.fromkeys(
            ("DeclareLaunchArgument", "OpaqueFunction", "IncludeLaunchDescription", "Shutdown"), Kept
        ),
        "launch.substitutions": {"LaunchConfiguration": Kept},
        "launch_ros": {},
        "launch_ros.actions": {"Node": Kept},
        "ament_index_python": {},
        "ament_index_python.packages": {"PackageNotFoundError": NotFoundError, "get_package_prefix": prefix},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    def read(file):
        spec = importlib.util.spec_from_file_location(file.split(".")[0], ROOT / "launch" / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    read.packages = packages
    return read


@pytest.fixture
def start(load):
    """start(**arguments) -> the keyword arguments of the nodes, by executable."""
    module = load("perception.launch.py")

    def begin(**arguments):
        defaults = {argument.name: argument.kwargs["default_value"] for argument in module.ARGUMENTS}
        assert set(arguments) <= set(defaults)
        return {node.kwargs["executable"]: node.kwargs for node in module.start(defaults | arguments)}

    begin.packages = load.packages
    return begin


def test_without_arguments_nothing_is_given(start):
    nodes = start()
    assert set(nodes) == {"perception_node"}
    node = nodes["perception_node"]
    assert node["parameters"][1] == {} and node["remappings"] == [] and "ros_arguments" not in node


def test_arguments_have_the_types_of_the_parameters(start):
    node = start(
        device="cpu", precision="bf16", autostart="False", use_sim_time="1", base_frame="base", fixed_frame="map",
        score_threshold="0.25", max_detections="50", cameras="[front]", log_level="debug",
        tf_topic="tf", tf_static_topic="/robot/tf_static",
    )["perception_node"]  # fmt: skip
    assert node["parameters"][1] == {
        "device": "cpu", "precision": "bf16", "autostart": False, "use_sim_time": True, "base_frame": "base",
        "fixed_frame": "map", "score_threshold": 0.25, "max_detections": 50, "cameras": ["front"],
    }  # fmt: skip
    assert node["ros_arguments"] == ["--log-level", "debug"]
    assert node["remappings"] == [("/tf", "tf"), ("/tf_static", "/robot/tf_static")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_sim_time": "maybe"}, "use_sim_time:=maybe; write true or false"),
        ({"score_threshold": "high"}, "score_threshold:=high is no number"),
        ({"cameras": "front"}, "cameras:=front is no list"),
        ({"params_file": "/nowhere.yaml"}, "/nowhere.yaml does not exist"),
    ],
)
def test_arguments_that_make_no_sense_are_named(start, arguments, message):
    with pytest.raises(ValueError, match=message):
        start(**arguments)


@pytest.mark.parametrize(("text", "message"), [("", "sets no parameters"), ("a: {b: 1}", "sets no parameters"),
                                               ("a: [", "no YAML")])  # fmt: skip
def test_parameter_files_that_set_nothing_are_named(start, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"own.yaml.*{message}"):
        start(params_file=str(tmp_path / "own.yaml"))


def test_a_parameter_file_may_be_nested_by_namespaces(start, tmp_path):
    (tmp_path / "own.yaml").write_text("robot1:\n  bev_perception:\n    ros__parameters:\n      cameras: [front]\n")
    own = {"params_file": str(tmp_path / "own.yaml"), "camera_namespace": "/"}
    assert ("~/input/front/image", "/front/image_raw") in start(**own)["perception_node"]["remappings"]
    (tmp_path / "own.yaml").write_text("/**:\n  ros__parameters:\n    device: cpu\n")
    with pytest.raises(ValueError, match="sets no cameras"):
        start(**own)


@pytest.mark.parametrize(
    ("arguments", "info"),
    [
        ({}, "/front/camera_info"),
        ({"image_topic": "color/image_raw"}, "/front/color/camera_info"),
        ({"image_topic": "color/image_raw", "camera_info_topic": "info"}, "/front/info"),
    ],
)
def test_camera_info_is_beside_the_image(start, arguments, info):
    node = start(cameras="[front]", camera_namespace="/", **arguments)["perception_node"]
    assert ("~/input/front/camera_info", info) in node["remappings"]


def test_rviz_starts_by_itself_only_where_it_is_installed(start, capsys):
    assert "rviz2" in start(rviz="auto") and "rviz2" in start(rviz="True") and "rviz2" not in start(rviz="0")
    start.packages.clear()
    assert "rviz2" not in start(rviz="auto")
    assert "rviz2 is not installed" in capsys.readouterr().out


def test_replay_ends_with_the_player(load):
    module = load("replay.launch.py")
    defaults = {argument.name: argument.kwargs.get("default_value", "/bag") for argument in module.ARGUMENTS}
    assert defaults["rviz"] == "auto"
    (player,) = module.play(defaults | {"loop": "True", "rate": "2"})
    assert isinstance(player.kwargs["on_exit"], Kept)
    assert player.kwargs["parameters"][0]["loop"] is True and player.kwargs["parameters"][0]["rate"] == 2.0
