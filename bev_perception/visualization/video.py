"""Videos: H.264, which browsers and office programs play, where PyAV is installed; else what OpenCV can write."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from bev_perception.extras import missing_extra
from bev_perception.strict import UserError

LOG = logging.getLogger(__name__)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write BGR pictures of one size as an mp4 video; return their number.

    The codec is H.264, or without PyAV (the extra `video`) MPEG-4 part 2, which every OpenCV can write, but browsers do
    not play; the log says so.

    fps: pictures per second

    Raises OSError when the file cannot be written, UserError for no pictures, ValueError for different sizes.
    """
    path = Path(path)
    writer: _Writer | None = None
    shape: tuple[int, ...] = ()
    count = 0
    try:
        for picture in frames:
            if writer is None:
                shape = picture.shape
                writer = _open(path, fps, (shape[1], shape[0]))
            if picture.shape != shape:
                raise ValueError(f"picture {count} of {path} is {picture.shape[1::-1]}, the first was {shape[1::-1]}")
            writer.write(picture)
            count += 1
    except BaseException:
        if writer is not None:
            writer.release()
            path.unlink(missing_ok=True)
        raise
    if writer is None:
        raise UserError(f"there are no pictures for {path}")
    writer.release()
    return count


class _Writer(Protocol):
    def write(self, picture: np.ndarray) -> Any:
        """Add a picture [H, W, 3] BGR."""

    def release(self) -> None:
        """Finish the file."""


def _open(path: Path, fps: float, size: tuple[int, int]) -> _Writer:
    if not path.parent.is_dir():
        raise OSError(f"{path} cannot be written; name an .mp4 file in a directory that exists")
    try:
        return _H264(path, fps, size)
    except ImportError as error:
        LOG.warning("%s for H.264; %s is MPEG-4 part 2, which browsers do not play", missing_extra(error), path)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {path}; name an .mp4 file in a directory that can be written")
    return writer


class _H264:
    """A file that PyAV writes."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        import av

        self._frame_of = av.VideoFrame.from_ndarray
        self._container = av.open(str(path), "w")
        self._stream: Any = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        # players expect colours at half the resolution, which needs even sizes
        self._stream.width, self._stream.height = (length - length % 2 for length in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    def write(self, picture: np.ndarray) -> None:
        even = np.ascontiguousarray(picture[: self._stream.height, : self._stream.width])
        self._container.mux(self._stream.encode(self._frame_of(even, format="bgr24")))

    def release(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
