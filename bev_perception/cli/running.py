"""`run`: a variant on one bag, or on many."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.cli.fleet import add_fleet_options, run_bags
from bev_perception.cli.options import (
    DEVICE_HELP,
    Commands,
    add_bag_options,
    add_checkpoint,
    add_command,
    add_engine,
    add_image_fit,
    add_nms,
    add_precision,
    add_variant,
    add_viewer,
    open_bag,
    opened_viewer,
    print_notices,
    with_notices,
)
from bev_perception.strict import UserError
from bev_perception.tracking.tracker import TRACKERS

if TYPE_CHECKING:
    from bev_perception.types import Frame, Result
    from bev_perception.visualization.viewer import Viewer


def add_run(commands: Commands) -> None:
    """Add `run`."""
    run = add_command(
        commands,
        "run",
        "run a variant on a bag, without ROS, and write the results",
        "They are JSON lines, one a frame between a header and an end; occupancy is written as npz files.",
    )
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--bag",
        type=Path,
        nargs="+",
        help="a rosbag2 bag: directory, or mcap file; several are the parts of one recording that was split",
    )
    source.add_argument(
        "--bags",
        type=Path,
        metavar="DIR|LIST",
        help="all bags in a directory, or those that a file lists, one a line; --out is then a directory, and what is "
        "done is kept (docs/fleet.md)",
    )
    add_fleet_options(run)
    add_variant(run)
    add_checkpoint(run)
    run.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines to write; with --bags, a directory",
    )
    run.add_argument("--resume", action="store_true", help="continue an interrupted run in --out")
    run.add_argument("--save-occupancy", type=Path, help="write the occupancy of each frame to DIR/<stamp>.npz")
    run.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_bag_options(run)
    run.add_argument(
        "--score-threshold", type=float, help="lowest score of a box (default: the variant's own; the node uses 0.3)"
    )
    run.add_argument(
        "--tracker",
        choices=TRACKERS,
        default="greedy",
        help="where track ids come from if the variant gives none (default: %(default)s)",
    )
    add_nms(run)
    add_image_fit(run)
    add_precision(run)
    add_engine(run)
    add_viewer(run)
    run.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bev_perception.families.family import OCCUPANCY
    from bev_perception.pipeline.loading import load_pipeline
    from bev_perception.pipeline.offline import results_header, run_frames, unfinished_results, write_results
    from bev_perception.pipeline.pipeline import PipelineSettings

    if args.bags is not None:
        return run_bags(args)
    if args.shard or args.on != "here" or args.workers:
        raise UserError("--shard, --on and --workers are for many bags; give --bags, or leave them out")
    bag, settings = open_bag(args, *args.bag)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    how = PipelineSettings(
        score_threshold=args.score_threshold,
        tracker=args.tracker,
        nms=args.nms,
        image_fit=args.image_fit,
        precision=args.precision,
        engine=args.engine,
    )
    pipeline = load_pipeline(args.variant, args.checkpoint, args.device, how)
    if OCCUPANCY in pipeline.gives and args.save_occupancy is None:
        raise UserError(f"{pipeline.name} predicts occupancy; name a directory for it with --save-occupancy")

    header = results_header(pipeline, bag, settings, args.save_occupancy)
    earlier = unfinished_results(args.out, header) if args.resume else None
    if earlier is not None and earlier.end is not None:
        pipeline.close()
        print(f"{args.out} is complete, with {earlier.end['frames']} frames; nothing is left to do")
        return 0 if earlier.end["frames"] else 1
    with opened_viewer(args) as viewer:
        found = run_frames(with_notices(bag.events(), pipeline.health), pipeline, settings)
        results = tqdm(_shown(found, viewer), unit="frame", desc=pipeline.name)
        count = write_results(args.out, header, results, pipeline.health, args.save_occupancy, earlier)
    pipeline.close()
    snapshot = pipeline.health.snapshot()
    untrained = "" if pipeline.trained else "; the weights are UNTRAINED"
    voxels = f" and {args.save_occupancy}" if args.save_occupancy else ""
    print(f"wrote {args.out}{voxels}: {count} frames{untrained}")
    if snapshot.drops:
        print("dropped: " + ", ".join(f"{cause} {n}" for cause, n in snapshot.drops.items()))
        print(f"the last: {snapshot.last_drop}")
    print_notices(pipeline.health)
    if not count and not snapshot.drops:
        print("no frame: the image topics of the bag gave no messages; is it damaged, or was it cut?")
    return 0 if count else 1


def _shown(found: Iterable[tuple[Frame, Result]], viewer: Viewer | None) -> Iterator[Result]:
    """Yield the results; a viewer shows each before."""
    for frame, result in found:
        if viewer is not None:
            viewer.show(frame, result)
        yield result
