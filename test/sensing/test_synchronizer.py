import random
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bev_perception.geometry import make_transform
from bev_perception.health import Health
from bev_perception.sensing.synchronizer import IMAGES_KEPT, SETS_KEPT, Synchronizer
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.types import Calibration, CameraImage

MS = 1_000_000
# ms after cam_front, as the cameras of nuScenes fire (Caesar et al., CVPR 2020), rounded
OFFSETS = {"front": 0, "front_right": 8, "front_left": -8, "back": 25, "back_left": 35, "back_right": 16}
CALIBRATION = Calibration(np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]]), 1600, 900)


class Rig:
    """A synchronizer with its inputs at hand; time starts at 1000 s."""

    def __init__(self, cameras=tuple(OFFSETS), **settings):
        self.health = Health()
        self.tree = TransformTree()
        self.sync = Synchronizer(SynchronizerSettings(cameras, **settings), self.tree, self.health)
        for i, camera in enumerate(cameras):
            self.sync.set_calibration(camera, CALIBRATION)
            self.tree.set_static("base_link", camera, make_transform(np.eye(3), [i, 0, 0]))

    def pose(self, ms):
        self.tree.add("odom", "base_link", (1_000_000 + ms) * MS, make_transform(np.eye(3), [ms / 100, 0, 0]))

    def image(self, camera, ms):
        self.sync.add(CameraImage(camera, (1_000_000 + ms) * MS, camera, "jpeg", b""))
        return self.sync.poll()

    def play(self, start_ms, sets, period=83, skip=lambda camera, k: False, pose=True):
        """Send `sets` sets in firing order; return the frames."""
        frames = []
        for k in range(sets):
            for camera in sorted(self.sync.settings.cameras, key=lambda c: OFFSETS.get(c, 0)):
                at = start_ms + k * period + OFFSETS.get(camera, 0)
                if pose:
                    self.pose(at)
                if not skip(camera, k):
                    frames += self.image(camera, at)
        return frames


