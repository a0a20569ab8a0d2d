import dataclasses

import pytest
import yaml

from bev_perception.config import ConfigError
from bev_perception.families import variants
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.variants import list_variants, load_variant, write_variant


@pytest.mark.parametrize("name", list_variants())
def test_every_variant_loads_and_round_trips(name, tmp_path):
    variant = load_variant(name)
    assert variant.name == name and variant.family
    assert load_variant(write_variant(variant, tmp_path)) == variant
    assert load_variant(variant) is variant


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
        (lambda v: v["backbone"].update(type="vovnet"), "width and patches and first_level cannot be set for 'vovnet'"),
        (lambda v: v["backbone"].update(style="tea"), "backbone.style is 'tea'; it must be 'pytorch' or 'caffe'"),
        (lambda v: v["backbone"].update(deformable_stages=[5]), "must be of 1, 2, 3, 4"),
        (lambda v: v["neck"].update(extra="none"), "neck.extra is 'none'; it must be 'subsample' or 'convolution'"),
        (
            lambda v: v["training"].update(encoder="thawed"),
            "training.encoder is 'thawed'; it must be 'finetune', 'scra",
        ),
        (
            lambda v: v["training"]["family"]["proposals"].update(denoising_velocity=-1),
            "training.family.proposals.denoising_velocity must not be negative",
        ),
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
    with pytest.raises(ConfigError, match="(?s)cannot read .*; correct the file"):
        load_variant(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ConfigError, match="(?s)cannot read .*; correct the file"):
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


def written(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return path


BASED = "extends: sparsebev_tiny\nname: mine\n"


def test_a_file_may_extend_a_variant(tmp_path):
    tiny = load_variant("sparsebev_tiny")
    path = written(tmp_path, BASED + "head: {proposals: {queries: 9}}\nclass_names: [car]\n")
    mine = load_variant(path)
    head = dataclasses.replace(tiny.head, proposals=dataclasses.replace(tiny.head.proposals, queries=9))
    assert mine == dataclasses.replace(tiny, name="mine", head=head, class_names=("car",))
    # a path is relative to the file, and what extends may be extended
    again = written(tmp_path, "extends: mine.yaml\nname: again\nframes: {past: 1}\n", "again")
    frames = dataclasses.replace(tiny.frames, past=1)
    assert load_variant(again) == dataclasses.replace(mine, name="again", frames=frames)


@pytest.mark.parametrize(
    "text, says",
    [
        ("extends: mine.yaml\nname: mine\n", "mine.yaml extends itself: mine.yaml -> mine.yaml"),
        ("extends: sparsebev_tinny\nname: mine\n", "did you mean 'sparsebev_tiny'"),
        ("extends: [sparsebev_tiny]\nname: mine\n", "name one variant"),
        (BASED + "head: {num_quary: 4}\n", "did you mean 'num_query'"),
        (BASED + "name: mine\n", "'name' is given twice"),
        (BASED + "frames: {past: 1, past: 2}\n", "'past' is given twice"),
        (BASED + "frames: {interval: .nan}\n", "frames.interval: nan is no finite number"),
        (BASED + "training: {lr: .inf}\n", "training.lr: inf is no finite number"),
        (BASED + "image: {mean: [.nan, 1, 1]}\n", r"image.mean\[0\]: nan is no finite"),
        ("name: &a mine\nfamily: *a\n", "aliases"),
        ("name: mine\nfamily: {<<: {a: 1}}\n", "a key must be a plain word"),
        ("name: mine\nfamily: [sparsebev]\n", r"unknown family \['sparsebev'\]; known: .*sparsebev, sparseocc"),
        ("name: mine\nfamily: " + 30 * "[" + 30 * "]", "more than 20 levels"),
        ("- name: mine\n", "expected a mapping, got list"),
        ("", "expected a mapping, got NoneType"),
        ("name: mine\n# " + 1_000_001 * "x", "larger than 1000000 bytes"),
        ("? [name]\n: mine\n", "a key must be a plain word"),
        ("name: 2026-13-45\n", "cannot read"),
    ],
)
def test_files_that_mean_something_else_are_refused(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load_variant(written(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot read .*mine.yaml"):
        load_variant(path)


def test_settings_may_be_changed_one_by_one():
    tiny = load_variant("sparsebev_tiny")
    changed = load_variant("sparsebev_tiny", ["head.proposals.queries=9", "training.lr=1e-4", "class_names=[car, bus]"])
    assert changed.head.proposals.queries == 9 and changed.class_names == ("car", "bus")
    assert changed.training == dataclasses.replace(tiny.training, lr=1e-4)
    assert load_variant("sparsebev_tiny") == tiny


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "head.num_quary=4",
            r"tiny.yaml with head.num_quary=4.head: unknown .* did you mean 'num_query'",
        ),
        ("haed.num_query=4", "unknown key 'haed'; did you mean 'head'"),
        ("head.num_query=5", r"head.num_query \(5\) must be a square number"),
        ("head.num_query=many", "head.num_query: expected int, got 'many'"),
        ("training.lr=.nan", "nan is no finite number"),
        ("head.num_query", "write KEY=VALUE"),
        ("=4", "write KEY=VALUE"),
        ("head..num_query=4", "write KEY=VALUE"),
        ("name.first=4", "name is no mapping"),
        ("class_names=[car", "is no value"),
        ("training.lr=2021-02-30", "is no value"),
        ("training.lr=" + 5000 * "9", "is no value"),
        ("training.lr=!!int abc", "is no value"),
        ("training.lr=!!bool x", "is no value"),
        ("training.lr=!!timestamp x", "is no value"),
        ("name=other", "a variant is named and extended in a file of its own"),
        ("extends=sparseocc_tiny", "a variant is named and extended in a file of its own"),
        ("head.num_groups=0", r"head.num_groups \(0\) must be positive"),
        ("head.num_points=0", r"head.num_points \(0\) must be positive"),
        ("head.dropout=5", r"head.dropout \(5.0\) must lie in 0..1, below 1"),
        ("head.pc_range=[0, 0, 0, 0, 0, 0]", "head.pc_range .* is empty"),
        ("head.decode.max_num=-5", r"head.decode.max_num \(-5\) must be positive"),
        ("head.decode.score_threshold=2", "must lie in 0..1"),
        ("neck.num_outs=0", r"neck.num_outs \(0\) must be positive"),
        ("training.weight_decay=-1", "training.weight_decay must not be negative"),
        ("class_names=[]", "class_names must name at least one class"),
        ("class_names=[car, car]", "must name each class once"),
    ],
)
def test_changes_that_mean_nothing_are_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        load_variant("sparsebev_tiny", [text])


def test_null_takes_out_a_mapping_that_is_extended(tmp_path):
    mine = load_variant(written(tmp_path, BASED + "training: null\n"))
    assert mine.training is None and mine.head == load_variant("sparsebev_tiny").head


@pytest.mark.parametrize("text", ["num_query: -1", "embed_dims: -64", "ffn_dim: 0"])
def test_heads_check_themselves(tmp_path, text):
    path = written(tmp_path, f"extends: sparseocc_tiny\nname: mine\nhead: {{{text}}}\n")
    with pytest.raises(ConfigError, match="must be positive"):
        load_variant(path)
