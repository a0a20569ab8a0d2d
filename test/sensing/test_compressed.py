"""What reaches a decoder: one still picture and nothing beside it; what does not is refused in a sentence."""

import io
import itertools
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from bev_perception.sensing.compressed import MAX_SCANS, CompressedError, still_picture

PICTURE = np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3)


def chunk(name, content=b""):
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def png_chunks(picture=PICTURE):
    """Return the chunks of a PNG as (name, content)."""
    data = cv2.imencode(".png", picture)[1].tobytes()
    at, found = 8, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def png(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def with_chunk(name, content):
    header, *others = png_chunks()
    return png([header, (name, content), *others])


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def jpeg(*options, picture=PICTURE):
    return cv2.imencode(".jpg", picture, list(options))[1].tobytes()


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


ANCILLARY = {
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"iCCP": b"p\0\0" + zlib.compress(b"profile"),
    b"sBIT": b"\x08\x08\x08",
    b"bKGD": bytes(6),
    b"hIST": bytes(2),
    b"tRNS": bytes(6),
    b"pHYs": bytes(9),
    b"sPLT": b"p\0\x08",
    b"tIME": bytes(7),
    b"tEXt": b"k\0v",
    b"zTXt": b"k\0\0" + zlib.compress(b"v" * 100000),
    b"iTXt": b"k\0\0\0\0\0v",
    b"eXIf": b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    b"cICP": bytes(4),
    b"vpAg": b"nonsense",
}


@pytest.mark.parametrize("name", ANCILLARY)
def test_no_decoder_sees_what_a_png_says_beside_its_pixels(name):
    plain = still_picture(png(png_chunks()))
    found = still_picture(with_chunk(name, ANCILLARY[name]))
    assert found == plain
    np.testing.assert_array_equal(decoded(found.content), PICTURE)
    assert (found.size, found.grey) == ((32, 24), False)


@pytest.mark.parametrize("name", [b"acTL", b"fcTL", b"fdAT"])
def test_animations_are_refused(name):
    with pytest.raises(CompressedError, match=f"animation .chunk {name.decode()}"):
        still_picture(with_chunk(name, bytes(26)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_chunk(b"JUNK", b""), "unknown chunk"),
        (with_chunk(b"\0\0\0\0", b""), "unknown chunk"),
        (with_chunk(b"IHDR", png_chunks()[0][1]), "header is damaged"),
        (png([(b"IHDR", b"short"), (b"IEND", b"")]), "header is damaged"),
        (png([png_chunks()[0], (b"IEND", b"")]), "no pixels"),
        (png([png_chunks()[0], (b"IDAT", b"")]), "truncated"),
        (png([(b"IHDR", bytes(8) + b"\x08\0\0\0\0"), (b"IDAT", b""), (b"IEND", b"")]), "0x0 pixels"),
        (png([png_chunks()[0], *[(b"IDAT", b"")] * 70000, (b"IEND", b"")]), "more than 65536 chunks"),
        (png(png_chunks()).replace(b"IDAT", b"IDAU"), "truncated|unknown|no pixels"),
        (bytes(png(png_chunks())[:30]) + b"\1" + png(png_chunks())[31:], "checksum of the PNG's chunk IHDR"),
        (b"GIF89a", "neither JPEG nor PNG"),
    ],
)
def test_png_that_is_refused(content, message):
    with pytest.raises(CompressedError, match=message):
        still_picture(content)


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_no_decoder_sees_what_a_jpeg_says_beside_its_pixels(marker):
    whole = jpeg()
    extra = whole[:2] + segment(marker, b"Exif\0\0MM\0\x2a" + bytes(50)) + whole[2:]
    assert still_picture(extra) == still_picture(whole)


