import argparse
import importlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import bev_perception
from bev_perception import cli
from bev_perception.data import rosbag
from bev_perception.families.variants import list_variants
from bev_perception.pipeline.offline import read_results


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "drive"
    assert cli.main(["bag", "create", "--synthetic", "0.5", "--seed", "4", str(path)]) == 0
    return path


def run(bag, untrained, out, *more):
    arguments = ["run", "--bag", bag, "--variant", "sparsebev_tiny", "--checkpoint", untrained, "--out", out, *more]
    return cli.main([str(a) for a in [*arguments, "--device", "cpu"]])


def test_variants_lists_all(capsys):
    assert cli.main(["variants"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in list_variants())
    assert "published 55.6 NDS (val)" in printed and "this project's own small variant" in printed
    assert "published 35.9 RayIoU (val), 14.0 RayPQ (val)" in printed


def test_init_weights_are_repeatable_and_say_they_are_untrained(tmp_path, capsys):
    for name in ("a", "b"):
        assert (
            cli.main(["init-weights", "--variant", "sparsebev_tiny", str(tmp_path / "new" / f"{name}.safetensors")])
            == 0
        )
    assert "UNTRAINED" in capsys.readouterr().out
    a, b = (load_file(tmp_path / "new" / f"{name}.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_run_writes_every_frame(bag, untrained, tmp_path, capsys):
    out = tmp_path / "boxes.jsonl"
    assert run(bag, untrained, out, "--score-threshold", "0", "--nms", "none") == 0
    assert "6 frames; the weights are UNTRAINED" in capsys.readouterr().out
    results = read_results(out)
    assert list(results.header["variants"]) == ["sparsebev_tiny"] and results.header["trained"] is False
    frames = list(results.frames())
    assert [len(f["boxes"]) for f in frames] == [300] * 6
    assert set(frames[0]["boxes"][0]) == {"class", "score", "center", "size", "yaw", "velocity", "track_id"}
    assert results.end["frames"] == 6


@pytest.mark.slow
def test_run_goes_on_where_it_was_broken_off(bag, untrained, tmp_path, capsys):
    """A complete file is left alone, and one of another run; without --resume it is replaced."""
    out, threshold = tmp_path / "boxes.jsonl", ("--score-threshold", "0")
    assert run(bag, untrained, out, *threshold) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    assert run(bag, untrained, out, *threshold, "--resume") == 0 and out.read_bytes() == whole
    capsys.readouterr()
    assert run(bag, untrained, out, *threshold, "--resume") == 0 and out.read_bytes() == whole
    assert "boxes.jsonl is complete, with 6 frames; nothing is left to do" in capsys.readouterr().out
    assert run(bag, untrained, out, "--resume") == 1 and out.read_bytes() == whole
    assert "score_threshold is 0.0 there and 0.05 now" in capsys.readouterr().err
    assert run(bag, untrained, out) == 0 and read_results(out).header["score_threshold"] == 0.05


def test_run_takes_a_bag_with_other_topics(bag, untrained, tmp_path):
    """The same bag, told that its front camera is our back one."""
    out, prefix = tmp_path / "new" / "boxes.jsonl", "/bev_perception/input"
    names = ("image/compressed", "camera_info")
    rules = [f"{prefix}/cam_front/{name}:={prefix}/cam_back/{name}" for name in names]
    rules += [f"{prefix}/cam_back/{name}:=/elsewhere/{name}" for name in names]
    assert run(bag, untrained, out, "--cameras", "cam_back", "--anchor", "cam_back", "--remap", *rules) == 0
    stamps = [f["stamp"] for f in read_results(out).frames()]
    assert run(bag, untrained, out, "--cameras", "cam_front") == 0
    assert stamps == [f["stamp"] for f in read_results(out).frames()]


def test_options_open_the_bag_and_set_the_times(bag, tmp_path, capsys):
    """Topics are found where the bag has other names; patterns, a file of rules and the node's times are taken."""
    from bev_perception.cli.options import open_bag
    from bev_perception.data.rosbag import BagError

    def opened(path, *more):
        arguments = ["run", "--bag", str(path), "--variant", "x", "--out", "x", *more]
        return open_bag(cli.make_parser().parse_args(arguments), path)

    read, settings = opened(bag, "--tf-timeout", "0.6", "--camera-timeout", "0.3", "--max-stamp-difference", "0.02")
    assert (settings.tf_timeout, settings.camera_timeout, settings.max_stamp_difference) == (0.6, 0.3, 0.02)
    assert opened(bag)[1].tf_timeout == 0.2 and read.remap == {} and capsys.readouterr().err == ""
    found, settings = opened(bag, "--prefix", "/robot")  # there, an image beside a camera_info is called `image`
    assert settings.cameras == found.cameras and found.has_images() and len(found.cameras) == 6
    assert "found the cameras: --cameras" in capsys.readouterr().err
    rules = tmp_path / "rules"
    rules.write_text("# cameras\n/bev_perception/input/*/camera_info:=/robot/*/camera_info\n\n")
    pattern = "/bev_perception/input/*/image/compressed:=/robot/*/image/compressed"
    read, _ = opened(bag, "--prefix", "/robot", "--remap", pattern, "--remap-file", str(rules))
    assert (
        read.has_images() and read.remap["/bev_perception/input/cam_back/camera_info"] == "/robot/cam_back/camera_info"
    )
    with pytest.raises(BagError, match="--cameras .*cam_front"):
        opened(bag, "--prefix", "/robot", "--cameras", "cam_roof")


def test_a_bag_that_breaks_off_gives_what_it_held(bag, untrained, tmp_path, capsys, monkeypatch):
    decode = rosbag.BagReader._decode

    def breaks_off(self, cameras):
        for k, event in enumerate(decode(self, cameras)):
            if k == 60:
                raise rosbag.BagError("the file is cut off")
            yield event

    monkeypatch.setattr(rosbag.BagReader, "_decode", breaks_off)
    assert run(bag, untrained, tmp_path / "boxes.jsonl") == 1
    assert "the file is cut off" in capsys.readouterr().err
    results = read_results(tmp_path / "boxes.jsonl")
    assert results.end is None and 1 <= len(list(results.frames())) < 6


def test_run_counts_what_it_drops(bag, untrained, tmp_path, capsys):
    """A camera that is not in the bag is missing in every frame, and that is said."""
    out = tmp_path / "boxes.jsonl"
    assert run(bag, untrained, out, "--cameras", "cam_front", "cam_roof") == 0
    printed = capsys.readouterr().out
    assert "dropped: missing view" in printed and "cam_roof: no image arrived in time" in printed
    assert run(bag, untrained, out, "--fixed-frame", "mars") == 1
    printed = capsys.readouterr().out
    assert "0 frames" in printed and "'base_link' to 'mars'" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bag", "create", "--synthetic", "0.1", "{bag}"], "exists already"),
        (["bag", "create", "--nuscenes", "{tmp}", "{tmp}/x"], "--nuscenes needs --scene"),
        (["bag", "create", "--nuscenes", "{tmp}", "--scene", "s", "{tmp}/x"], "holds no tables"),
        (["run", "--bag", "{tmp}/no", "--variant", "v", "--checkpoint", "c", "--out", "o"], "does not exist"),
        (
            ["run", "--bag", "{bag}", "--variant", "v", "--out", "o", "--remap", "/front"],
            "--remap /front names one topic; write BAG_TOPIC:=TOPIC",
        ),
        (["run", "--bag", "{bag}", "--variant", "spasebev_tiny", "--checkpoint", "c", "--out", "o"], "did you mean"),
        (
            ["run", "--bag", "{bag}", "--variant", "sparsebev_tiny", "--checkpoint", "{tmp}/c.pth", "--out", "o"],
            "c.pth",
        ),
        (["init-weights", "--variant", "nonsense", "o"], "unknown variant"),
        (["bench", "--variant", "nonsense"], "unknown variant"),
        (["bench", "--variant", "sparsebev_tiny", "--against", "sparse4d_tiny", "nonsense"], "unknown variant"),
        (["bench", "--against", "sparse4d_tiny"], "name one with --variant"),
        (
            ["run", "--bag", "{bag}", "--variant", "r50_in1k_704x256", "--out", "{tmp}/o"],
            "no weights are shipped for r50_in",
        ),
        (["eval", "--variant", "v", "--checkpoint", "c"], "name --data"),
        (["eval", "--data", "{tmp}"], "name --variant to run, or --results"),
        (["eval", "--data", "{tmp}", "--variant", "sparsebev_tiny"], "holds no tables, such as v1.0-trainval"),
        (["eval", "--data", "{tmp}", "--results", "{tmp}/none.json", "--version", "v1.0-mini"], "none.json"),
        (["eval", "--data", "{tmp}", "--results", "{tmp}/none.json", "--version", "v2"], "say it with --split"),
        (["eval", "--data", "{tmp}", "--results", "r.json", "--no-memory"], "--no-memory is for a variant that runs"),
        (["eval", "--bag", "{bag}", "--variant", "v", "--no-memory"], "--no-memory is for a variant that runs"),
        (
            ["eval", "--data", "{tmp}", "--occupancy-results", "d", "--version", "v1.0-mini", "--max-range", "40"],
            "--max-range is about boxes",
        ),
        (["eval", "--bag", "{bag}"], "--bag needs --variant"),
        (["eval", "--bag", "{bag}", "--variant", "v", "--tracking"], "--tracking scores tracks; name --data"),
        (["eval", "--data", "{tmp}", "--results", "r.json", "--tracking"], "--tracking is for a variant that runs"),
        (["train", "--variant", "sparsebev_tiny", "--data", "{tmp}", "--out", "{tmp}/o"], "holds no tables"),
        (["synth", "{tmp}/world", "--image-width", "1000"], "images of 1000x562 are not 16:9"),
    ],
)
def test_errors_are_one_sentence_and_status_1(bag, tmp_path, capsys, arguments, message):
    filled = [a.format(bag=bag, tmp=tmp_path) for a in arguments]
    assert cli.main(filled) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_eval_of_a_bag_without_a_data_set_is_a_summary(bag, untrained, capsys):
    command = ["eval", "--bag", str(bag), "--variant", "sparsebev_tiny", "--device", "cpu"]
    assert cli.main([*command, "--checkpoint", str(untrained), "--cameras", "cam_front", "cam_roof"]) == 0
    printed = capsys.readouterr().out
    assert "6 frames, 0.4 s of recording, 12.0 Hz\ndropped: missing view 6\n" in printed
    assert "boxes a frame: " in printed and "the weights are UNTRAINED" in printed


def test_eval_takes_the_shipped_weights(bag, shipped, capsys):
    assert cli.main(["eval", "--bag", str(bag), "--variant", "sparsebev_tiny", "--device", "cpu"]) == 0
    assert "the weights are UNTRAINED" in capsys.readouterr().out


def test_run_takes_a_precision(bag, untrained, tmp_path, capsys):
    assert run(bag, untrained, tmp_path / "boxes.jsonl", "--precision", "tf32") == 1
    assert "'tf32' is a format of NVIDIA's GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "the following arguments are required"),
        (["bag", "create", "--synthetic", "nan", "out"], "argument --synthetic: nan is no length of time"),
        (["bag", "create", "--synthetic", "-1", "out"], "argument --synthetic: -1 is no length of time"),
        (["bag", "create", "--synthetic", "1", "--seed", "-3", "out"], "argument --seed: -3 is out of range"),
        (["init-weights", "--variant", "v", "--seed", "1" + 20 * "0", "out"], "is out of range; give a whole number"),
        (
            ["init-weights", "--variant", "v", "--seed", "one", "out"],
            "argument --seed: invalid whole number value: 'one'",
        ),
        (["train", "--variant", "v", "--data", "d", "--out", "o", "--workers", "-1"], "from 0 on"),
        (["prepare", "panoptic-occ", "--data", "d", "--out", "o", "--threads", "0"], "from 1 on"),
        (["demo", "--seconds", "inf"], "argument --seconds: inf is no length of time"),
    ],
)
def test_usage_errors_have_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def main_with(error):
    """Run the program in a process of its own, with a command that raises; return what is left of it."""
    raising = f"""
import sys
from bev_perception import cli
from bev_perception.strict import UserError

def variants(args):
    {error}

cli.models._variants = variants
sys.exit(cli.main(["variants"]))
"""
    return subprocess.run([sys.executable, "-c", raising], capture_output=True, text=True, check=False)


