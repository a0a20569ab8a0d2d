"""What must agree between package.xml, setup.cfg, CMakeLists.txt and the requirements."""

import configparser
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import bev_perception

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}


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


def test_executables_of_ros_are_those_of_pip(setup_cfg):
    scripts = {path.name for path in (ROOT / "scripts").iterdir()}
    entry_points = requirements(setup_cfg["options.entry_points"]["console_scripts"])
    named = {point.split(" = ")[0]: point.split(" = ")[1] for point in entry_points}
    assert scripts == set(named) - {"bev_perception"}
    for name in scripts:
        module = named[name].removesuffix(":main")
        assert f"from {module} import main" in (ROOT / "scripts" / name).read_text()
        assert os.access(ROOT / "scripts" / name, os.X_OK)
        assert f"scripts/{name}" in (ROOT / "CMakeLists.txt").read_text()


def test_no_folder_hides_the_generated_messages():
    assert not (ROOT / "bev_perception" / "msg").exists()
