"""Compare two files of `bench`: times side by side, and shares of what each machine reached in its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bev_perception.evaluation.errors import EvaluationError
from bev_perception.strict import JsonError, parse_json, read_regular


def compare_benchmarks(first: Path, second: Path) -> str:
    """Return a table of the variants that both files hold: median times in ms, their ratio, and both shares.

    first, second: JSON files that `bench` has written, for one variant or for all

    Raises EvaluationError for files of another kind, and for files without a common variant.
    """
    a, b = _timings(first), _timings(second)
    common = [key for key in a if key in b]
    if not common:
        raise EvaluationError(
            f"{first} and {second} have no variant in common: {_listed(a)} there, {_listed(b)} here; compare two runs "
            "of the same variants and precision"
        )
    lines = [f"{'':44}{'A ms':>10}{'B ms':>10}{'B / A':>8}{'A share':>9}{'B share':>9}"]
    for key in common:
        lines.append(key)
        for stage, (median, _) in a[key]["ms"].items():
            if stage not in b[key]["ms"]:
                continue
            other = b[key]["ms"][stage][0]
            shares = f"{_share(a[key]):9.0%}{_share(b[key]):9.0%}" if stage == "network" else ""
            lines.append(f"  {stage:42}{median:10.1f}{other:10.1f}{other / median:8.2f}{shares}")
    return "\n".join(lines)


def _timings(path: Path) -> dict[str, dict[str, Any]]:
    """Return the timings in a file by variant, precision and device."""
    try:
        document = parse_json(read_regular(path))
        found = document["stages"].values() if "stages" in document else [document]
        timings = {f"{t['variant']}, {t['precision']} on {t['device']}": t for t in found}
        for timing in timings.values():
            _share(timing)
    except (JsonError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise EvaluationError(
            f"{path} is no file that this version's `bench` has written ({error!r}); make it anew"
        ) from error
    return timings


def _share(timing: dict[str, Any]) -> float:
    """Return the share of the machine's matrix product that the network reached."""
    seconds = timing["ms"]["network"][0] / 1e3
    return sum(timing["flops"].values()) / 1e9 / seconds / timing["limits"]["gflops"]


def _listed(timings: dict[str, dict[str, Any]]) -> str:
    return "; ".join(timings) or "nothing"
