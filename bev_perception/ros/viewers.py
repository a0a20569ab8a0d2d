"""Configurations of RViz and Foxglove for given cameras, transport, frames and topics.

Launch files use it: it imports neither rclpy nor torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: name of the node in the configurations that are shipped
NODE = "/bev_perception"
RVIZ_FILE, FOXGLOVE_FILE = "perception.rviz", "perception.foxglove.json"
#: cameras side by side in Foxglove
ROW = 3


@dataclass(frozen=True)
class Viewed:
    """What is looked at.

    cameras: their names.
    transport: of the images, raw or compressed.
    base_frame: tf frame of the vehicle.
    node: full name of the perception node.
    topics: private name of an input, such as input/front/image, -> topic, for those that are remapped.
    """

    cameras: Sequence[str]
    transport: str
    base_frame: str
    node: str = NODE
    topics: Mapping[str, str] = field(default_factory=dict)

    def topic(self, name: str) -> str:
        """Return the topic of a private name, such as markers or input/front/camera_info."""
        return self.topics.get(name, f"{self.node}/{name}")

    def image(self, camera: str) -> str:
        """Return the topic of a camera's images."""
        suffix = "/compressed" if self.transport == "compressed" else ""
        return self.topic(f"input/{camera}/image{suffix}")


def write_viewers(folder: Path, viewed: Viewed, shipped: Path) -> tuple[Path, Path]:
    """Write a configuration of RViz and a layout of Foxglove into a folder, which is made; return the two files.

    shipped: the directory config/ of the package; its files are taken, with other cameras, topics and frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rviz = rviz_config(yaml.safe_load((shipped / RVIZ_FILE).read_text()), viewed)
    foxglove = foxglove_layout(json.loads((shipped / FOXGLOVE_FILE).read_text()), viewed)
    (folder / RVIZ_FILE).write_text(yaml.safe_dump(rviz, sort_keys=False))
    (folder / FOXGLOVE_FILE).write_text(json.dumps(foxglove, indent=2) + "\n")
    return folder / RVIZ_FILE, folder / FOXGLOVE_FILE


def rviz_config(shipped: dict[str, Any], viewed: Viewed) -> dict[str, Any]:
    """Return the shipped configuration of RViz, changed to what is viewed."""
    config = copy.deepcopy(shipped)
    manager = config["Visualization Manager"]
    pictures = {d["Name"]: d for d in manager["Displays"] if d["Class"].endswith("/Image")}
    displays = [display for display in manager["Displays"] if display["Name"] not in pictures]
    for display in displays:
        if "Topic" in display:
            display["Topic"]["Value"] = viewed.topic(_private(display["Topic"]["Value"]))
        if "Reference Frame" in display:
            display["Reference Frame"] = viewed.base_frame
    for camera in _ordered(viewed.cameras, list(pictures)):
        display = copy.deepcopy(next(iter(pictures.values()))) | {"Name": camera}
        display["Topic"]["Value"] = viewed.image(camera)
        displays.append(display)
    manager["Displays"] = displays
    manager["Global Options"]["Fixed Frame"] = viewed.base_frame
    manager["Views"]["Current"]["Target Frame"] = viewed.base_frame
    return config


def foxglove_layout(shipped: dict[str, Any], viewed: Viewed) -> dict[str, Any]:
    """Return the shipped layout of Foxglove, changed to what is viewed."""
    layout = copy.deepcopy(shipped)
    panels = layout["configById"]
    pictures = {name: panels.pop(name) for name in list(panels) if "imageMode" in panels[name]}
    for panel in panels.values():
        if "followTf" in panel:
            panel["followTf"] = viewed.base_frame
            panel["layers"]["grid"]["frameId"] = viewed.base_frame
            panel["topics"] = _renamed(panel["topics"], viewed)
        for path in panel.get("paths", []):
            topic, _, rest = path["value"].partition(".")
            path["value"] = f"{viewed.topic(_private(topic))}.{rest}"
    names = _ordered(viewed.cameras, [panel["foxglovePanelTitle"] for panel in pictures.values()])
    for camera in names:
        panel = copy.deepcopy(next(iter(pictures.values()))) | {"foxglovePanelTitle": camera}
        panel["imageMode"]["imageTopic"] = viewed.image(camera)
        panel["imageMode"]["calibrationTopic"] = viewed.topic(f"input/{camera}/camera_info")
        panel["topics"] = _renamed(panel["topics"], viewed)
        panels[f"Image!{camera}"] = panel
    ids = [f"Image!{camera}" for camera in names]
    rows = [_split("row", ids[i : i + ROW]) for i in range(0, len(ids), ROW)]
    layout["layout"]["first"] = _split("column", rows)
    return layout


def _private(topic: str) -> str:
    return topic.removeprefix(f"{NODE}/")


def _renamed(topics: Mapping[str, Any], viewed: Viewed) -> dict[str, Any]:
    return {viewed.topic(_private(topic)): shown for topic, shown in topics.items()}


def _ordered(cameras: Sequence[str], shipped: Sequence[str]) -> list[str]:
    """Return the cameras as they are laid out in the shipped files, others behind them."""
    return [c for c in shipped if c in cameras] + [c for c in cameras if c not in shipped]


def _split(direction: str, parts: Sequence[Any]) -> Any:
    """Return a split of Foxglove's layout into equal parts."""
    if len(parts) == 1:
        return parts[0]
    share = round(100 / len(parts), 1)
    second = _split(direction, parts[1:])
    return {"direction": direction, "first": parts[0], "second": second, "splitPercentage": share}
