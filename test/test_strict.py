"""Errors that the user can mend are UserErrors; the others are ours and show a traceback."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import bev_perception
from bev_perception.strict import (
    MAX_BYTES,
    MAX_LENGTH,
    ConfigError,
    JsonError,
    UserError,
    inside,
    parse_json,
    read_yaml,
)

ROOT = Path(bev_perception.__file__).parent
#: file -> how many ValueErrors it raises that no user can mend: a caller of ours has passed what does not fit
OURS = {
    "models/folding.py": 1,
    "ops/ray_casting.py": 1,
    "results/duplicates.py": 1,
    "results/occupancy_codec.py": 2,
    "sensing/preprocess.py": 1,
    "synth/solids.py": 1,
    "tracking/tracker.py": 1,
    "visualization/video.py": 1,
}
#: modules that import rclpy or what is generated from messages
ROS = ("bev_perception.ros", "bev_perception.msg")


def raised_value_errors(path):
    """Return the lines that raise a plain ValueError."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id == "ValueError"
    ]


def test_what_the_user_can_mend_is_raised_as_such():
    for path in ROOT.rglob("*.py"):
        name, lines = path.relative_to(ROOT).as_posix(), raised_value_errors(path)
        assert len(lines) <= OURS.get(name, 0), f"{name}:{lines}: raise UserError, or count it as ours"


def test_every_value_error_of_a_name_is_a_user_error():
    names = [module.name for module in pkgutil.walk_packages([str(ROOT)], "bev_perception.")]
    for name in names:
        if name.startswith(ROS) or name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if kind.__module__.startswith("bev_perception") and issubclass(kind, ValueError):
                assert issubclass(kind, UserError), kind


BOMB = b"a: &a [x, x, x]\n" + b"".join(b"%c: &%c [*%c, *%c, *%c]\n" % (i + 1, i + 1, i, i, i) for i in range(97, 120))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "aliases"),
        (b"a: &a {x: 1}\nb: {<<: *a}", "aliases|plain word"),
        (b"a: " + b"[" * 2000, "more than 20 levels"),
        (b"a: " + b"{b: " * 2000, "more than 20 levels"),
        (b"- " * 2000, "more than 20 levels"),
        (b"a: 1:" + b"59:" * 3000 + b"1", f"more than {MAX_LENGTH} characters"),
        (b"a: " + b"9" * 5000, f"more than {MAX_LENGTH} characters"),
        (b"x" * 5000 + b": 1", "characters|simple key|:"),
        (b"a: " + b"9" * (MAX_BYTES + 1), f"larger than {MAX_BYTES} bytes"),
        (b"a: [" + b"1," * 10_001 + b"]", "more than 10000 values"),
        (b"a: 2020-01-01", "a date is not taken"),
        (b"a: 2020-13-41", "month"),
        (b"a: !!set {b}", "set is not taken"),
        (b"a: !!omap [b: 1]", "omap is not taken"),
        (b"a: !!binary aGk=", "bytes is not taken"),
        (b"a: !!python/object:os.system x", "constructor"),
        (b"a: !!timestamp x", "x.yaml"),
        (b"? [a]\n: 1", "plain word"),
        (b"a: 1\n---\na: 2", "single document"),
        (b"a: caf\xe9", "is not UTF-8"),
        (b"\xff\xfea\x00", "is not UTF-8"),
        (b"a: \x00", "special characters"),
        (b"- a", "expected a mapping"),
        (b"", "expected a mapping"),
    ],
)
def test_yaml_that_is_refused_names_its_file(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(tmp_path / "x.yaml")
    assert "x.yaml" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        "NaN",
        "-Infinity",
        "[1e999]",
        '{"a": Infinity}',
        "[" * 100_000,
        "{",
        "9" * 5000,
        str(1 << 63),
        str(-(1 << 63) - 1),
        b"\xff",
    ],
)
def test_json_that_is_refused(content):
    with pytest.raises(JsonError):
        parse_json(content)


def test_json_that_is_read():
    assert parse_json('{"a": [1, -2.5e3, null, true, "x"]}') == {"a": [1, -2500.0, None, True, "x"]}
    assert parse_json(f"[{(1 << 63) - 1}, {-(1 << 63)}]") == [(1 << 63) - 1, -(1 << 63)]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "/etc/passwd", "", "a\0b", "a\\..\\b", "a/.."])
def test_names_do_not_lead_out_of_a_folder(tmp_path, name):
    with pytest.raises(UserError, match="does not name a file inside of"):
        inside(tmp_path, "first", name)


def test_names_inside_of_a_folder(tmp_path):
    assert inside(tmp_path, "samples/CAM/a..b.jpg", "x") == tmp_path / "samples" / "CAM" / "a..b.jpg" / "x"
