"""The page of a run: its score, how it learned, how to do it again.

    write_report(Path("runs/cartpole_a"))       # writes and returns runs/cartpole_a/report.html

Text and style are in ``page.html``. The page is one file that loads nothing from anywhere.
"""

import base64
import re
import shlex
import textwrap
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from rl_research.report import figures
from rl_research.report.figures import Reference, Series, number
from rl_research.report.run_folder import RunFolder, finite
from rl_research.statistics import Interval, bootstrap_interval
from rl_research.system import shown_size, write_atomically

_MAX_VIDEO_BYTES = 8_000_000
_WEB = re.compile(r"https?://[^\s<>\"']+\Z")
_FIRST_METRICS = "loss policy_gradient_loss value_loss actor_loss critic_loss entropy_loss "
_FIRST_METRICS += "explained_variance approx_kl clip_fraction ent_coef learning_rate std"


def write_report(run_dir: Path, status: str | None = None) -> Path:
    """Write ``report.html`` into the run's folder, whole or not at all, and return its path.

    *status* replaces the record's own.
    """
    run = Run(run_dir)
    if status is not None:
        run.record.status = status
    write_atomically(path := run_dir / "report.html", _page(run).encode("utf-8", "replace"))
    return path


def summary_markdown(run_dir: Path) -> str:
    """Return a few lines of Markdown about the run, with its learning curve as a picture."""
    run = Run(run_dir)
    lines = [f"# {_markdown(run.name)}", _markdown(" · ".join([*run.facts, run.record.status, run.date]))]
    if run.mean is not None:
        lines.append(f"**{plus_minus(run.mean, run.std)}** {_markdown(run.meaning)}.")
    if (interval := run.interval) is not None:
        lines.append(f"95 % interval of the mean: {number(interval.low)} to {number(interval.high)}.")
    lines += [_markdown(sentence) for sentence in run.verdicts]
    if picture := run.learning_curve_png():
        data = base64.b64encode(picture).decode()
        lines.append(f"![Learning curve](data:image/png;base64,{data})")
    lines += [_markdown(line) for line in (*run.history, run.cost) if line]
    lines += [f"[{label}](<{url}>)" for label, url in run.links.items()]
    return "\n\n".join([*lines, textwrap.indent(run.command, "    ")]) + "\n"


