"""Commands that start the ROS nodes, for machines without `ros2 run`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from bev_perception.cli.options import Commands
from bev_perception.strict import UserError
from bev_perception.visualization.viewer import WINDOW


def add_commands(commands: Commands) -> None:
    """Add `node` and `play`."""
    node = _add(
        commands,
        "node",
        "run the perception node until Ctrl-C",
        "as --ros-args -p device:=cpu; before them, --viewer shows the results live, and --save FILE.rrd writes them",
    )
    node.set_defaults(command=partial(_node, node))
    play = _add(commands, "play", "play a bag to the node", "a bag, then others as --ros-args -p rate:=0.5")
    play.set_defaults(command=partial(_play, play))


def _add(commands: Commands, name: str, does: str, example: str) -> argparse.ArgumentParser:
    # ROS arguments begin with "-", too, and are none of argparse's
    parser = commands.add_parser(name, help=does, description=does, prefix_chars="+", add_help=False)
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help=f"passed on to ROS, {example}")
    return parser


def _node(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from bev_perception.ros.perception_node import main

    _help(parser, args)
    return main(with_viewer(args.arguments))


def _play(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from bev_perception.ros.bag_player import main

    _help(parser, args)
    return main(with_bag(args.arguments))


def _help(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Print the help if it is asked for, and end."""
    if args.arguments[:1] in (["-h"], ["--help"]):
        parser.print_help()
        raise SystemExit(0)


def with_viewer(arguments: list[str]) -> list[str]:
    """Return ROS arguments with --viewer or --save FILE, which stand before them, as the node's parameter."""
    value, rest = None, arguments
    if arguments[:1] == ["--viewer"]:
        value, rest = WINDOW, arguments[1:]
    elif arguments[:1] == ["--save"]:
        if len(arguments) < 2:
            raise UserError("--save needs a file, as --save FILE.rrd")
        value, rest = str(Path(arguments[1]).absolute()), arguments[2:]
    return arguments if value is None else ["--ros-args", "-p", f"viewer:='{value}'", "--", *rest]


def with_bag(arguments: list[str]) -> list[str]:
    """Return ROS arguments with a bag that stands before them as the player's parameter."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    return ["--ros-args", "-p", f"bag:='{arguments[0]}'", "--", *arguments[1:]]
