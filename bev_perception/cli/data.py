"""Commands that create data: bags, synthetic data sets, labels, initial anchors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.cli.options import (
    LABELS_HELP,
    Commands,
    add_bag_options,
    add_command,
    add_data,
    add_version,
    data_version,
    duration,
    open_bag,
    whole_number,
)
from bev_perception.data.drive import NUSCENES_IMAGE_SIZE
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.data.rosbag import BagReader
    from bev_perception.rig.description import Rig
    from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
    from bev_perception.types import Frame


def add_commands(commands: Commands) -> None:
    """Add `bag create`, `synth` and the commands of `prepare`."""
    _add_bag(commands)
    _add_synth(commands)
    _add_prepare(commands)


def _add_bag(commands: Commands) -> None:
    bag = add_command(commands, "bag", "make bags").add_subparsers(required=True, metavar="COMMAND")
    create = add_command(
        bag,
        "create",
        "write a drive as a rosbag2 (mcap) bag with the node's topics",
        "The drive is a scene of nuScenes, or a short made-up one for trials.",
    )
    source = create.add_mutually_exclusive_group(required=True)
    source.add_argument("--nuscenes", type=Path, help="a nuScenes dataroot")
    source.add_argument("--synthetic", type=duration, help="a synthetic drive of this length")
    add_version(create)
    create.add_argument("--scene", help="name of the nuScenes scene, e.g. scene-0103")
    create.add_argument("--seed", type=whole_number(0), default=0, help="of the synthetic drive (default: %(default)s)")
    create.add_argument("out", type=Path, metavar="BAG", help="directory to create")
    create.set_defaults(command=_bag_create)


def _bag_create(args: argparse.Namespace) -> int:
    from bev_perception.data.nuscenes import open_scene
    from bev_perception.data.rosbag import write_bag
    from bev_perception.data.synthetic import synthetic_drive

    if args.nuscenes is not None:
        if not args.scene:
            raise UserError("--nuscenes needs --scene NAME, e.g. --scene scene-0103")
        drive = open_scene(args.nuscenes, data_version(args, args.nuscenes), args.scene)
    else:
        drive = synthetic_drive(args.synthetic, args.seed)
    write_bag(drive, args.out)
    print(f"wrote {args.out}")
    return 0


def _add_synth(commands: Commands) -> None:
    synth = add_command(
        commands,
        "synth",
        "generate a synthetic data set (streets, traffic and labels) as a nuScenes dataroot",
        "train, eval and show take it as they take nuScenes. The first call compiles for a minute or more.",
    )
    synth.add_argument(
        "out", type=Path, metavar="ROOT", help="dataroot to create; complete scenes already in it are kept"
    )
    synth.add_argument("--scenes", type=int, default=10, help="number of scenes (default: %(default)s)")
    synth.add_argument("--seconds", type=float, default=20.0, help="s; length of a scene (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0, help="of the scenes (default: %(default)s)")
    synth.add_argument("--camera-rate", type=int, default=12, help="Hz; 2 gives key frames only (default: %(default)s)")
    synth.add_argument(
        "--image-width",
        type=int,
        help=f"width of the images; the height is 9/16 of it (default: {NUSCENES_IMAGE_SIZE[0]})",
    )
    synth.add_argument(
        "--weather",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAMES",
        help="of the scenes by turns, such as day,dusk,rain,night (default: any but night, by chance)",
    )
    rig = synth.add_mutually_exclusive_group()
    rig.add_argument("--rig", type=Path, help="YAML file of your cameras, docs/own-rig.md (default: nuScenes' rigs)")
    rig.add_argument(
        "--rig-from",
        type=Path,
        metavar="BAG",
        help="take the cameras of a bag: its camera_info and tf",
    )
    synth.add_argument("--no-lidar", action="store_true", help="leave the files of lidar points empty")
    add_bag_options(synth.add_argument_group("how --rig-from is read"))
    synth.add_argument("--workers", type=int, default=os.cpu_count(), help="number of processes (default: %(default)s)")
    synth.set_defaults(command=_synth)


def _synth(args: argparse.Namespace) -> int:
    from bev_perception.synth.generate import generate
    from bev_perception.synth.settings import SPLITS, VERSION, SynthSettings

    rig = _own_rig(args)
    if rig is not None and args.image_width is not None:
        raise UserError("--image-width is for the rigs of nuScenes; the size of your pictures is in the rig")
    width = args.image_width or NUSCENES_IMAGE_SIZE[0]
    settings = SynthSettings(
        seconds=args.seconds,
        seed=args.seed,
        camera_rate=args.camera_rate,
        image_size=(width, width * 9 // 16),
        weather=args.weather,
        rig=rig,
        lidar=not args.no_lidar,
    )
    made = generate(args.out, settings, args.scenes, args.workers)
    kept = f", {args.scenes - made} were there already" if made < args.scenes else ""
    print(f"wrote {args.out}: {made} scenes{kept}; version {VERSION}, splits {' and '.join(SPLITS)}")
    return 0


def _own_rig(args: argparse.Namespace) -> Rig | None:
    """Return the rig of --rig or --rig-from; write that of a bag to ROOT/rig.yaml, to be looked at and varied."""
    if args.rig is not None:
        from bev_perception.rig.rig_file import read_rig

        return read_rig(args.rig)
    if args.rig_from is None:
        return None
    import yaml

    from bev_perception.data.rig_recording import read_recording
    from bev_perception.rig.rig_file import rig_document

    bag, settings = open_bag(args, args.rig_from)
    rig = read_recording(bag, settings, settings.base_height, pictures=False).rig
    document = yaml.safe_dump(rig_document(rig), sort_keys=False, default_flow_style=None)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rig.yaml").write_text(document)
    return rig


def _add_prepare(commands: Commands) -> None:
    prepare = add_command(commands, "prepare", "prepare data sets, labels and anchors for training").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_dataset(prepare)
    _add_occupancy(prepare)
    panoptic = add_command(
        prepare,
        "panoptic-occ",
        "add object instances from the boxes of nuScenes to the labels of Occ3D",
        "Panoptic variants learn from them. A second call goes on where the first has stopped.",
    )
    add_data(panoptic)
    panoptic.add_argument("--split", help="split to prepare (default: all key frames of the version)")
    panoptic.add_argument("--labels", default=LABELS_FOLDER, help=LABELS_HELP)
    panoptic.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the new labels; labels already in it are kept",
    )
    panoptic.add_argument(
        "--threads",
        type=whole_number(1),
        default=os.cpu_count(),
        help="number of threads (default: one per core, %(default)s)",
    )
    panoptic.set_defaults(command=_prepare_panoptic)
    anchors = add_command(
        prepare,
        "anchors",
        "cluster where the boxes of nuScenes are, for instances of a detector to start from",
        "Train with --set training.family.anchors=FILE.",
    )
    add_data(anchors)
    anchors.add_argument("--split", default="train", help="split whose boxes are clustered (default: %(default)s)")
    anchors.add_argument("--count", type=whole_number(1), default=900, help="number of anchors (default: %(default)s)")
    anchors.add_argument(
        "--max-distance",
        type=float,
        default=55.0,
        help="boxes farther from the lidar are left out (default: %(default)s)",
    )
    anchors.add_argument("--seed", type=whole_number(0), default=0, help="of the clustering (default: %(default)s)")
    anchors.add_argument("--out", type=Path, required=True, help=".npy file to write")
    anchors.set_defaults(command=_prepare_anchors)


def _add_dataset(prepare: Commands) -> None:
    dataset = add_command(
        prepare,
        "dataset",
        "write bags and boxes of your own as a nuScenes dataroot",
        "nuscenes-devkit, train, eval and show take it. docs/own-data.md describes the file of boxes.",
    )
    dataset.add_argument("--bag", type=Path, nargs="+", required=True, help="rosbag2 bags, each a recording of its own")
    dataset.add_argument("--boxes", type=Path, required=True, help="JSON lines, a box on each")
    dataset.add_argument(
        "--classes", type=Path, required=True, help="YAML file, class of the boxes: class of the data set, or null"
    )
    dataset.add_argument("--lidar", default="", metavar="TOPIC", help="of PointCloud2 (default: no lidar)")
    dataset.add_argument(
        "--val-every",
        type=whole_number(1),
        default=5,
        help="every N-th scene, from the first one on, is for validation; a lone scene is for both "
        "(default: %(default)s)",
    )
    add_bag_options(dataset)
    dataset.add_argument("out", type=Path, metavar="ROOT", help="dataroot to create")
    dataset.set_defaults(command=_prepare_dataset)


def _add_occupancy(prepare: Commands) -> None:
    occupancy = add_command(
        prepare,
        "occupancy",
        "make occupancy labels of lidar scans and boxes, in the layout of Occ3D",
        "A second call goes on where the first has stopped. docs/own-data.md describes the method.",
    )
    add_data(occupancy)
    occupancy.add_argument(
        "--semantics",
        default="boxes",
        metavar="lidarseg|boxes|FILE",
        help="what tells the classes of points: nuScenes-lidarseg, the boxes alone, or a YAML file that says where "
        "labels of points are (default: %(default)s)",
    )
    occupancy.add_argument("--scene", nargs="+", default=[], help="the only scenes (default: all)")
    occupancy.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder for the labels (default: {LABELS_FOLDER} in ROOT)"
    )
    occupancy.add_argument(
        "--workers", type=whole_number(1), default=os.cpu_count(), help="number of processes (default: %(default)s)"
    )
    occupancy.set_defaults(command=_prepare_occupancy)


def _prepare_occupancy(args: argparse.Namespace) -> int:
    from bev_perception.data.occupancy_preparing import prepare_occupancy

    out = args.out or args.data / LABELS_FOLDER
    version = data_version(args, args.data)
    made = prepare_occupancy(args.data, version, out, args.semantics, args.scene, args.workers)
    if made.without_scan:
        print(f"bev_perception: the lidar scans of {made.without_scan} key frames are not here", file=sys.stderr)
    kept = f", {made.kept} were there already" if made.kept else ""
    print(f"wrote {out}: labels of {made.written} key frames from {made.sweeps} scans{kept}")
    return 0


def _prepare_dataset(args: argparse.Namespace) -> int:
    from bev_perception.data.own_boxes import check_mapped, read_classes, read_own_boxes
    from bev_perception.data.own_dataset import VERSION, write_own_dataset
    from bev_perception.data.own_recording import OwnRecording

    boxes, classes = read_own_boxes(args.boxes), read_classes(args.classes)
    check_mapped(boxes, classes, args.classes)
    recordings = []
    for path in args.bag:
        bag, settings = open_bag(args, path)
        frames = partial(_frames, bag, settings)
        recordings.append(OwnRecording(path.resolve().stem, bag, frames, settings, args.lidar))
    made = write_own_dataset(args.out, recordings, boxes, classes, args.base_height, args.val_every, print)
    for remark in made.remarks:
        print(f"bev_perception: {remark}", file=sys.stderr)
    counts = ", ".join(f"{name} {count}" for name, count in made.boxes.items())
    frames_made = sum(made.scenes.values())
    print(f"wrote {args.out}: {VERSION}, {len(made.scenes)} scenes, {frames_made} key frames; boxes: {counts}")
    return 0


def _frames(bag: BagReader, settings: SynchronizerSettings) -> Iterator[Frame]:
    from bev_perception.health import Health
    from bev_perception.pipeline.offline import collect_frames

    return collect_frames(bag.events(), settings, Health())


def _prepare_panoptic(args: argparse.Namespace) -> int:
    from bev_perception.data.panoptic import prepare_panoptic
    from bev_perception.data.records import open_records, open_split

    version = data_version(args, args.data)
    records = open_split(args.data, version, args.split) if args.split else open_records(args.data, version)
    written = prepare_panoptic(records, args.labels, args.out, args.threads)
    print(f"wrote {written} files of labels to {args.out}; pass this directory to `train` with --labels")
    return 0


def _prepare_anchors(args: argparse.Namespace) -> int:
    from bev_perception.data.anchors import annotated_boxes, cluster_anchors, write_anchors
    from bev_perception.data.records import open_split

    records = open_split(args.data, data_version(args, args.data), args.split)
    anchors = cluster_anchors(annotated_boxes(records), args.count, args.max_distance, args.seed)
    write_anchors(anchors, args.out)
    print(f"wrote {len(anchors)} anchors to {args.out}; train with --set training.family.anchors={args.out}")
    return 0
