"""All checks: those that a node can afford, and those of a whole recording."""

from __future__ import annotations

from collections.abc import Iterator

from bev_perception.config import VariantConfig
from bev_perception.rig.calibration import check_calibration
from bev_perception.rig.description import Rig
from bev_perception.rig.findings import Finding
from bev_perception.rig.matching import check_neighbours
from bev_perception.rig.motion import check_motion
from bev_perception.rig.mounting import check_mounting
from bev_perception.rig.recording import Recording
from bev_perception.rig.timing import check_timing
from bev_perception.rig.training import check_training
from bev_perception.sensing.image_fit import IMAGE_FIT


def check_rig(
    rig: Rig, trained: Rig | None = None, config: VariantConfig | None = None, image_fit: str = IMAGE_FIT
) -> Iterator[Finding]:
    """Yield what calibrations and poses alone tell, in milliseconds.

    rig: to be judged
    trained: the rig of the training; None leaves the comparison out
    config: the variant that is to run; None likewise
    image_fit: how pictures become its input
    """
    for camera in rig.cameras:
        yield from check_calibration(camera)
    yield from check_mounting(rig)
    if trained is not None and config is not None and rig.complete:
        yield from check_training(rig, trained, config, image_fit)


def check_recording(
    recording: Recording,
    trained: Rig | None = None,
    config: VariantConfig | None = None,
    *,
    max_stamp_difference: float,
    tf_timeout: float,
    image_fit: str = IMAGE_FIT,
) -> Iterator[Finding]:
    """Yield what a recording tells: the rig, its neighbours, its motion and its times.

    recording: of the rig that is to be judged
    trained: the rig of the training, as in check_rig
    config: the variant that is to run, as in check_rig
    max_stamp_difference: s, of the synchronizer
    tf_timeout: s, of the synchronizer
    image_fit: as in check_rig
    """
    yield from check_rig(recording.rig, trained, config, image_fit)
    yield from check_neighbours(recording)
    yield from check_motion(recording)
    yield from check_timing(recording, max_stamp_difference, tf_timeout)
