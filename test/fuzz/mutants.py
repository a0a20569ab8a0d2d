"""Damaged input of every kind, and what reads it, for a process of its own: mutants.py KIND FIRST COUNT.

Before each mutant its number is printed, so that the parent (fuzz.py) knows which one has ended the process.
"""

import io
import json
import random
import re
import sys
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from bev_perception.strict import UserError

PICTURE = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
PNG_START = b"\x89PNG\r\n\x1a\n"
ANCILLARY = {
    b"acTL": (2).to_bytes(4, "big") + bytes(4),
    b"fcTL": bytes(4) + (32).to_bytes(4, "big") + (24).to_bytes(4, "big") + bytes(14),
    b"fdAT": bytes(4) + zlib.compress(bytes(24 * 97)),
    b"gAMA": (45455).to_bytes(4, "big"),
    b"cHRM": bytes(32),
    b"sRGB": b"\0",
    b"iCCP": b"p\0\0" + zlib.compress(b"profile" * 30),
    b"sBIT": b"\x08\x08\x08",
    b"bKGD": bytes(6),
    b"hIST": bytes(2),
    b"tRNS": bytes(6),
    b"pHYs": bytes(9),
    b"oFFs": bytes(9),
    b"pCAL": b"p\0" + bytes(8) + b"\0\0u\0",
    b"sCAL": b"\x011\x001",
    b"sTER": b"\0",
    b"sPLT": b"p\0\x08",
    b"tIME": bytes(7),
    b"tEXt": b"key\0value",
    b"zTXt": b"key\0\0" + zlib.compress(b"value" * 30),
    b"iTXt": b"key\0\0\0\0\0value",
    b"eXIf": b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    b"cICP": bytes(4),
    b"mDCv": bytes(24),
    b"cLLi": bytes(8),
}


def chunk(name, content):
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def chunks(data):
    """Return the chunks of a PNG as [name, content]; of a damaged one those that can be told apart."""
    at, found = len(PNG_START), []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    return found


