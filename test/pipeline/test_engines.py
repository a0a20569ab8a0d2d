import dataclasses
import gc
import importlib.util
import logging
import weakref

import pytest
import torch

from bev_perception.cli import make_parser
from bev_perception.config import ConfigError
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.models.folding import fold_batch_norms
from bev_perception.pipeline import engines
from bev_perception.pipeline.encoders import empty_input
from bev_perception.pipeline.engines import ENGINES, check_engine, use_engine
from bev_perception.pipeline.engines.part import CheckedEngine, EngineError
from bev_perception.pipeline.pipeline import PipelineSettings
from bev_perception.ros.parameters import PARAMETERS

CPU = torch.device("cpu")
SMALL = ["image.height=64", "image.width=96", "backbone.width=8"]
#: engine -> modules without which it is refused
NEEDS = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEV_PERCEPTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture(scope="module")
def config():
    return load_variant("sparsebev_tiny", SMALL)


def build(config, seed=0):
    torch.manual_seed(seed)
    model = build_model(config).eval()
    fold_batch_norms(model)
    return model


def pictures(config, cameras, seed=1):
    inputs = empty_input(cameras, config.image.height, config.image.width, CPU)
    return dataclasses.replace(
        inputs, images=torch.randn(inputs.images.shape, generator=torch.Generator().manual_seed(seed))
    )


class Doubling:
    """An engine that gives what eager mode gives, or `factor` times as much, and counts what it builds."""

    def __init__(self, model, factor=1.0):
        self.model, self.factor, self.built, self.ran = model, factor, 0, 0

    def build(self, part, directory):
        self.built += 1
        (directory / "file").write_text("built")

    def load(self, directory, precision, device):
        assert (directory / "file").read_text() == "built"

        def run(images):
            self.ran += 1
            return tuple(level * self.factor for level in self.model.image_maps(images))

        return run

    def put_in(self, monkeypatch):
        kind = engines._Engine(lambda *_: None, self.build, self.load)
        monkeypatch.setitem(engines._ENGINES, "compile", kind)


