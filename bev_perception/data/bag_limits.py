"""Bounds for what rosbags unpacks: by itself it believes every size in a bag, and 166 kB of zstd become 5 GB.

Importing this module replaces the unpackers of rosbags.rosbag2 by bounded ones. What a bag's metadata.yaml may hold is
checked before rosbags reads it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import yaml
from lz4.frame import LZ4FrameDecompressor
from rosbags.rosbag2 import reader, storage_mcap

from bev_perception.strict import UserError, check_regular

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: largest message or chunk after unpacking, bytes; an uncompressed image of 8K video has 0.1 GB
MAX_PIECE = 1 << 28
#: a compressed file of a bag may unpack to this many bytes, and as many times its own size
MAX_FILE, MAX_RATIO = 1 << 28, 100
#: largest metadata.yaml, bytes, and how deep its values are nested
MAX_METADATA, MAX_DEPTH = 1 << 22, 12


class UnpackError(UserError):
    """A bag that would unpack to more than it may."""


def check_files(path: Path) -> None:
    """Raise NotAFileError for a bag, or one with a file in its directory, that is a pipe or a device.

    path: of the bag, or of its mcap file. rosbags reads files of the directory alone, whatever metadata.yaml names.
    """
    for file in path.iterdir() if path.is_dir() else [path]:
        if not file.is_dir():
            check_regular(file)


def check_metadata(path: Path) -> None:
    """Raise UnpackError for a metadata.yaml that is too large, nested too deeply, or grows by aliases.

    path: directory of the bag
    """
    file = path / "metadata.yaml"
    if not file.is_file():
        return
    with file.open("rb") as stream:
        text = stream.read(MAX_METADATA + 1)
    if len(text) > MAX_METADATA:
        raise UnpackError(f"its metadata.yaml has more than {MAX_METADATA} bytes")
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.events.AliasEvent):
            raise UnpackError("its metadata.yaml repeats values by aliases (*name), as no recorder writes them")
        depth += isinstance(event, yaml.events.CollectionStartEvent)
        depth -= isinstance(event, yaml.events.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UnpackError(f"its metadata.yaml is nested more than {MAX_DEPTH} levels deep")


def _unpack(decompressor: Any, data: bytes, size: int) -> bytes:
    """Return what `data` unpacks to if that is at most `size` bytes."""
    if size > MAX_PIECE:
        raise UnpackError(f"a part of it claims {size} bytes, more than {MAX_PIECE}")
    unpacked: bytes = decompressor.decompress(data, max_length=size + 1)
    if len(unpacked) > size:
        raise UnpackError(f"a part of it unpacks to more than {size} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise EOFError("a part of it is cut off")
    return unpacked


def _message(data: bytes) -> bytes:
    return _unpack(zstd.ZstdDecompressor(), data, MAX_PIECE)


class _BoundedFile:
    """A compressed file that is read up to a number of bytes."""

    def __init__(self, packed: IO[bytes]) -> None:
        size = packed.seek(0, 2)
        packed.seek(0)
        self._left = MAX_FILE + MAX_RATIO * size
        self._free = shutil.disk_usage(tempfile.gettempdir()).free
        self._file = zstd.open(packed, "rb")

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(min(size if size >= 0 else MAX_PIECE, MAX_PIECE))
        self._left -= len(data)
        self._free -= len(data)
        if self._left < 0:
            raise UnpackError("a file of it unpacks to far more than files of bags do")
        if self._free < 0:
            raise UnpackError(
                f"there is no room to unpack it in {tempfile.gettempdir()}; make room, or set TMPDIR to another place"
            )
        return data

    def __enter__(self) -> _BoundedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


reader.zstd = SimpleNamespace(decompress=_message, open=lambda file, mode: _BoundedFile(file))  # type: ignore[assignment]
storage_mcap.DECOMPRESSORS.update(
    zstd=lambda data, size: _unpack(zstd.ZstdDecompressor(), data, size),
    lz4=lambda data, size: _unpack(LZ4FrameDecompressor(), data, size),
)