class Run(RunFolder):
    """A run's folder in words and figures."""

    @property
    def facts(self) -> list[str]:
        """Algorithm, environment and seed."""
        record = self.record
        seed = "" if record.seed is None else f"seed {record.seed}"
        return [fact for fact in ((record.algorithm or "").upper(), record.env, seed) if fact]

    @property
    def date(self) -> str:
        """Date on which the run finished, else started."""
        return moment(self.record.finished_at or self.record.started_at)

    @property
    def meaning(self) -> str:
        """Episodes, seeds and policy over which the mean was taken."""
        episodes = (self.scores.episodes if self.scores else 0) or len(self.returns)
        text = f"mean ± standard deviation of the return over {episodes} episodes"
        if self.scores and self.scores.cut:
            text += f", {self.scores.cut} of them cut for having no end"
        if not self.is_final:
            return f"{text}, evaluated while training at step {self.evaluations[-1].step:,.0f}"
        first = self.scores.first_seed if self.scores else None
        seeds = "" if first is None else f" {first} to {first + episodes - 1}"
        kinds = {True: ", deterministic policy", False: ", stochastic policy", None: ""}
        kind = kinds[self.scores.deterministic if self.scores else None]
        return f"{text} on held-out seeds{seeds}{kind}"

    @cached_property
    def interval(self) -> Interval | None:
        """Interval of the mean over episodes; None for too few of them."""
        return bootstrap_interval(self.returns) if len(self.returns) else None

    @property
    def verdicts(self) -> list[str]:
        """Sentences that compare the score with the published one and with the environment's threshold."""
        mean, verdicts = self.mean, []
        if mean is not None and self.published is not None:
            verdicts.append(_against_published(mean, self.published.mean, self.interval))
        if mean is not None and self.threshold is not None:
            solved = "solved" if mean >= self.threshold else "not solved"
            verdicts.append(
                f"{self.record.env or 'The environment'} is {solved}: its threshold is {number(self.threshold)}."
            )
        return verdicts

    @property
    def references(self) -> list[Reference]:
        """Levels that figures show; one where both are the same."""
        levels = {"published": None if self.published is None else self.published.mean, "threshold": self.threshold}
        known = {label: value for label, value in levels.items() if value is not None}
        by_value = {value: [k for k, v in known.items() if v == value] for value in known.values()}
        return [Reference(f"{', '.join(labels)} {number(v)}", v) for v, labels in by_value.items()]

    @property
    def published_score(self) -> str:
        """Published mean ± deviation; empty where none is known."""
        return "" if self.published is None else plus_minus(self.published.mean, self.published.std)

    @property
    def has_learning_curve(self) -> bool:
        """Whether anything was logged that a learning curve can show."""
        return bool(self.evaluations) or "rollout/ep_rew_mean" in self.metrics

    def learning_curve(self, axes: Any) -> None:
        """Draw training and evaluation return over environment steps."""
        training = self.metrics.get("rollout/ep_rew_mean")
        figures.learning_curve(training, self.evaluations, self.references)(axes)

    def learning_curve_png(self) -> bytes | None:
        """Return the learning curve as a PNG, None where there is none."""
        return figures.png(self.learning_curve, 720, 300) if self.has_learning_curve else None

    @property
    def curve_in_words(self) -> str:
        """Learning curve as text, for those who do not see it."""
        named = [("Training", self.metrics.get("rollout/ep_rew_mean"))]
        ends = [(name, s.values[0], s.values[-1]) for name, s in named if s]
        if self.evaluations:
            ends.append(("Evaluation", self.evaluations[0].mean, self.evaluations[-1].mean))
        return " ".join(f"{name} from {number(a)} to {number(b)}." for name, a, b in ends)

    @property
    def returns_in_words(self) -> str:
        """Distribution of the final returns in a sentence."""
        n, low, high = len(self.returns), self.returns.min(), self.returns.max()
        if low == high:
            return f"Every one of {n} episodes returned {number(low)}." if n > 1 else ""
        median = float(np.median(self.returns))
        return f"{n} episodes from {number(low)} to {number(high)}, median {number(median)}."

    @property
    def histogram(self) -> figures.Draw:
        """Distribution of the returns of the final evaluation."""
        return figures.returns_histogram(self.returns, self.interval, self.references)

    @property
    def diagnostics(self) -> list[tuple[str, Series]]:
        """Metrics of Stable-Baselines3's updates, the most useful first."""
        rank = {f"train/{name}": place for place, name in enumerate(_FIRST_METRICS.split())}
        names = [n for n in self.metrics if n.startswith("train/") and n != "train/n_updates"]
        return [(n, self.metrics[n]) for n in sorted(names, key=lambda n: (rank.get(n, 99), n))]

    @property
    def video(self) -> dict[str, str]:
        """Newest film: its name, and its data if it is small, else a link."""
        if (film := self.film) is None:
            return {}
        if film.stat().st_size > _MAX_VIDEO_BYTES:
            link = film.relative_to(self.folder).as_posix()
            return {"name": film.name, "link": quote(link)}
        data = base64.b64encode(film.read_bytes()).decode()
        return {"name": film.name, "data": f"data:video/mp4;base64,{data}"}

    @property
    def command(self) -> str:
        """Command lines that make this run again, under another id; one for each budget that it had."""
        words = [word for word in self.overrides if not re.match(r"\+*run_id=", word)]
        if not (extensions := self.record.extensions):
            return shlex.join(["rl-research", "train", *words])
        words = [word for word in words if not re.match(r"\+*experiment\.total_timesteps=", word)]
        budgets = [self.record.first_budget, *(budget for _, budget in extensions)]
        named = f"run_id={self.record.run_id or self.folder.name}-again"
        ends = [[f"experiment.total_timesteps={budget}", named] for budget in budgets]
        return "\n".join(shlex.join(["rl-research", "train", *words, *end]) for end in ends)

    @property
    def repetition(self) -> str:
        """Sentence that says whether these commands lead to the same bits."""
        record = self.record
        budgets = [record.first_budget or 0, *(budget for _, budget in record.extensions)]
        moved = [step for (step, _), budget in zip(record.extensions, budgets, strict=False) if step < budget]
        if moved:
            return f"Its budget was changed at step {moved[0]:,}, in the middle of training: no command repeats that."
        if any(how.get("resume_mode") == "boundary" for how in record.resume):
            return "It was resumed with new episodes of its environment: a repetition comes close and is not exact."
        if record.parameters_sha256 is None:
            return ""
        extended = "It was extended when it had ended, which stretches its schedules. " if record.extensions else ""
        return f"{extended}With the same versions, a repetition is exact when its parameters have this SHA-256:"

    @property
    def resume_command(self) -> str:
        """Command line that continues it."""
        words = self.overrides
        named = [w for w in words if re.match(r"\+*run_id=", w)] or [f"run_id={self.record.run_id or self.folder.name}"]
        return shlex.join(["rl-research", "train", *[w for w in words if w not in named], *named])

    @property
    def wandb_commands(self) -> list[str]:
        """Commands that show an offline W&B run, and send it to a server."""
        folder = self.record.wandb.dir or self.record.wandb.path
        if self.record.wandb.mode != "offline" or not folder:
            return []
        return [
            shlex.join(["wandb", "leet", "run", folder]),
            shlex.join(["rl-research", "sync", str(Path(folder).parent)]),
        ]

    @property
    def links(self) -> dict[str, str]:
        """Other pages of this run; only web addresses are links."""
        known = (("W&B run", self.record.wandb.url), ("Prefect flow run", self.record.flow_run_url))
        return {label: url for label, url in known if url and _WEB.match(url)}

    @property
    def history(self) -> Iterator[str]:
        """A line for each time that a process resumed the run."""
        for count, segment in enumerate(self.record.segments[1:], 2):
            away = finite(segment.away_seconds)
            after = "" if away is None else f", {away:,.0f} s after the last sign of it"
            ended = f"{segment.after} ({segment.error})" if segment.error else segment.after
            yield f"Segment {count}: {ended}, goes on from step {segment.from_step or 0:,}{after}."

    @property
    def cost(self) -> str:
        """Steps per second, processor time and bytes kept; empty where nothing is known."""
        known = []
        if (speed := self.steps_per_second) is not None:
            known.append(f"{speed:,.0f} steps/s")
        if (cpu := finite(self.record.cpu_seconds)) is not None:
            known.append(f"{cpu:,.0f} CPU seconds")
        if kept := self.checkpoints:
            paths = {path: size for one in kept for path, (size, _) in one.paths().items()}
            bytes_kept = sum(paths.values())
            known.append(f"{bytes_kept / 1e6:,.1f} MB in {len(kept)} checkpoints")
        return f"Cost: {', '.join(known)}." if known else ""


