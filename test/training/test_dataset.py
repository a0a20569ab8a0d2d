"""nuScenes as training samples, on the made-up data set."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from nuscenes_root import SCENES, VERSION

from bev_perception import cli
from bev_perception.config import ConfigError, FramesConfig
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.queues import evaluation_queue, read_frame, reference2image, training_boxes
from bev_perception.data.records import open_split
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.geometry import project
from bev_perception.pipeline.loading import write_initial_weights
from bev_perception.sensing.preprocess import Preprocessor
from bev_perception.training import dataset
from bev_perception.training.dataset import JoinedData, NuScenesTraining
from bev_perception.training.loading import collate
from bev_perception.training.state import TrainingError
from bev_perception.training.train import find_part, train

from .kit import augmented, settings, small_config

CONFIG = augmented(load_variant("sparsebev_tiny"))
#: options for a quick training: small images, in a precision that every CPU computes fast in
SMALL = ["--precision", "fp32", "--set", "image={height: 64, width: 176}", "--set", "training.resize=[0.1, 0.12]"]


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, VERSION, "mini_val")


def rng(seed=0):
    return np.random.default_rng(seed)


def test_a_sample_is_what_the_model_takes_and_the_same_for_the_same_chance(records):
    data = NuScenesTraining(CONFIG, records)
    sample, again, other = (data.sample(3, rng(seed)) for seed in (0, 0, 1))
    assert sample.images.shape == (4, 6, 256, 704, 3) and sample.images.dtype == np.uint8
    assert sample.reference2image.shape == (4, 6, 4, 4)
    assert sample.time_differences[0] == 0 and (np.diff(sample.time_differences) > 0).all()
    assert len(sample.truth.boxes) == len(sample.truth.labels) > 0 and sample.truth.boxes.shape[1] == 9
    one, two, three = ({**vars(s), **vars(s.truth), **vars(s.cameras)} for s in (sample, again, other))
    fixed = ("time_differences", "stamp", "labels", "intrinsics", "sensor2ego")
    for name in one.keys() - {"truth", "cameras"}:
        assert np.array_equal(one[name], two[name])
        assert name in fixed or not np.array_equal(one[name], three[name])


def changed(**training):
    return dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, **training))


def test_images_of_a_rig_are_augmented_alike_or_each_in_its_own_way(records):
    for apart, count in ((False, 1), (True, 6)):
        sample = NuScenesTraining(changed(augment_cameras_apart=apart, image_rotation=5.4), records).sample(3, rng())
        matrices = sample.cameras.source2image
        assert (matrices == matrices[:1]).all()  # all frames of a camera alike
        assert len(np.unique(matrices[0].reshape(6, -1), axis=0)) == count


def test_the_world_of_a_sample_is_changed_as_its_boxes(records):
    sample = NuScenesTraining(CONFIG, records).sample(3, rng())
    boxes, _ = training_boxes(records, 3, CONFIG.class_names, CONFIG.head.pc_range)
    moved = boxes[:, :3] @ sample.world[:3, :3].T + sample.world[:3, 3]
    np.testing.assert_allclose(sample.truth.boxes[:, :3], moved, atol=1e-4)
    np.testing.assert_allclose(sample.reference2global @ sample.world, records.lidar2global(3), atol=1e-9)
    assert sample.stamp == records.stamps[3] * 1000


def test_another_augmentation_of_the_same_chance(records):
    data = NuScenesTraining(CONFIG, records)
    one, two, other = (data.sample(3, rng(k), rng(j)) for k, j in ((0, 7), (1, 7), (0, 8)))
    assert (one.world == two.world).all() and (one.world != other.world).any()


def test_frames_can_be_key_frames(records):
    """Frames that a scene does not have are the oldest one that it has, or the current one."""
    first = records.scenes.index(SCENES[1])
    for missing in ("oldest", "current"):
        config = changed(key_frames=(2, 2))
        config = dataclasses.replace(config, frames=dataclasses.replace(config.frames, missing=missing))
        data = NuScenesTraining(config, records)
        sample = data.sample(first + 3, rng())
        before = (records.stamps[first + 3] - records.stamps[first + 1]) / 1e6
        again = before if missing == "oldest" else 0.0
        np.testing.assert_allclose(sample.time_differences, [0, before, again, again], atol=0.01)


def test_a_replacement_is_changed_as_the_sequence_that_it_stands_in(records, monkeypatch):
    data = NuScenesTraining(CONFIG, records)
    alone = data.sample(3, rng(0), rng(7))
    read, calls = data._truths.read, []

    def nothing_at_first(index, sight):
        calls.append(index)
        return None if len(calls) == 1 else read(index, sight)

    monkeypatch.setattr(data._truths, "read", nothing_at_first)
    replaced = data.sample(4, rng(1), rng(7))
    assert len(calls) > 1 and (replaced.world == alone.world).all()
    assert (replaced.cameras.source2image[0] == alone.cameras.source2image[0]).all()


def test_memory_does_not_go_from_one_data_set_to_another(records):
    data = NuScenesTraining(CONFIG, records)
    stamps = [JoinedData([data, data]).sample(index, rng()).stamp for index in (3, 13)]
    assert stamps[1] - stamps[0] > 10**9 * 3600


def test_scenes_and_classes_of_the_samples(records):
    data = NuScenesTraining(CONFIG, records)
    joined = JoinedData([data, data])
    assert data.sequences() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert joined.sequences() == [*data.sequences(), [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    for index in range(10):
        _, labels = training_boxes(records, index, CONFIG.class_names, (-500, -500, -9, 500, 500, 9))
        assert set(data.classes(index)) == set(labels.tolist()) == set(joined.classes(index + 10))


@pytest.mark.parametrize("seed", range(4))
def test_boxes_matrices_and_pixels_are_augmented_together(records, seed):
    """A box appears in the augmented image where the image transform takes it from where it was."""
    data = NuScenesTraining(CONFIG, records)
    drawn = []
    original = dataset.draw_image_transform

    def spy(*args):
        drawn.append(original(*args))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "draw_image_transform", spy)
        sample = data.sample(3, rng(seed))
    plain = reference2image(records, 3, [records.cameras(3)])[0]  # [6, 4, 4]
    boxes, _ = training_boxes(records, 3, CONFIG.class_names, CONFIG.head.pc_range)
    for camera in range(6):
        before, depth = project(drawn[0].ida @ plain[camera], boxes[:, :3])
        after, _ = project(sample.reference2image[0, camera], sample.truth.boxes[:, :3].double().numpy())
        seen = depth > 1
        np.testing.assert_allclose(after[seen], before[seen], rtol=1e-5, atol=1e-3)  # float32


@pytest.mark.parametrize("resize", [0.2, 0.25])
def test_resizing_is_relative_to_the_width_of_nuscenes(records, resize):
    """The made-up images are 400 pixels wide; they become as wide as nuScenes' of 1600 would."""
    config = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, resize=(resize, resize)))
    drawn = []
    original = dataset.draw_image_transform
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "draw_image_transform", lambda *args: drawn.append(original(*args)) or drawn[-1])
        NuScenesTraining(config, records).sample(3, rng())
    (transform,) = drawn
    assert records.images(records.cameras(3))[0].calibration.width == 400
    assert abs(transform.ida[0, 0]) == pytest.approx(resize * 1600 / 400)


