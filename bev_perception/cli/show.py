"""Commands that draw pictures and videos."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
    add_viewer,
    data_version,
    open_bag,
    opened_viewer,
)
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.visualization.show import ShowSettings, Source


def add_commands(commands: Commands) -> None:
    """Add `view`, `show boxes`, `show points`, `show occupancy`, `show truth` and `show curves`."""
    _add_view(commands)
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
        if parser is not points:
            add_viewer(parser)


def _add_view(commands: Commands) -> None:
    view = add_command(
        commands,
        "view",
        "show a bag, nuScenes, or a running node live in rerun",
        "Cameras, boxes with track ids, trails, voxels, the vehicle's path and timings, on the timeline of stamps.",
    )
    source = view.add_mutually_exclusive_group(required=True)
    source.add_argument("--bag", type=Path, help="directory of a rosbag2 bag")
    source.add_argument("--data", type=Path, help="a nuScenes dataroot; its true boxes are shown, too")
    source.add_argument(
        "--topics", action="store_true", help="the topics of a running node, until Ctrl-C; raw or compressed images"
    )
    which = view.add_mutually_exclusive_group()
    which.add_argument("--scene", help="name of a nuScenes scene, e.g. scene-0103")
    which.add_argument("--sample", help="token of a single key frame of nuScenes to show")
    add_version(view)
    add_variant(view, required=False)
    add_checkpoint(view)
    view.add_argument("--device", default="auto", help=DEVICE_HELP)
    view.add_argument("--score-threshold", type=float, default=0.3, help="lowest score of a box (default: %(default)s)")
    add_image_fit(view)
    add_bag_options(view)
    view.add_argument("--node", default="/bev_perception", help="name of the node of --topics (default: %(default)s)")
    add_viewer(view, window=False)
    view.set_defaults(command=_view)


def _view(args: argparse.Namespace) -> int:
    if args.topics:
        from bev_perception.ros.topic_viewer import view_topics

        return view_topics(args.node, args.cameras, args.prefix, args.base_frame, args.fixed_frame, args.save)
    from bev_perception.visualization.show import ShowSettings, show_live

    settings = None
    if args.variant is not None:
        settings = ShowSettings(args.variant, args.checkpoint, Path(), args.device, image_fit=args.image_fit)
    with opened_viewer(args, always=True) as viewer:
        assert viewer is not None
        count = show_live(_source(args), viewer, settings, args.score_threshold)
    print(f"showed {count} frames")
    return 0


def _show_truth(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import KeyFrames, show_truth

    source = KeyFrames(args.data, data_version(args, args.data), args.scene, args.sample)
    with opened_viewer(args) as viewer:
        return _say_where(args, show_truth(args.out, source, args.video, viewer))


def _show_curves(args: argparse.Namespace) -> int:
    from bev_perception.visualization.curves import draw_curves

    rows = draw_curves(args.log, args.out)
    print(f"wrote {args.out}.csv and .png: {rows} rows")
    return 0


def _show_boxes(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import show_boxes

    settings, source = _show_what(args)
    with opened_viewer(args) as viewer:
        settings = replace(settings, viewer=viewer)
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
    with opened_viewer(args) as viewer:
        return _say_where(args, show_occupancy(replace(settings, viewer=viewer), source, args.labels, objects))


def _show_what(args: argparse.Namespace) -> tuple[ShowSettings, Source]:
    from bev_perception.visualization.show import ShowSettings

    settings = ShowSettings(args.variant, args.checkpoint, args.out, args.device, args.video, args.image_fit)
    return settings, _source(args)


def _source(args: argparse.Namespace) -> Source:
    """Return the frames of --bag, or of --data with --scene or --sample."""
    from bev_perception.visualization.show import BagFrames, KeyFrames

    if args.bag is not None:
        if args.scene or args.sample:
            raise UserError("--scene and --sample choose among the key frames of --data; a bag is shown whole")
        return BagFrames(*open_bag(args, args.bag))
    return KeyFrames(args.data, data_version(args, args.data), args.scene, args.sample)


def _say_where(args: argparse.Namespace, count: int) -> int:
    print(f"wrote {args.out}: {count} pictures{' as a video' if args.video else ''}")
    return 0
