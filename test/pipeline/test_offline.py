"""Runs over bags, and the file of their results: written line by line, read back, broken off and continued."""

import json
import weakref

import numpy as np
import pytest

from bev_perception.data.drive import CAMERAS
from bev_perception.data.rosbag import BagReader, write_bag
from bev_perception.health import Health
from bev_perception.pipeline.loading import load_pipeline
from bev_perception.pipeline.offline import (
    ResultsError,
    read_results,
    results_header,
    run_events,
    unfinished_results,
    write_results,
)
from bev_perception.pipeline.pipeline import PipelineSettings
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.types import Boxes3D, Occupancy, Result

HEADER = {"format": "bev_perception results", "version": 1, "bag": "drive", "score_threshold": 0.3}
HOW = PipelineSettings(score_threshold=0.0, max_detections=5)


@pytest.fixture(scope="module")
def bag(small_drive, tmp_path_factory):
    """Six frames at 12 Hz, every third of which is remembered."""
    path = tmp_path_factory.mktemp("offline") / "drive"
    write_bag(small_drive, path, progress=False)
    return BagReader(path)


def run(bag, untrained, out, resume=False, how=HOW):
    """Run a pipeline of its own, as each call of the program does; return the number of frames."""
    pipeline = load_pipeline("sparsebev_tiny", untrained, "cpu", how)
    try:
        settings = SynchronizerSettings(CAMERAS)
        header = results_header(pipeline, bag, settings)
        earlier = unfinished_results(out, header) if resume else None
        results = run_events(bag.events(), pipeline, settings)
        return write_results(out, header, results, pipeline.health, earlier=earlier)
    finally:
        pipeline.close()


@pytest.fixture(scope="module")
def whole(bag, untrained, tmp_path_factory):
    """The file of an uninterrupted run; not to be changed by tests."""
    path = tmp_path_factory.mktemp("offline") / "whole.jsonl"
    assert run(bag, untrained, path) == 6
    return path


def result(stamp, n=1, **changes):
    values = {
        "centers": np.ones((n, 3)),
        "sizes": np.ones((n, 3)),
        "yaws": np.zeros(n),
        "velocities": np.zeros((n, 2)),
        "scores": np.full(n, 0.5),
        "labels": np.zeros(n, np.int64),
        **changes,
    }
    return Result(stamp, Boxes3D(**values, class_names=("car",)), None, {}, None, {}, 0)


def test_the_header_says_what_the_numbers_mean_and_come_of(whole, untrained):
    header = read_results(whole).header
    assert list(header)[:2] == ["format", "version"] and header["version"] == 1
    assert header["variants"] == {"sparsebev_tiny": str(untrained)} and header["trained"] is False
    assert len(header["sha256"]["sparsebev_tiny"]) == 64 and header["classes"]["sparsebev_tiny"][0] == "car"
    assert (header["score_threshold"], header["max_detections"]) == (0.0, 5)
    assert (header["memory_interval"], header["precision"], header["bag"]) == (0.25, "fp32", "drive")
    assert (header["frame_id"], header["fixed_frame"], header["cameras"]) == ("base_link", "odom", list(CAMERAS))
    assert header["tracker"] == "greedy" and header["nms"] == {"sparsebev_tiny": "distance"}
    assert header["units"]["yaw"] == "rad" and header["box"]["size"] == "length, width, height"


def test_the_header_takes_the_variants_own_limits_where_there_are_no_others(bag, untrained):
    pipeline = load_pipeline("sparsebev_tiny", untrained, "cpu")
    pipeline.close()
    header = results_header(pipeline, bag, SynchronizerSettings(CAMERAS, base_frame="car"))
    assert (header["score_threshold"], header["max_detections"], header["frame_id"]) == (0.05, 300, "car")


def test_frames_and_counts_are_read_back(whole):
    results = read_results(whole)
    frames = list(results.frames())
    assert [len(frame["boxes"]) for frame in frames] == [5] * 6
    assert list(frames[0]) == ["stamp", "boxes", "missing", "reset", "history"]
    assert [frame["history"] for frame in frames] == [0, 1, 1, 1, 2, 2]
    ids = [[box["track_id"] for box in frame["boxes"]] for frame in frames]
    assert ids[0] == [1, 2, 3, 4, 5] and all(len(set(of_frame)) == 5 for of_frame in ids) and set(ids[0]) & set(ids[1])
    assert results.end == {"complete": True, "frames": 6, "drops": {}, "resets": {}}


