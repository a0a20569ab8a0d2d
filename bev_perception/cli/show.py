"""Commands that draw pictures and videos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.cli.options import (
    DEVICE_HELP,
    Commands,
    add_bag_options,
    add_checkpoint,
    add_command,
    add_data,
    add_image_fit,
    add_variant,
    add_version,
    data_version,
    open_bag,
)
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.visualization.show import ShowSettings, Source


def add_commands(commands: Commands) -> None:
    """Add `show boxes`, `show points`, `show occupancy`, `show truth` and `show curves`."""
    show = add_command(commands, "show", "draw pictures or a video").add_subparsers(required=True, metavar="COMMAND")
    boxes = add_command(
        show, "boxes", "draw a variant's boxes in the images and from above, next to the ground truth of nuScenes"
    )
    boxes.add_argument(
        "--score-threshold", type=float, default=0.3, help="lowest score of a box (default: %(default)s)"
    )
    boxes.add_argument("--max-boxes", type=int, help="draw only the best ones (default: the variant's limit)")
    boxes.set_defaults(command=_show_boxes)

    points = add_command(show, "points", "draw where the queries of a detector sample the images, stage by stage")
    points.add_argument("--query", type=int, nargs="+", help="indices of the queries (default: the --top best)")
    points.add_argument(
        "--top", type=int, default=3, help="number of queries with the best scores (default: %(default)s)"
    )
    points.add_argument(
        "--frame",
        type=int,
        default=0,
        help="frame to draw in; 0: the current one, 1: the newest past one, ... (default: %(default)s)",
    )
    points.set_defaults(command=_show_points)

    occupancy = add_command(show, "occupancy", "draw a variant's occupancy, or a file of labels, in 3D and from above")
    occupancy.add_argument("--file", type=Path, help="draw this labels.npz to --out instead of running a variant")
    occupancy.add_argument(
        "--labels", type=Path, help="folder of labels to draw next to it, relative to ROOT or absolute"
    )
    occupancy.add_argument(
        "--semantic", action="store_true", help="colour objects by class instead of one colour per object"
    )
    occupancy.set_defaults(command=_show_occupancy)

    curves = add_command(show, "curves", "draw the losses of a training run, as a table and a picture")
    curves.add_argument(
        "--log",
        type=Path,
        nargs="+",
        required=True,
        help="log.jsonl of a training; several files are joined into one run",
    )
    curves.add_argument("--out", type=Path, required=True, help="writes FILE.csv and FILE.png")
    curves.set_defaults(command=_show_curves)

    for parser in (boxes, points, occupancy):
        needed = parser is not occupancy  # `show occupancy` can also draw a labels file on its own
        add_variant(parser, required=needed)
        add_checkpoint(parser)
        source = parser.add_mutually_exclusive_group(required=needed)
        source.add_argument("--data", type=Path, help="a nuScenes dataroot")
        source.add_argument("--bag", type=Path, help="directory of a rosbag2 bag")
        add_version(parser)
        add_bag_options(parser)
        add_image_fit(parser)
        parser.add_argument("--device", default="auto", help=DEVICE_HELP)

    truth = add_command(show, "truth", "draw the boxes of nuScenes in the images and from above, without a variant")
    add_data(truth)
    truth.set_defaults(command=_show_truth)

    for parser in (boxes, points, occupancy, truth):
        which = parser.add_mutually_exclusive_group(required=parser is truth)
        which.add_argument("--scene", help="name of a nuScenes scene, e.g. scene-0103")
        which.add_argument("--sample", help="token of a single key frame of nuScenes to show")
        with_file = "; with --file, the picture" if parser is occupancy else ""
        parser.add_argument(
            "--out", type=Path, required=True, metavar="DIR", help=f"directory for the pictures{with_file}"
        )
        parser.add_argument("--video", action="store_true", help="write one mp4 instead of a picture per frame")


def _show_truth(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import KeyFrames, show_truth

    source = KeyFrames(args.data, data_version(args, args.data), args.scene, args.sample)
    return _say_where(args, show_truth(args.out, source, args.video))


def _show_curves(args: argparse.Namespace) -> int:
    from bev_perception.visualization.curves import draw_curves

    rows = draw_curves(args.log, args.out)
    print(f"wrote {args.out}.csv and .png: {rows} rows")
    return 0


def _show_boxes(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import show_boxes

    settings, source = _show_what(args)
    return _say_where(args, show_boxes(settings, source, args.score_threshold, args.max_boxes))


def _show_points(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import show_points

    settings, source = _show_what(args)
    return _say_where(args, show_points(settings, source, args.query, args.top, args.frame))


def _show_occupancy(args: argparse.Namespace) -> int:
    from bev_perception.classes import OCC3D_CLASSES
    from bev_perception.families.variants import load_variant
    from bev_perception.visualization.show import show_labels, show_occupancy

    objects = not args.semantic
    if args.file is not None:
        names = load_variant(args.variant).class_names if args.variant else OCC3D_CLASSES
        show_labels(args.file, args.out, names, objects)
        print(f"wrote {args.out}")
        return 0
    if not (args.variant and (args.data or args.bag)):
        raise UserError("name --variant and --data or --bag to run, or --file to draw a file alone")
    settings, source = _show_what(args)
    return _say_where(args, show_occupancy(settings, source, args.labels, objects))


def _show_what(args: argparse.Namespace) -> tuple[ShowSettings, Source]:
    from bev_perception.visualization.show import BagFrames, KeyFrames, ShowSettings

    settings = ShowSettings(args.variant, args.checkpoint, args.out, args.device, args.video, args.image_fit)
    if args.bag is not None:
        if args.scene or args.sample:
            raise UserError("--scene and --sample choose among the key frames of --data; a bag is shown whole")
        return settings, BagFrames(*open_bag(args, args.bag))
    return settings, KeyFrames(args.data, data_version(args, args.data), args.scene, args.sample)


def _say_where(args: argparse.Namespace, count: int) -> int:
    print(f"wrote {args.out}: {count} pictures{' as a video' if args.video else ''}")
    return 0
