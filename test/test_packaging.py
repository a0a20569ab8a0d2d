"""What must agree between package.xml, setup.cfg, CMakeLists.txt and the requirements."""

import ast
import configparser
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors import safe_open

import bev_perception
from bev_perception.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")}


def test_package_xml_and_python_agree_on_name_and_version(setup_cfg):
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.findtext("name") == setup_cfg["metadata"]["name"] == "bev_perception"
    assert package.findtext("version") == bev_perception.__version__
    assert package.findtext("license") == setup_cfg["metadata"]["license"]


def test_cmake_generates_every_message():
    listed = set(re.findall(r'"msg/(\w+)\.msg"', (ROOT / "CMakeLists.txt").read_text()))
    assert listed == {path.stem for path in (ROOT / "msg").glob("*.msg")}


def test_the_pins_of_ros_agree(setup_cfg):
    lock = requirements((ROOT / "requirements" / "bare.txt").read_text())
    for pin in requirements(setup_cfg["options.extras_require"]["ros"]):
        assert re.sub(r"\[.*\]", "", pin) in lock


def test_the_lock_pins_everything_exactly():
    for line in requirements((ROOT / "requirements" / "bare.txt").read_text()):
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def test_the_executables_of_a_workspace(setup_cfg):
    modules = {
        "bev_perception": "bev_perception.cli",
        "perception_node": "bev_perception.ros.perception_node",
        "bag_player": "bev_perception.ros.bag_player",
    }
    assert {path.name for path in (ROOT / "scripts").iterdir()} == set(modules)
    for name, module in modules.items():
        assert f"from {module} import main" in (ROOT / "scripts" / name).read_text()
        assert os.access(ROOT / "scripts" / name, os.X_OK)
        assert f"scripts/{name}" in (ROOT / "CMakeLists.txt").read_text()
    # pip installs no program whose name does not say whose it is
    assert requirements(setup_cfg["options.entry_points"]["console_scripts"]) == {
        "bev_perception = bev_perception.cli:main"
    }


