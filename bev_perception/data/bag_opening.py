"""Bags that are not plain recordings of ROS 2: with other topics in them, or of ROS 1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import storage_mcap

ROS1_MAGIC = b"#ROSBAG V"
MCAP_MAGIC = b"\x89MCAP0\r\n"
SQLITE_MAGIC = b"SQLite format 3\0"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: how ROS 2 messages are serialized; everything else in a file is foreign
CDR = "cdr"

_patching = threading.Lock()


def foreign(connection: Any) -> bool:
    """Return whether a topic of a file is not of ROS 2, such as protobuf or JSON."""
    return serialization(connection) != CDR


def serialization(connection: Any) -> str:
    """Return how the messages of a topic are serialized, such as "cdr" or "protobuf"."""
    return str(connection.ext.serialization_format)


def ros1_bag(path: Path) -> str:
    """Return what to do about a bag of ROS 1, or a directory of such bags; an empty text for anything else."""
    for file in [path] if path.is_file() else sorted(path.glob("*.bag")):
        with file.open("rb") as opened:
            if opened.read(len(ROS1_MAGIC)) == ROS1_MAGIC:
                return (
                    f"{file} is a bag of ROS 1; convert it with "
                    f"`rosbags-convert --src {file} --dst {file.with_suffix('')}`"
                )
    return ""


def repair(path: Path) -> str:
    """Return what to do about a bag that cannot be read, by what its files begin with."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".yaml")
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(len(SQLITE_MAGIC))
        if start.startswith(MCAP_MAGIC):
            continue
        if start.startswith(SQLITE_MAGIC):
            return (
                f"if the recording was cut off, save what is left (`sqlite3 {file.name} .recover | sqlite3 new.db3`) "
                "and write the metadata anew with `ros2 bag reindex <directory> sqlite3`"
            )
        if start.startswith(ZSTD_MAGIC):
            return f"{file.name} is compressed; copy it again, or see with `zstd -t {file.name}` whether it is whole"
        kind = "is empty" if not start else "is neither mcap nor sqlite3 by its first bytes"
        return f"{file.name} {kind}; copy the recording again"
    return (
        "if the recording was cut off, repair it with `mcap recover <file>` and `ros2 bag reindex <directory>`"
        if files
        else "the directory holds no recording; copy it again"
    )


@contextmanager
def foreign_topics_allowed() -> Iterator[None]:
    """Let rosbags open mcap files that hold other topics beside those of ROS 2, or whose header names no profile.

    It refuses such a file as a whole, although the topics of ROS 2 in it are as readable as ever.
    """
    read_string, get_msgdef = storage_mcap.read_string, storage_mcap.get_msgdef

    def any_string(file: Any) -> str:
        storage_mcap.read_string = read_string  # the first one in a file is its profile
        read_string(file)
        return "ros2"

    def any_definition(schema: Any) -> MessageDefinition:
        try:
            return get_msgdef(schema)
        except KeyError:
            return MessageDefinition(MessageDefinitionFormat.NONE, "")

    with _patching:
        storage_mcap.read_string = any_string  # type: ignore[assignment]
        storage_mcap.get_msgdef = any_definition
        try:
            yield
        finally:
            storage_mcap.read_string, storage_mcap.get_msgdef = read_string, get_msgdef
