import json

import pytest

from bev_perception.cli import main
from bev_perception.evaluation.comparison import compare_benchmarks
from bev_perception.evaluation.errors import EvaluationError


def timing(variant="a", network=100.0, gflops=50.0, **more):
    return {
        "variant": variant,
        "precision": "fp32",
        "device": "cpu",
        "ms": {"network": [network, network + 1], "total": [network + 10, network + 12]},
        "flops": {"backbone": 1_000_000_000, "head": 1_000_000_000},
        "limits": {"gflops": gflops, "gb_per_s": 10.0},
        **more,
    }


def written(path, document):
    path.write_text(json.dumps(document))
    return path


def test_times_ratios_and_shares(tmp_path, capsys):
    """Of one machine, which did 20 of 50 GFLOP/s, and of one twice as fast, which did 25 of 100."""
    a = written(tmp_path / "a.json", timing())
    b = written(tmp_path / "b.json", {"stages": {"a": timing(network=80.0, gflops=100.0), "b": timing("b")}})
    assert main(["bench", "--compare", str(a), str(b)]) == 0
    head, name, network, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["A", "ms", "B", "ms", "B", "/", "A", "A", "share", "B", "share"]
    assert name == "a, fp32 on cpu"
    assert network.split() == ["network", "100.0", "80.0", "0.80", "40%", "25%"]
    assert total.split() == ["total", "110.0", "90.0", "0.82"]


@pytest.mark.parametrize("document", [[], {}, {"stages": {"a": {}}}, timing(ms={}), timing(limits=None), 7])
def test_other_files_are_refused(tmp_path, document):
    a, b = written(tmp_path / "a.json", timing()), written(tmp_path / "b.json", document)
    with pytest.raises(EvaluationError, match=r"b.json is no file that this version's `bench` has written"):
        compare_benchmarks(a, b)


def test_nothing_in_common(tmp_path):
    a, b = written(tmp_path / "a.json", timing()), written(tmp_path / "b.json", timing("b"))
    with pytest.raises(EvaluationError, match="a, fp32 on cpu there, b, fp32 on cpu here"):
        compare_benchmarks(a, b)