@pytest.mark.parametrize("parts", [1, 50])
def test_pixels_that_unpack_to_far_more_than_the_size_takes_are_refused(parts):
    """OpenCV's decoder would unpack all of them before it gives the picture."""
    bomb = zlib.compress(bytes(1 << 24), 9)
    cuts = np.linspace(0, len(bomb), parts + 1).astype(int)
    pieces = [(b"IDAT", bomb[a:b]) for a, b in itertools.pairwise(cuts)]
    chunks = png_chunks()
    with pytest.raises(CompressedError, match="unpack to more than the 5680 bytes that 32x24 may take"):
        still_picture(png([chunks[0], *pieces, chunks[-1]]))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_unpacks_to_what_its_size_takes(mode):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE[..., 0].astype(np.uint16) if mode == "I;16" else PICTURE).convert(mode).save(buffer, "PNG")
    assert decoded(still_picture(buffer.getvalue()).content).shape == PICTURE.shape


def test_thumbnails_and_further_pictures_are_cut_off():
    whole = jpeg()
    found = still_picture(whole + whole + b"padding")
    assert found == still_picture(whole)
    np.testing.assert_array_equal(decoded(found.content), decoded(whole))


@pytest.mark.parametrize(
    "options",
    [
        (),
        (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        (cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        (cv2.IMWRITE_JPEG_OPTIMIZE, 1),
        (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
)
@pytest.mark.parametrize("picture", [PICTURE, PICTURE[..., 0]])
def test_the_pixels_of_a_jpeg_stay_as_they_are(options, picture):
    whole = jpeg(*options, picture=picture)
    found = still_picture(whole)
    np.testing.assert_array_equal(decoded(found.content), decoded(whole))
    assert (found.size, found.grey) == ((32, 24), picture.ndim == 2)


def test_colours_are_read_as_the_file_says():
    """An Adobe segment without YCbCr means that the channels are R, G and B."""
    whole = jpeg()
    at = whole.index(b"\xff\xdb")
    rgb = whole[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + whole[at:]
    assert not np.array_equal(decoded(rgb), decoded(whole))
    np.testing.assert_array_equal(decoded(still_picture(rgb).content), decoded(rgb))


def test_a_jpeg_without_huffman_tables_is_read_as_opencv_reads_it():
    whole = jpeg()
    stripped = whole
    while (at := stripped.find(b"\xff\xc4")) >= 0:
        stripped = stripped[:at] + stripped[at + 2 + int.from_bytes(stripped[at + 2 : at + 4], "big") :]
    np.testing.assert_array_equal(decoded(still_picture(stripped + bytes(200)).content), decoded(whole))


def scans(count):
    whole = jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    first = whole.index(b"\xff\xda")
    second = whole.index(b"\xff", first + 20)
    return whole[:first] + whole[first:second] * count + whole[first:]


def marker_of_frame(marker):
    return jpeg().replace(b"\xff\xc0", bytes([0xFF, marker]))


def change_frame(offset, value):
    whole = bytearray(jpeg())
    whole[whole.index(b"\xff\xc0") + offset] = value
    return bytes(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (scans(MAX_SCANS), f"more than {MAX_SCANS} scans"),
        (marker_of_frame(0xC3), "lossless"),
        (marker_of_frame(0xC5), "hierarchical"),
        (marker_of_frame(0xC9), "arithmetic-coded"),
        (change_frame(4, 12), "12 bits a channel"),
        (change_frame(9, 2), "frame header of the JPEG is damaged"),
        (jpeg().replace(b"\xff\xdb", b"\xff\xdc", 1), "marker ffdc"),
        (jpeg().replace(b"\xff\xc0", b"\xff\xe5"), "pixels before its size"),
        (jpeg()[:2] + b"\xff\xe1\0\1" + jpeg()[2:], "segment without length"),
        (jpeg()[:2] + b"\xff\xe1\xff\xff" + jpeg()[2:], "breaks off in its headers"),
        (jpeg()[:-2], "truncated"),
        (jpeg()[:200] + b"\xff\xd9\0\0\0\0", "breaks off|no pixels|truncated"),
        (b"\xff\xd8\xff\xd9" + bytes(8), "no pixels"),
        (jpeg().replace(b"\xff\xc0\0\x11\x08\0\x18", b"\xff\xc0\0\x11\x08\0\0"), "does not say its size"),
    ],
)
def test_jpeg_that_is_refused(content, message):
    with pytest.raises(CompressedError, match=message):
        still_picture(content)
