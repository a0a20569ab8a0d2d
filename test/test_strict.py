"""Errors that the user can mend are UserErrors; the others are ours and show a traceback."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import bev_perception
from bev_perception.strict import UserError

ROOT = Path(bev_perception.__file__).parent
#: file -> how many ValueErrors it raises that no user can mend: a caller of ours has passed what does not fit
OURS = {
    "models/encoder.py": 1,
    "ops/ray_casting.py": 1,
    "results/occupancy_codec.py": 2,
    "sensing/preprocess.py": 1,
    "synth/solids.py": 1,
    "visualization/pictures.py": 1,
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
