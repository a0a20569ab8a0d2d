"""Open bags, also those that are no plain recordings of ROS 2, and read their messages in order of time."""

from __future__ import annotations

import copy
import heapq
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, storage_mcap
from rosbags.rosbag2.reader import DirectoryReader

from bev_perception.data.bag_limits import UnpackError, check_files, check_metadata
from bev_perception.strict import UserError

ROS1_MAGIC = b"#ROSBAG V"
MCAP_MAGIC = b"\x89MCAP0\r\n"
SQLITE_MAGIC = b"SQLite format 3\0"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: how ROS 2 messages are serialized; everything else in a file is foreign
CDR = "cdr"

_patching = threading.Lock()


class BagError(UserError):
    """A bag that cannot be written or read; the message names cause and remedy."""


#: what a bag yields: the topic, log time (ns) and bytes of a message
Logged = tuple[Connection, int, bytes]


def in_order_of_time(parts: Iterable[Iterator[Logged]]) -> Iterator[Logged]:
    """Yield the messages of several parts of a recording in order of log time; errors of parts come at the end."""
    errors: list[Exception] = []

    def readable(part: Iterator[Logged]) -> Iterator[Logged]:
        try:
            yield from part
        except Exception as error:  # the others may be whole
            errors.append(error)

    yield from heapq.merge(*map(readable, parts), key=lambda message: message[1])
    if errors:
        raise errors[0]


def messages_of(path: Path, topics: Collection[str]) -> Iterator[Logged]:
    """Yield the messages of a bag, or of a part of one, in order of log time; raise BagError at a damaged place."""
    with closing(open_reader(path)) as reader:
        wanted = [c for c in reader.connections if c.topic in topics and not foreign(c)]
        files = _files(reader) if wanted else []  # rosbags takes an empty list for all topics
        stream = in_order_of_time(part.messages(wanted) for part in files)
        while True:
            try:
                item = next(stream)
            except StopIteration:
                return
            except Exception as error:  # whatever the storage's parser meets in a damaged file
                raise BagError(_damaged(path, error)) from error
            yield item


def _files(reader: Reader) -> list[Any]:
    """Return a reader for each file of a bag: that of rosbags takes them one after the other, as metadata.yaml says."""
    storage = reader.storage
    if not isinstance(storage, DirectoryReader):
        return [storage]
    files = []
    for part in storage.storages:
        files.append(copy.copy(storage))
        files[-1].storages = [part]
    return files


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


def open_reader(path: Path) -> Reader:
    """Return an open rosbags Reader; the caller closes it."""
    if not path.exists():
        raise BagError(f"{path} does not exist; give the directory that `ros2 bag record` wrote, or its mcap file")
    try:
        check_files(path)
    except OSError as error:
        raise BagError(f"{path} is not read: {error}") from error
    if ros1 := ros1_bag(path):
        raise BagError(ros1)
    try:
        check_metadata(path)
        reader = Reader(path)
        with foreign_topics_allowed():
            reader.open()
    except FileNotFoundError as error:
        raise BagError(
            f"{path} is not a rosbag2 bag: it has no metadata.yaml; give the bag's directory or its mcap file, "
            "or write the metadata anew with `ros2 bag reindex`"
        ) from error
    except Exception as error:  # whatever the storage's parser meets in a file that is no bag
        raise BagError(_damaged(path, error)) from error
    return reader


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnpackError):
        return f"{path} is not read: {reason}"
    if "Serialization format" in reason:
        return (
            f"{path} has topics that are not of ROS 2 ({reason}); give the mcap file in it instead of the directory, "
            "or leave these topics out with `ros2 bag convert`"
        )
    return f"{path} cannot be read as a bag ({reason}); {repair(path)}"
