"""What the node tells in /diagnostics: a status for the whole and one for each camera.

Import only after bev_perception.ros.interfaces.ensure_interfaces().
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus

from bev_perception.health import OK, SILENT, Health
from bev_perception.pipeline.pipeline import Pipeline
from bev_perception.ros.messages import diagnostic_status
from bev_perception.sensing.synchronizer import Synchronizer


def camera_statuses(
    node: str, cameras: Sequence[str], health: Health, advice: Mapping[str, str], active: str
) -> list[DiagnosticStatus]:
    """Return a status for each camera, named "<node>: camera <name>", with the keys "state" and "reason".

    node: full name.
    cameras: names.
    health: knows how they do.
    advice: camera -> what to do about its silence.
    active: "", or the state of a node that receives no images.
    """
    statuses = []
    for camera in cameras:
        state, reason = health.camera_state(camera)
        if state == SILENT and camera in advice:
            reason = f"{reason}: {advice[camera]}"
        level = DiagnosticStatus.OK if active or state == OK else DiagnosticStatus.WARN
        state, reason = (active, "the node receives no images in this state") if active else (state, reason)
        message = f"{state}: {reason}" if reason else state
        values = {"state": state, "reason": reason}
        statuses.append(diagnostic_status(level, f"{node}: camera {camera}", message, values))
    return statuses


def figures(
    state: str,
    variant: str,
    health: Health,
    pipeline: Pipeline | None,
    synchronizer: Synchronizer | None,
    missing: Mapping[str, str],
) -> dict[str, str]:
    """Return the key-value pairs of the status for the whole.

    state: of the lifecycle.
    variant: as it is set, while no model is loaded.
    health: counts and timings.
    pipeline: None while no model is loaded.
    synchronizer: likewise.
    missing: cameras without which the last result was made, and why.
    """
    snapshot = health.snapshot()
    found = {
        "state": state,
        "variant": variant if pipeline is None else pipeline.name,
        "frames": str(snapshot.frames),
        "rate [Hz]": f"{snapshot.rate:.2f}",
        "last drop": snapshot.last_drop,
        "last reset": snapshot.last_reset,
        "waiting for": synchronizer.waiting_for if synchronizer is not None else "",
        "process memory [MB]": f"{_resident_megabytes():.0f}",
    }
    if pipeline is not None:
        found["device"] = str(pipeline.device)
        found["weights"] = "trained" if pipeline.trained else "UNTRAINED"
        found["memory frames"] = str(pipeline.memory_frames)
        found["memory [MB]"] = f"{pipeline.memory_bytes / 1e6:.1f}"
    for stage, (p50, p95) in snapshot.timings.items():
        found[f"{stage} p50 [ms]"] = f"{p50 * 1e3:.1f}"
        found[f"{stage} p95 [ms]"] = f"{p95 * 1e3:.1f}"
    found |= {f"missing {camera}": reason for camera, reason in missing.items()}
    found |= {f"dropped: {cause}": str(count) for cause, count in snapshot.drops.items()}
    found |= {f"reset: {cause}": str(count) for cause, count in snapshot.resets.items()}
    found |= {f"noticed: {cause}": str(count) for cause, count in snapshot.notices.items()}
    return found


def _resident_megabytes() -> float:
    """Return the process' resident memory in MB, or NaN if the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.nan
    return pages * 4096 / 1e6
