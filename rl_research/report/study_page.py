"""The page of a study: every seed of every setting, their interquartile mean, and its interval."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.report import figures
from rl_research.report.figures import number
from rl_research.system import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_study(study: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the folder of *study*, a `studies.study_result`; return its path."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    folder, rows = Path(study["folder"]), study["settings"]
    label = f"Scores of {len(rows)} settings by seed"
    drawn = figures.svg(_scores(rows), 720, 90 + 44 * len(rows), "scores", label)
    looks = Environment(autoescape=True, loader=FileSystemLoader(Path(__file__).parent))
    page = looks.get_template("study.html").render(
        study=study,
        figure=Markup(drawn),  # it escapes its own label
        mean_and_interval=_mean_and_interval,
        page=lambda run: Path(os.path.relpath(run, folder), "report.html").as_posix(),
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def study_markdown(study: Mapping[str, Any]) -> str:
    """Return the table of the page as Markdown, for Prefect's pages."""
    lines = [f"# {study['name']}", "", "| setting | interquartile mean | 95 % interval | seeds |"]
    lines.append("| --- | --- | --- | --- |")
    for row in study["settings"]:
        mean, interval = _mean_and_interval(row)
        seeds = f"{len(row['scores'])} of {len(row['runs'])}"
        lines.append(f"| `{row['setting'] or 'as it is'}` | {mean} | {interval} | {seeds} |")
    lines += ["", f"Page: `{study['folder']}/report.html`"]
    return "\n".join(lines) + "\n"


def _mean_and_interval(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the interquartile mean and its interval, or dashes."""
    mean, interval = row["iqm"], row["interval"]
    between = "–" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
    return ("–" if mean is None else number(mean)), between


def _scores(rows: Sequence[Mapping[str, Any]]) -> figures.Draw:
    def draw(axes: Axes) -> None:
        colour = figures.COLOURS["evaluation"]
        for place, row in enumerate(rows):
            scores = list(row["scores"].values())
            axes.plot(scores, [place] * len(scores), "o", color=colour, alpha=0.45)
            if row["iqm"] is not None:
                axes.plot([row["iqm"]], [place], "|", color=colour, markersize=22)
            if row["interval"] is not None:
                axes.plot(row["interval"], [place, place], color=colour, linewidth=2.5)
        axes.set_yticks(range(len(rows)), [row["setting"] or "as it is" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title("final score by seed", loc="left")

    return draw