@pytest.mark.parametrize("lines", [1, 4.5, 7])
def test_a_continued_file_is_that_of_an_uninterrupted_run(whole, bag, untrained, tmp_path, lines):
    """Byte by byte, wherever it was broken off: with nothing but the header, in a line, before the last line."""
    out, kept = tmp_path / "out.jsonl", whole.read_bytes().splitlines(keepends=True)
    half = kept[int(lines)][: len(kept[int(lines)]) // 2] if lines % 1 else b""
    out.write_bytes(b"".join(kept[: int(lines)]) + half)
    found = read_results(out)
    assert found.end is None and len(list(found.frames())) == int(lines) - 1
    assert run(bag, untrained, out, resume=True) == 6
    assert out.read_bytes() == whole.read_bytes()


def test_an_empty_file_is_as_none(tmp_path):
    (tmp_path / "out.jsonl").touch()
    assert unfinished_results(tmp_path / "out.jsonl", HEADER) is None
    assert unfinished_results(tmp_path / "none.jsonl", HEADER) is None


def test_lines_that_are_there_are_not_written_again(tmp_path):
    """Nor touched: a file is only appended to."""
    out = tmp_path / "out.jsonl"
    write_results(out, HEADER, [result(1)], Health())
    mark = json.dumps({"stamp": 1, "mark": "written before"}).encode() + b"\n"
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0] + mark)
    assert write_results(out, HEADER, [result(1), result(2)], Health(), earlier=unfinished_results(out, HEADER)) == 2
    assert out.read_bytes().splitlines(keepends=True)[1] == mark
    assert [frame["stamp"] for frame in read_results(out).frames()] == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bag": "other"}, "bag is 'drive' there and 'other' now"),
        ({"score_threshold": 0.05}, r"score_threshold is 0\.3 there and 0\.05 now"),
        ({"occupancy": "voxels"}, "occupancy is None there and 'voxels' now"),
        ({"settings": {"v": "1f"}}, "settings is None there and {'v': '1f'} now"),
        ({"sha256": {"v": "1f"}}, "sha256 is None there and {'v': '1f'} now"),
    ],
)
def test_another_runs_file_is_not_continued(tmp_path, change, message):
    out = tmp_path / "out.jsonl"
    write_results(out, HEADER, [result(1)], Health())
    before = out.read_bytes()
    with pytest.raises(ResultsError, match=message):
        unfinished_results(out, {**HEADER, **change})
    assert out.read_bytes() == before


@pytest.mark.parametrize(("stamps", "message"), [([1, 3], "gives one at 3 ns"), ([1], "gives no more frames")])
def test_the_results_of_another_bag_are_not_appended(tmp_path, stamps, message):
    out = tmp_path / "out.jsonl"
    write_results(out, HEADER, [result(1), result(2)], Health())
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:3]))
    before = out.read_bytes()
    with pytest.raises(ResultsError, match=message):
        write_results(out, HEADER, map(result, stamps), Health(), earlier=unfinished_results(out, HEADER))
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "variants": {},\n "frames": []\n}', "line 1 of .* older version"),  # as it was until version 1
        ("", "line 1 of"),
        ('{"format": "bev_perception results", "vers', "line 1 of .* run the bag again, without --resume"),
        ("\x00\xff\n", "line 1 of"),
        ('{"format": "bev_perception results", "version": 2}\n', "of version 2, not .* of version 1"),
        ('{"format": "tracks", "version": 1}\n', "is 'tracks' of version 1"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "boxes.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError, match=message):
        read_results(path)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, HEADER, map(result, (1, 2, 3)), Health())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b'{"stamp": 2, "bo\n', *lines[3:]]))
    frames = read_results(path).frames()
    assert next(frames)["stamp"] == 1
    with pytest.raises(ResultsError, match=r"line 3 of .*out\.jsonl"):
        next(frames)


def test_each_result_is_in_the_file_before_the_next_is_asked_for_and_is_forgotten(tmp_path):
    """An hour of results does not fit into the memory; and of a process that is killed the file is all that stays."""
    path, past = tmp_path / "out.jsonl", []

    def results():
        for stamp in range(50):
            if stamp:
                assert path.read_bytes().count(b"\n") == 1 + stamp
            assert sum(reference() is not None for reference in past) <= 1  # the one just written
            new = result(stamp)
            past.append(weakref.ref(new))
            yield new
            del new

    assert write_results(path, HEADER, results(), Health()) == 50


def test_results_that_break_off_leave_whole_lines_and_no_end(tmp_path):
    def results():
        yield result(1)
        raise OSError("the disk is gone")

    path = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="the disk is gone"):
        write_results(path, HEADER, results(), Health())
    found = read_results(path)
    assert found.end is None and [frame["stamp"] for frame in found.frames()] == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_does_not_know_is_not_written(tmp_path, value):
    path = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, HEADER, [result(1), result(2, velocities=np.full((1, 2), value))], Health())
    assert [frame["stamp"] for frame in read_results(path).frames()] == [1]


def test_occupancy_is_written_beside_it(tmp_path):
    grid = np.zeros((200, 200, 16), np.uint8)
    found = Result(7, None, Occupancy(grid, ("car", "free")), {"cam_front": "gone"}, "gap: 3 s", {}, 0)
    write_results(tmp_path / "out.jsonl", HEADER, [found], Health(), tmp_path / "voxels")
    assert [path.name for path in (tmp_path / "voxels").iterdir()] == ["7.npz"]
    (frame,) = read_results(tmp_path / "out.jsonl").frames()
    wanted = {"stamp": 7, "boxes": None, "missing": {"cam_front": "gone"}, "reset": "gap: 3 s", "history": 0}
    assert frame == wanted


def test_weights_may_lie_elsewhere_when_a_run_is_resumed(tmp_path):
    out = tmp_path / "out.jsonl"
    write_results(out, {**HEADER, "variants": {"v": "a.safetensors"}}, [result(1)], Health())
    assert unfinished_results(out, {**HEADER, "variants": {"v": "/else/where.safetensors"}}) is not None
