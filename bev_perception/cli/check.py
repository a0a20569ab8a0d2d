"""The command that checks a rig."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bev_perception.cli.options import Commands, add_bag_options, add_command, add_image_fit, add_variant, open_bag
from bev_perception.families.variants import TINY_DETECTOR


def add_commands(commands: Commands) -> None:
    """Add `check`."""
    check = add_command(
        commands,
        "check",
        "is the rig in a bag plausible, and how far is it from the training?",
        "Judges calibrations, mounting, neighbouring cameras, motion and times, and names remedies.",
    )
    check.add_argument(
        "--bag",
        type=Path,
        nargs="+",
        required=True,
        help="a rosbag2 bag, of which the first two minutes are read; several are the parts of one recording that was "
        "split",
    )
    add_variant(check, required=False, default=TINY_DETECTOR)
    add_bag_options(check)
    add_image_fit(check)
    check.add_argument(
        "--no-pictures", action="store_true", help="leave out what needs pictures; a few seconds at most"
    )
    check.add_argument(
        "--out",
        type=Path,
        default=Path("output/check"),
        metavar="DIR",
        help="writes check.json and a picture of each camera (default: %(default)s)",
    )
    check.set_defaults(command=_check)


def _check(args: argparse.Namespace) -> int:
    from bev_perception.data.rig_recording import read_recording, rig_of
    from bev_perception.data.synthetic import synthetic_rig
    from bev_perception.families.variants import load_variant
    from bev_perception.rig.check import check_recording
    from bev_perception.rig.findings import FAIL, table, to_json, worst
    from bev_perception.visualization.rig import draw_rig

    bag, settings = open_bag(args, *args.bag)
    config = load_variant(args.variant)
    recording = read_recording(bag, settings, settings.base_height, pictures=not args.no_pictures)
    findings = list(
        check_recording(
            recording,
            rig_of(synthetic_rig()),
            config,
            max_stamp_difference=settings.max_stamp_difference,
            tf_timeout=settings.tf_timeout,
            image_fit=args.image_fit,
        )
    )
    pictures = {p.camera: p.gray for moment in reversed(recording.moments) for p in moment.values()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "check.json").write_text(json.dumps(to_json(findings), indent=1) + "\n")
    draw_rig(recording.rig, pictures, findings, args.out)
    print(f"{table(findings)}\nwrote {args.out}: check.json and a picture of each camera")
    return 1 if worst(findings) == FAIL else 0
