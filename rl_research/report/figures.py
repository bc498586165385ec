"""Figures of a report: inline SVG that takes its colours from the page, or PNG.

A figure is a function that draws on an `Axes`; `svg` and `png` give it one. Nothing here uses pyplot, and
the same data give the same bytes.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rl_research.statistics import Floats, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Axes"], None]

#: Colours by role, for light paper; a page sets ``--fig-ink`` and so on to have others.
COLOURS = {
    "ink": "#24292f",
    "muted": "#5f6771",
    "grid": "#e4e6ea",
    "training": "#2463b4",
    "evaluation": "#b9500b",
    "reference": "#4a525c",
}
_MAX_POINTS = 500
_STEPS = [1, 2, 2.5, 5, 10]  # between ticks, times a power of ten
_style_lock = threading.Lock()  # Matplotlib reads its style from process-wide parameters.


class Series(NamedTuple):
    """One metric over environment steps; values that are not finite are counted and left out."""

    steps: Floats
    values: Floats
    not_finite: int = 0


class Evaluation(NamedTuple):
    """One evaluation while training: its returns, and an interval of their mean if there is one."""

    step: float
    returns: Floats
    interval: Interval | None

    @property
    def mean(self) -> float:
        """Mean return of its episodes."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns of its episodes."""
        return float(self.returns.std())


class Reference(NamedTuple):
    """A score to compare with."""

    label: str
    value: float


def svg(draw: Draw, width: int, height: int, name: str, label: str, kind: str = "plain") -> str:
    """Return the figure of *draw* as an ``<svg>`` element for an HTML page.

    *name* keeps its ids apart from those of other figures of the page. *label* is its text for those who
    do not see it, *kind* its CSS class. Sizes are CSS pixels.
    """
    with _styled(name):
        buffer = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        _figure(draw, width, height).savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _inline(buffer.getvalue(), name, label, kind)


def png(draw: Draw, width: int, height: int) -> bytes:
    """Return the figure of *draw* as a PNG on white, two pixels per CSS pixel."""
    with _styled("png"):
        buffer = io.BytesIO()
        _figure(draw, width, height).savefig(
            buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None}
        )
    return buffer.getvalue()


def learning_curve(training: Series | None, evaluations: Sequence[Evaluation], references: Sequence[Reference]) -> Draw:
    """Return a figure: training as a line, evaluations as points with intervals, references as levels."""

    def draw(axes: Axes) -> None:
        if training is not None:
            _draw_series(axes, training, "training", 1.6)
        if evaluations:
            _draw_evaluations(axes, evaluations)
        _draw_levels(axes, references)
        _step_axis(axes, nbins=5)
        axes.set_xlabel("environment steps")
        axes.set_title("return per episode", loc="left")

    return draw


def metric(series: Series) -> Draw:
    """Return a figure of one metric in a small frame."""

    def draw(axes: Axes) -> None:
        _draw_series(axes, series, "training", 1.2)
        _step_axis(axes, nbins=3)

    return draw


def returns_histogram(returns: Floats, interval: Interval | None, references: Sequence[Reference]) -> Draw:
    """Return a histogram of *returns* with the mean, its *interval* and *references* as lines."""

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.hist(returns, bins=_edges(returns).tolist(), color=COLOURS["evaluation"], alpha=0.45)
        if interval is not None and interval.high > interval.low:
            axes.axvspan(*interval, color=COLOURS["evaluation"], alpha=0.22, linewidth=0)
        axes.axvline(float(returns.mean()), color=COLOURS["evaluation"], linewidth=1.8)
        for reference in references:
            axes.axvline(reference.value, color=COLOURS["reference"], linewidth=1.1, dashes=(4, 3))
        if np.ptp(returns) == 0 and not references:
            axes.set_xlim(returns[0] - 1, returns[0] + 1)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=_STEPS))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.set_xlabel("return of an episode")
        axes.set_title("episodes", loc="left")

    return draw


