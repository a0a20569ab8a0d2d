"""Launch files and the configurations they hand out: checked as files everywhere, run for real where launch exists."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bev_perception.data.drive import CAMERAS
from bev_perception.families.variants import load_variant

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config"
LAUNCH_FILES = sorted((ROOT / "launch").glob("*.launch.py"))
TOPICS = {f"/bev_perception/{name}" for name in ("detections", "objects", "markers")} | {"/diagnostics"}
TOPICS |= {f"/bev_perception/{name}" for name in ("occupancy", "occupancy_points", "costmap", "obstacles")}
for camera in CAMERAS:
    TOPICS |= {f"/bev_perception/input/{camera}/{name}" for name in ("image", "image/compressed", "camera_info")}


def declared_arguments(path: Path) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {c.args[0].value for c in calls if isinstance(c.func, ast.Name) and c.func.id == "DeclareLaunchArgument"}


# ---------------------------------------------------------------- what can be said without launch


def test_declared_arguments():
    arguments = {path.name: declared_arguments(path) for path in LAUNCH_FILES}
    assert arguments == {
        "perception.launch.py": {
            "variant", "checkpoint", "occupancy_variant", "occupancy_checkpoint", "cameras", "image_transport",
            "camera_namespace", "image_topic", "camera_info_topic", "tf_topic", "tf_static_topic", "device",
            "precision", "engine", "image_fit", "autostart",
            "base_frame", "base_height", "fixed_frame", "score_threshold", "max_detections", "tf_timeout",
            "log_level", "namespace", "params_file", "rviz", "viewer_folder", "use_sim_time",
        },
        "lifecycle.launch.py": {"namespace", "use_sim_time"},
        "replay.launch.py": {"bag", "rate", "loop", "rviz"},
    }  # fmt: skip


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_every_argument_is_in_the_documents(path):
    text = (ROOT / "docs" / "ros.md").read_text()
    missing = {name for name in declared_arguments(path) if f"`{name}`" not in text}
    assert not missing


def test_the_parameter_file_holds_every_parameter_with_its_default():
    parameters = pytest.importorskip("bev_perception.ros.parameters", reason="rclpy is not installed").PARAMETERS
    values = yaml.safe_load((CONFIG / "perception.param.yaml").read_text())["/**"]["ros__parameters"]
    assert values == {spec.name: spec.default for spec in parameters}
    load_variant(values["variant"])


def test_rclpy_reads_the_parameter_file():
    parameter = pytest.importorskip("rclpy.parameter", reason="rclpy is not installed")
    path = str(CONFIG / "perception.param.yaml")
    values = parameter.parameter_dict_from_yaml_file(path, use_wildcard=True)
    assert list(values["cameras"].value.string_array_value) == list(CAMERAS)
    assert values["camera_timeout"].value.double_value == 0.1


def test_rviz_shows_topics_of_the_node():
    displays = yaml.safe_load((CONFIG / "perception.rviz").read_text())["Visualization Manager"]["Displays"]
    topics = [display["Topic"]["Value"] for display in displays if "Topic" in display]
    assert set(topics) <= TOPICS
    assert sum(topic.endswith("/image/compressed") for topic in topics) == len(CAMERAS)
    assert {"/bev_perception/markers", "/bev_perception/occupancy_points", "/bev_perception/costmap"} < set(topics)


def test_foxglove_shows_topics_of_the_node():
    layout = json.loads((CONFIG / "perception.foxglove.json").read_text())
    panels = layout["configById"]

    def leaves(part):
        return [part] if isinstance(part, str) else leaves(part["first"]) + leaves(part["second"])

    assert sorted(leaves(layout["layout"])) == sorted(panels)
    shown = panels["3D!perception"]["topics"]
    assert set(shown) < TOPICS and {"/bev_perception/occupancy_points", "/bev_perception/costmap"} < set(shown)
    images = [panel["imageMode"] for panel in panels.values() if "imageMode" in panel]
    assert {image["imageTopic"] for image in images} | {image["calibrationTopic"] for image in images} < TOPICS
    assert len(images) == len(CAMERAS)


def test_the_parameters_for_nav2_name_our_topics_and_the_grid_of_the_models():
    values = yaml.safe_load((CONFIG / "nav2_costmap.yaml").read_text())
    parameters = values["local_costmap"]["local_costmap"]["ros__parameters"]
    layer = parameters["voxel_layer"]
    sources = [layer[name] for name in layer["observation_sources"].split()]
    assert {source["topic"] for source in sources} < TOPICS
    assert [source["topic"] for source in sources if source["marking"]] == ["/bev_perception/obstacles"]
    assert [source["topic"] for source in sources if source["clearing"]] == ["/bev_perception/occupancy_points"]
    assert (layer["origin_z"], layer["z_resolution"], layer["z_voxels"]) == (-1.0, 0.4, 16)
    node = yaml.safe_load((CONFIG / "perception.param.yaml").read_text())["/**"]["ros__parameters"]
    assert parameters["robot_base_frame"] == node["base_frame"] and parameters["global_frame"] == node["fixed_frame"]
    for source in sources:  # every point in the grid is taken, from messages that are not older than they stand
        assert (source["min_obstacle_height"], source["max_obstacle_height"]) == (-1.0, 5.4)
        assert source["expected_update_rate"] == node["output_lifetime"]


# ---------------------------------------------------------------- the real thing

RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
arguments = [argument.split(":=", 1) for argument in sys.argv[2:]]
service = LaunchService()
service.include_launch_description(
    LaunchDescription([IncludeLaunchDescription(sys.argv[1], launch_arguments=arguments)])
)
sys.exit(service.run())
"""

