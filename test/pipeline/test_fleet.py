"""Many bags: shards, resumed and kept results, failures that cost one bag alone, the manifest, and a Ray cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bev_perception import cli
from bev_perception.evaluation.fleet import replay_fleet
from bev_perception.evaluation.replay import Replay
from bev_perception.pipeline.fleet import FleetError, find_bags, read_manifest, shard_of
from bev_perception.pipeline.offline import read_results


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Two small drives and a bag that is none."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed in (1, 2):
        drive = ["bag", "create", "--synthetic", "0.2", "--seed", str(seed), str(folder / f"drive{seed}")]
        assert cli.main(drive) == 0
    (folder / "broken").mkdir()
    (folder / "broken" / "metadata.yaml").write_text("nothing")
    return folder


def run(bags, untrained, out, *more):
    how = ["--variant", "sparsebev_tiny", "--checkpoint", untrained, "--device", "cpu", "--score-threshold", "0"]
    return cli.main([str(a) for a in ["run", "--bags", bags, "--out", out, *how, *more]])


@pytest.fixture(scope="module")
def done(bags, untrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    assert run(bags, untrained, out) == 1
    return out


def test_one_bag_that_fails_costs_no_other(done, capsys):
    entries = read_manifest(done / "manifest.json")
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "broken": "failed",
        "drive1": "done",
        "drive2": "done",
    }
    assert "torch" in entries["drive1"]["versions"] and len(entries["drive1"]["weights_sha256"]) == 64
    assert entries["drive1"]["frames"] == read_results(done / "drive1" / "results.jsonl").end["frames"] == 2
    assert cli.main(["eval", "--manifest", str(done / "manifest.json")]) == 1
    printed = capsys.readouterr().out
    assert "drive1  2 frames" in printed and "broken  failed: " in printed and "4 frames" in printed


@pytest.mark.slow
def test_what_is_done_is_kept_and_what_is_half_is_made_whole(bags, untrained, done, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    first, second = (out / name / "results.jsonl" for name in ("drive1", "drive2"))
    whole, before = second.read_bytes(), first.stat().st_mtime_ns
    second.write_bytes(whole[: whole.rindex(b'{"complete"') - 100])
    (out / "drive2" / "entry.json").unlink()
    assert run(bags, untrained, out) == 1
    printed = capsys.readouterr()
    assert "2 of 3 bags, 1 of them were there already" in printed.out
    assert "broken" in printed.err.splitlines()[-1]  # failures come last
    assert second.read_bytes() == whole and first.stat().st_mtime_ns == before


@pytest.mark.slow
def test_results_that_were_changed_are_made_again_and_refused_by_eval(bags, untrained, done, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    path = out / "drive1" / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"score": ', b'"score":  ', 1))
    with pytest.raises(FleetError, match="not what the manifest says"):
        replay_fleet(out / "manifest.json", Replay())
    assert run(bags, untrained, out, "--shard", "1/3") == 0  # broken, drive1, drive2: the second is drive1
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_another_run_is_not_mixed_in(bags, untrained, done, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    assert run(bags, untrained, out, "--nms", "none", "--shard", "1/3") == 1
    assert "is of another run" in capsys.readouterr().err
    assert json.loads((out / "drive1" / "entry.json").read_text())["status"] == "done"


def test_bags_are_found_and_shared_out(bags, tmp_path):
    found = find_bags(bags)
    assert [path.name for path in found] == ["broken", "drive1", "drive2"]
    parts = [shard_of(found, f"{k}/2") for k in range(2)]
    assert sorted(parts[0] + parts[1]) == found and len(parts[0]) == 2
    for text in ("2/2", "x/2", "1", "1/0"):
        with pytest.raises(FleetError, match="no part of a fleet"):
            shard_of(found, text)
    listed = tmp_path / "bags.txt"
    listed.write_text(f"# of today\n{bags / 'drive2'}\n\n")
    assert find_bags(listed) == [bags / "drive2"]
    listed.write_text(f"{bags / 'drive2'}\n{tmp_path / 'drive2'}\n")
    with pytest.raises(FleetError, match="two bags are called drive2"):
        find_bags(listed)
    with pytest.raises(FleetError, match="holds no bags"):
        find_bags(tmp_path)


@pytest.mark.slow
def test_a_ray_cluster_loses_a_worker_and_no_bag(bags, untrained, done, tmp_path):
    pytest.importorskip("ray", reason="pip install bev_perception[ray]")
    out = tmp_path / "out"
    how = ["--variant", "sparsebev_tiny", "--checkpoint", untrained, "--device", "cpu", "--score-threshold", "0"]
    command = ["run", "--bags", bags, "--out", out, *how, "--on", "ray", "--workers", "2"]
    arguments = [sys.executable, "-m", "bev_perception.cli", *map(str, command)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lost = _worker_of(process.pid)
        os.kill(lost, signal.SIGKILL)
        printed, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 1, printed  # by the broken bag
    entries = read_manifest(out / "manifest.json")
    assert {n: e["status"] for n, e in entries.items()} == {"broken": "failed", "drive1": "done", "drive2": "done"}
    for name in ("drive1", "drive2"):
        assert (out / name / "results.jsonl").read_bytes() == (done / name / "results.jsonl").read_bytes()


def _worker_of(parent, patience=120):
    """Return the pid of an actor among a process's descendants, once there is one."""
    for _ in range(patience * 5):
        children = {}
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines()[1:]:
            pid, ppid, arguments = line.split(None, 2)
            children.setdefault(int(ppid), []).append((int(pid), arguments))
        pending, seen = [parent], []
        while pending:
            for pid, arguments in children.get(pending.pop(), []):
                pending.append(pid)
                seen.append((pid, arguments))
        actors = [pid for pid, arguments in seen if arguments.startswith("ray::FleetRunner")]
        if actors:
            return actors[0]
        time.sleep(0.2)
    raise AssertionError("no actor has started")