def test_a_fault_of_ours_shows_its_traceback():
    """Also one that numpy calls a ValueError: the sentence alone would not tell where it comes from."""
    done = main_with("import numpy; numpy.zeros(3) + numpy.zeros(4)")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "ValueError: operands could not be broadcast" in done.stderr
    assert "bev_perception: operands" not in done.stderr


def test_an_error_that_the_user_can_mend_is_one_sentence():
    done = main_with("raise UserError('the disk is full; make room')")
    assert done.returncode == 1 and done.stderr == "bev_perception: the disk is full; make room\n"


@pytest.mark.parametrize(
    ("package", "extra"), [("rosbags", "bag"), ("rclpy.node", "ros"), ("matplotlib.figure", "train"), ("no_such", None)]
)
def test_a_missing_optional_package_names_its_extra(package, extra, monkeypatch, capsys):
    """Any other missing package is a fault of ours."""
    for name in (package, package.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(cli.models, "_variants", lambda args: importlib.import_module(package))
    if extra is None:
        with pytest.raises(ImportError):
            cli.main(["variants"])
    else:
        assert cli.main(["variants"]) == 1
        assert "cannot be imported" in (error := capsys.readouterr().err)
        assert error.endswith(f"; pip install bev_perception[{extra}]\n")


def commands_of(parser, name=()):
    """Yield the words of every command with its parser, the program's own among them."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from commands_of(command, (*name, word))


def test_every_command_and_option_is_described():
    """With its default, and one name for the value of an option in all commands (but --out, a directory or a file)."""
    metavars = {}
    for words, parser in commands_of(cli.make_parser()):
        assert parser.description, words
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                continue
            name = action.option_strings[-1] if action.option_strings else action.dest
            assert action.help, (words, name)
            shows_default = action.nargs == 0 or action.default in (None, "", [], ())
            assert shows_default or "%(default)s" in action.help or str(action.default) in action.help, (words, name)
            takes_a_value = action.option_strings and action.nargs != 0 and not action.choices
            if takes_a_value and name not in ("--out", "--results", "--scenes"):  # a file or a directory, or a number
                assert metavars.setdefault(name, action.metavar) == action.metavar, (words, name)
    assert metavars["--data"] == "ROOT" and metavars["--bag"] == "BAG" and metavars["--epochs"] == "N"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"bev_perception {bev_perception.__version__}\n"


def test_interrupt_has_status_130(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.models, "_variants", interrupt)
    assert cli.main(["variants"]) == 130


def test_sigterm_ends_a_command_in_one_sentence(monkeypatch, capsys):
    """Wherever it is, also before a training has begun."""

    def wait(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli.models, "_variants", wait)
    assert cli.main(["variants"]) == 1
    assert capsys.readouterr().err == "bev_perception: ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-u", "-m", "bev_perception.cli", "variants"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_nuscenes_scene_as_bag(nuscenes_root, tmp_path, untrained, capsys):
    """The five real keyframes: boxes for each, a reset at the gap of 2.5 s."""
    bag, out = tmp_path / "scene", tmp_path / "boxes.jsonl"
    create = ["bag", "create", "--nuscenes", str(nuscenes_root), "--scene", "scene-0103", str(bag)]
    assert cli.main(create) == 0
    assert run(bag, untrained, out) == 0
    frames = list(read_results(out).frames())
    assert len(frames) == 5
    assert [f["missing"] for f in frames] == [{}] * 5
    assert [f["history"] for f in frames] == [0, 1, 2, 3, 0]
    assert frames[4]["reset"].startswith("gap: 2.5")


def test_set_changes_the_variant_of_every_command_that_takes_one(tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    change = ["--set", "head.num_query=25", "--set", "head.num_layers=2"]
    assert cli.main(["init-weights", "--variant", "sparsebev_tiny", *change, str(weights)]) == 0
    assert load_file(weights)["pts_bbox_head.init_query_bbox.weight"].shape == (25, 10)
    for command in (
        ["init-weights", str(weights)],
        ["run", "--bag", "b", "--out", "o"],
        ["train", "--data", "d", "--out", "o"],
        ["bench"],
        ["demo"],
        ["eval", "--data", "d"],
        ["show", "boxes", "--bag", "b", "--out", "o"],
        ["show", "points", "--bag", "b", "--out", "o"],
        ["show", "occupancy", "--bag", "b", "--out", "o"],
    ):
        assert cli.main([*command, "--variant", "sparsebev_tiny", "--set", "head.num_quary=25"]) == 1
        assert "unknown key 'num_quary'; did you mean 'num_query'?" in capsys.readouterr().err
    assert cli.main(["eval", "--data", "d", "--set", "head.num_query=25"]) == 1
    assert "--set changes a variant; name one with --variant" in capsys.readouterr().err


def test_node_and_play_pass_on_what_is_for_ros(monkeypatch, capsys):
    from bev_perception.ros import bag_player, perception_node

    given = []
    for module in (bag_player, perception_node):
        monkeypatch.setattr(module, "main", lambda arguments: given.append(arguments) or 3)
    assert cli.main(["node", "--ros-args", "-p", "variant:=sparsebev_tiny"]) == 3
    assert cli.main(["play", "/tmp/drive", "--ros-args", "-p", "rate:=0.5"]) == 3
    assert cli.main(["play", "--ros-args", "-p", "bag:=/tmp/drive"]) == 3
    assert cli.main(["node"]) == 3
    assert given == [
        ["--ros-args", "-p", "variant:=sparsebev_tiny"],
        ["--ros-args", "-p", "bag:='/tmp/drive'", "--", "--ros-args", "-p", "rate:=0.5"],
        ["--ros-args", "-p", "bag:=/tmp/drive"],
        [],
    ]
    with pytest.raises(SystemExit) as end:
        cli.main(["play", "--help"])
    assert end.value.code == 0 and "play a bag to the node" in capsys.readouterr().out


def test_what_is_odd_in_a_bag_is_printed_when_it_begins(capsys):
    from bev_perception.cli.options import print_notices, with_notices
    from bev_perception.health import Health

    health = Health()

    def events():
        yield "first"
        health.notice("odd", "the camera looks at the sky")
        health.drop("lost", "an image")
        yield "second"
        print("the bag goes on")
        yield "third"
        health.notice("odd at last", "it ends")

    assert list(with_notices(events(), health)) == ["first", "second", "third"]
    print_notices(health)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["odd: the camera looks at the sky", "the bag goes on", "odd at last: it ends"]
