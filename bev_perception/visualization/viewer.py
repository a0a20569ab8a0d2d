"""The live viewer: rerun in a window of its own, or a file for it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Protocol

from bev_perception.extras import missing_extra
from bev_perception.strict import ConfigError, UserError
from bev_perception.types import Boxes3D, Frame, Result

LOG = logging.getLogger(__name__)
APPLICATION = "bev_perception"
#: what the node's parameter `viewer` says for a window; anything else is a file
WINDOW = "window"
#: s to write the last frame when the viewer is closed
PATIENCE = 10.0


class Viewer(Protocol):
    """Shows frames until it is closed."""

    def show(self, frame: Frame, result: Result | None = None, truth: Boxes3D | None = None) -> None:
        """Show one frame, its result and its true boxes in base_link, as far as they are known."""

    def close(self) -> None:
        """Show what is waiting; call nothing else afterwards."""


class LatestWins:
    """A viewer in a thread of its own, which takes the newest frame; who calls it never waits.

    An error ends the showing and is logged; it reaches nobody else.
    """

    def __init__(self, viewer: Viewer) -> None:
        """Start the thread; the viewer is used in it alone."""
        self._viewer = viewer
        self._slot: tuple[Any, ...] | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="viewer", daemon=True)
        self._thread.start()

    def show(self, frame: Frame, result: Result | None = None, truth: Boxes3D | None = None) -> None:
        """Hand over a frame; it replaces one that is still waiting."""
        with self._changed:
            self._slot = (frame, result, truth)
            self._changed.notify()

    def close(self) -> None:
        """Show the waiting frame and end the thread, unless that takes longer than PATIENCE."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._slot is not None or self._closing)
                    waiting, self._slot = self._slot, None
                if waiting is None:
                    break
                self._viewer.show(*waiting)
            self._viewer.close()
        except Exception:
            LOG.exception("the viewer shows nothing more")


def viewer_of(parameter: str) -> Viewer | None:
    """Return the viewer that the node's parameter `viewer` asks for: "window", a file (.rrd), or "" for none."""
    if not parameter:
        return None
    if parameter == WINDOW:
        return open_viewer()
    if not parameter.endswith(".rrd"):
        raise ConfigError(f"viewer is {parameter!r}; it must be {WINDOW}, a path that ends in .rrd, or empty")
    return open_viewer(Path(parameter))


def open_viewer(save: Path | None = None, every_frame: bool = False) -> Viewer:
    """Return a viewer that is a window, or a file.

    save: file to write (.rrd) instead of opening a window; a file that exists is replaced
    every_frame: whether `show` waits until the frame is written; otherwise the newest one wins

    Raises UserError if rerun is not installed, or if its window cannot be opened.
    """
    try:
        import rerun as rr

        from bev_perception.visualization.recorder import SceneRecorder
    except ImportError as error:
        if (remedy := missing_extra(error)) is None:
            raise
        raise UserError(remedy) from error
    stream = rr.RecordingStream(APPLICATION)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        stream.save(save)
    else:
        try:
            stream.spawn()
        except RuntimeError as error:
            raise UserError(f"the viewer's window cannot be opened ({error}); write a file with --save") from error
    recorder = SceneRecorder(stream)
    return recorder if every_frame else LatestWins(recorder)
