"""Options that several commands share, and functions that interpret them."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bev_perception.config import NMS
from bev_perception.sensing.image_fit import IMAGE_FIT, IMAGE_FITS
from bev_perception.types import BASE_FRAME, FIXED_FRAME

if TYPE_CHECKING:
    from bev_perception.data.rosbag import BagReader
    from bev_perception.health import Health
    from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
    from bev_perception.visualization.viewer import Viewer

T = TypeVar("T")
Commands = argparse._SubParsersAction
DEVICE_HELP = "auto, cpu, cuda or cuda:N; auto is a GPU if there is one, else the CPU (default: %(default)s)"
LABELS_HELP = "folder of occupancy labels, relative to ROOT or absolute (default: %(default)s)"
#: what stands for the value of an option in help texts, the same in every command
_METAVARS = {
    "--anchor": "CAMERA",
    "--bag": "BAG",
    "--base-frame": "FRAME",
    "--camera-rate": "HZ",
    "--cameras": "CAMERA",
    "--data": "ROOT",
    "--device": "DEVICE",
    "--fixed-frame": "FRAME",
    "--image-width": "PIXELS",
    "--labels": "DIR",
    "--max-distance": "METERS",
    "--max-range": "METERS",
    "--nuscenes": "ROOT",
    "--occupancy-results": "DIR",
    "--prefix": "TOPIC",
    "--sample": "TOKEN",
    "--save-occupancy": "DIR",
    "--seconds": "SECONDS",
    "--synthetic": "SECONDS",
    "--variant": "VARIANT",
}
#: the same for options that are not listed, by type
_METAVARS_OF_TYPES: dict[Any, str] = {Path: "FILE", int: "N", float: "NUMBER", None: "NAME"}


def add_command(commands: Commands, name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Add a command; its help begins with `summary`, which the list of commands shows, and goes on with `details`."""
    return commands.add_parser(name, help=summary, description=_description(summary, details))


def _description(summary: str, details: str) -> str:
    end = "" if summary.endswith("?") else "."
    return f"{summary[0].upper()}{summary[1:]}{end} {details}".strip()


def name_values(parser: argparse.ArgumentParser) -> None:
    """Name the values of all options of a parser and its commands alike, but those that have a metavar of their own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                name_values(command)
        elif action.nargs != 0 and action.metavar is None and action.choices is None and action.option_strings:
            of_type = _METAVARS_OF_TYPES.get(action.type, "N")  # types of our own are numbers
            action.metavar = _METAVARS.get(action.option_strings[0], of_type)


def whole_number(lowest: int) -> Callable[[str], int]:
    """Return an argparse type for integers from `lowest` up to 2**63 - 1."""

    def number(text: str) -> int:
        value = int(text)
        if not lowest <= value < 2**63:
            raise argparse.ArgumentTypeError(f"{value} is out of range; give a whole number from {lowest} on")
        return value

    number.__name__ = "whole number"  # appears in argparse's message about text that is not a number
    return number


def duration(text: str) -> float:
    """Parse an option as a duration in s, which must be positive and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no length of time; give seconds, such as 10")
    return value


def finite(text: str) -> float:
    """Parse an option as a number, which must be finite."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def print_notices(health: Health) -> None:
    """Print what has begun, or ended, to be odd in a bag without costing a frame, a line each."""
    from tqdm import tqdm

    news = health.drain_news()
    notices = tuple(health.snapshot().notices) if news else ()
    for line in news:
        if line.startswith(notices):
            tqdm.write(line)  # above its bar of progress


def with_notices(items: Iterable[T], health: Health) -> Iterator[T]:
    """Yield the items, and print what is odd as soon as it begins."""
    for item in items:
        yield item
        print_notices(health)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint."""
    parser.add_argument("--checkpoint", type=Path, help="weights (default: those shipped with the variant)")


