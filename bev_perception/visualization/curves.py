"""Loss curves: the losses of a training's log as a table and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from bev_perception.strict import UserError, parse_json, read_regular

Rows = list[dict[str, float]]
#: the largest value over the smallest from which an axis is logarithmic
LOG_FROM = 10.0


def draw_curves(logs: Sequence[Path], out: Path) -> int:
    """Write the losses of a training to out.csv and out.png; return the number of rows.

    logs: log.jsonl of the training; several files are consecutive parts of one training. Of each row, "step" alone is
        required: a value that no row has is not drawn, one that some rows lack has gaps
    out: path without suffix

    Raises UserError for a file that is no such log.
    """
    rows = _read(logs)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_table(rows, out.parent / f"{out.name}.csv")
    _draw(rows, out.parent / f"{out.name}.png", out.name)
    return len(rows)


def _read(logs: Sequence[Path]) -> Rows:
    """Return the rows of the logs by step; of a step that was repeated after an interruption, the last row counts."""
    rows: dict[int, dict[str, float]] = {}
    before = 0
    for log in logs:
        try:
            own = [_known(parse_json(line)) for line in read_regular(log).splitlines()]
            rows |= {before + int(row["step"]): row | {"step": before + row["step"]} for row in own}
            before = max(rows)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{log} is no log.jsonl of a training ({error!r}); name the one in its --out") from error
    return [rows[step] for step in sorted(rows)]


def _known(row: dict[str, float | None]) -> dict[str, float]:
    """Return the row with NaN where null stands for a value that was not finite."""
    return {key: float("nan") if value is None else value for key, value in row.items()}


def _write_table(rows: Rows, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _names(rows), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: "" if math.isnan(value) else f"{value:.5g}" for key, value in row.items()} for row in rows
        )


def _names(rows: Rows) -> list[str]:
    """Return the names of all values, in the order in which the rows bring them."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _draw(rows: Rows, path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    marker = "o" if len(rows) == 1 else None  # a line of one point is invisible
    values = {name: [row.get(name, float("nan")) for row in rows] for name in _names(rows)}
    losses = values.get("loss", [])
    if losses:
        left.plot(steps, losses, color="black", marker=marker)
    left.set(title=f"{title}: sum of all losses", xlabel="step", yscale=_scale(losses))
    if "lr" in values:
        rates = left.twinx()
        rates.plot(steps, values["lr"], color="tab:gray", linestyle=":")  # a marker would hide that of the loss
        rates.set(ylabel="learning rate (dotted)")
    parts = {name: line for name, line in values.items() if name.startswith("loss_")}  # earlier passes: "d0.loss_..."
    for name, line in parts.items():
        right.plot(steps, line, label=name, marker=marker)
    scale = _scale([value for line in parts.values() for value in line])
    right.set(title="its parts, of decoders' last passes", xlabel="step", yscale=scale)
    if parts:
        right.legend(fontsize=7, ncols=2)
    canvas.print_png(str(path))


def _scale(values: Sequence[float]) -> str:
    """Return the scale of an axis: logarithmic if the values are positive and spread over more than LOG_FROM."""
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and min(finite) > 0 and max(finite) > LOG_FROM * min(finite) else "linear"
