import dataclasses

import pytest
import yaml

from bev_perception.config import ConfigError
from bev_perception.families import variants
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.variants import list_variants, load_variant


@pytest.mark.parametrize("name", list_variants())
def test_every_variant_loads_and_round_trips(name, tmp_path):
    variant = load_variant(name)
    assert variant.name == name and variant.family
    written = tmp_path / f"{name}.yaml"
    written.write_text(yaml.safe_dump(_plain(dataclasses.asdict(variant))))
    assert load_variant(written) == variant


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def variant_file(tmp_path, change, name="mine"):
    values = _plain(dataclasses.asdict(load_variant("sparsebev_tiny"))) | {"name": "mine"}
    change(values)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["head"].update(num_querys=4),
            r"mine.yaml.head: unknown key 'num_querys'; did you mean 'num_query'",
        ),
        (lambda v: v.update(zzz=1), "unknown key 'zzz'; valid keys: name, family"),
        (lambda v: v.pop("image"), "missing key 'image'"),
        (lambda v: v["image"].update(height="tall"), "image.height: expected int, got 'tall'"),
        (lambda v: v["image"].update(height=True), "image.height: expected int, got True"),
        (lambda v: v["image"].update(mean=[1, 2]), "image.mean: expected 3 values, got 2"),
        (lambda v: v["image"].update(mean=7), "image.mean: expected a list"),
        (lambda v: v["image"].update(channel_order="brg"), "image.channel_order is 'brg'; it must be 'rgb' or 'bgr'"),
        (lambda v: v["image"].update(width=0), "image: height, width, pad and std must be positive"),
        (lambda v: v["frames"].update(interval=0), "interval and max_gap must be positive"),
        (lambda v: v["frames"].update(order="mixed"), "frames.order is 'mixed'; it must be 'sequential' or 'interl"),
        (lambda v: v["frames"].update(order="interleaved"), "past and future must be equal"),
        (lambda v: v["backbone"].update(depth=0), "backbone.depth is 0; it must be positive"),
        (lambda v: v["backbone"].update(width=0), "backbone.width must be positive"),
        (lambda v: v["backbone"].update(first_level=4), "backbone.first_level must be one of 0, 1, 2, 3"),
        (lambda v: v["backbone"].update(type="vovnet"), "patches are of a resnet, not of 'vovnet'"),
        (
            lambda v: v["training"].update(encoder="thawed"),
            "training.encoder is 'thawed'; it must be 'finetune', 'scra",
        ),
        (lambda v: v["training"].update(denoising_velocity=-1), "training.denoising_velocity must not be negative"),
        (lambda v: v["backbone"]["eva02"].update(window=8), "eva02 has no meaning for a backbone of type 'resnet'"),
        (lambda v: v["backbone"]["eva02"].update(window=0), "sizes must be positive"),
        (lambda v: v["backbone"]["eva02"].update(num_heads=7), "a multiple of 4"),
        (lambda v: v["backbone"]["eva02"].update(drop_path=1), "drop_path is 1.0; it must lie in 0..1"),
        (lambda v: v.update(head=3), "head: expected a mapping, got int"),
        (lambda v: v.update(name="yours"), "name is 'yours'; it must equal the file's name"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_variant(variant_file(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"occ_size": (100, 200, 16)}, "gives voxels of 0.8 x 0.4 x 0.4 m; they must be cubes"),
        ({"occ_size": (0, 200, 16)}, "must be cubes"),
        ({"occ_range": (40.0, -40.0, -1.0, -40.0, 40.0, 5.4)}, "must be cubes"),
        ({"score_threshold": 1.5}, "score_threshold and overlap_threshold must lie in 0..1"),
        ({"kept_testing": (1, 0, 1)}, "at least one voxel"),
        ({"mask_layers": -1}, "mask_layers must not be negative"),
    ],
)
def test_mistakes_of_an_occupancy_head_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        SparseOccHeadConfig(**change)


def test_a_file_of_ones_own_works_and_int_is_taken_for_float(tmp_path):
    path = variant_file(tmp_path, lambda v: v["frames"].update(interval=1))
    variant = load_variant(path)
    assert variant.frames.interval == 1.0 and isinstance(variant.frames.interval, float)


def test_unknown_variant_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'sparsebev_tiny'"):
        load_variant("sparsebev_tini")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the variant file"):
        load_variant(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="cannot read the variant file"):
        load_variant(broken)


def test_shipped_weights_lie_beside_the_variants(shipped):
    assert variants.shipped_weights("sparsebev_tiny") == shipped
    assert variants.shipped_weights("sparseocc_tiny") is None


def test_an_incomplete_installation_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(variants, "__file__", str(tmp_path / "a" / "b" / "c" / "variants.py"))
    with pytest.raises(ConfigError, match="installation is incomplete"):
        variants.variants_directory()
    share = tmp_path / "share" / "bev_perception" / "config" / "models"
    share.mkdir(parents=True)
    assert variants.variants_directory() == share
