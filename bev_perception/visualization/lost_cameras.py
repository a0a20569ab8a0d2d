"""A picture of what lost cameras cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bev_perception.evaluation.lost_cameras import LostCameras, by_number


def draw_lost_cameras(studied: Sequence[LostCameras], path: Path, title: str) -> None:
    """Write a PNG: the scores with each camera lost alone, and by the number of lost cameras.

    studied: with the case of no lost camera
    path: of the picture
    title: such as the variant's name
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    single = [case for case in studied if len(case.without) == 1]
    whole = next(case for case in studied if not case.without)
    rows = list(by_number(studied))
    for i, name in enumerate(whole.scores):
        color, width = f"C{i}", 0.8 / len(whole.scores)
        places = [k + width * (i - (len(whole.scores) - 1) / 2) for k in range(len(single))]
        left.bar(places, [case.scores[name] for case in single], width, color=color, label=name)
        left.axhline(whole.scores[name], color=color, linestyle=":")
        own = [row for row in rows if row[1] == name]
        counts, means = [row[0] for row in own], [row[2] for row in own]
        right.plot(counts, means, "o-", color=color, label=name)
        right.fill_between(counts, [row[3] for row in own], [row[4] for row in own], color=color, alpha=0.2)
    left.set_xticks(range(len(single)), [case.without[0].removeprefix("cam_") for case in single], rotation=20)
    left.set(title=f"{title}: one camera lost (dotted: none)", ylabel="%")
    right.set(title="cameras lost: mean, lowest and highest", xlabel="number lost", ylabel="%")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    canvas.print_png(str(path))
