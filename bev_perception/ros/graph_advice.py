"""What to do when nothing arrives on a topic, from what is published or subscribed to near it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

COMPRESSED = "/compressed"
IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
#: topics that a sentence names
NAMED = 4


@dataclass(frozen=True)
class Wanted:
    """A topic on which nothing arrives.

    name: full name, after remapping.
    type_name: such as sensor_msgs/msg/Image.
    private: as it is written in remap rules, such as ~/input/cam_front/image.
    subject: what it belongs to, such as the name of a camera; topics with it in their names are nearer.
    """

    name: str
    type_name: str
    private: str
    subject: str


def advice(wanted: Wanted, published: Mapping[str, frozenset[str]], unfit: str = "") -> str:
    """Return a sentence that says what is there instead, and how to get it.

    published: topic -> types, of all topics that anybody publishes.
    unfit: why the QoS of the topic's publishers does not fit, if it does not.
    """
    types = published.get(wanted.name, frozenset())
    if wanted.type_name in types:
        return unfit or f"{wanted.name} is advertised, but nothing is sent on it"
    if types:
        other = _transport(types)
        remedy = f"image_transport:={other}" if other else f"remap {wanted.private} to a topic of {wanted.type_name}"
        return f"{wanted.name} is there, but of type {', '.join(sorted(types))}: {remedy}"
    twin = _other_transport(wanted)
    if published.get(twin[0], frozenset()) & {twin[1]}:
        return f"{twin[0]} is there: image_transport:={twin[2]}"
    return _elsewhere(wanted, published)


def _transport(types: frozenset[str]) -> str:
    return "raw" if IMAGE in types else "compressed" if COMPRESSED_IMAGE in types else ""


def _other_transport(wanted: Wanted) -> tuple[str, str, str]:
    """Return the topic, the type and the transport that the same images have with the other transport."""
    if wanted.type_name == COMPRESSED_IMAGE:
        return wanted.name.removesuffix(COMPRESSED), IMAGE, "raw"
    return wanted.name + COMPRESSED, COMPRESSED_IMAGE, "compressed"


def _elsewhere(wanted: Wanted, published: Mapping[str, frozenset[str]]) -> str:
    same = [topic for topic, types in published.items() if wanted.type_name in types]
    other = [topic for topic, types in published.items() if types & {IMAGE, COMPRESSED_IMAGE} and topic not in same]
    near = [topic for topic in same if wanted.subject in topic] or difflib.get_close_matches(wanted.name, same, 1, 0.8)
    if len(near) == 1:
        return f"nobody publishes {wanted.name}; {near[0]} is there: remap with -r {wanted.private}:={near[0]}"
    if near or same:
        return (
            f"nobody publishes {wanted.name}; of its type there are {_list(near or same)}: remap with "
            f"-r {wanted.private}:=TOPIC"
        )
    if other:
        transport = "compressed" if wanted.type_name == IMAGE else "raw"
        return (
            f"nobody publishes {wanted.name} or anything of type {wanted.type_name}; there are {_list(other)}: "
            f"image_transport:={transport} and remap"
        )
    return (
        f"nobody publishes {wanted.name} or any other images; is the driver running, with the same ROS_DOMAIN_ID "
        "and RMW_IMPLEMENTATION?"
    )


def _list(topics: list[str]) -> str:
    more = len(topics) - NAMED
    return ", ".join(sorted(topics)[:NAMED]) + (f" and {more} more" if more > 0 else "")