def png_seeds():
    pictures = [PICTURE, PICTURE[..., 0], np.dstack([PICTURE, PICTURE[..., :1]]), PICTURE.astype(np.uint16) * 257]
    seeds = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    for kind, depth, channels in (
        (0, 1, 1),
        (0, 2, 1),
        (0, 4, 1),
        (0, 16, 1),
        (3, 8, 1),
        (3, 2, 1),
        (4, 8, 2),
        (6, 16, 4),
    ):
        for interlaced in (0, 1):
            header = (8).to_bytes(4, "big") * 2 + bytes([depth, kind, 0, 0, interlaced])
            rows = zlib.compress(
                bytes(15 * (1 + 8 * channels * depth // 8)) if interlaced else bytes(8 * (1 + channels * depth))
            )
            parts = [(b"IHDR", header), (b"PLTE", bytes(12)), (b"IDAT", rows), (b"IEND", b"")]
            seeds.append(PNG_START + b"".join(chunk(*part) for part in parts if kind == 3 or part[0] != b"PLTE"))
    first, *others = chunks(seeds[0])
    for name, content in ANCILLARY.items():
        seeds.append(PNG_START + b"".join(chunk(*part) for part in (first, (name, content), *others)))
    return seeds


def jpeg_seeds():
    options = [
        [],
        [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        [cv2.IMWRITE_JPEG_RST_INTERVAL, 1],
        [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
        [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
        [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411],
    ]
    seeds = [cv2.imencode(".jpg", p, o)[1].tobytes() for p in (PICTURE, PICTURE[..., 0]) for o in options]
    for marker in (*range(0xE0, 0xF0), 0xFE, 0xDD, 0xDC, 0xCC, *range(0xC1, 0xC4)):
        content = b"Exif\0\0MM\0\x2a\0\0\0\x08" + bytes(20)
        segment = bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content
        seeds.append(seeds[0][:2] + segment + seeds[0][2:])
    return seeds


def torch_seeds():
    import torch

    weights = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3, dtype=torch.float16)}
    seeds = []
    for zipped in (True, False):
        file = io.BytesIO()
        content = {"state_dict": weights, "meta": {"x": [1, "y", None]}}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        seeds.append(file.getvalue())
    return seeds


def safetensors_seeds():
    import torch
    from safetensors.torch import save

    weights = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}
    return [save(weights), save({k: v.half() for k, v in weights.items()}, {"trained": "false"})]


def npz_seeds():
    seeds = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, semantics=np.zeros((20, 20, 4), np.uint8), mask=np.ones(7, bool))
        seeds.append(file.getvalue())
    return seeds


def yaml_seeds():
    from bev_perception.families.variants import variants_directory

    texts = [path.read_bytes() for path in sorted(variants_directory().glob("*.yaml"))]
    named = [re.sub(rb"(?m)^name: .*$", b"name: mutant", text) for text in texts]
    return [*named, b"a: &a [1, *a]\nb: {<<: *a}\n"]


def bag_seeds():
    from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    from bev_perception.data.drive import CameraRig, Drive, DriveImage, DrivePose
    from bev_perception.data.rosbag import BagReader, write_bag
    from bev_perception.types import Calibration

    rig = CameraRig("cam_front", Calibration(np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]), 32, 24), np.eye(4))
    jpeg = cv2.imencode(".jpg", PICTURE)[1].tobytes()
    events = [DrivePose(1, np.eye(4)), DriveImage("cam_front", 1, jpeg), DriveImage("cam_front", 9, jpeg)]
    store = get_typestore(Stores.ROS2_JAZZY)
    with tempfile.TemporaryDirectory() as directory:
        plain, packed = Path(directory) / "plain", Path(directory) / "packed"
        write_bag(Drive("fuzz", (rig,), len(events), lambda: iter(events)), plain, progress=False)
        writer = Writer(packed, version=9, storage_plugin=StoragePlugin.MCAP)
        writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        with writer:
            topics = {}
            for message in BagReader(plain).raw_messages():
                name, kind = message.topic.name, message.topic.type_name
                topics[name] = topics.get(name) or writer.add_connection(name, kind, typestore=store)
                writer.write(topics[name], message.stamp, message.data)
        return [(path / f"{path.name}.mcap").read_bytes() for path in (plain, packed)]


def read_image(data, path):
    from bev_perception.sensing.images import decode_image
    from bev_perception.types import CameraImage

    decode_image(CameraImage("fuzz", 0, "fuzz", "jpeg", data, mosaic="bayer_rggb8" if len(data) % 2 else ""))


def read_checkpoint(data, path):
    import torch

    from bev_perception.models.checkpoints import load_checkpoint

    path.write_bytes(data)
    load_checkpoint(torch.nn.Linear(4, 3), path)


def read_npz(data, path):
    from bev_perception.data.arrays import read_arrays

    path.write_bytes(data)
    read_arrays(path)


def read_variant(data, path):
    from bev_perception.families.variants import load_variant

    path.write_bytes(data)
    load_variant(path)


def read_json(data, path):
    from bev_perception.strict import parse_json

    parse_json(data)


def read_bag(data, path):
    from bev_perception.data.rosbag import BagReader

    path.write_bytes(data)
    bag = BagReader(path)
    list(bag.raw_messages())
    list(bag.events())