def add_variant(parser: argparse.ArgumentParser, required: bool = True, default: str | None = None) -> None:
    """Add --variant and --set; see apply_changes."""
    shown = f" (default: {default})" if default else ""
    parser.add_argument(
        "--variant",
        required=required,
        default=default,
        help=f"name of a variant, or path of a YAML file of your own{shown}",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the variant, e.g. head.num_query=400; may be given several times (docs/variants.md)",
    )


def apply_changes(args: argparse.Namespace) -> None:
    """Replace args.variant by the loaded variant with the changes of --set and --alignment; without, leave it alone.

    Raises ConfigError if --set is given without --variant, and for keys or values that cannot be set.
    """
    changes = list(getattr(args, "changes", None) or ())
    if getattr(args, "alignment", None):
        changes.append(f"head.alignment={args.alignment}")
    if not changes:
        return
    from bev_perception.families.variants import load_variant
    from bev_perception.strict import ConfigError

    if args.variant is None:
        raise ConfigError("--set changes a variant; name one with --variant")
    args.variant = load_variant(args.variant, changes)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add --data and --version; see data_version."""
    parser.add_argument("--data", type=Path, required=True, help="a nuScenes dataroot")
    add_version(parser)


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version; see data_version."""
    parser.add_argument(
        "--version", help="of the nuScenes tables, e.g. v1.0-mini (default: that of the only tables in ROOT)"
    )


def data_version(args: argparse.Namespace, root: Path) -> str:
    """Return --version, or else the version of the only tables in the dataroot `root`."""
    from bev_perception.data.nuscenes import only_version

    return args.version or only_version(root)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "fp16"),
        default="fp32",
        help="of backbone and neck; the rest computes in fp32 (default: %(default)s)",
    )


def add_nms(parser: argparse.ArgumentParser) -> None:
    """Add --nms."""
    parser.add_argument(
        "--nms",
        choices=("auto", *NMS),
        default="auto",
        help="how further boxes of one object are dropped; auto: as the variant's file says (default: %(default)s)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --engine."""
    parser.add_argument(
        "--engine",
        choices=("eager", "compile", "onnxruntime", "openvino", "tensorrt"),
        default="eager",
        help="what computes backbone and neck; all but eager are built once and kept (default: %(default)s)",
    )


def add_image_fit(parser: argparse.ArgumentParser) -> None:
    """Add --image-fit."""
    parser.add_argument(
        "--image-fit",
        choices=IMAGE_FITS,
        default=IMAGE_FIT,
        help="how pictures unlike those of the training become inputs, docs/own-rig.md (default: %(default)s)",
    )


def add_viewer(parser: argparse.ArgumentParser, window: bool = True) -> None:
    """Add --save and, with `window`, --viewer; see opened_viewer."""
    if window:
        parser.add_argument("--viewer", action="store_true", help="show the frames live, in a window of rerun")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.rrd", help="write what the live viewer would show to a file of rerun"
    )


@contextlib.contextmanager
def opened_viewer(args: argparse.Namespace, always: bool = False) -> Iterator[Viewer | None]:
    """Open the viewer that the options of add_viewer ask for, and close it at the end; None if they ask for none.

    always: whether to open a window if no file is named
    """
    if not (always or args.viewer or args.save):
        yield None
        return
    from bev_perception.visualization.viewer import open_viewer

    viewer = open_viewer(args.save, every_frame=args.save is not None)
    try:
        yield viewer
    finally:
        viewer.close()
    if args.save is not None:
        print(f"wrote {args.save}; look at it with `rerun {args.save}`")