#: stands in for an executable: writes its arguments, and the parameter files among them, into a file
PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys
texts = [pathlib.Path(b).read_text() for a, b in zip(sys.argv, sys.argv[1:]) if a == "--params-file"]
rules = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == "-r"]
report = {{"arguments": sys.argv[1:], "params": texts, "rules": rules}}
path = pathlib.Path(sys.argv[0])
path.with_suffix(".json").write_text(json.dumps(report))
"""


@pytest.fixture
def launch(tmp_path):
    """Return launch(file, *arguments) -> executable -> its remappings and parameters; runs the real LaunchService."""
    # Not just "launch": started in the root of the source tree, Python takes the folder launch/ for a package.
    pytest.importorskip("launch.launch_service", reason="launch comes with a ROS 2 distribution only")
    pytest.importorskip("launch_ros.actions", reason="launch_ros comes with a ROS 2 distribution only")
    programs = {"bev_perception": ("perception_node", "bag_player"), "rviz2": ("rviz2",)}
    programs["nav2_lifecycle_manager"] = ("lifecycle_manager",)
    for package, names in programs.items():
        marker = tmp_path / "share" / "ament_index" / "resource_index" / "packages" / package
        for directory in (marker.parent, tmp_path / "share" / package, tmp_path / "lib" / package):
            directory.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for name in names:
            path = tmp_path / "lib" / package / name
            path.write_text(PROGRAM)
            path.chmod(0o755)

    def run(file: str, *arguments: str) -> dict[str, dict]:
        prefixes = os.pathsep.join([str(tmp_path), os.environ.get("AMENT_PREFIX_PATH", "")])
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = dict(os.environ, AMENT_PREFIX_PATH=prefixes, ROS_LOG_DIR=str(tmp_path / "log"), PYTHONPATH=paths)
        command = [sys.executable, "-c", RUN, str(ROOT / "launch" / file), *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return {path.stem: started(path) for path in tmp_path.glob("lib/*/*.json")}

    return run


def started(path: Path) -> dict:
    report = json.loads(path.read_text())
    parameters = {}
    for text in report["params"]:
        (section,) = yaml.load(text, yaml.Loader).values()  # launch_ros writes Python tuples
        parameters |= section["ros__parameters"]
    rules = dict(rule.split(":=") for rule in report["rules"])
    return {"rules": rules, "parameters": parameters, "arguments": report["arguments"]}


def test_without_arguments_the_parameter_file_decides(launch):
    nodes = launch("perception.launch.py")
    assert set(nodes) == {"perception_node"}
    values = yaml.safe_load((CONFIG / "perception.param.yaml").read_text())["/**"]["ros__parameters"]
    assert nodes["perception_node"]["parameters"] == values
    assert nodes["perception_node"]["rules"] == {"__node": "bev_perception", "__ns": "/"}


def test_given_arguments_win(launch):
    node = launch(
        "perception.launch.py",
        "variant:=sparsebev_tiny",
        "checkpoint:=/weights/1.safetensors",
        "occupancy_variant:=sparseocc_tiny",
        "occupancy_checkpoint:=/weights/2.safetensors",
        "cameras:=[front, back]",
        "image_transport:=compressed",
        "namespace:=robot1",
        "use_sim_time:=true",
    )["perception_node"]
    expected = {"variant": "sparsebev_tiny", "checkpoint": "/weights/1.safetensors", "image_transport": "compressed"}
    expected |= {"occupancy_variant": "sparseocc_tiny", "occupancy_checkpoint": "/weights/2.safetensors"}
    assert expected.items() <= node["parameters"].items()
    assert list(node["parameters"]["cameras"]) == ["front", "back"]
    assert node["parameters"]["use_sim_time"] is True
    assert node["rules"]["__ns"] == "/robot1"


@pytest.mark.parametrize(("where", "home"), [("/", ""), ("/sensing", "/sensing"), ("/sensing/", "/sensing")])
def test_a_drivers_topics_are_joined(launch, where, home):
    nodes = launch(
        "perception.launch.py",
        f"camera_namespace:={where}",
        "image_topic:=image_color",
        "cameras:=[front]",
        "rviz:=true",
    )
    joined = {
        "input/front/image": f"{home}/front/image_color",
        "input/front/image/compressed": f"{home}/front/image_color/compressed",
        "input/front/camera_info": f"{home}/front/camera_info",
    }
    assert {f"~/{name}": topic for name, topic in joined.items()}.items() <= nodes["perception_node"]["rules"].items()
    assert f"{home}/front/image_color" in rviz_topics(nodes)


def rviz_topics(nodes):
    path = Path(nodes["rviz2"]["arguments"][nodes["rviz2"]["arguments"].index("-d") + 1])
    displays = yaml.safe_load(path.read_text())["Visualization Manager"]["Displays"]
    return [display["Topic"]["Value"] for display in displays if "Topic" in display]


def test_rviz_follows_the_namespace(launch):
    assert "/robot1/bev_perception/markers" in rviz_topics(
        launch("perception.launch.py", "rviz:=true", "namespace:=robot1")
    )


def test_the_lifecycle_manager_has_the_node(launch):
    nodes = launch("lifecycle.launch.py", "namespace:=robot1", "variant:=sparsebev_tiny")
    assert set(nodes) == {"perception_node", "lifecycle_manager"}
    assert nodes["perception_node"]["parameters"]["autostart"] is False
    assert nodes["perception_node"]["parameters"]["variant"] == "sparsebev_tiny"
    assert nodes["lifecycle_manager"]["rules"]["__ns"] == nodes["perception_node"]["rules"]["__ns"] == "/robot1"
    assert list(nodes["lifecycle_manager"]["parameters"]["node_names"]) == ["bev_perception"]


def test_a_parameter_file_without_cameras_is_named(launch, tmp_path):
    (tmp_path / "own.yaml").write_text("/**:\n  ros__parameters:\n    device: cpu\n")
    own = f"params_file:={tmp_path / 'own.yaml'}"
    assert launch("perception.launch.py", own)["perception_node"]["parameters"]["device"] == "cpu"
    with pytest.raises(RuntimeError, match=r"own\.yaml sets no cameras"):
        launch("perception.launch.py", own, "camera_namespace:=/")


def test_replay_starts_node_player_and_rviz(launch):
    nodes = launch("replay.launch.py", "bag:=/data/drive", "rate:=2", "loop:=true", "variant:=sparsebev_tiny")
    assert set(nodes) == {"perception_node", "bag_player", "rviz2"}
    player = nodes["bag_player"]["parameters"]
    assert {k: player[k] for k in ("bag", "rate", "loop")} == {"bag": "/data/drive", "rate": 2.0, "loop": True}
    assert set(player["wait_for_publisher"].split()) < TOPICS
    assert nodes["perception_node"]["parameters"]["use_sim_time"] is True
    assert nodes["perception_node"]["parameters"]["variant"] == "sparsebev_tiny"


def test_replay_needs_a_bag(launch):
    with pytest.raises(RuntimeError, match="bag"):
        launch("replay.launch.py")
