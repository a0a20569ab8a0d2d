"""Files that are complete when they appear."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write a new file to, which becomes `path` when the block ends without an error.

    It is `<stem>.<process>.part<suffix>` beside it, so that several processes may write the same file; the last one
    wins. Folders are made. What a process that is killed leaves behind matches `*.part.*`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
