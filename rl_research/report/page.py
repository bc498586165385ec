"""One run as one page: what it scored, how it learned, how to do it again.

    write_report(Path("runs/cartpole_a"))       # writes and returns runs/cartpole_a/report.html

The page, whose words and looks are in ``page.html``, is one file that loads nothing from
anywhere. Only ``run.json`` has to exist; whatever else is missing, short or damaged is left out.
"""

from __future__ import annotations

import base64
import re
import shlex
import textwrap
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rl_research.report import figures
from rl_research.report.figures import Reference, Series, number
from rl_research.report.history import cost, history
from rl_research.report.run_folder import RunFolder, finite
from rl_research.statistics import Interval, bootstrap_interval
from rl_research.system import write_atomically

_MAX_VIDEO_BYTES = 8_000_000
_WEB = re.compile(r"https?://[^\s<>\"']+\Z")
_TELLING = "loss policy_gradient_loss value_loss actor_loss critic_loss entropy_loss "
_TELLING += "explained_variance approx_kl clip_fraction ent_coef learning_rate std"


def write_report(run_dir: Path, status: str | None = None) -> Path:
    """Write ``report.html`` into the run's folder, whole or not at all, and return its path.

    *status* is said instead of the record's own.
    """
    run = Run(run_dir)
    if status is not None:
        run.record["status"] = status
    page = _page(run).encode("utf-8", "replace")
    path = run_dir / "report.html"
    write_atomically(path, page)
    return path


def learning_curve_png(run_dir: Path) -> bytes | None:
    """The learning curve as a PNG on white, or None where nothing was logged yet."""
    return _learning_curve_png(Run(run_dir))


def summary_markdown(run_dir: Path) -> str:
    """A few lines of Markdown about the run, its learning curve among them as a picture."""
    run = Run(run_dir)
    lines = [f"# {_markdown(run.name)}", _markdown(" · ".join([*run.facts, run.status, run.date]))]
    if run.mean is not None:
        lines.append(f"**{plus_minus(run.mean, run.std)}** {_markdown(run.meaning)}.")
    if (interval := run.interval) is not None:
        lines.append(f"95 % interval of the mean: {number(interval.low)} to {number(interval.high)}.")
    lines += [_markdown(sentence) for sentence in run.verdicts]
    if picture := _learning_curve_png(run):
        data = base64.b64encode(picture).decode()
        lines.append(f"![Learning curve](data:image/png;base64,{data})")
    lines += [_markdown(line) for line in (*history(run), cost(run)) if line]
    lines += [f"[{label}](<{url}>)" for label, url in run.links.items()]
    return "\n\n".join([*lines, textwrap.indent(run.command, "    ")]) + "\n"


