"""What must agree between package.xml, setup.cfg, CMakeLists.txt and the requirements."""

import configparser
import os
import re
import subprocess
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
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == targets and len(targets) > 8


def test_citation_names_the_version():
    assert f"\nversion: {bev_perception.__version__}\n" in (ROOT / "CITATION.cff").read_text()