JSON_SEEDS = [json.dumps({"results": {"a": [{"b": -1.5e3, "c": [None, True, "é"]}]}, "meta": {}}).encode()]
#: kind -> seeds, reader, suffix of its files
KINDS = {
    "png": (png_seeds, read_image, ".png"),
    "jpeg": (jpeg_seeds, read_image, ".jpg"),
    "checkpoint": (torch_seeds, read_checkpoint, ".pth"),
    "safetensors": (safetensors_seeds, read_checkpoint, ".safetensors"),
    "npz": (npz_seeds, read_npz, ".npz"),
    "yaml": (yaml_seeds, read_variant, ".yaml"),
    "json": (lambda: JSON_SEEDS, read_json, ".json"),
    "bag": (bag_seeds, read_bag, ".mcap"),
}
EDGES = (b"\0", b"\xff", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1")


def change(data, random):
    """Return the bytes with a few changes, most often one."""
    data = bytearray(data)
    for _ in range(1 + int(random.expovariate(1.2))):
        at = random.randrange(len(data)) if data else 0
        kind = random.choices(range(6), weights=(6, 3, 2, 2, 2, 1))[0]
        if kind == 0:
            data[at : at + 1] = bytes([random.randrange(256)])
        elif kind == 1:
            edge = random.choice(EDGES)
            data[at : at + len(edge)] = edge
        elif kind == 2:
            data[at:at] = random.randbytes(random.randint(1, 8))
        elif kind == 3:
            del data[at : at + random.randint(1, 16)]
        elif kind == 4:
            other = random.randrange(len(data) + 1)
            data[at:at] = data[other : other + random.randint(1, 64)]
        else:
            del data[len(data) - random.randrange(len(data) // 4 + 1) :]
    return bytes(data)


def change_png(data, random):
    """Return the PNG with changed, added or moved chunks whose checksums are right, so that decoders look at them."""
    parts = chunks(data)
    for _ in range(random.randint(1, 2)):
        part = random.choice(parts)
        if random.random() < 0.3:
            parts.insert(random.randrange(len(parts) + 1), list(random.choice([*parts, *ANCILLARY.items()])))
        elif part[0] == b"IDAT" and random.random() < 0.8:
            try:
                part[1] = zlib.compress(change(zlib.decompress(part[1]), random))
            except zlib.error:  # one of several, or changed before
                part[1] = change(part[1], random)
        elif random.random() < 0.9:
            part[1] = change(part[1], random)
        else:
            part[0] = change(part[0], random)[:4].ljust(4, b"a")
    return PNG_START + b"".join(chunk(*part) for part in parts)


def change_safetensors(data, random):
    """Return the file with changed types, shapes and offsets in its header, whose length is right."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in range(random.randint(1, 3)):
        entry = header[random.choice(["weight", "bias"])]
        kind = random.randrange(4)
        if kind == 0:
            entry["dtype"] = random.choice(["F64", "F16", "BF16", "I8", "U64", "BOOL", "F8_E4M3", "F4", "C64", "x", 1])
        elif kind == 1:
            entry["shape"] = [
                random.choice([0, 1, 3, 4, 12, -1, 1 << 40, (1 << 64) - 1]) for _ in range(random.randrange(4))
            ]
        elif kind == 2:
            entry["data_offsets"] = [random.choice([0, 8, 12, 24, 48, 60, 61, 1 << 40, -1]) for _ in range(2)]
        else:
            header[random.choice(["weight", "other", "__metadata__"])] = random.choice([entry, {}, [], "x", None])
            header.setdefault("weight", entry), header.setdefault("bias", entry)
            header = {k: v if isinstance(v, dict) or k == "__metadata__" else dict(entry) for k, v in header.items()}
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + data[8 + size :]


#: kind -> changes of its own, which leave the rest of a file right, so that readers get to what was changed
CHANGES = {"png": change_png, "safetensors": change_safetensors}


def mutate(data, random, kind):
    """Return a damaged copy of a seed."""
    return CHANGES[kind](data, random) if kind in CHANGES and random.random() < 0.8 else change(data, random)


def peak_memory():
    """Return the largest memory that this process had, in MB.

    Not getrusage's: that begins with the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def main(kind, first, count):
    make_seeds, read, suffix = KINDS[kind]
    seeds = make_seeds()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(first, first + count):
            print("try", number, flush=True)
            mutant = mutate(seeds[number % len(seeds)], random.Random(number), kind)
            try:
                read(mutant, Path(directory) / f"mutant{suffix}")
                print("read", flush=True)
            except UserError:
                print("refused", flush=True)
            except Exception as error:
                print("error", f"{type(error).__name__}: {error}"[:200].replace("\n", " "), flush=True)
    print("memory", peak_memory(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