class Run(RunFolder):
    """What a run's folder tells, in words and figures."""

    @property
    def facts(self) -> list[str]:
        """What was trained, on what, from which seed."""
        seed = f"seed {self.text('seed')}" if self.text("seed") else ""
        return [fact for fact in (self.text("algorithm").upper(), self.text("env"), seed) if fact]

    @property
    def date(self) -> str:
        """When the run finished, else when it started."""
        return moment(self.text("finished_at") or self.text("started_at"))

    @property
    def meaning(self) -> str:
        """What the mean is a mean of."""
        episodes = int(finite(self.scores.get("episodes")) or 0) or len(self.returns)
        words = f"mean ± standard deviation of the return over {episodes} episodes"
        if not self.is_final:
            return f"{words}, evaluated while training at step {self.evaluations[-1].step:,.0f}"
        first = finite(self.scores.get("first_seed"))
        seeds = "" if first is None else f" {first:.0f} to {first + episodes - 1:.0f}"
        kinds = {"True": ", deterministic policy", "False": ", stochastic policy"}
        kind = kinds.get(str(self.scores.get("deterministic")), "")
        return f"{words} on held-out seeds{seeds}{kind}"

    @cached_property
    def interval(self) -> Interval | None:
        """The interval of that mean, over episodes; None for too few of them."""
        return bootstrap_interval(self.returns) if len(self.returns) else None

    @property
    def verdicts(self) -> list[str]:
        """The score against what others reached, and against what the environment asks for."""
        published, mean, words = finite(self.published.get("mean")), self.mean, []
        if mean is not None and published is not None:
            words.append(_against_published(mean, published, self.interval))
        if mean is not None and self.threshold is not None:
            solved = "solved" if mean >= self.threshold else "not solved"
            words.append(f"{self.text('env')} is {solved}: its threshold is {number(self.threshold)}.")
        return words

    @property
    def references(self) -> list[Reference]:
        """The levels that figures show; one where both are the same."""
        levels = {"published": finite(self.published.get("mean")), "threshold": self.threshold}
        known = {label: value for label, value in levels.items() if value is not None}
        by_value = {value: [k for k, v in known.items() if v == value] for value in known.values()}
        return [Reference(f"{', '.join(labels)} {number(v)}", v) for v, labels in by_value.items()]

    @property
    def published_score(self) -> str:
        """What others reached with the same settings; empty if nobody said."""
        mean = finite(self.published.get("mean"))
        return "" if mean is None else plus_minus(mean, finite(self.published.get("std")))

    @property
    def has_learning_curve(self) -> bool:
        """Whether anything was logged that a learning curve could show."""
        return bool(self.evaluations) or "rollout/ep_rew_mean" in self.metrics

    def learning_curve(self, axes: Any) -> None:
        """Draw training and evaluation return over environment steps."""
        training = self.metrics.get("rollout/ep_rew_mean")
        figures.learning_curve(training, self.evaluations, self.references)(axes)

    @property
    def curve_in_words(self) -> str:
        """The learning curve for those who do not see it."""
        named = [("Training", self.metrics.get("rollout/ep_rew_mean"))]
        ends = [(name, s.values[0], s.values[-1]) for name, s in named if s]
        if self.evaluations:
            ends.append(("Evaluation", self.evaluations[0].mean, self.evaluations[-1].mean))
        return " ".join(f"{name} from {number(a)} to {number(b)}." for name, a, b in ends)

    @property
    def returns_in_words(self) -> str:
        """The distribution of the final returns in a sentence."""
        n, low, high = len(self.returns), self.returns.min(), self.returns.max()
        if low == high:
            return f"Every one of {n} episodes returned {number(low)}." if n > 1 else ""
        median = float(np.median(self.returns))
        return f"{n} episodes from {number(low)} to {number(high)}, median {number(median)}."

    @property
    def histogram(self) -> figures.Draw:
        """The distribution of the returns of the final evaluation."""
        return figures.returns_histogram(self.returns, self.interval, self.references)

    @property
    def diagnostics(self) -> list[tuple[str, Series]]:
        """What Stable-Baselines3 logs of its updates, the most telling first."""
        rank = {f"train/{name}": place for place, name in enumerate(_TELLING.split())}
        names = [n for n in self.metrics if n.startswith("train/") and n != "train/n_updates"]
        return [(n, self.metrics[n]) for n in sorted(names, key=lambda n: (rank.get(n, 99), n))]

    @property
    def video(self) -> dict[str, str]:
        """The newest film: its name, and itself as data if it is small, else a link."""
        if (film := self.film) is None:
            return {}
        if film.stat().st_size > _MAX_VIDEO_BYTES:
            link = film.relative_to(self.folder).as_posix()
            return {"name": film.name, "link": quote(link)}
        data = base64.b64encode(film.read_bytes()).decode()
        return {"name": film.name, "data": f"data:video/mp4;base64,{data}"}

    @property
    def command(self) -> str:
        """The command line that makes this run again."""
        return shlex.join(["rl-research", "train", *self.overrides])

    @property
    def resume_command(self) -> str:
        """The command line that continues it."""
        words = self.overrides
        named = [w for w in words if re.match(r"\+*run_id=", w)] or [f"run_id={self.text('run_id')}"]
        return shlex.join(["rl-research", "train", *[w for w in words if w not in named], *named])

    @property
    def wandb_commands(self) -> list[str]:
        """How to see an offline W&B run, and how to send it to a server."""
        folder = self.wandb.get("dir") or self.wandb.get("path")
        if self.wandb.get("mode") != "offline" or not folder:
            return []
        return [
            shlex.join(["wandb", "leet", "run", str(folder)]),
            shlex.join(["rl-research", "sync", str(Path(folder).parent)]),
        ]

    @property
    def links(self) -> dict[str, str]:
        """Where else this run can be seen; only web addresses are links."""
        known = (("W&B run", self.wandb.get("url")), ("Prefect flow run", self.text("flow_run_url")))
        return {label: url for label, url in known if isinstance(url, str) and _WEB.match(url)}


def plus_minus(mean: float, std: float | None) -> str:
    """``487.3 ± 12.0``: the deviation with as many decimals as the mean."""
    return number(mean) if std is None else f"{number(mean)} ± {number(std, mean)}"


def whole(value: object) -> str:
    """``100,096``, or a dash for what is no number."""
    known = finite(value)
    return "–" if known is None else f"{known:,.0f}"


def duration(value: object) -> str:
    """``1 min 52 s`` or ``2 h 05 min``, or a dash for what is no number."""
    if (seconds := finite(value)) is None:
        return "–"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds} s"
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def size(value: float) -> str:
    """``137.2 kB``."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} B"


def moment(value: object) -> str:
    """``22 November 2026, 14:03 UTC``; what is no ISO date stays as it is."""
    text = "" if value is None else str(value)
    try:
        date = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
        date, zone = (date.astimezone(timezone.utc), " UTC") if date.tzinfo else (date, "")
    except (ValueError, OverflowError):
        return text
    return f"{date.day} {date:%B %Y, %H:%M}{zone}"


def _page(run: Run) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    looks = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (plus_minus, whole, duration, size, moment, number)
    looks.filters |= {function.__name__: function for function in words}
    looks.globals["svg"] = lambda *drawing: Markup(figures.svg(*drawing))  # escapes its own label
    looks.globals["metric"] = figures.metric
    return looks.get_template("page.html").render(run=run)


def _learning_curve_png(run: Run) -> bytes | None:
    return figures.png(run.learning_curve, 720, 300) if run.has_learning_curve else None


def _against_published(mean: float, published: float, interval: Interval | None) -> str:
    gap = mean - published
    if number(abs(gap), mean) == number(0.0, mean):
        return "It equals the published mean."
    words = f"It is {number(abs(gap), mean)} {'above' if gap > 0 else 'below'} the published mean"
    if interval is None:
        return f"{words}."
    return f"{words}, which lies {'inside' if published in interval else 'outside'} the interval."


def _markdown(text: str) -> str:
    """*text* as one line without Markdown's or HTML's meanings."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", " ".join(text.split()))
