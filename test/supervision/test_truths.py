"""Key frames as samples of an occupancy model, on the made-up data set."""

import dataclasses
import json

import numpy as np
import pytest
from made_up_labels import make_labels, write_all_labels
from nuscenes_root import VERSION
from training.kit import augmented, settings, small_occupancy_config

from bev_perception import cli
from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import ConfigError
from bev_perception.data.augment import augment_grid, augment_matrices
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, labels_path, read_labels, write_labels
from bev_perception.data.panoptic import prepare_panoptic
from bev_perception.data.records import open_split
from bev_perception.families.sparseocc.config import SparseOccRecipe
from bev_perception.families.sparseocc.targets import mask_targets
from bev_perception.families.variants import load_variant
from bev_perception.geometry import intrinsics_4x4, invert_transform
from bev_perception.pipeline.loading import write_initial_weights
from bev_perception.supervision.samples import NO_INSTANCE
from bev_perception.training import dataset
from bev_perception.training.dataset import NuScenesTraining
from bev_perception.training.train import train
from bev_perception.types import OCC3D_GRID

CONFIG = augmented(load_variant("sparseocc_tiny"))
FREE = OCC3D_CLASSES.index("free")
MASKED, SEEN = SparseOccRecipe(camera_mask=True), SparseOccRecipe(seen_only=True)


def config_with(panoptic=False, **training):
    return dataclasses.replace(
        CONFIG,
        head=dataclasses.replace(CONFIG.head, panoptic=panoptic),
        training=dataclasses.replace(CONFIG.training, **training),
    )


@pytest.fixture(scope="module")
def records(synthetic_nuscenes):
    return open_split(synthetic_nuscenes, VERSION, "mini_val").of_scenes(["scene-0103"])


@pytest.fixture(scope="module")
def labels(records, tmp_path_factory):
    return write_all_labels(records, tmp_path_factory.mktemp("labels"))


def rng(seed=0):
    return np.random.default_rng(seed)


def sample_and_draws(data, index, seed):
    """A sample, and the image transform and the change of the world that were drawn for it."""
    drawn = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_image_transform", "draw_bev"):
            original = getattr(dataset, name)
            patch.setattr(dataset, name, lambda *args, f=original, n=name: drawn.setdefault(n, f(*args)))
        return data.sample(index, rng(seed)), drawn["draw_image_transform"], drawn["draw_bev"]


@pytest.mark.parametrize("seed", range(3))
def test_labels_and_matrices_of_a_sample_are_in_the_same_changed_ego_frame(records, labels, seed):
    sample, transform, world = sample_and_draws(NuScenesTraining(config_with(), records, labels), 3, seed)
    assert 0 < abs(world.rotation) <= np.pi / 8 and world.scale == 1
    assert sample.images.shape == (2, 6, 256, 704, 3)
    for camera, image in enumerate(records.images(records.cameras(3))):
        ego2camera = invert_transform(image.sensor2global) @ records.ego2global(3)
        wanted = augment_matrices(transform.ida @ intrinsics_4x4(image.calibration.intrinsics) @ ego2camera, world)
        np.testing.assert_allclose(sample.reference2image[0, camera], wanted, atol=1e-9)
    source = make_labels(records, 3).semantics
    np.testing.assert_array_equal(sample.truth.semantics, augment_grid(source, world, UNKNOWN_LABEL))
    places, class_ids = mask_targets(source, None, OCC3D_CLASSES)
    np.testing.assert_array_equal(sample.truth.instances, augment_grid(places, world, NO_INSTANCE))
    np.testing.assert_array_equal(sample.truth.class_ids, class_ids)
    assert len(class_ids) >= 4 and sample.truth.visible is None
    unknown = sample.truth.semantics == UNKNOWN_LABEL
    assert 0 < unknown.float().mean() < 0.3
    assert (sample.truth.instances[unknown] == NO_INSTANCE).all()


def test_a_panoptic_variant_needs_objects_in_its_labels(records, labels, tmp_path):
    with pytest.raises(ConfigError, match=r"labels.npz holds no instances; `.*prepare panoptic-occ` writes them"):
        NuScenesTraining(config_with(panoptic=True), records, labels).sample(0, rng())
    prepare_panoptic(records, labels, tmp_path, threads=1)
    sample, _, world = sample_and_draws(NuScenesTraining(config_with(panoptic=True), records, tmp_path), 2, 0)
    source = read_labels(labels_path(tmp_path, records.scenes[2], records.tokens[2], ""))
    places, class_ids = mask_targets(source.semantics, source.instances, OCC3D_CLASSES)
    np.testing.assert_array_equal(sample.truth.instances, augment_grid(places, world, NO_INSTANCE))
    cars = OCC3D_CLASSES.index("car")
    assert (sample.truth.class_ids == cars).sum() == (class_ids == cars).sum() > 1


def test_masks_can_be_limited_to_what_cameras_see(records, labels, tmp_path):
    sample, _, world = sample_and_draws(NuScenesTraining(config_with(family=MASKED), records, labels), 1, 0)
    seen = make_labels(records, 1).mask_camera
    np.testing.assert_array_equal(sample.truth.visible, augment_grid(seen, world, False))
    bare = dataclasses.replace(make_labels(records, 1), mask_camera=None)
    write_labels(labels_path(tmp_path, records.scenes[1], records.tokens[1], ""), bare)
    with pytest.raises(ConfigError, match="holds no mask_camera; train without training.family.camera_mask"):
        NuScenesTraining(config_with(family=MASKED), records, tmp_path).sample(1, rng())


