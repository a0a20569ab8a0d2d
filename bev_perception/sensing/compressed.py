"""Check JPEG and PNG files before a decoder sees them, and hand it only the parts that pixels are made of.

Camera images come from networks and from other people's recordings, and decoders in C have faults: a damaged animation
chunk of 125 bytes ends a process that runs OpenCV 4.11. So the structure of a file is read here, in Python. What is
left for the decoder is one still picture of a known size, without metadata, thumbnails, colour profiles and animations.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from bev_perception.strict import UserError

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
#: the most scans of a JPEG: each costs one pass over the picture, and encoders write at most about 12
MAX_SCANS = 32
#: the most chunks of a PNG, where encoders write 8 kB and more into each
MAX_CHUNKS = 1 << 16

#: kinds of JPEG frames (ISO/IEC 10918-1, table B.1) that are decoded, and names of the others
_DECODED_FRAMES = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive"}
_OTHER_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "lossless"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic-coded"),
}
_HUFFMAN, _QUANTIZATION, _RESTART, _SCAN = 0xC4, 0xDB, 0xDD, 0xDA
_TABLES = (_HUFFMAN, _QUANTIZATION, _RESTART)
#: application segments that say how the pixels' colours are coded, and how they begin
_COLOUR_SEGMENTS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
#: a marker that ends the pixel data of a scan: no stuffed byte, no restart marker, no fill byte
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")
_PNG_GREY = (0, 4)
#: PNG colour type -> channels
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: the most pixels that a compressed image may claim (8K video has 33 million), so that a damaged header cannot cost
#: gigabytes of memory
MAX_PIXELS = 1 << 25
#: the most bytes that the pixels of a PNG unpack to, and how many of them at a time
MAX_UNPACKED, _PIECE = 1 << 28, 1 << 20


class CompressedError(UserError):
    """A file that is not handed to the decoder; cause and remedy for a message.

    cause: what is wrong with it
    remedy: what to do
    """

    def __init__(self, cause: str, remedy: str) -> None:
        """Keep both parts of the message."""
        super().__init__(f"{cause}; {remedy}")
        self.cause, self.remedy = cause, remedy


@dataclass(frozen=True)
class StillPicture:
    """A JPEG or PNG file of one picture without anything beside its pixels.

    size: width and height, pixels
    grey: whether it has one channel (beside transparency)
    content: the file
    """

    size: tuple[int, int]
    grey: bool
    content: bytes


def still_picture(content: bytes) -> StillPicture:
    """Return the picture in a JPEG or PNG file; raise CompressedError if that is not one complete still picture."""
    if content.startswith(JPEG_START):
        return _still_jpeg(content)
    if content.startswith(PNG_START):
        return _still_png(content)
    raise CompressedError(
        f"its {len(content)} bytes begin with {content[:8].hex(' ')} and are neither JPEG nor PNG",
        "publish sensor_msgs/CompressedImage with one of these",
    )


def _still_jpeg(content: bytes) -> StillPicture:
    """Keep tables, frame header and scans of a JPEG, and what says how colours are coded (ISO/IEC 10918-1, B).

    The end marker is required, as OpenCV pads what is missing with grey. What follows it is cut off.
    """
    kept = [JPEG_START]
    frame = b""
    scans = 0
    at = len(JPEG_START)
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 4 > len(content):
            if scans and content[at:].startswith(JPEG_END):
                break
            raise _broken_off(content, scans)
        marker = content[at + 1]
        if marker == 0xD9:
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes and markers without a length
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if end > len(content):
            raise _broken_off(content, scans)
        if end < at + 4:
            raise CompressedError("the JPEG has a segment without length", "check the camera's cable and the transport")
        if marker in _DECODED_FRAMES or marker in _OTHER_FRAMES:
            frame = _check_frame(marker, content[at + 4 : end], frame)
        elif marker == _SCAN:
            if not frame:
                raise CompressedError("the JPEG has pixels before its size", "check the transport")
            scans += 1
            if scans > MAX_SCANS:
                raise CompressedError(f"the JPEG has more than {MAX_SCANS} scans", "let the driver write baseline JPEG")
            after = _AFTER_SCAN.search(content, end)
            if after is None:
                raise _broken_off(content, scans)
            end = after.start()
        elif marker in _COLOUR_SEGMENTS:
            if not content.startswith(_COLOUR_SEGMENTS[marker], at + 4):
                at = end
                continue
        elif marker not in _TABLES:
            if not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # no application segment or comment
                raise CompressedError(
                    f"the JPEG holds the marker ff{marker:02x}, which is none of a camera's picture",
                    "check the camera's cable and the transport",
                )
            at = end
            continue
        kept.append(content[at:end])
        at = end
    if not scans:
        raise CompressedError("the JPEG holds no pixels", "check the camera's cable and the transport")
    kept.append(JPEG_END)
    return StillPicture(_jpeg_size(frame), frame[5] == 1, b"".join(kept))


def _broken_off(content: bytes, scans: int) -> CompressedError:
    if not scans:
        return CompressedError("the JPEG breaks off in its headers", "check the camera's cable and the transport")
    return CompressedError(
        f"the JPEG is truncated: its {len(content)} bytes hold no end marker",
        "raise the message size that the transport allows, or check the camera's cable",
    )


def _check_frame(marker: int, frame: bytes, earlier: bytes) -> bytes:
    """Return the content of a frame header if it can be decoded."""
    if marker in _OTHER_FRAMES:
        raise CompressedError(f"the JPEG is {_OTHER_FRAMES[marker]}", "let the driver write baseline JPEG")
    if earlier:
        raise CompressedError("the JPEG holds several frames", "let the driver write baseline JPEG")
    if len(frame) < 6 or frame[5] not in (1, 3, 4) or len(frame) < 6 + 3 * frame[5]:
        raise CompressedError("the frame header of the JPEG is damaged", "check the camera's cable and the transport")
    if frame[0] != 8:
        raise CompressedError(f"the JPEG has {frame[0]} bits a channel", "let the driver write 8 bits")
    if not all(_jpeg_size(frame)):
        raise CompressedError("the JPEG does not say its size", "let the driver write baseline JPEG")
    return frame


def _jpeg_size(frame: bytes) -> tuple[int, int]:
    return int.from_bytes(frame[3:5], "big"), int.from_bytes(frame[1:3], "big")


def _still_png(content: bytes) -> StillPicture:
    """Keep header, palette and pixels of a PNG, whose checksums must be right (ISO/IEC 15948)."""
    kept = [PNG_START]
    at, count, header, last = len(PNG_START), 0, b"", False
    packed: list[bytes] = []
    while not last:
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(content):
            raise CompressedError("the PNG is truncated: it has no whole IEND chunk", "check the transport")
        count += 1
        if count > MAX_CHUNKS:
            raise CompressedError(f"the PNG has more than {MAX_CHUNKS} chunks", "check the camera driver")
        if (name == b"IHDR") != (count == 1) or (name == b"IHDR" and length != 13):
            raise CompressedError("the PNG's header is damaged", "check the transport")
        if name in _PNG_ANIMATION:
            raise CompressedError(
                f"the PNG is an animation (chunk {name.decode()})", "let the driver write single pictures"
            )
        if name in _PNG_CHUNKS:
            if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
                raise CompressedError(
                    f"the checksum of the PNG's chunk {name.decode()} is wrong", "check the camera's transport"
                )
            kept.append(content[at:end])
        elif not name.isalpha() or name[:1].isupper():  # chunks whose name begins with a small letter may be left out
            raise CompressedError(f"the PNG holds the unknown chunk {name!r}", "check the camera driver")
        if name == b"IHDR":
            header = content[at + 8 : end - 4]
        if name == b"IDAT":
            packed.append(content[at + 8 : end - 4])
        last = name == b"IEND"
        at = end
    if not packed:
        raise CompressedError("the PNG holds no pixels", "check the camera driver")
    size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    if not all(size):
        raise CompressedError(f"the PNG says {size[0]}x{size[1]} pixels", "check the camera driver")
    if size[0] * size[1] <= MAX_PIXELS:  # others are refused for their size
        _check_unpacked(size, header[8] * _PNG_CHANNELS.get(header[9], 4), packed)
    return StillPicture(size, header[9] in _PNG_GREY, b"".join(kept))


def _check_unpacked(size: tuple[int, int], bits: int, packed: list[bytes]) -> None:
    """Raise CompressedError for pixels that unpack to far more than a PNG's size takes: the decoder unpacks them all.

    size: width and height, pixels
    bits: of a pixel
    packed: contents of the IDAT chunks
    """
    most = min(2 * size[1] * (1 + (size[0] * bits + 7) // 8) + 1024, MAX_UNPACKED)  # interlaced rows are more
    unpacker, unpacked, rest = zlib.decompressobj(), 0, b"".join(packed)
    try:
        while rest and not unpacker.eof:
            unpacked += len(unpacker.decompress(rest, _PIECE))
            rest = unpacker.unconsumed_tail
            if unpacked > most:
                raise CompressedError(
                    f"the pixels of the PNG unpack to more than the {most} bytes that {size[0]}x{size[1]} may take",
                    "the file is damaged or hostile",
                )
    except zlib.error as error:
        raise CompressedError(f"the pixels of the PNG cannot be unpacked ({error})", "check the transport") from error
