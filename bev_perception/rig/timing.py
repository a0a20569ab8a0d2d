"""Rates, jitter, order and lateness of the topics, and the tf_timeout that the odometry needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.recording import Recording, Times
from bev_perception.sensing.poses import MAX_TF_TIMEOUT, timeout_remedy

#: share of the period by which the interval between two stamps may vary (95th percentile)
JITTER, BAD_JITTER = 0.5, 2.0
#: s; faster topics than this may vary as much as if this were their period
FAST_PERIOD = 0.08
#: s between stamp and arrival that a live system should not exceed
LATE, VERY_LATE = 0.3, 2.0
#: share by which the cameras' rates may differ
RATES = 0.15
#: s by which a message may come before its stamp
AHEAD = 0.02


def check_timing(recording: Recording, max_stamp_difference: float, tf_timeout: float) -> Iterator[Finding]:
    """Yield what is to be said about stamps and arrivals.

    recording: what came when
    max_stamp_difference: s, of the synchronizer
    tf_timeout: s, of the synchronizer
    """
    for camera in recording.rig.cameras:
        times = recording.images.get(camera.name)
        if times is None or len(times.stamps) == 0:
            remedy = "does the driver run, and is the topic's name right?"
            yield Finding("images", camera.name, FAIL, "none came", remedy)
            continue
        yield from check_times(camera.name, times)
    for link, times in recording.links.items():
        yield from check_times(f"tf {link}", times, doubles=True)
    yield from _rates(recording.images)
    yield from _together(recording.images, max_stamp_difference)
    yield from check_tf_timeout(recording, tf_timeout)


def check_times(about: str, times: Times, doubles: bool = False) -> Iterator[Finding]:
    """Yield findings about one topic's stamps: zero, order, doubles, jitter, gaps, lateness.

    about: a camera or a tf link
    times: of its messages
    doubles: whether a stamp may come twice, as tf may be sent again
    """
    if not times.stamps.all():
        yield Finding("stamps", about, FAIL, "stamps are zero", "let the driver stamp its messages when they are taken")
        return
    steps = np.diff(times.stamps)
    back, double = int((steps < 0).sum()), int((steps == 0).sum())
    figure = f"{back} of {len(times.stamps)} come out of order, {double} twice"
    level = OK if not back and (doubles or not double) else WARN
    remedy = "one publisher a topic, and stamps of the exposure, not of a queue that overtakes itself"
    yield judged("order", about, level, figure, remedy)
    if len(times.stamps) >= 5:
        yield _regularity(about, np.sort(times.stamps))
    yield _lateness(about, times)


def _regularity(about: str, stamps: np.ndarray) -> Finding:
    steps = np.diff(stamps)
    period = float(np.median(steps)) / 1e9
    if period <= 0:
        return Finding("rate", about, FAIL, "most stamps are equal", "let the driver stamp each message on its own")
    deviation = float(np.percentile(np.abs(steps / 1e9 - period), 95))
    gap = float(steps.max()) / 1e9
    figure = f"{1 / period:.1f} Hz, jitter {1e3 * deviation:.0f} ms (95 %), longest gap {gap:.2f} s"
    level = grade(deviation / max(period, FAST_PERIOD), JITTER, BAD_JITTER)
    if gap > max(1.0, 5 * period):
        level = max(level, WARN, key=(OK, WARN, FAIL).index)
    remedy = "messages are lost, or stamped when they are sent: check bandwidth, the driver's queue and its time source"
    return judged("rate", about, level, figure, remedy)


def _lateness(about: str, times: Times) -> Finding:
    late = (times.logged - times.stamps) / 1e9
    median, most = float(np.median(late)), float(np.percentile(late, 95))
    figure = f"{1e3 * median:.0f} ms from stamp to arrival (95 %: {1e3 * most:.0f} ms)"
    if median < -AHEAD:
        remedy = "messages come before they were taken: the clocks of two machines differ; synchronise them (PTP, NTP)"
        return Finding("lateness", about, WARN, figure, remedy)
    remedy = "what is late delays every result, or is left out of it: check transport, encoding and clocks"
    return judged("lateness", about, grade(most, LATE, VERY_LATE), figure, remedy)


def _rates(images: Mapping[str, Times]) -> Iterator[Finding]:
    rates = {c: _rate(times.stamps) for c, times in images.items() if len(times.stamps) >= 5}
    if len(rates) < 2 or not all(rates.values()):
        return
    slowest, fastest = min(rates, key=lambda c: rates[c]), max(rates, key=lambda c: rates[c])
    figure = f"{rates[slowest]:.1f} Hz ({slowest}) to {rates[fastest]:.1f} Hz ({fastest})"
    level = OK if rates[fastest] <= (1 + RATES) * rates[slowest] else WARN
    remedy = f"frames lack {slowest}, or come at its rate if it is the anchor; set one rate for all cameras"
    yield judged("cameras' rates", "rig", level, figure, remedy)


def _rate(stamps: np.ndarray) -> float:
    steps = np.diff(np.unique(stamps))
    return 1e9 / float(np.median(steps)) if len(steps) else 0.0


def _together(images: Mapping[str, Times], max_stamp_difference: float) -> Iterator[Finding]:
    """Compare every camera's stamps with those of the first camera, the usual anchor."""
    usable = {c: np.unique(t.stamps) for c, t in images.items() if len(t.stamps) and t.stamps.all()}
    if len(usable) < 2:
        return
    anchor, *others = usable
    for camera in others:
        distance = float(np.percentile(_nearest(usable[anchor], usable[camera]), 90)) / 1e9
        figure = f"{1e3 * distance:.0f} ms from {anchor} (90 %)"
        level = OK if distance <= max_stamp_difference else WARN if distance < 1 else FAIL
        remedy = (
            f"its images are left out of frames: trigger the cameras together, set another anchor, or set "
            f"max_stamp_difference to {_rounded_up(distance)}"
        )
        if distance >= 1:
            remedy = "the cameras' clocks differ: stamp all of them with one clock"
        yield judged("taken together", camera, level, figure, remedy)