def test_what_nothing_sees_may_count_as_free(records, tmp_path):
    lidar = np.zeros(OCC3D_GRID.shape, bool)
    lidar[:, :, :3] = True  # all of the ground, but of things little
    known = dataclasses.replace(make_labels(records, 1), mask_lidar=lidar)
    write_labels(labels_path(tmp_path, records.scenes[1], records.tokens[1], ""), known)
    sample, _, world = sample_and_draws(NuScenesTraining(config_with(family=SEEN), records, tmp_path), 1, 0)
    free = len(OCC3D_CLASSES) - 1
    hidden = ~(known.mask_camera | known.mask_lidar)
    assert (known.semantics[hidden] != free).any() and (known.semantics[~hidden] != free).any()
    semantics = np.where(hidden, free, known.semantics).astype(np.uint8)
    np.testing.assert_array_equal(sample.truth.semantics, augment_grid(semantics, world, UNKNOWN_LABEL))
    places, _ = mask_targets(semantics, None, OCC3D_CLASSES)
    np.testing.assert_array_equal(sample.truth.instances, augment_grid(places, world, NO_INSTANCE))
    for name in ("mask_camera", "mask_lidar"):
        path = labels_path(tmp_path / name, records.scenes[1], records.tokens[1], "")
        write_labels(path, dataclasses.replace(known, **{name: None}))
        with pytest.raises(ConfigError, match=f"holds no {name}; train without training.family.seen_only"):
            NuScenesTraining(config_with(family=SEEN), records, tmp_path / name).sample(1, rng())


@pytest.mark.parametrize("camera_mask", [False, True])
def test_unknown_labels_are_no_targets(records, tmp_path, camera_mask):
    """They have no class and no mask, and masks are not compared there; outside of the labels nothing changes."""
    known = make_labels(records, 1)
    semantics = known.semantics.copy()
    semantics[50:90, 60:130] = UNKNOWN_LABEL
    for name, labels in (("known", known), ("unknown", dataclasses.replace(known, semantics=semantics))):
        write_labels(labels_path(tmp_path / name, records.scenes[1], records.tokens[1], ""), labels)
    config = config_with(family=SparseOccRecipe(camera_mask=camera_mask))
    (sample, _, world), (other, _, _) = (
        sample_and_draws(NuScenesTraining(config, records, tmp_path / name), 1, 0) for name in ("unknown", "known")
    )
    truth, full = sample.truth, other.truth
    hidden = augment_grid(semantics == UNKNOWN_LABEL, world, outside=False)
    assert (truth.semantics[hidden] == UNKNOWN_LABEL).all() and (truth.instances[hidden] == NO_INSTANCE).all()
    assert not truth.visible[hidden].any()
    compared = np.ones_like(hidden) if full.visible is None else full.visible.numpy()
    np.testing.assert_array_equal(truth.visible, compared & ~hidden)
    np.testing.assert_array_equal(truth.semantics[~hidden], full.semantics[~hidden])


def test_labels_of_other_classes_are_refused(records, labels):
    fewer = dataclasses.replace(config_with(), class_names=OCC3D_CLASSES[1:])
    with pytest.raises(ConfigError, match=r"labels.npz hold the classes .*17, but .* 17 classes.*give the labels"):
        NuScenesTraining(fewer, records, labels).sample(0, rng())


def test_labels_cannot_be_scaled(records, labels):
    bev = dataclasses.replace(CONFIG.training.bev, scale=(0.95, 1.05))
    with pytest.raises(ConfigError, match=r"cannot be scaled; let training.bev.scale be \[1, 1\]"):
        NuScenesTraining(config_with(bev=bev), records, labels)


def test_missing_labels_cost_their_key_frame_alone(records, labels, tmp_path, caplog):
    kept = labels_path(tmp_path, records.scenes[2], records.tokens[2], "")
    write_labels(kept, make_labels(records, 2))
    data = NuScenesTraining(config_with(), records, tmp_path)
    found = data.sample(0, rng()).truth.class_ids
    np.testing.assert_array_equal(found, mask_targets(make_labels(records, 2).semantics, None, OCC3D_CLASSES)[1])
    assert "no occupancy labels at" in caplog.text and "another key frame takes its place" in caplog.text
    kept.unlink()
    with pytest.raises(NuScenesError, match=r"21 key frames in a row cannot be used, .*no occupancy labels at"):
        data.sample(0, rng())


class Two(NuScenesTraining):
    """Two key frames are enough."""

    def __len__(self):
        return 2


def test_a_model_trains_on_it(records, labels, tmp_path):
    """The grid is that of the files here, so the model is a little larger than in other tests."""
    small = small_occupancy_config(epochs=1, resize=(0.04, 0.05))
    head = dataclasses.replace(small.head, occ_size=CONFIG.head.occ_size, occ_range=CONFIG.head.occ_range)
    config = dataclasses.replace(small, head=head)
    assert train(config, Two(config, records, labels), settings(tmp_path, precision="bf16")).steps == 1
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert np.isfinite(line["loss"]) and line["loss_mask_2"] > 0


def test_the_command_takes_a_folder_of_labels(records, tmp_path, capsys):
    options = {"--variant": "sparseocc_tiny", "--data": records.root, "--version": VERSION, "--split": "mini_val"}
    options |= {"--labels": tmp_path / "nowhere", "--out": tmp_path / "out", "--device": "cpu", "--workers": 0}
    options |= {"--init": tmp_path / "init.safetensors"}
    write_initial_weights("sparseocc_tiny", options["--init"], seed=0)
    assert cli.main(["train", *(str(part) for option in options.items() for part in option)]) == 1
    assert f"there are no occupancy labels at {tmp_path / 'nowhere'}" in capsys.readouterr().err