#: imported module -> its key in rosdep's lists, where these differ
ROSDEP = {
    "PIL": "python3-pil", "cv2": "python3-opencv", "matplotlib": "python3-matplotlib", "numba": "python3-numba",
    "numpy": "python3-numpy", "rosbags": "python3-rosbags-pip", "scipy": "python3-scipy",
    "sklearn": "python3-sklearn", "torch": "python3-pytorch-pip", "tqdm": "python3-tqdm", "yaml": "python3-yaml",
}  # fmt: skip
#: imported module -> distribution of the package index, where these differ
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "nuscenes": "nuscenes-devkit",
    "sklearn": "scikit-learn", "backports": "backports.zstd", "rerun": "rerun-sdk",
}  # fmt: skip
#: not in package.xml: rosdep has no key (the README says how to install it), numpy 1 is wanted by it, a video is
#: written without it, too, or it only shows what RViz shows
BY_HAND = {"safetensors", "nuscenes", "av", "rerun"}
#: extras for which rosdep has no keys either, and which the bare machine does without
ENGINES = {"onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "ray"}
#: what others bring: rosbags the first, nuscenes-devkit the last
BROUGHT = {"lz4", "backports", "compression", "sklearn"}
#: only where there is no ROS 2 distribution, whose wheels bring them
BARE = {"rosidl_adapter", "rosidl_generator_c", "rosidl_generator_py", "rosidl_generator_type_description"}
BARE |= {"rosidl_typesupport_c", "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"}
#: only where there is one
DISTRIBUTION = {"launch", "launch_ros", "ament_index_python", "cv_bridge", "tf2_py"}
#: generated on first use where there is none
GENERATED = {"tf2_msgs", "vision_msgs"}
#: messages that ros-jazzy-rclpy brings
OF_RCLPY = {"builtin_interfaces", "lifecycle_msgs", "rcl_interfaces", "rosgraph_msgs"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "find_spec"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"bev_perception", "compression"}


@pytest.fixture(scope="module")
def used() -> set[str]:
    """The foreign packages that are imported."""
    files = [*ROOT.glob("bev_perception/**/*.py"), *ROOT.glob("launch/*.py"), *ROOT.glob("scripts/*")]
    return set().union(*map(imported, files))


def test_package_xml_declares_what_is_imported_and_nothing_else(used):
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    declared = {tag.text for kind in ("depend", "exec_depend") for tag in package.findall(kind)}
    wanted = {ROSDEP.get(name, name) for name in used - BY_HAND - ENGINES - BARE - (BROUGHT - {"sklearn"})}
    assert declared == wanted | {"rosidl_default_runtime"}


def test_setup_cfg_declares_what_is_imported(setup_cfg, used):
    extras = [text for name, text in setup_cfg["options.extras_require"].items() if name not in ("test", "dev")]
    lines = set().union(*map(requirements, [setup_cfg["options"]["install_requires"], *extras]))
    declared = {re.split(r"[<>=;\[ ]", line)[0] for line in lines}
    python = used & {*ROSDEP, *BY_HAND, *ENGINES} - BROUGHT - {"tensorrt"}  # NVIDIA's own installer brings it
    assert {DISTRIBUTIONS.get(name, name) for name in python} <= declared
    ros = used - {*ROSDEP, *BY_HAND} - ENGINES - BROUGHT - BARE - DISTRIBUTION - GENERATED - OF_RCLPY
    assert {f"ros-jazzy-{name.replace('_', '-')}" for name in ros} <= declared
    needed = {re.split(r"[<>=;\[ ]", line)[0] for line in requirements(setup_cfg["options"]["install_requires"])}
    assert needed <= {DISTRIBUTIONS.get(name, name) for name in used}


def test_the_lock_holds_what_is_imported(used):
    lock = {line.split("==")[0].lower() for line in requirements((ROOT / "requirements" / "bare.txt").read_text())}
    for name in used - DISTRIBUTION - GENERATED - ENGINES:
        distribution = DISTRIBUTIONS.get(name, name)
        assert {distribution, f"ros-{distribution.replace('_', '-')}"} & lock, name


def test_what_is_installed_by_hand_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert all(DISTRIBUTIONS.get(name, name) in text for name in BY_HAND)


def test_no_folder_hides_the_generated_messages():
    assert not (ROOT / "bev_perception" / "msg").exists()


def test_every_requirement_has_an_upper_bound_that_admits_what_the_tests_use(setup_cfg):
    lock = dict(line.split("==") for line in requirements((ROOT / "requirements" / "bare.txt").read_text()))
    lock = {canonicalize_name(name): version for name, version in lock.items()}
    extras = setup_cfg["options.extras_require"]
    texts = [setup_cfg["options"]["install_requires"], *(extras[name] for name in extras if name != "all")]
    for line in set().union(*map(requirements, texts)):
        requirement = Requirement(line)
        assert any(bound.operator in ("<", "==") for bound in requirement.specifier), f"{line} has no upper bound"
        if version := lock.get(canonicalize_name(requirement.name)):
            assert requirement.specifier.contains(version), f"the tests run with {requirement.name} {version}: {line}"


def test_every_optional_package_names_an_extra_that_exists(setup_cfg):
    extras = setup_cfg["options.extras_require"]
    assert set(EXTRAS.values()) <= set(extras)
    (all_of,) = requirements(extras["all"])
    assert set(EXTRAS.values()) - {"ros"} == Requirement(all_of).extras


def test_shipped_weights_name_their_licence():
    for path in (ROOT / "config" / "weights").glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.metadata().get("licence"), f"{path.name}: see CONTRIBUTING.md"


def test_make_help_names_every_target():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == targets and len(targets) > 8


def test_citation_names_the_version():
    assert f"\nversion: {bev_perception.__version__}\n" in (ROOT / "CITATION.cff").read_text()