def short(number: float) -> str:
    """Return ``50k`` for 50,000 and ``1.5M`` for 1,500,000, as on an axis."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    return f"{number:.4g}"


def number(value: float, like: float | None = None) -> str:
    """Return *value* with as many decimals as a score of the size of *like* needs."""
    magnitude = abs(value if like is None else like)
    if magnitude >= 1e7:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    digits = 1 if magnitude >= 100 else 2 if magnitude >= 1 else 3
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _edges(returns: Floats) -> Floats:
    low, high = float(returns.min()), float(returns.max())
    if low == high:
        half = max(abs(low) * 0.01, 0.25)
        return np.array([low - half, low + half])
    if high - low <= 20 and np.all(returns == np.round(returns)):
        return np.arange(low - 0.5, high + 1)
    return np.linspace(low, high, min(20, max(5, round(len(returns) ** 0.5) * 2)) + 1)


def _draw_series(axes: Axes, series: Series, role: str, width: float) -> None:
    """Draw a line; of a long series, the means of equal blocks and their range as a band."""
    steps, values = series.steps, series.values
    if len(values) > 2 * _MAX_POINTS:
        blocks = np.array_split(values, _MAX_POINTS)
        steps = np.array([block.mean() for block in np.array_split(steps, _MAX_POINTS)])
        low, high = ([extreme(block) for block in blocks] for extreme in (np.min, np.max))
        axes.fill_between(steps, low, high, color=COLOURS[role], alpha=0.18, linewidth=0)
        values = np.array([block.mean() for block in blocks])
    marker = "o" if len(values) == 1 else ""
    axes.plot(steps, values, color=COLOURS[role], linewidth=width, marker=marker, markersize=4)


def _draw_evaluations(axes: Axes, points: Sequence[Evaluation]) -> None:
    steps, means = [point.step for point in points], [point.mean for point in points]
    ends = [point.interval or (point.mean, point.mean) for point in points]
    below = [max(0.0, mean - low) for mean, (low, _) in zip(means, ends, strict=True)]
    above = [max(0.0, high - mean) for mean, (_, high) in zip(means, ends, strict=True)]
    crowded = len(points) > 60
    axes.errorbar(
        steps,
        means,
        yerr=[below, above],
        color=COLOURS["evaluation"],
        linewidth=0.9,
        elinewidth=0.9 if crowded else 1.4,
        marker="o",
        markersize=2.5 if crowded else 4.5,
        zorder=3,
    )


def _draw_levels(axes: Axes, references: Sequence[Reference]) -> None:
    """Draw labelled horizontal lines; only the highest has its label above, so that two can be read."""
    ordered = sorted(references, key=lambda reference: reference.value)
    for index, (label, value) in enumerate(ordered):
        below = index < len(ordered) - 1
        axes.axhline(value, color=COLOURS["reference"], linewidth=1, dashes=(4, 3), zorder=1)
        axes.annotate(
            label,
            (0.008, value),
            (0, -3 if below else 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="top" if below else "bottom",
            color=COLOURS["reference"],
        )
    axes.margins(y=0.09)


def _step_axis(axes: Axes, nbins: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short(step)))
    axes.yaxis.set_major_locator(MaxNLocator(nbins, steps=_STEPS))


def _figure(draw: Draw, width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    draw(figure.subplots())
    return figure


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    from matplotlib import style

    with _style_lock, style.context(["default", {**_STYLE, "svg.hashsalt": salt}]):
        yield


_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.titlecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 5),
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
}


def _inline(document: str, name: str, label: str, kind: str) -> str:
    """Return the ``<svg>`` element of *document*: scalable, with own ids, coloured by CSS variables."""
    body = document[document.index("<svg") :].rstrip()
    _, view = re.split(r'(?=viewBox=")', body, maxsplit=1)
    box, content = view.split(">", 1)
    content = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", content, flags=re.DOTALL)
    content = content.replace("xlink:href", "href")
    content = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", content)
    for role, colour in COLOURS.items():
        content = content.replace(colour, f"var(--fig-{role}, {colour})")
    content = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", content)  # Matplotlib < 3.11
    content = re.sub(r"font-family: [^;\"]*;? ?", "", content)
    view_box = box.split('"')[1]
    opening = f'<svg class="{kind}" viewBox="{view_box}" role="img" aria-label="{escape(label)}">'
    return opening + content
