"""How scores fall when cameras are lost: each one alone, and one to five at random."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from bev_perception.data.drive import CAMERAS
from bev_perception.data.folders import one_writer, sha256_of
from bev_perception.data.records import open_split
from bev_perception.evaluation.errors import EvaluationError
from bev_perception.evaluation.evaluate import EvalSettings, evaluate
from bev_perception.evaluation.regression import headline
from bev_perception.families.variants import load_variant, shipped_weights
from bev_perception.strict import parse_json, read_regular

#: file of the study in the directory of results
STUDY_FILE = "lost_cameras.json"
#: random choices of the cameras that are lost together, for each number of them
DRAWS = 3


@dataclass(frozen=True)
class LostCameras:
    """Scores without some cameras.

    without: names of the cameras that are lost
    scores: by name, such as "mAP", in percent
    """

    without: tuple[str, ...]
    scores: dict[str, float]


def choose_losses(cameras: Sequence[str] = CAMERAS) -> list[tuple[str, ...]]:
    """Return the cases of the study: no camera lost, each camera alone, then 2 or more (all but one) lost at random.

    One lost at random is each camera alone. The random choices are always the same: each has a seed of its own.
    """
    cases: list[tuple[str, ...]] = [(), *((camera,) for camera in cameras)]
    for count in range(2, len(cameras)):
        for seed in range(DRAWS):
            drawn = np.random.default_rng((count, seed)).permutation(len(cameras))[:count]
            case = tuple(cameras[i] for i in sorted(drawn))
            if case not in cases:
                cases.append(case)
    return cases


def study_lost_cameras(settings: EvalSettings) -> list[LostCameras]:
    """Evaluate a variant for all cases of the study, and write STUDY_FILE after each of them.

    A case that the file already holds for the same settings is not evaluated again. The folder is locked against other
    processes meanwhile.

    settings: as for `evaluate`; the results of single cases are written to folders in settings.out

    Raises the errors of `evaluate`, EvaluationError for data without scores, and FolderError where another process
    studies into the same folder.
    """
    file = settings.out / STUDY_FILE
    of = _fingerprint(settings)
    with one_writer(settings.out):
        found = {case.without: case for case in read_study(file, of)}
        cameras = open_split(settings.data, settings.version, settings.split).camera_names
        studied = []
        for without in choose_losses(cameras):
            case = found.get(without) or _evaluate(settings, without)
            studied.append(case)
            _write(file, of, studied)
    return studied


def _evaluate(settings: EvalSettings, without: tuple[str, ...]) -> LostCameras:
    folder = settings.out / ("without_" + "_and_".join(without) if without else "all_cameras")
    scores = evaluate(replace(settings, without=without, out=folder))
    if scores is None:
        raise EvaluationError("there are no scores in this process or split; study a split with truth, in one process")
    return LostCameras(without, headline(scores))


def _fingerprint(settings: EvalSettings) -> dict[str, str]:
    """Return what decides the scores, as text by name; weights are known by what they hold."""
    others = ("checkpoint", "out", "device", "without", "save_occupancy")
    found = {of.name: str(getattr(settings, of.name)) for of in fields(settings) if of.name not in others}
    weights = settings.checkpoint or shipped_weights(load_variant(settings.variant).name)
    return found | {"sha256": "" if weights is None else sha256_of(weights)}


def _write(file: Path, of: dict[str, str], studied: Sequence[LostCameras]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cases = [{"without": list(case.without), "scores": case.scores} for case in studied]
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps({"of": of, "cases": cases}, indent=1) + "\n")
    partial.replace(file)


def read_study(file: Path, of: dict[str, str] | None = None) -> list[LostCameras]:
    """Return the cases in a file of the study; none if there is no file or it is of other settings than `of`.

    Raises EvaluationError for a file that is no study.
    """
    if not file.exists():
        return []
    try:
        study = parse_json(read_regular(file))
        if of is not None and study["of"] != of:
            return []
        return [LostCameras(tuple(case["without"]), dict(case["scores"])) for case in study["cases"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{file} is no study of lost cameras ({error!r}); remove it and run again") from error


def by_number(studied: Sequence[LostCameras]) -> Iterator[tuple[int, str, float, float, float]]:
    """Yield number of lost cameras, name of a score, and its mean, lowest and highest value over the cases."""
    names = list(dict.fromkeys(name for case in studied for name in case.scores))
    for count in sorted({len(case.without) for case in studied}):
        for name in names:
            values = [case.scores[name] for case in studied if len(case.without) == count]
            yield count, name, float(np.mean(values)), min(values), max(values)


def study_table(studied: Sequence[LostCameras]) -> str:
    """Return the study as two tables in Markdown: each camera lost alone, and the mean by the number of lost ones."""
    names = list(dict.fromkeys(name for case in studied for name in case.scores))
    lines = [f"| lost | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in studied:
        if len(case.without) <= 1:
            values = " | ".join(f"{case.scores[name]:.2f}" for name in names)
            lines.append(f"| {case.without[0] if case.without else 'none'} | {values} |")
    lines += ["", f"| number lost | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    rows: dict[int, list[str]] = {}
    for count, _, mean, lowest, highest in by_number(studied):
        rows.setdefault(count, []).append(f"{mean:.2f} ({lowest:.2f} to {highest:.2f})" if count else f"{mean:.2f}")
    lines += [f"| {count} | {' | '.join(cells)} |" for count, cells in rows.items()]
    return "\n".join(lines)
