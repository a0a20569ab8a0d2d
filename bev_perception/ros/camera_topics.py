"""Camera names as parts of topics; without rclpy, as launch files use it, too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bev_perception.strict import ConfigError

#: what a topic may consist of between two slashes
_PART = r"(?!.*__)[A-Za-z_][A-Za-z0-9_]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


def check_camera_names(cameras: Iterable[object]) -> None:
    """Raise ConfigError for the name of a camera that topics cannot hold."""
    for camera in cameras:
        if not isinstance(camera, str) or not _NAME.fullmatch(camera):
            raise ConfigError(
                f"cameras: {camera!r} cannot be part of a topic; take letters, digits and single underscores, no digit "
                "first (other topics than ~/input/<camera>/image are reached by remaps)"
            )


def check_apart(topics: Mapping[str, str]) -> None:
    """Raise ConfigError if two cameras get their images from one topic.

    topics: camera -> topic of its images, after remapping.
    """
    owners: dict[str, str] = {}
    for camera, topic in topics.items():
        first = owners.setdefault(topic, camera)
        if first != camera:
            raise ConfigError(f"{first} and {camera} both get the images of {topic}; remap each to a topic of its own")
