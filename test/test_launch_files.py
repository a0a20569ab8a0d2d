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
    packages = {"rviz2", "nav2_lifecycle_manager"}

    class NotFoundError(Exception):
        pass

    def prefix(package):
        if package not in packages:
            raise NotFoundError
        return "/opt"

    contents = {
        "launch": {"LaunchContext": dict, "LaunchDescription": Kept},
        "launch.actions": dict.fromkeys(
            ("DeclareLaunchArgument", "OpaqueFunction", "IncludeLaunchDescription", "LogInfo", "Shutdown"), Kept
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
        actions = module.start(defaults | arguments)
        begin.said = " ".join(action.kwargs["msg"] for action in actions if "msg" in action.kwargs)
        return {action.kwargs["executable"]: action.kwargs for action in actions if "executable" in action.kwargs}

    begin.packages = load.packages
    return begin


def test_without_arguments_nothing_is_given(start):
    nodes = start()
    assert set(nodes) == {"perception_node"}
    node = nodes["perception_node"]
    assert node["parameters"][1] == {} and node["remappings"] == [] and "ros_arguments" not in node


def test_arguments_have_the_types_of_the_parameters(start):
    node = start(
        device="cpu", precision="bf16", engine="onnxruntime", autostart="False",
        use_sim_time="1", base_frame="base", fixed_frame="map",
        score_threshold="0.25", max_detections="50", cameras="[front]", log_level="debug",
        tf_topic="tf", tf_static_topic="/robot/tf_static",
    )["perception_node"]  # fmt: skip
    assert node["parameters"][1] == {
        "device": "cpu", "precision": "bf16", "engine": "onnxruntime", "autostart": False,
        "use_sim_time": True, "base_frame": "base",
        "fixed_frame": "map", "score_threshold": 0.25, "max_detections": 50, "cameras": ["front"],
    }  # fmt: skip
    assert node["ros_arguments"] == ["--log-level", "debug"]
    assert node["remappings"] == [("/tf", "tf"), ("/tf_static", "/robot/tf_static")]


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("5e-1", 0.5), ("010", 10), ("50", 50), ("-2.5", -2.5)])
def test_numbers_are_read_as_python_reads_them(start, text, value):
    found = start(max_detections=text)["perception_node"]["parameters"][1]["max_detections"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_sim_time": "maybe"}, "use_sim_time:=maybe; write true or false"),
        ({"score_threshold": "high"}, "score_threshold:=high is no number"),
        ({"score_threshold": ".nan"}, "score_threshold:=.nan is no number"),
        ({"tf_timeout": "inf"}, "tf_timeout:=inf is no number"),
        ({"tf_timeout": "1:30"}, "tf_timeout:=1:30 is no number"),
        ({"cameras": "front"}, "cameras:=front is no list"),
        ({"cameras": "[cam-front]"}, "'cam-front' cannot be part of a topic"),
        ({"rviz": "yse"}, "rviz:=yse; write true or false"),
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
    own = {"params_file": str(tmp_path / "own.yaml"), "camera_namespace": "/", "namespace": "robot1"}
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


@pytest.mark.parametrize(
    ("name", "namespace", "found"),
    [
        ("/**", "robot1", True),
        ("/robot1/bev_perception", "robot1", True),
        ("/robot1/bev_perception", "", False),
        ("bev_perception", "robot1", False),
        ("/*/bev_perception", "robot1", True),
        ("/*/bev_perception", "", False),
        ("/**/bev_perception", "a/b", True),
        ("/other", "", False),
    ],
)
def test_only_the_sections_of_the_node_count(start, tmp_path, name, namespace, found):
    (tmp_path / "own.yaml").write_text(f"{name}:\n  ros__parameters:\n    cameras: [front]\n")
    own = {"params_file": str(tmp_path / "own.yaml"), "camera_namespace": "/", "namespace": namespace}
    if found:
        assert ("~/input/front/image", "/front/image_raw") in start(**own)["perception_node"]["remappings"]
    else:
        with pytest.raises(ValueError, match="but none of /.*bev_perception"):
            start(**own)


def test_rviz_starts_by_itself_only_where_it_is_installed(start):
    assert "rviz2" in start(rviz="auto") and "rviz2" in start(rviz="True") and "rviz2" not in start(rviz="0")
    start.packages.clear()
    assert "rviz2" not in start(rviz="auto")
    assert "rviz2 is not installed" in start.said
    with pytest.raises(ValueError, match="rviz2 is not installed; install"):
        start(rviz="1")


def test_files_for_viewers_fit_what_is_started(start, tmp_path):
    nodes = start(
        cameras="[front, left]", image_transport="compressed", base_frame="chassis", camera_namespace="/sensing",
        namespace="robot1", viewer_folder=str(tmp_path / "views"), tf_topic="tf", rviz="true",
    )  # fmt: skip
    file = tmp_path / "views" / "perception.rviz"
    assert nodes["rviz2"]["arguments"] == ["-d", str(file)] and nodes["rviz2"]["remappings"] == [("/tf", "tf")]
    text = file.read_text()
    assert "/sensing/left/image_raw/compressed" in text and "/robot1/bev_perception/costmap" in text
    assert "chassis" in text and "base_link" not in text and "cam_front" not in text
    layout = (tmp_path / "views" / "perception.foxglove.json").read_text()
    assert "/sensing/left/camera_info" in layout and "base_link" not in layout and "cam_front" not in layout
    assert str(file) in start.said


def test_the_lifecycle_manager_keeps_no_bond(load):
    module = load("lifecycle.launch.py")
    (manager,) = module.manage({"namespace": "robot1", "use_sim_time": "1"})
    assert manager.kwargs["namespace"] == "robot1"
    assert {"bond_timeout": 0.0, "use_sim_time": True}.items() <= manager.kwargs["parameters"][0].items()
    load.packages.clear()
    with pytest.raises(ValueError, match="nav2_lifecycle_manager is not installed; install"):
        module.manage({"namespace": "", "use_sim_time": ""})


def test_replay_ends_with_the_player(load):
    module = load("replay.launch.py")
    defaults = {argument.name: argument.kwargs.get("default_value", "/bag") for argument in module.ARGUMENTS}
    assert defaults["rviz"] == "auto"
    (player,) = module.play(defaults | {"loop": "True", "rate": "2"})
    assert isinstance(player.kwargs["on_exit"], Kept)
    assert player.kwargs["parameters"][0]["loop"] is True and player.kwargs["parameters"][0]["rate"] == 2.0
    for wrong in ({"loop": "maybe"}, {"rate": "fast"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            module.play(defaults | wrong)