def plus_minus(mean: float, std: float | None) -> str:
    """Return ``487.3 ± 12.0``: the deviation with as many decimals as the mean."""
    return number(mean) if std is None else f"{number(mean)} ± {number(std, mean)}"


def whole(value: object) -> str:
    """Return ``100,096``, or a dash for what is no number."""
    known = finite(value)
    return "–" if known is None else f"{known:,.0f}"


def duration(value: object) -> str:
    """Return ``1 min 52 s`` or ``2 h 05 min``, or a dash for what is no number."""
    if (seconds := finite(value)) is None:
        return "–"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds} s"
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def moment(value: object) -> str:
    """Return ``22 November 2026, 14:03 UTC``; what is no ISO date stays as it is."""
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
    filters = (plus_minus, whole, duration, moment, number)
    looks.filters |= {function.__name__: function for function in filters} | {"size": shown_size}
    looks.globals["svg"] = lambda *drawing: Markup(figures.svg(*drawing))  # escapes its own label
    looks.globals["metric"] = figures.metric
    return looks.get_template("page.html").render(run=run)


def _against_published(mean: float, published: float, interval: Interval | None) -> str:
    gap = mean - published
    if number(abs(gap), mean) == number(0.0, mean):
        return "It equals the published mean."
    words = f"It is {number(abs(gap), mean)} {'above' if gap > 0 else 'below'} the published mean"
    if interval is None:
        return f"{words}."
    return f"{words}, which lies {'inside' if published in interval else 'outside'} the interval."


def _markdown(text: str) -> str:
    """Return *text* as one line, with Markdown's and HTML's characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", " ".join(text.split()))
