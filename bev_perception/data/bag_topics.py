"""Find the cameras in a bag whose topics have other names than the node's, and rename topics by rules with patterns.

And find the parts of a recording that was split.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bev_perception.data.bag_opening import open_reader
from bev_perception.data.drive import CAMERAS
from bev_perception.data.rosbag import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    BagTopic,
    camera_info_topic,
    image_topic,
)
from bev_perception.strict import UserError

COMPRESSED = "/compressed"


@dataclass(frozen=True)
class FoundCamera:
    """Topics that belong to one camera: those of images beside a camera_info.

    name: made from what its topics have in their names and those of the others have not.
    folder: what its topics begin with.
    images: image topic -> type; more than one where the images come rectified too, for instance.
    info: topic of the camera_info.
    """

    name: str
    folder: str
    images: Mapping[str, str]
    info: str

    def remaps(self, camera: str, image: str, prefix: str) -> dict[str, str]:
        """Return topic of the bag -> topic of the node, for the camera's name there and one of its images."""
        target = image_topic(camera, prefix) + (COMPRESSED if self.images[image] == COMPRESSED_IMAGE else "")
        return {image: target, self.info: camera_info_topic(camera, prefix)}


def find_cameras(topics: Iterable[BagTopic]) -> list[FoundCamera]:
    """Return the cameras of a bag, sorted by their topics.

    Of raw and compressed images of one topic, the compressed ones are taken, as in the node's own topics.
    """
    kinds = {topic.name: topic.type_name for topic in topics if topic.count}
    infos = {name.rpartition("/")[0]: name for name, kind in kinds.items() if kind == CAMERA_INFO}
    images: dict[str, dict[str, tuple[str, str]]] = {folder: {} for folder in infos}
    for name in sorted(kinds):  # a compressed topic comes after its raw one
        base = name.removesuffix(COMPRESSED) if kinds[name] == COMPRESSED_IMAGE else name
        folder = base.rpartition("/")[0]
        if folder in images and kinds[name] in (IMAGE, COMPRESSED_IMAGE):
            images[folder][base] = (name, kinds[name])
    folders = sorted(folder for folder in images if images[folder])
    names = _names(folders)
    return [FoundCamera(names[folder], folder, dict(images[folder].values()), infos[folder]) for folder in folders]


def choose(
    found: Sequence[FoundCamera], wanted: Sequence[str] | None, prefix: str
) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Return the cameras and the remaps of the only reading of a bag's topics; None where there is none or several.

    found: see find_cameras.
    wanted: names of cameras, each of which must be in the topics of one found camera; None takes the six of nuScenes
        if all are there, else all that are found.
    prefix: of the node's topics.
    """
    if wanted is None and all(_matching(found, camera) for camera in CAMERAS):
        wanted = CAMERAS
    pairs = [(camera.name, [camera]) for camera in found]
    if wanted is not None:
        pairs = [(name, _matching(found, name)) for name in wanted]
    if not pairs or any(len(cameras) != 1 or len(cameras[0].images) != 1 for _, cameras in pairs):
        return None
    remaps: dict[str, str] = {}
    for name, (camera,) in pairs:
        remaps |= camera.remaps(name, next(iter(camera.images)), prefix)
    return tuple(name for name, _ in pairs), remaps


def ready_to_paste(found: Sequence[FoundCamera], prefix: str) -> str:
    """Return options of the command line for all readings of a bag's topics, one camera a line."""
    if not found:
        return "there is no image topic beside a camera_info in it"
    lines = ["options for what is there, of which one line for each camera is to be chosen:"]
    for camera in found:
        for image in camera.images:
            rules = (f"{bag}:={node}" for bag, node in camera.remaps(camera.name, image, prefix).items())
            lines.append(f"  --remap {' '.join(rules)}")
    lines.append(f"  --cameras {' '.join(camera.name for camera in found)}")
    return "\n".join(lines)


def read_rules(rules: Iterable[str], topics: Iterable[BagTopic]) -> dict[str, str]:
    """Return topic of the bag -> topic of the node from rules BAG_TOPIC:=TOPIC.

    rules: a * in BAG_TOPIC stands for one part of a name, without slashes; each * in TOPIC for the same text.
    topics: of the bag.

    Raises UserError for what is no rule, and for a pattern that no topic of the bag fits.
    """
    remap: dict[str, str] = {}
    names = [topic.name for topic in topics]
    for rule in rules:
        bag_topic, sign, target = rule.partition(":=")
        if not (bag_topic and sign and target):
            raise UserError(f"--remap {rule} names one topic; write BAG_TOPIC:=TOPIC, such as /front/image:=/cam/image")
        if "*" not in bag_topic:
            remap[bag_topic] = target
            continue
        if target.count("*") > bag_topic.count("*"):
            raise UserError(f"--remap {rule}: there are more * behind := than before")
        pattern = re.compile("([^/]+)".join(map(re.escape, bag_topic.split("*"))))
        fitting = [(name, match) for name in names if (match := pattern.fullmatch(name))]
        if not fitting:
            raise UserError(f"--remap {rule}: no topic of the bag fits; it has {', '.join(sorted(names))}")
        for name, match in fitting:
            remap[name] = functools.reduce(lambda made, text: made.replace("*", text, 1), match.groups(), target)
    return remap


def recordings(paths: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Return the bags of each recording: one that was split has /tf_static in its first bag alone.

    paths: of bags. If some have no /tf_static, they are taken in order of time, and each belongs to the one before it.

    Raises BagError for what is no bag.
    """
    latched, begins = {}, {}
    for path in paths:
        with closing(open_reader(path)) as reader:
            latched[path] = any(c.topic.rsplit("/", 1)[-1] == "tf_static" for c in reader.connections if c.msgcount)
            begins[path] = reader.start_time
    if all(latched.values()):
        return [(path,) for path in paths]
    found: list[tuple[Path, ...]] = []
    for path in sorted(begins, key=begins.__getitem__):
        if latched[path] or not found:
            found.append((path,))
        else:
            found[-1] += (path,)
    return found


def _matching(found: Sequence[FoundCamera], name: str) -> list[FoundCamera]:
    """Return the cameras that are called so, else those with this part in their topics, in any case of letters."""
    exact = [camera for camera in found if camera.name == name]
    return exact or [camera for camera in found if name.lower() in camera.folder.lower().split("/")]


def _names(folders: Sequence[str]) -> dict[str, str]:
    """Return folder -> a name of its own, without the parts that all folders begin and end with."""
    parts = {folder: folder.strip("/").split("/") for folder in folders}
    shortest = min(map(len, parts.values()), default=0)
    skip = tail = 0
    while len(folders) > 1 and skip < shortest - 1 and len({tuple(p[: skip + 1]) for p in parts.values()}) == 1:
        skip += 1
    while len(folders) > 1 and skip + tail < shortest - 1 and len({tuple(p[-1 - tail :]) for p in parts.values()}) == 1:
        tail += 1
    names = {}
    for folder, p in parts.items():
        kept = p[skip : len(p) - tail] if len(folders) > 1 else p[-1:]
        name = re.sub(r"\W+", "_", "_".join(kept)) or "camera"
        names[folder] = name if not name[0].isdigit() else f"camera_{name}"
    return names