def stamps_ms(frames):
    return [frame.stamp // MS - 1_000_000 for frame in frames]


@pytest.mark.parametrize("period", [83, 100, 500])
def test_whole_sets_come_at_once_with_poses_at_each_cameras_own_stamp(period):
    rig = Rig()
    frames = rig.play(0, 10, period)
    assert stamps_ms(frames) == [k * period for k in range(10)]
    frame = frames[3]
    assert not frame.missing and frame.cameras == tuple(OFFSETS)
    for i, (camera, view) in enumerate(zip(frame.cameras, frame.views, strict=True)):
        assert view.image.camera == camera
        assert view.image.stamp == frame.stamp + OFFSETS[camera] * MS
        assert view.ego2global[0, 3] == pytest.approx((3 * period + OFFSETS[camera]) / 100)
        assert view.sensor2ego[0, 3] == i
    assert frame.ego2global[0, 3] == pytest.approx(3 * period / 100)
    assert not rig.health.snapshot().drops


def test_one_camera_is_a_set():
    rig = Rig(cameras=("mono",))
    assert stamps_ms(rig.play(0, 5)) == [0, 83, 166, 249, 332]


def test_synchronous_cameras_faster_than_the_tolerance_are_not_mixed():
    rig = Rig(cameras=("a", "b"))
    frames = []
    for k in range(20):  # 60 Hz, b arrives after a: the b of the set before lies within 50 ms, but is not the nearest
        rig.pose(k * 16)
        frames += rig.image("a", k * 16)
        frames += rig.image("b", k * 16)
    assert all(f.views[0].image.stamp == f.views[1].image.stamp for f in frames[5:])
    assert len(frames) > 15


def test_a_silent_camera_makes_the_set_degraded_never_a_hang():
    rig = Rig()
    frames = rig.play(0, 20, skip=lambda camera, k: camera == "back_left" and 5 <= k < 12)
    assert stamps_ms(frames) == [k * 83 for k in range(20)]
    degraded = [k for k, frame in enumerate(frames) if frame.missing]
    assert degraded == [5, 6, 7, 8, 9, 10, 11, 12]  # 12 has left when the last camera of the set is heard again
    assert frames[6].missing == {"back_left": "no image arrived in time"}
    assert frames[6].views[4] is None


def test_a_camera_that_never_came_is_waited_for_only_once():
    rig = Rig()
    sent_at = []
    for k in range(10):
        for camera in sorted(OFFSETS, key=OFFSETS.get):
            rig.pose(k * 83 + OFFSETS[camera])
            if camera != "back":
                sent_at += [(k, f) for f in rig.image(camera, k * 83 + OFFSETS[camera])]
    lags = [k - round((f.stamp // MS - 1_000_000) / 83) for k, f in sent_at]
    assert lags[0] == 2 and set(lags[3:]) == {0}


def test_a_silent_anchor_is_replaced_and_comes_back():
    rig = Rig()
    frames = rig.play(0, 30, skip=lambda camera, k: camera == "front" and 10 <= k < 20)
    missing = [tuple(f.missing) for f in frames]
    assert missing.count(("front",)) >= 8
    assert missing[-5:] == [()] * 5
    assert stamps_ms(frames)[-1] == 29 * 83
    assert all(a < b for a, b in zip(stamps_ms(frames), stamps_ms(frames)[1:], strict=False))
    assert min(np.diff(stamps_ms(frames))) > 50  # no set twice


def test_images_wait_for_late_poses_and_camera_info():
    rig = Rig()
    rig.play(0, 1)
    assert rig.play(83, 1, pose=False) == []
    assert "no pose yet" in rig.sync.waiting_for
    for ms in (60, 140):
        rig.pose(ms)
    assert stamps_ms(rig.sync.poll()) == [83]
    rig.sync._calibrations.pop("back")
    assert rig.play(166, 1) == []
    assert rig.sync.waiting_for == "back: no camera_info has arrived"
    rig.sync.set_calibration("back", CALIBRATION)
    assert stamps_ms(rig.sync.poll()) == [166]


def test_poses_that_stay_away_cost_the_set_with_the_cause():
    rig = Rig()
    frames = rig.play(0, 10, pose=False)
    assert frames == []
    snapshot = rig.health.snapshot()
    assert snapshot.drops["no pose"] >= 6
    assert "'base_link' to 'odom'" in snapshot.last_drop
    rig.pose(2000)
    assert stamps_ms(rig.play(2083, 2)) == [2083, 2166]


def test_camera_info_that_stays_away_or_is_bad_costs_that_view():
    rig = Rig()
    rig.sync._calibrations.pop("back")
    rig.sync.set_calibration("front_left", "K of CameraInfo holds NaN")
    frames = rig.play(0, 10)
    assert frames and all(
        f.missing == {"back": "no camera_info has arrived", "front_left": "K of CameraInfo holds NaN"} for f in frames
    )


def test_unknown_extrinsics_cost_that_view():
    rig = Rig()
    frames = []
    for k in range(10):
        for camera, offset in OFFSETS.items():
            rig.pose(k * 83 + offset)
            frame_id = "nowhere" if camera == "back" else camera
            rig.sync.add(CameraImage(camera, (1_000_000 + k * 83 + offset) * MS, frame_id, "jpeg", b""))
            frames += rig.sync.poll()
    assert frames and all("'nowhere'" in f.missing["back"] for f in frames)


def test_time_that_runs_back_a_whole_set_is_followed():
    rig = Rig()
    rig.play(20_000, 5)
    frames = rig.play(10_000, 5)
    assert stamps_ms(frames) == [10_000 + k * 83 for k in range(5)]
    assert rig.health.snapshot().drops == {"time ran backwards": 1}


def test_one_stray_old_image_is_dropped_alone():
    rig = Rig()
    rig.play(20_000, 3)
    rig.image("back", 3_000)
    assert stamps_ms(rig.play(20_249, 3)) == [20_249, 20_332, 20_415]
    assert rig.health.snapshot().drops == {"stamp out of line": 1}


@pytest.mark.parametrize("ahead", [1500, -1500, 60_000])
@pytest.mark.parametrize("first", [True, False])
def test_a_camera_with_a_wrong_clock_costs_itself_only(ahead, first):
    """Before or after the others are heard: the majority tells the time."""
    rig = Rig()
    frames = [] if first else rig.play(0, 3)
    for k in range(3, 40):
        for camera in sorted(OFFSETS, key=lambda c: (c != "back", OFFSETS[c])):
            at = k * 83 + OFFSETS[camera]
            rig.pose(at)
            frames += rig.image(camera, at + (ahead if camera == "back" else 0))
    late = stamps_ms(frames)[-30:]
    assert late == [k * 83 for k in range(40 - 30, 40)]
    assert all(tuple(f.missing) == ("back",) for f in frames[-20:])
    assert rig.health.snapshot().drops["stamp out of line"] > 20


@pytest.mark.parametrize("off", [-970, -300, -100, 100, 200, 300, 600, 970])
@pytest.mark.parametrize("camera", ["front", "back"])
def test_a_clock_that_is_less_than_a_jump_off_costs_no_other_camera(camera, off):
    """One camera that runs ahead makes neither the others late nor their sets time out; the anchor's, too."""
    rig = Rig()
    frames = []
    for k in range(60):
        for name, offset in sorted(OFFSETS.items(), key=lambda item: item[1]):
            at = k * 83 + offset + (off if name == camera else 0)
            rig.pose(at)
            frames += rig.image(name, at)
    assert len(frames) >= 40
    assert all(set(frame.missing) <= {camera} for frame in frames[-20:])
    assert frames[-1].stamp // MS - 1_000_000 >= 57 * 83
    assert "stamp out of line" not in rig.health.snapshot().drops


@pytest.mark.parametrize("off", [-600, 600])
def test_two_cameras_wait_for_the_one_that_is_behind(off):
    """Nobody can tell which of the two is wrong; header time decides which images belong together."""
    rig = Rig(cameras=("a", "b"))
    frames = []
    for k in range(60):
        for name, at in (("a", k * 83), ("b", k * 83 + off)):
            rig.pose(at)
            frames += rig.image(name, at)
    assert len(frames) > 40 and not any(frame.missing for frame in frames[-20:])


def test_one_camera_alone_survives_a_stray_stamp_and_follows_a_jump():
    rig = Rig(cameras=("mono",))
    assert len(rig.play(20_000, 3)) == 3
    rig.image("mono", 3_000)
    assert stamps_ms(rig.play(20_249, 2)) == [20_249, 20_332]
    rig.pose(4_000_000)
    rig.image("mono", 3_900_000)
    assert stamps_ms(rig.play(20_415, 3))[-1] == 20_415 + 2 * 83
    assert stamps_ms(rig.play(5_000, 4)) == [5_000 + 83 * k for k in range(4)]


def test_images_sent_twice_over_a_jump_are_no_trouble():
    """With real buffers: arrays have no truth value, so images must not be compared by their contents."""
    rig = Rig()
    rig.play(20_000, 3)
    frames = []
    for camera in sorted(OFFSETS, key=OFFSETS.get):
        at = 1_000_000 + 5_000 + OFFSETS[camera]
        rig.pose(at - 1_000_000)
        for _ in range(2):
            rig.sync.add(CameraImage(camera, at * MS, camera, "jpeg", np.zeros(3, np.uint8)))
            frames += rig.sync.poll()
    rig.sync.add(CameraImage("back", (1_000_000 + 90_000) * MS, "back", "jpeg", np.zeros(3, np.uint8)))
    rig.sync.add(CameraImage("back", (1_000_000 + 90_000) * MS, "back", "jpeg", np.zeros(3, np.uint8)))
    rig.image("back", 5_083 + 25)
    assert stamps_ms(frames) == [5_000]
    assert rig.health.snapshot().drops["duplicate stamp"] == len(OFFSETS)


def test_the_only_camera_left_is_followed_over_a_gap():
    rig = Rig()
    rig.play(0, 5)
    frames = rig.play(5_000, 30, skip=lambda camera, k: camera != "back")
    assert len(frames) > 15 and stamps_ms(frames)[-1] == 5_025 + 29 * 83


def test_a_camera_with_a_wrong_clock_that_sends_alone_for_a_while_fills_no_buffer_for_good():
    """It is followed, as the only one that sends; when the others are back, its images of later times must go."""
    rig = Rig()
    rig.play(0, 3)
    for ms in [*(20 * [10**9]), *range(200_000, 204_000, 33)]:
        rig.image("front", ms)
    frames = rig.play(100_000, 40)
    assert stamps_ms(frames)[-20:] == [100_000 + k * 83 for k in range(20, 40)]
    assert not any(frame.missing for frame in frames[-20:])


def test_cameras_that_are_lost_have_no_vote_on_a_gap():
    """Below 1 Hz every set comes after a gap: those that still send need no majority of those that do not."""
    rig = Rig()
    rig.play(0, 5, 1500)
    frames = rig.play(5 * 1500, 40, 1500, skip=lambda camera, k: camera not in ("front", "back"))
    assert stamps_ms(frames)[-20:] == [k * 1500 for k in range(25, 45)]


@pytest.mark.parametrize("gap", [1_000, 3_000, 100_000])
def test_a_gap_loses_no_set(gap):
    rig = Rig()
    rig.play(0, 5)
    assert stamps_ms(rig.play(5 * 83 + gap, 3)) == [5 * 83 + gap + k * 83 for k in range(3)]
    assert not rig.health.snapshot().drops


def test_long_timeouts_are_honoured():
    rig = Rig(tf_timeout=2.0)
    frames = []
    for k in range(40):  # tf comes 1 s late, at 12 Hz
        frames += rig.play(k * 83, 1, pose=False)
        rig.pose(k * 83 - 1000)
        frames += rig.sync.poll()
    assert stamps_ms(frames)[-1] >= 25 * 83 and not any(f.missing for f in frames[5:])
    rig = Rig(camera_timeout=1.0)
    frames = rig.play(0, 40, skip=lambda camera, k: camera == "back" and 10 <= k < 20)
    assert stamps_ms(frames) == [k * 83 for k in range(40)]
    assert sum(bool(f.missing) for f in frames) >= 10


def test_a_lasting_lack_is_waited_for_once():
    """No camera_info, no extrinsics: the first set waits, the others go without at once, until it comes."""
    rig = Rig()
    rig.sync._calibrations.pop("back")
    lags = []
    for k in range(20):
        for camera in sorted(OFFSETS, key=OFFSETS.get):
            rig.pose(k * 83 + OFFSETS[camera])
            frames = rig.image(camera, k * 83 + OFFSETS[camera])
            lags += [k - round((f.stamp // MS - 1_000_000) / 83) for f in frames]
    assert max(lags) > 1 and set(lags[-10:]) == {0}
    rig.sync.set_calibration("back", CALIBRATION)
    assert not rig.play(20 * 83, 1)[-1].missing


def test_duplicates_and_shuffled_sets_are_counted_and_give_no_second_frame():
    rig = Rig()
    rig.play(0, 3)
    assert rig.image("back_left", 2 * 83 + 35) == []
    assert rig.health.snapshot().drops == {"duplicate stamp": 1}
    frames = rig.play(4 * 83, 1) + rig.play(3 * 83, 1) + rig.play(5 * 83, 1)
    assert stamps_ms(frames) == [4 * 83, 5 * 83]
    assert rig.health.snapshot().drops["late image"] >= 5


def test_images_without_an_anchor_near_are_counted():
    rig = Rig()
    frames = rig.play(0, 6, skip=lambda camera, k: camera == "front" and k == 3)
    assert stamps_ms(frames) == [k * 83 for k in (0, 1, 2, 4, 5)]
    assert rig.health.snapshot().drops == {"unmatched image": 5}


def test_settings_are_checked():
    with pytest.raises(ValueError, match="at least one camera"):
        SynchronizerSettings(())
    with pytest.raises(ValueError, match="each once"):
        SynchronizerSettings(("a", "a"))
    with pytest.raises(ValueError, match="anchor_camera 'c'"):
        SynchronizerSettings(("a", "b"), anchor="c")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("cameras", [("front",), tuple(OFFSETS)])
def test_two_publishers_on_one_topic_never_make_the_window_negative(cameras):
    """The second one is 20 ms behind: images older than the newest say nothing about the anchor's rate."""
    rig = Rig(cameras)
    frames = []
    for k in range(25):
        for camera in sorted(cameras, key=OFFSETS.get):
            for behind in (0, 20):
                at = k * 83 + OFFSETS[camera] - behind
                rig.pose(at)
                frames += rig.image(camera, at)
                assert rig.sync._window() >= 0
    assert len(frames) == 25 and set(np.diff(stamps_ms(frames))) == {83}


def test_an_image_sent_again_is_used_once():
    """Also where the anchor comes early, so that the image is near two sets, and its camera has sent a newer one."""
    rig = Rig(cameras=("a", "b"))
    frames = []
    sent = "a0 b0 a90 b90 a180 b222 b290 b222 a240 a330 b330 a420 b420 a510 b510 a600 b600 a690 b690"
    for camera, ms in ((event[0], int(event[1:])) for event in sent.split()):
        rig.pose(ms)
        frames += rig.image(camera, ms)
    used = [frame.views[1].image.stamp for frame in frames if frame.views[1] is not None]
    assert len(frames) >= 8 and used == sorted(set(used))
    assert rig.health.snapshot().drops["duplicate stamp"] == 1


def test_time_may_begin_before_zero():
    """A driver whose clock is not set yet: stamps of a ROS message are signed."""
    rig = Rig(cameras=("a", "b"))
    frames = rig.play(-1_000_000 - 500, 12)
    assert stamps_ms(frames) == [-1_000_000 - 500 + k * 83 for k in range(12)]
    assert not rig.health.snapshot().drops


@pytest.mark.parametrize("name", ["max_stamp_difference", "camera_timeout", "tf_timeout"])
@pytest.mark.parametrize("value", [-0.01, float("nan"), float("inf")])
def test_times_must_be_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value} s"):
        SynchronizerSettings(("a",), **{name: value})


def send_with_unknown_frame(rig, k, camera="back"):
    """Send set k with one camera in a frame that tf does not know; return how many sets late each frame came."""
    lags = []
    for name in sorted(OFFSETS, key=OFFSETS.get):
        at = k * 83 + OFFSETS[name]
        rig.pose(at)
        frame_id = "nowhere" if name == camera else name
        rig.sync.add(CameraImage(name, (1_000_000 + at) * MS, frame_id, "jpeg", b""))
        lags += [k - round((f.stamp // MS - 1_000_000) / 83) for f in rig.sync.poll()]
    return lags


def test_foreign_frames_do_not_make_a_lasting_lack_new():
    """A tracker adds frames to tf all the time; the camera without extrinsics is waited for once all the same."""
    rig = Rig()
    lags = []
    for k in range(200):
        rig.tree.add("odom", f"object_{k}", (1_000_000 + k * 83) * MS, np.eye(4))
        lags += send_with_unknown_frame(rig, k)
    assert max(lags[:3]) > 1 and set(lags[10:]) == {0}
    assert len(rig.sync._given_up) == 1


def test_a_camera_that_was_given_up_is_waited_for_again_once_it_has_been_back():
    rig = Rig()
    lags = [lag for k in range(10) for lag in send_with_unknown_frame(rig, k)]
    assert max(lags) > 1 and lags[-1] == 0
    rig.tree.set_static("base_link", "nowhere", np.eye(4))
    assert send_with_unknown_frame(rig, 10) == [0] and not rig.sync._given_up
    rig.tree.set_static("elsewhere", "nowhere", np.eye(4))
    lags = [lag for k in range(11, 30) for lag in send_with_unknown_frame(rig, k)]
    assert max(lags[:3]) > 1 and set(lags[10:]) == {0}


def test_every_kind_of_lack_is_waited_for_once():
    """First no camera_info, then no extrinsics: each may come, so each is worth one wait."""
    rig = Rig()
    rig.sync._calibrations.pop("back")
    lags = [lag for k in range(10) for lag in send_with_unknown_frame(rig, k)]
    assert max(lags) > 1 and set(lags[-5:]) == {0}
    rig.sync.set_calibration("back", CALIBRATION)
    lags = [lag for k in range(10, 20) for lag in send_with_unknown_frame(rig, k)]
    assert max(lags) > 1 and set(lags[-5:]) == {0}


@pytest.mark.timeout(60)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.5), st.sampled_from([0, 5, 60, 5000]))
@example(seed=88, loss=0.024607699107276344, jitter_ms=5000)  # hung once: the anchor's late images, a negative window
def test_any_flood_stays_bounded_and_ordered(seed, loss, jitter_ms):
    """Whatever is lost, repeated or shuffled: buffers stay small, frames come in time order, each image once."""
    rng = random.Random(seed)
    rig = Rig()
    events = []
    for k in range(40):
        for camera, offset in OFFSETS.items():
            if rng.random() >= loss:
                events.append((k * 83 + rng.uniform(0, jitter_ms), camera, k * 83 + offset))
    events += rng.sample(events, len(events) // 5)
    frames = []
    for _, camera, ms in sorted(events):
        rig.pose(ms)
        frames += rig.image(camera, ms)
        assert sum(map(len, rig.sync._images.values())) <= IMAGES_KEPT * len(OFFSETS)
    jumps = rig.health.snapshot().drops.get("time ran backwards", 0)
    backward = sum(b <= a for a, b in zip(stamps_ms(frames), stamps_ms(frames)[1:], strict=False))
    assert backward <= jumps
    for frame in frames:
        for view in frame.views:
            assert view is None or abs(view.image.stamp - frame.stamp) <= 50 * MS


@st.composite
def publishers(draw, cameras):
    """What one camera's driver does; two of them may share a topic."""
    return {
        "camera": draw(st.sampled_from(cameras)),
        "period": draw(st.sampled_from([1, 5, 16, 33, 83, 100, 500, 1500])),  # ms
        "offset": draw(st.sampled_from([0, -20, 35, 41.5, 300, 1200, -3000, 60_000])),  # ms, of stamps and arrivals
        "clock_error": draw(st.sampled_from([0, 0, 0, 30, -250, 600, -900, 5000, -10_000_000])),  # ms, of stamps
        "jitter": draw(st.sampled_from([0, 0, 5, 60, 900, 5000])),  # ms, of arrivals
        "stamp_jitter": draw(st.sampled_from([0, 0, 1, 20, 200])),  # ms
        "loss": draw(st.sampled_from([0, 0, 0.1, 0.5, 0.95])),
        "repeats": draw(st.sampled_from([0, 0, 0.2, 1])),
        "burst": draw(st.sampled_from([1, 1, 3, 30])),  # images that arrive together
        "jumps": draw(
            st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1500, -1500, 10**6, -(10**6)])), max_size=2)
        ),
        "constant": draw(st.sampled_from([None, None, None, None, 0, 2**63 - 1])),  # ns, the stamp of every image
    }


def events_of(publisher, rng):
    """Return (arrival in ms, camera, stamp in ns) of 60 images."""
    events = []
    for k in range(60):
        sent = publisher["offset"] + k * publisher["period"]
        arrival = publisher["offset"] + (k // publisher["burst"] + 1) * publisher["burst"] * publisher["period"]
        error = publisher["clock_error"] + sum(by for at, by in publisher["jumps"] if k >= at)
        ms = sent + error + rng.uniform(-1, 1) * publisher["stamp_jitter"]
        stamp = round((1_000_000 + ms) * MS) if publisher["constant"] is None else publisher["constant"]
        for _ in range((rng.random() >= publisher["loss"]) + (rng.random() < publisher["repeats"])):
            events.append((arrival + rng.uniform(0, publisher["jitter"]), publisher["camera"], stamp))
    return events


class Watched(Rig):
    """A rig that checks after every image what must hold whatever comes."""

    def __init__(self, cameras, **settings):
        super().__init__(cameras, **settings)
        self.windows = {}  # stamp of a set -> window that it was made with
        self.used = dict.fromkeys(cameras, -(10**19))
        self.last, self.resets = -(10**19), 0

    def send(self, image):
        start = time.process_time()
        self.sync.add(image)
        window = self.sync._window()
        frames = self.sync.poll()
        assert time.process_time() - start < 1
        resets = self.health.snapshot().drops.get("time ran backwards", 0)
        if resets > self.resets:
            self.resets, self.last = resets, -(10**19)
            self.used = dict.fromkeys(self.used, -(10**19))
            self.windows.clear()
        for image_set in [*frames, *self.sync._pending]:
            self.windows.setdefault(image_set.stamp, window)
        for frame in frames:
            self.check(frame)
        self.check_bounds(window)
        return frames

    def check(self, frame):
        assert frame.stamp > self.last, "frames ascend"
        self.last = frame.stamp
        assert any(view is not None and view.image.stamp == frame.stamp for view in frame.views) or frame.missing
        for camera, view in zip(frame.cameras, frame.views, strict=True):
            assert (view is None) == (camera in frame.missing)
            if view is not None:
                assert view.image.camera == camera
                assert abs(view.image.stamp - frame.stamp) <= self.windows[frame.stamp] <= 50 * MS
                assert view.image.stamp > self.used[camera], "each image once, in the order of stamps"
                self.used[camera] = view.image.stamp

    def check_bounds(self, window):
        sync, cameras = self.sync, self.sync.settings.cameras
        assert 0 <= window <= 50 * MS
        assert all(len(images) <= IMAGES_KEPT for images in sync._images.values())
        assert len(sync._pending) <= SETS_KEPT
        assert len(sync._suspects) <= max(4, 2 * len(cameras))
        assert len(sync._given_up) <= 3 * len(cameras)


@pytest.mark.timeout(120)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_drivers_send_the_promises_hold_and_good_streams_recover(data):
    """Bounds, order, each image once, all within the window; and 6 s of good images end every trouble."""
    cameras = tuple(OFFSETS)[: data.draw(st.integers(1, 6), "cameras")]
    anchor = data.draw(st.sampled_from(["", cameras[min(1, len(cameras) - 1)]]), "anchor")
    rig = Watched(cameras, anchor=anchor)
    rng = random.Random(data.draw(st.integers(0, 2**32), "seed"))
    drivers = data.draw(st.lists(publishers(cameras), min_size=1, max_size=8), "drivers")
    with_tf = data.draw(st.sampled_from([1, 0.9, 0]), "share of images with a pose")
    swapped = data.draw(st.booleans(), "swapped")
    for _, camera, stamp in sorted(event for driver in drivers for event in events_of(driver, rng)):
        if rng.random() < with_tf:
            rig.tree.add("odom", "base_link", stamp, np.eye(4))
        frame_id = rng.choice([*cameras, "nowhere"]) if swapped else camera
        rig.send(CameraImage(camera, stamp, frame_id, "jpeg", b""))
    newest = max([0, *rig.sync._newest.values()]) // MS - 1_000_000
    begin = (
        data.draw(st.sampled_from([0, newest + 50, newest + 100_000]), "good images begin at") if newest < 2**50 else 0
    )
    frames = []
    for k in range(72):
        for camera in sorted(cameras, key=OFFSETS.get):
            at = (1_000_000 + begin + k * 83 + OFFSETS[camera]) * MS
            rig.tree.add("odom", "base_link", at, np.eye(4))
            frames += rig.send(CameraImage(camera, at, camera, "jpeg", b""))
    anchored = OFFSETS[anchor or cameras[0]]
    assert stamps_ms(frames)[-3:] == [begin + k * 83 + anchored for k in (69, 70, 71)]
    assert not any(frame.missing for frame in frames[-3:])


def unstamped(rig, camera):
    rig.health.image_came(camera)
    rig.sync.add(CameraImage(camera, 0, camera, "jpeg", b""))
    return rig.sync.poll()


def test_a_camera_without_stamps_is_named_in_every_place():
    rig = Rig()
    frames = []
    for k in range(10):
        frames += rig.play(k * 83, 1, skip=lambda camera, k: camera == "back")
        unstamped(rig, "back")
    assert len(frames) >= 8 and all("stamps are zero" in frame.missing["back"] for frame in frames[1:])
    assert all(set(frame.missing) == {"back"} for frame in frames)
    assert rig.health.snapshot().drops == {"stamps are zero": 10}
    assert rig.health.camera_state("back").state == "clock off"
    assert "back: stamps are zero" in rig.sync.waiting_for and "back" in rig.health.drain_news()[0]
    rig.health.image_came("back")
    assert not rig.play(10 * 83, 2)[-1].missing and not rig.sync.waiting_for
    assert rig.health.camera_state("back").state == "ok"


def test_where_no_camera_has_stamps_that_is_what_is_waited_for():
    rig = Rig(cameras=("a", "b"))
    assert not any(unstamped(rig, camera) for camera in ("a", "b") for _ in range(3))
    assert "a: stamps are zero" in rig.sync.waiting_for and "b: stamps are zero" in rig.sync.waiting_for


def test_the_tf_timeout_that_late_poses_need_is_named():
    def play(**settings):
        rig = Rig(**settings)
        frames = []
        for k in range(40):  # odometry at 12 Hz, logged 350 ms after its stamp
            frames += rig.play(k * 83, 1, pose=False)
            rig.pose(k * 83 - 350)
            frames += rig.sync.poll()
        return rig, frames

    rig, frames = play()
    assert not frames
    news = [line for line in rig.health.drain_news() if line.startswith("tf is late")]
    assert len(news) == 1 and "set tf_timeout to 0.6 s" in news[0]
    assert "set tf_timeout to 0.6 s" in rig.health.snapshot().last_drop
    rig, frames = play(tf_timeout=0.6)
    assert len(frames) >= 33 and not rig.health.snapshot().drops


def test_sets_that_wait_at_the_end_are_given_out_or_counted():
    rig = Rig()
    rig.play(0, 3)
    assert rig.play(249, 1, skip=lambda camera, k: camera == "back") == []
    frames = rig.sync.finish()
    assert stamps_ms(frames) == [249] and frames[0].missing == {"back": "no image arrived in time"}
    assert not rig.health.snapshot().drops
    rig = Rig()
    assert rig.play(0, 2, pose=False) == [] and rig.sync.finish() == []
    assert rig.health.snapshot().drops == {"no pose": 2}
    rig = Rig()
    for camera in ("back", "front_left"):
        rig.image(camera, 0)
    assert rig.sync.finish() == []
    assert rig.health.snapshot().drops == {"unmatched image": 2}
    assert "the recording ends" in rig.health.snapshot().last_drop


def test_the_states_of_cameras():
    rig = Rig(cameras=("a", "b", "c", "d"))
    rig.sync._calibrations.pop("b")
    rig.sync.set_calibration("c", "K of CameraInfo holds NaN")
    for k in range(12):
        for camera in ("a", "b", "c"):
            rig.pose(k * 83)
            rig.health.image_came(camera)
            rig.image(camera, k * 83)
    states = {camera: rig.health.camera_state(camera) for camera in rig.sync.settings.cameras}
    assert {camera: state.state for camera, state in states.items()} == {
        "a": "ok", "b": "no calibration", "c": "refused", "d": "silent",
    }  # fmt: skip
    assert states["c"].reason == "K of CameraInfo holds NaN" and states["b"].reason == "no camera_info has arrived"
    rig.health.image_came("d")
    assert rig.health.camera_state("d").state == "late"
    rig.health.forget_cameras()
    assert rig.health.camera_state("a").state == "silent"
