"""The command line: thin commands over the package's functions, with one module for each group of commands."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from bev_perception.cli import data, evaluation, models, show
from bev_perception.cli.options import apply_changes
from bev_perception.strict import UserError

#: errors that the user can fix; printed as one sentence, without a traceback
_EXPECTED = (UserError, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 an error that the user can fix, 130 interrupted.

    Any other exception is a bug in this package; it is not caught, so that its traceback is shown.
    """
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    args = make_parser().parse_args(argv)
    try:
        apply_changes(args)
        return args.command(args)
    except BrokenPipeError:  # whatever reads our output has closed it, e.g. `| head`; print nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        print(f"bev_perception: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bev_perception: interrupted", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each stores the function to call as `command`."""
    parser = argparse.ArgumentParser(prog="bev_perception", description="3D boxes and occupancy from surround cameras.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (models, data, evaluation, show):
        module.add_commands(commands)
    return parser
