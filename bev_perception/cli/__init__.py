"""The command line: thin commands over the package's functions, with one module for each group of commands."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from bev_perception import __version__
from bev_perception.allocation import keep_memory_together
from bev_perception.cli import check, data, evaluation, models, ros, show
from bev_perception.cli.options import apply_changes, name_values
from bev_perception.extras import missing_extra
from bev_perception.strict import UserError

#: errors that the user can fix; printed as one sentence, without a traceback
_EXPECTED = (UserError, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 an error that the user can fix or SIGTERM, 130 SIGINT.

    Any other exception is a bug in this package; it is not caught, so that its traceback is shown.
    """
    keep_memory_together()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    args = make_parser().parse_args(argv)
    try:
        with _ended_by_sigterm():
            apply_changes(args)
            return args.command(args)
    except BrokenPipeError:  # whatever reads our output has closed it, e.g. `| head`; print nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        print(f"bev_perception: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if (remedy := missing_extra(error)) is None:
            raise
        print(f"bev_perception: {remedy}", file=sys.stderr)
        return 1
    except _TerminatedError:
        print("bev_perception: ended by SIGTERM", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bev_perception: interrupted", file=sys.stderr)
        return 130


class _TerminatedError(BaseException):
    """SIGTERM has come; as KeyboardInterrupt, it is nothing that a command catches by accident."""


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise _TerminatedError on SIGTERM, so that files are closed and temporary ones deleted.

    Training saves its state instead, see training.train.
    """
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker that inherited the handler ends as usual
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise _TerminatedError

    if threading.current_thread() is not threading.main_thread():  # others cannot receive signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; each stores the function to call as `command`."""
    parser = argparse.ArgumentParser(prog="bev_perception", description="3D boxes and occupancy from surround cameras.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}", help="print the version")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (models, check, data, evaluation, show, ros):
        module.add_commands(commands)
    name_values(parser)
    return parser