def add_bag_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that open_bag reads."""
    parser.add_argument("--cameras", nargs="+", help="cameras in the bag (default: the six of nuScenes)")
    parser.add_argument("--prefix", help="prefix of the cameras' topics (default: /bev_perception/input)")
    parser.add_argument(
        "--remap",
        nargs="+",
        default=[],
        metavar="BAG_TOPIC:=TOPIC",
        help="topics that have another name in the bag; a * stands for one part of a name, on both sides. Without it, "
        "topics are found by themselves where only one reading of the bag is possible",
    )
    parser.add_argument("--remap-file", type=Path, help="file with one BAG_TOPIC:=TOPIC in each line")
    parser.add_argument(
        "--anchor", default="", help="camera whose stamp becomes the stamp of the frame (default: the first)"
    )
    for name, text in (
        ("max_stamp_difference", "s; how far from the anchor's stamp an image of the same set may lie"),
        ("camera_timeout", "s of header time that a set waits for a missing camera"),
        ("tf_timeout", "s of header time that a set waits for its tf and camera_info"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, metavar="SECONDS", help=f"{text} (default: the node's)")
    parser.add_argument(
        "--camera-frames",
        nargs="+",
        default=[],
        metavar="CAMERA:=FRAME",
        help="tf frames that the cameras' images are of, where their headers name another one",
    )
    parser.add_argument(
        "--rectified",
        nargs="*",
        metavar="CAMERA",
        help="the images of these cameras (without names: of all) are rectified: R and P of camera_info count, not K "
        "and D",
    )
    parser.add_argument("--base-frame", default=BASE_FRAME, help="tf frame of the vehicle (default: %(default)s)")
    parser.add_argument(
        "--base-height",
        type=finite,
        default=0.0,
        metavar="METERS",
        help="m, of the vehicle's frame above the ground (default: %(default)s)",
    )
    parser.add_argument("--fixed-frame", default=FIXED_FRAME, help="tf frame of the world (default: %(default)s)")


def open_bag(args: argparse.Namespace, *paths: Path) -> tuple[BagReader, SynchronizerSettings]:
    """Open a bag, and return it with the settings for grouping its images, from the options of add_bag_options.

    paths: of the bag, or of several that are parts of one recording
    """
    from bev_perception.data.bag_topics import read_rules
    from bev_perception.data.drive import CAMERAS
    from bev_perception.data.rosbag import INPUT_PREFIX, BagReader
    from bev_perception.sensing.synchronizer_settings import SynchronizerSettings, camera_frames

    prefix = args.prefix or INPUT_PREFIX
    rules = [*args.remap, *([] if args.remap_file is None else _lines(args.remap_file))]
    bag = BagReader(paths[0], tuple(args.cameras or CAMERAS), prefix, others=paths[1:])
    bag = replace(bag, remap=read_rules(rules, bag.topics))
    if not rules and not bag.has_images():
        bag = _find_topics(bag, args.cameras)
    for hint in bag.hints():
        print(f"bev_perception: {bag.path}: {hint}", file=sys.stderr)
    given = {
        name: value
        for name in ("max_stamp_difference", "camera_timeout", "tf_timeout")
        if (value := getattr(args, name)) is not None
    }
    return bag, SynchronizerSettings(
        bag.cameras,
        args.anchor,
        base_frame=args.base_frame,
        fixed_frame=args.fixed_frame,
        base_height=args.base_height,
        camera_frames=camera_frames(args.camera_frames),
        rectified=() if args.rectified is None else tuple(args.rectified) or ("*",),
        **given,
    )


def _lines(path: Path) -> list[str]:
    """Return the rules in a file; empty lines and those that begin with # are left out."""
    from bev_perception.strict import read_regular

    lines = (line.strip() for line in read_regular(path).decode(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _find_topics(bag: BagReader, cameras: list[str] | None) -> BagReader:
    """Return the bag with the topics that are the only possible reading; print them.

    Raises BagError, with the options to choose from, where there is none or several.
    """
    from bev_perception.data.bag_opening import BagError
    from bev_perception.data.bag_topics import choose, find_cameras, ready_to_paste

    found = find_cameras(bag.topics)
    chosen = choose(found, cameras, bag.prefix)
    if chosen is None:
        try:
            bag.events()
        except BagError as error:
            raise BagError(f"{error}\n{ready_to_paste(found, bag.prefix)}") from error
    assert chosen is not None
    names, remap = chosen
    rules = " ".join(f"{topic}:={target}" for topic, target in remap.items())
    print(f"bev_perception: found the cameras: --cameras {' '.join(names)} --remap {rules}", file=sys.stderr)
    return replace(bag, cameras=names, remap=remap)