def test_a_damaged_file_costs_its_key_frame_alone(records, synthetic_nuscenes, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(synthetic_nuscenes, root)
    broken = open_split(root, VERSION, "mini_val")
    path = root / broken.paths(broken.cameras(9))[2]
    path.write_bytes(path.read_bytes()[:100])
    sample = NuScenesTraining(CONFIG, broken).sample(9, rng())
    assert sample.images.shape == (4, 6, 256, 704, 3)
    assert "another key frame takes its place" in caplog.text and "CAM_FRONT_LEFT" in caplog.text.upper()
    for file in root.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(NuScenesError, match=r"21 key frames in a row cannot be used, .*No such file"):
        NuScenesTraining(CONFIG, broken).sample(0, rng())


def test_a_variant_without_a_recipe_is_refused(records):
    with pytest.raises(ConfigError, match="says nothing of its training"):
        NuScenesTraining(dataclasses.replace(CONFIG, training=None), records)


def test_data_sets_are_joined_one_after_the_other(records):
    whole = NuScenesTraining(CONFIG, records)
    few = NuScenesTraining(CONFIG, records.of_scenes(records.scenes[-1:]))
    joined = JoinedData([few, whole, few])
    assert len(joined) == len(whole) + 2 * len(few)
    ends = np.cumsum([0, len(few), len(whole), len(few)])
    for part, data in enumerate((few, whole, few)):
        for index, place in ((0, ends[part]), (len(data) - 1, ends[part + 1] - 1)):
            wanted, sample = data.sample(index, rng(part)), joined.sample(int(place), rng(part))
            assert np.array_equal(wanted.images, sample.images)
            assert np.array_equal(wanted.truth.boxes, sample.truth.boxes)


@pytest.mark.slow
def test_a_model_trains_on_it(records, tmp_path):
    config = small_config(epochs=1, resize=(0.04, 0.05))
    assert train(config, NuScenesTraining(config, records), settings(tmp_path, precision="bf16")).steps == 5
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 5 and np.isfinite(losses).all()


def test_features_made_beforehand_are_those_of_inference(records, tmp_path):
    """By two processes; what differs from sample to sample is the world alone."""
    config = dataclasses.replace(CONFIG, frames=FramesConfig(past=2))
    torch.manual_seed(0)
    model = build_model(config).eval()
    step = find_part(config, "all").step(model, config.training, "fp32")
    first, second = (JoinedData([NuScenesTraining(config, records)] * 2).encoded for _ in range(2))
    data = first(step.encode_pixels, tmp_path, 0, 2)
    second(step.encode_pixels, tmp_path, 1, 2)
    assert len(data) == 2 * len(records)
    preprocess = Preprocessor(config, "cpu")
    for index in (0, len(records) - 1):
        sample, again = data.sample(index, rng(1)), data.sample(len(records) + index, rng(2))
        queue = evaluation_queue(records, index, config.frames)
        for t, image_set in enumerate(queue):
            inputs, _ = preprocess(read_frame(records, index, image_set))
            with torch.no_grad():
                levels = model.encode(inputs)["levels"]
            for level, kept in zip(levels, sample.images, strict=True):
                assert kept.dtype == np.float16
                np.testing.assert_allclose(kept[t], level.numpy(), rtol=2e-3, atol=1e-4)
        for one, other in zip(sample.images, again.images, strict=True):
            assert np.array_equal(one, other)
        assert not np.allclose(sample.reference2image, again.reference2image)
        batch = collate([(sample, 0), (again, 1)])
        views = step.encode(batch, [])
        assert len(views.levels_by_frame) == 3 and views.image_size == (256, 704)
        assert torch.equal(views.levels_by_frame[1][0][0], torch.from_numpy(sample.images[0][1]).float())
    preprocess.close()


def test_an_image_that_cannot_be_encoded_costs_its_key_frame_alone(records, synthetic_nuscenes, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(synthetic_nuscenes, root)
    broken = open_split(root, VERSION, "mini_val")
    (root / broken.paths(broken.cameras(9))[2]).write_bytes(b"")
    config = dataclasses.replace(CONFIG, frames=FramesConfig(past=0))
    encode = lambda pixels: [torch.from_numpy(pixels[:, :2, :2]).float()] * 3  # noqa: E731
    data = NuScenesTraining(config, broken).encoded(encode, tmp_path / "features", 0, 1)
    assert "its key frame takes no part" in caplog.text
    assert data.sample(9, rng()).images[0].shape == (1, 6, 2, 2, 3)
    assert "could not be read; another key frame takes its place" in caplog.text


@pytest.mark.parametrize("bad", [7e4, -float("inf"), float("nan")])
def test_features_that_float16_cannot_hold_are_named(records, tmp_path, bad):
    config = dataclasses.replace(CONFIG, frames=FramesConfig(past=0))

    def encode(pixels):
        levels = [torch.zeros(len(pixels), 2, 2, 3) for _ in range(3)]
        levels[1][0, 0, 0, 0] = bad
        return levels

    with pytest.raises(TrainingError, match="features of level 1 .*float16.*another encoder"):
        NuScenesTraining(config, records).encoded(encode, tmp_path / "features", 0, 1)


def test_the_command_trains_a_decoder_alone(records, tmp_path, capsys):
    options = ["--data", records.root, "--version", VERSION, "--split", "mini_val", "--device", "cpu", "--workers", 1]
    options += ["--variant", "sparsebev_tiny", "--epochs", 1, "--batch", len(records), "--part", "decoder", *SMALL]
    write_initial_weights("sparsebev_tiny", tmp_path / "init.safetensors", seed=0)
    command = ["train", *options, "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in command]) == 1
    assert "give weights that hold them with init" in capsys.readouterr().err
    assert cli.main([str(part) for part in [*command, "--init", tmp_path / "init.safetensors"]]) == 0
    assert "done: 1 steps" in capsys.readouterr().out


def test_the_command_takes_several_roots(records, tmp_path, capsys):
    """The one step of an epoch is as large as both roots together."""
    options = ["--variant", "sparsebev_tiny", "--version", VERSION, "--split", "mini_val", "--out", tmp_path / "out"]
    options += [
        "--device",
        "cpu",
        "--workers",
        0,
        "--part",
        "encoder",
        "--epochs",
        1,
        "--batch",
        2 * len(records),
        *SMALL,
    ]
    command = ["train", "--data", records.root, records.root, *options]
    assert cli.main([str(part) for part in command]) == 0
    assert "done: 1 steps" in capsys.readouterr().out
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    assert state["identity"]["samples"] == 2 * len(records)