class TestAnyEngine:
    def test_it_is_built_once_and_kept(self, config, cache, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        for _ in range(2):
            use_engine(model, config, "compile", "fp32", CPU)
            model.engine = None
        assert made.built == 1 and len(list(cache.iterdir())) == 1
        assert [r.message.split()[0] for r in caplog.records] == ["building", "built"]

    @pytest.mark.parametrize("change", ["weights", "size", "precision"])
    def test_another_one_is_built_for_other_weights_sizes_or_precisions(self, config, cache, monkeypatch, change):
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        made.model = model = build(config, seed=int(change == "weights"))
        other = load_variant("sparsebev_tiny", [*SMALL, "image.width=128"]) if change == "size" else config
        use_engine(model, other, "compile", "bf16" if change == "precision" else "fp32", CPU)
        assert made.built == 2

    def test_encode_uses_it_and_results_are_those_of_eager_mode(self, config, cache, monkeypatch):
        model = build(config)
        eager = model.encode(pictures(config, 6))
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        ran = made.ran
        for a, b in zip(model.encode(pictures(config, 6))["levels"], eager["levels"], strict=True):
            assert torch.equal(a, b)
        assert made.ran == ran + 1

    def test_one_that_computes_something_else_is_refused_when_it_is_loaded(self, config, cache, monkeypatch):
        model = build(config)
        Doubling(model, 1.01).put_in(monkeypatch)
        with pytest.raises(EngineError, match=r"differs from eager mode by 0\.01 .* choose engine 'eager'"):
            use_engine(model, config, "compile", "fp32", CPU)
        assert model.engine is None

    def test_the_first_frame_is_compared_again_and_only_it(self, config, cache, monkeypatch):
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        made.factor = float("nan")
        with pytest.raises(EngineError):
            model.encode(pictures(config, 2))
        made.factor = 1.0
        model.encode(pictures(config, 2))
        made.factor = 2.0
        model.encode(pictures(config, 2))

    def test_black_images_do_not_count_as_the_first_frame(self, config, cache, monkeypatch):
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        model.encode(empty_input(2, config.image.height, config.image.width, CPU))
        made.factor = 2.0
        with pytest.raises(EngineError):
            model.encode(pictures(config, 2))

    def test_a_damaged_one_is_built_anew(self, config, cache, monkeypatch, caplog):
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        (kept,) = cache.iterdir()
        (kept / "file").write_text("torn")
        use_engine(model, config, "compile", "fp32", CPU)
        assert made.built == 2 and "it is built anew" in caplog.text

    def test_an_engine_does_not_keep_its_model(self, config, cache, monkeypatch):
        model = build(config)
        made = Doubling(model)
        made.put_in(monkeypatch)
        use_engine(model, config, "compile", "fp32", CPU)
        gone = weakref.ref(model)
        gc.disable()
        try:
            del model, made.model
            assert gone() is None
        finally:
            gc.enable()

    def test_maps_of_zeros_are_compared(self, config):
        model = build(config)
        zeros = CheckedEngine("none", lambda images: (torch.ones(2),), model, "fp32")
        with pytest.raises(EngineError, match="differs from eager mode by 1 "):
            zeros._compare((torch.ones(2),), (torch.zeros(2),))

    def test_a_build_that_fails_leaves_nothing(self, config, cache, monkeypatch):
        def fail(part, directory):
            (directory / "half").write_text("")
            raise RuntimeError("no")

        monkeypatch.setitem(engines._ENGINES, "compile", engines._Engine(lambda *_: None, fail, None))
        with pytest.raises(RuntimeError, match="no"):
            use_engine(build(config), config, "compile", "fp32", CPU)
        assert list(cache.iterdir()) == []

    def test_maps_of_other_sizes_are_refused(self, config):
        model = build(config)
        engine = CheckedEngine("half", lambda images: model.image_maps(images)[:1], model, "fp32")
        with pytest.raises(EngineError, match="other sizes"):
            engine(pictures(config, 1).images)


class TestRefusals:
    def test_an_unknown_one_is_refused(self):
        with pytest.raises(ConfigError, match="must be one of eager, compile, onnxruntime, openvino, tensorrt"):
            check_engine("warp", "fp32", CPU)

    @pytest.mark.parametrize("engine", NEEDS)
    def test_what_to_install_is_said(self, engine, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=f"pip install .*{engine}"):
            check_engine(engine, "fp32", CPU)

    @pytest.mark.parametrize(
        ("engine", "precision", "device", "reason"),
        [
            ("tensorrt", "fp32", "cpu", "for NVIDIA's GPUs"),
            ("openvino", "fp32", "cuda", "runs on the CPU"),
            ("tensorrt", "fp32", "cuda", "pip install .*tensorrt"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, engine, precision, device, reason, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=reason):
            check_engine(engine, precision, torch.device(device))

    def test_no_compiler(self, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(ConfigError, match=r"install g\+\+"):
            check_engine("compile", "fp32", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compile", *NEEDS])
@pytest.mark.parametrize("variant", ["sparsebev_tiny", "bevdet_tiny"])
def test_real_engines_compute_what_eager_mode_does(variant, engine, cache):
    for module in NEEDS.get(engine, ()):
        pytest.importorskip(module)
    config = load_variant(variant, SMALL)
    model = build(config)
    with torch.inference_mode():
        eager = [model.encode(pictures(config, cameras)) for cameras in (1, 5)]
        use_engine(model, config, engine, "fp32", CPU)
        for cameras, wanted in zip((1, 5), eager, strict=True):
            for a, b in zip(model.encode(pictures(config, cameras))["levels"], wanted["levels"], strict=True):
                assert a.dtype == torch.float32
                assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_commands_and_node_offer_the_same_ones():
    for command in (["run", "--bag", "b", "--out", "o"], ["eval"], ["bench"], ["demo"]):
        variant = ["--variant", "sparsebev_tiny"]
        for engine in ENGINES:
            assert make_parser().parse_args([*command, *variant, "--engine", engine]).engine == engine
    (node,) = (spec for spec in PARAMETERS if spec.name == "engine")
    assert node.default == PipelineSettings.engine == "eager"
    assert all(engine in node.description for engine in ENGINES)