def _nearest(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return the distance of each wanted stamp [n] from the nearest of the others (both ascending)."""
    after = np.clip(np.searchsorted(among, wanted), 1, len(among) - 1) if len(among) > 1 else np.zeros(1, int)
    before = np.maximum(after - 1, 0)
    return np.minimum(np.abs(wanted - among[after]), np.abs(wanted - among[before]))


def check_tf_timeout(recording: Recording, tf_timeout: float) -> Iterator[Finding]:
    """Yield whether a set of images waits long enough for its pose, in header time as the synchronizer counts it."""
    if not recording.links:
        if len(recording.poses.stamps) == 0:
            remedy = "publish the odometry on /tf, or name the world's frame with --fixed-frame"
            yield Finding("odometry", "rig", FAIL, "tf has no moving link between vehicle and world", remedy)
        return
    waits = pose_waits(recording)
    if len(waits) == 0:
        remedy = "the poses end before the images begin: were /tf and the images recorded with one clock?"
        yield Finding("tf_timeout", "rig", FAIL, "no image has a pose", remedy)
        return
    needed = float(np.percentile(waits, 99))
    late = float((waits > tf_timeout).mean())
    figure = f"poses come up to {needed:.2f} s of image time after their image; tf_timeout is {tf_timeout:g} s"
    level = OK if needed <= tf_timeout else FAIL if late > 0.5 else WARN
    remedy = f"{late:.0%} of the images would go without a pose: {timeout_remedy(needed, _rounded_up(needed))}" + (
        ", which delays results by as much, or publish the odometry sooner" if needed <= MAX_TF_TIMEOUT else ""
    )
    yield judged("tf_timeout", "rig", level, figure, remedy)


def pose_waits(recording: Recording) -> np.ndarray:
    """Return how long [n] (s) images waited for their pose, by the newest image stamp at the time when it came.

    Images that never got a pose, at the end of a recording, are left out.
    """
    if not recording.images:
        return np.zeros(0)
    logged = np.concatenate([t.logged for t in recording.images.values()])
    stamps = np.concatenate([t.stamps for t in recording.images.values()])
    order = np.argsort(logged, kind="stable")
    logged, stamps = logged[order], stamps[order]
    clock = np.maximum.accumulate(stamps)
    waits = np.zeros(len(stamps))
    told = np.ones(len(stamps), bool)
    for times in recording.links.values():
        arrival = np.sort(times.logged)
        reached = np.maximum.accumulate(times.stamps[np.argsort(times.logged, kind="stable")])
        first = np.searchsorted(reached, stamps)  # the first pose that is as new as the image
        told &= (first < len(reached)) & (stamps >= reached[0])
        came = arrival[np.minimum(first, len(arrival) - 1)]
        now = clock[np.clip(np.searchsorted(logged, came, "right") - 1, 0, None)]
        waits = np.maximum(waits, (now - stamps) / 1e9)
    return waits[told]


def _rounded_up(seconds: float) -> str:
    return f"{math.ceil(seconds * 20 + 0.5) / 20:.2f}"
