"""`run --bags`: many bags, in one process, in shards, or on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from bev_perception.cli.options import open_bag, whole_number
from bev_perception.strict import UserError


def add_fleet_options(run: argparse.ArgumentParser) -> None:
    """Add --shard, --on and --workers to `run`."""
    run.add_argument("--shard", metavar="I/N", help="of --bags, run only the I-th of N parts, I from 0 on")
    run.add_argument(
        "--on",
        choices=("here", "ray"),
        default="here",
        help="where --bags run: here one after the other, or on the Ray cluster of RAY_ADDRESS, else on all of this "
        "machine (default: %(default)s)",
    )
    run.add_argument(
        "--workers", type=whole_number(1), help="on Ray, bags at a time (default: one per GPU, or per core)"
    )


def run_bags(args: argparse.Namespace) -> int:
    """Run the bags of `--bags`; return 1 if any has failed."""
    from tqdm import tqdm

    from bev_perception.pipeline.fleet import MANIFEST, FleetSettings, find_bags, run_fleet, shard_of
    from bev_perception.pipeline.pipeline import PipelineSettings
    from bev_perception.pipeline.ray_fleet import run_on_ray

    if args.save_occupancy or args.resume or args.viewer or args.save:
        raise UserError(
            "--bags resumes by itself, keeps occupancy in DIR/<bag>/occupancy, and shows nothing; leave --resume, "
            "--save-occupancy, --viewer and --save out"
        )
    bags = find_bags(args.bags)
    chosen = shard_of(bags, args.shard) if args.shard else bags
    how = PipelineSettings(
        score_threshold=args.score_threshold,
        tracker=args.tracker,
        nms=args.nms,
        precision=args.precision,
        engine=args.engine,
    )
    out = args.out.resolve()
    settings = FleetSettings(out, partial(open_bag, args), args.variant, args.checkpoint, args.device, how)
    entries = run_on_ray(settings, chosen, args.workers) if args.on == "ray" else run_fleet(settings, chosen)
    done, kept, failed = 0, 0, []
    for entry in tqdm(entries, total=len(chosen), desc="bags", unit="bag"):
        done += entry["status"] == "done"
        kept += entry.get("kept", False)
        if entry["status"] != "done":
            failed.append(entry)
    print(f"wrote {args.out}: {done} of {len(chosen)} bags, {kept} of them were there already; see {MANIFEST}")
    for entry in failed:
        print(f"bev_perception: failed: {entry['bag']}: {entry['error']}", file=sys.stderr)
    return 1 if failed else 0
