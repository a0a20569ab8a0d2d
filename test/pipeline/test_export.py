import pytest
import torch

from bev_perception.cli import main, make_parser
from bev_perception.config import ConfigError
from bev_perception.families.variants import load_variant
from bev_perception.pipeline import export
from bev_perception.pipeline.engines.part import EngineError
from bev_perception.pipeline.export import FORMATS, export_encoder
from bev_perception.pipeline.loading import write_initial_weights

SMALL = ["image.height=64", "image.width=96", "backbone.width=8"]
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small variant and its weights."""
    config = load_variant("sparsebev_tiny", SMALL)
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    write_initial_weights(config, path, seed=0)
    return config, path


@pytest.fixture
def quick(monkeypatch):
    """The format "torch" without tracing: it writes nothing and runs the part itself."""

    def put(change=lambda maps: maps):
        parts = []
        form = export._FORMATS["torch"]._replace(
            write=lambda part, path: parts.append(part), run=lambda path: lambda images: change(parts[0](images))
        )
        monkeypatch.setitem(export._FORMATS, "torch", form)

    return put


def test_the_readme_says_what_goes_in_and_out(small, quick, tmp_path):
    quick()
    path = export_encoder(*small, "torch", tmp_path / "new")
    text = (path.parent / "encoder.md").read_text()
    assert path.name == "encoder.pt2" and "weights.safetensors, UNTRAINED" in text
    assert "N x 3 x 64 x 96" in text and "order rgb" in text and "(123.675, 116.28, 103.53)" in text
    assert "| `map0` | N x 8 x 12 x 64 |" in text and 'torch.export.load("encoder.pt2")' in text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda maps: [level * 1.001 for level in maps], "differs from the model by 0.001"),
        (lambda maps: [level * float("nan") for level in maps], "differs from the model by nan"),
        (lambda maps: maps[:1], "other sizes"),
    ],
)
def test_a_file_that_computes_something_else_is_an_error(small, quick, tmp_path, change, reason):
    quick(change)
    with pytest.raises(EngineError, match=reason):
        export_encoder(*small, "torch", tmp_path)
    assert not (tmp_path / "encoder.md").exists()


def test_the_command_offers_all_formats(small, quick, tmp_path, capsys):
    quick()
    config, weights = small
    changes = [part for change in SMALL for part in ("--set", change)]
    arguments = ["export", "--variant", config.name, "--checkpoint", str(weights), *changes, str(tmp_path / "out")]
    assert main([*arguments, "--format", "torch"]) == 0
    assert "encoder.pt2, and encoder.md beside it" in capsys.readouterr().out
    for kind in FORMATS:
        assert make_parser().parse_args([*arguments, "--format", kind]).format == kind
    with pytest.raises(ConfigError, match="must be one of onnx, openvino, torch"):
        export_encoder(*small, "caffe", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_files_of_each_format_are_written_and_run(small, kind, tmp_path):
    for module in NEEDS[kind]:
        pytest.importorskip(module)
    path = export_encoder(*small, kind, tmp_path)
    (maps,) = [export._FORMATS[kind].run(path)(torch.zeros(3, 3, 64, 96))]
    assert [tuple(level.shape) for level in maps] == [(3, 8, 12, 64), (3, 4, 6, 64), (3, 2, 3, 64)]
