"""What the launch files make of their arguments.

It imports neither launch nor rclpy, so that it is tested everywhere, nor torch, so that launching is quick.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bev_perception.ros.camera_topics import check_camera_names
from bev_perception.strict import ConfigError, UserError, read_yaml_values

#: launch arguments that set the node's parameter of the same name: texts, numbers and truths
TEXTS = (
    "variant",
    "checkpoint",
    "occupancy_variant",
    "occupancy_checkpoint",
    "image_transport",
    "device",
    "precision",
    "engine",
    "image_fit",
    "base_frame",
    "fixed_frame",
)
NUMBERS = ("base_height", "score_threshold", "max_detections", "tf_timeout")
TRUTHS = ("autostart", "use_sim_time")
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def given_parameters(argument: Mapping[str, str]) -> dict[str, Any]:
    """Return the node's parameters that are given as launch arguments; an empty argument gives none.

    Raises UserError for a text where a number, a truth or a list is meant.
    """
    given: dict[str, Any] = {name: argument[name] for name in TEXTS if argument[name]}
    given |= {name: number(name, argument[name]) for name in NUMBERS if argument[name]}
    given |= {name: truth(name, argument[name]) for name in TRUTHS if argument[name]}
    if argument["cameras"]:
        given["cameras"] = camera_list(f"cameras:={argument['cameras']}", _value(argument["cameras"]))
    return given


def truth(name: str, text: str) -> bool:
    """Return what a launch argument says: true, True, 1, yes and on, or the opposites."""
    if text.strip().lower() not in _WORDS:
        raise UserError(f"{name}:={text}; write true or false")
    return _WORDS[text.strip().lower()]


def number(name: str, text: str) -> float:
    """Return the number that a launch argument says; raises UserError for what is none, NaN or infinite.

    It is read as Python does: YAML 1.1 takes 1e-4 for a text, 010 for 8 and 1:30 for 90.
    """
    try:
        value: float = int(text) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text) else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name}:={text} is no number")
    return value


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a ValueError: of a date that there is not
        return text


def camera_list(where: str, cameras: Any) -> list[str]:
    """Return camera names; raises UserError if these are none, naming `where` they come from."""
    if not isinstance(cameras, (list, tuple)):
        raise UserError(f"{where} is no list; write cameras:='[front, back]'")
    check_camera_names(cameras)
    return list(cameras)


def full_name(namespace: str, name: str) -> str:
    """Return the full name of a node."""
    return "/" + "/".join(part for part in (namespace.strip("/"), name) if part)


def file_parameters(params_file: Path, node: str) -> dict[str, Any]:
    """Return what a parameter file sets for a node, in sections that may be nested by namespaces.

    node: its full name.

    Raises UserError for a file that is missing, that sets no parameters, or none of this node.
    """
    if not params_file.exists():
        raise UserError(f"params_file {params_file} does not exist; give the path of a YAML file of parameters")
    try:
        found = list(_sections(read_yaml_values(params_file), ""))  # aliases are none for ROS's own reader, either
    except ConfigError as error:
        raise UserError(f"params_file {params_file} is no YAML: {error}") from error
    if not found:
        raise UserError(
            f"params_file {params_file} sets no parameters; write them below a node's name, or /**, and ros__parameters"
        )
    mine = [values for name, values in found if _pattern(name).fullmatch(node)]
    if not mine:
        raise UserError(
            f"params_file {params_file} sets parameters of {', '.join(dict(found))}, but none of {node}; write them "
            f"below {node} or /**, or give the namespace as namespace:=NAME"
        )
    merged: dict[str, Any] = {}
    for values in mine:
        merged |= values
    return merged


def _sections(values: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of a node, which may have wildcards, and its parameters."""
    if not isinstance(values, dict):
        return
    for key, below in values.items():
        if key != "ros__parameters":
            yield from _sections(below, f"{name}/{str(key).strip('/')}")
        elif isinstance(below, dict) and below:
            yield name, below


def _pattern(name: str) -> re.Pattern[str]:
    """Return what matches the full names of nodes: ** stands for any namespaces, * for one."""
    parts = {"**": "(/[^/]+)*", "*": "/[^/]+"}
    return re.compile("".join(parts.get(part, "/" + re.escape(part)) for part in name.split("/")[1:]))


def cameras_of(parameters: Mapping[str, Any], params_file: str) -> list[str]:
    """Return the camera names in the parameters of a file.

    Raises UserError if the file sets none.
    """
    if "cameras" not in parameters:
        raise UserError(f"{params_file} sets no cameras; add them to it, or give them as cameras:='[front, back]'")
    return camera_list(f"cameras of {params_file}", parameters["cameras"])


def input_topics(
    cameras: Sequence[str], camera_namespace: str, image_topic: str, camera_info_topic: str = ""
) -> dict[str, str]:
    """Return the driver's topic for each private input topic of the node."""
    topics = {}
    info = camera_info_topic or "/".join([*image_topic.split("/")[:-1], "camera_info"])
    for camera in cameras:
        source = f"{camera_namespace.rstrip('/')}/{camera}"
        topics[f"input/{camera}/image"] = f"{source}/{image_topic}"
        topics[f"input/{camera}/image/compressed"] = f"{source}/{image_topic}/compressed"
        topics[f"input/{camera}/camera_info"] = f"{source}/{info}"
    return topics
