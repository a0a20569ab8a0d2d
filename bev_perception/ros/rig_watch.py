"""Judges the rig that the frames show, once, for the log and for diagnostics."""

from __future__ import annotations

from bev_perception.health import Health
from bev_perception.rig.check import check_rig
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import OK, Finding
from bev_perception.types import Frame

#: what a node does not say: a vehicle may have blind sides, and how high base_link lies is not known here
_UNSAID = ("coverage", "height")


class RigWatch:
    """What `bev_perception check` would say about calibrations and mounting, in milliseconds and in the same words.

    findings: those that are not OK.
    """

    def __init__(self, health: Health, base_frame: str) -> None:
        """Start without findings.

        health: takes each finding as a notice.
        base_frame: tf frame of the vehicle.
        """
        self._health, self._base_frame = health, base_frame
        self._judged: set[str] = set()
        self.findings: tuple[Finding, ...] = ()

    def look(self, frame: Frame) -> None:
        """Judge the rig anew if the frame shows a camera that none before has shown."""
        rig = rig_of_frame(frame, self._base_frame)
        shown = {camera.name for camera in rig.cameras}
        if shown <= self._judged:
            return
        self._judged |= shown
        found = tuple(f for f in check_rig(rig) if f.level != OK and f.check not in _UNSAID)
        # those of cameras that this frame does not show stay
        kept = tuple(f for f in self.findings if not set(f.about.split(" + ")) <= shown)
        self.findings = kept + found
        for finding in found:
            self._health.notice("implausible rig", finding.sentence, f"{finding.about}: {finding.check}")

    @property
    def warning(self) -> str:
        """The findings in one sentence for diagnostics, or ""."""
        findings = self.findings  # another thread may replace them
        if not findings:
            return ""
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        return f"implausible rig: {findings[0].sentence}{more}"

    def figures(self) -> dict[str, str]:
        """Return the findings as key-value pairs of diagnostics."""
        return {f"rig: {f.about}: {f.check}": f"{f.level}: {f.figure}; {f.remedy}" for f in self.findings}


def rig_of_frame(frame: Frame, base_frame: str) -> Rig:
    """Return the rig of the cameras that a frame shows."""
    cameras = [
        RigCamera(view.image.camera, view.image.frame_id, calibration=view.calibration, sensor2ego=view.sensor2ego)
        for view in frame.views
        if view is not None
    ]
    return Rig(tuple(cameras), frame.base_height, base_frame)
