"""Metric names and values: what may be logged, under which name, at which step, how often.

A metric name is made of letters, digits, ``_``, ``-``, ``.`` and inner spaces, grouped by single
slashes: ``eval/mean_reward``. It has at most 250 characters, does not start with ``_`` (W&B keeps
its own values there) and is not ``global_step``, which is the x axis. One name means one thing for
the whole run: a number, an image, a video or a nested mapping. ``custom`` beside ``custom/metric``
is fine: W&B keeps both.
"""

from __future__ import annotations

import logging
import math
import operator
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from rl_research.errors import LoggingError
from rl_research.system import write_text
from rl_research.tracking.metric_names import KNOWN, misspelt

log = logging.getLogger(__name__)

GLOBAL_STEP = "global_step"
MAX_LENGTH = 250
Scalar = bool | int | float | str
Row = dict[str, Scalar]

_PART = r"(?!\.+(?:/|$))[A-Za-z0-9_.-](?:[A-Za-z0-9_. -]*[A-Za-z0-9_.-])?"
_NAME = re.compile(rf"(?!_){_PART}(?:/{_PART})*")
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_./ -]+")


def check_name(name: object) -> str:
    """*name*, if it may name a metric, an image or a video."""
    if not isinstance(name, str):
        raise LoggingError(f"metric name {name!r} is not a string. Use for instance 'custom/{name}'.")
    if name == GLOBAL_STEP:
        raise LoggingError("'global_step' is the x axis of every chart. Give it as step=….")
    if len(name) > MAX_LENGTH:
        raise LoggingError(f"metric name {name[:40]!r}… has {len(name)} characters; {MAX_LENGTH} fit.")
    if not _NAME.fullmatch(name):
        raise LoggingError(
            f"{name!r} cannot name a metric: use letters, digits, '_', '-', '.' and inner spaces, "
            f"grouped by single slashes, not starting with '_'.{_mended(name)}"
        )
    return name


def _mended(name: str) -> str:
    parts = (_FORBIDDEN.sub("_", part).strip(" ") for part in name.split("/"))
    mended = "/".join(part for part in parts if part.strip("._")).lstrip("_")
    return f" For instance {mended!r}." if _NAME.fullmatch(mended) else ""


def flatten(metrics: object) -> dict[str, Any]:
    """*metrics* with nested mappings spelt by slashes: ``{"a": {"b": 1}}`` is ``{"a/b": 1}``."""
    if not isinstance(metrics, Mapping):
        raise LoggingError(
            f"metrics must be a mapping from names to numbers, not {type(metrics).__name__}. "
            'For instance {"eval/mean_reward": 150.0}.'
        )
    row: dict[str, Any] = {}
    for key, value in metrics.items():
        for name, leaf in _leaves(check_name(key), value):
            if check_name(name) in row:
                raise LoggingError(f"metric {name!r} is given twice in one row.")
            row[name] = leaf
    return row


def _leaves(key: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return [(key, value)]
    return [(f"{key}/{name}", leaf) for name, leaf in flatten(value).items()]


def groups(metrics: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The names under which *metrics* has nested mappings."""
    found: set[str] = set()
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{prefix}{key}"} | groups(value, f"{prefix}{key}/")
    return found


def scalar(name: str, value: Any) -> Scalar:
    """*value* as a plain number or string, or one error with name, type and remedy."""
    if isinstance(value, np.generic) or _holds_one(value):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        return float(value)
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Decimal, Fraction)):
        return float(value)
    raise LoggingError(f"metric {name!r} is {_described(value)}. {_remedy(value)}")


def scalars(metrics: object) -> Row:
    """*metrics* as one flat row of plain values."""
    return {name: scalar(name, value) for name, value in flatten(metrics).items()}


def _holds_one(value: Any) -> bool:
    """Whether *value* is a NumPy array or a torch tensor with exactly one element."""
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype != object
    return callable(getattr(value, "numel", None)) and hasattr(value, "item") and value.numel() == 1


def _described(value: Any) -> str:
    kind = type(value).__name__
    shape = getattr(value, "shape", None)
    return f"a {kind} of shape {tuple(shape)}" if shape is not None else f"of type {kind}"


def _remedy(value: Any) -> str:
    if value is None:
        return "Leave it out of the row, or log float('nan')."
    if isinstance(value, complex):
        return "Log its real and imaginary part under two names."
    rank = len(getattr(value, "shape", ()))
    if rank == 4:
        return "Frames go to log_video."
    if rank in (2, 3):
        return "Pictures go to log_image; of other arrays log a number, such as the mean."
    if rank == 1 or isinstance(value, (list, tuple)):
        return "Log a number, such as the mean, or each element under its own name."
    return "Log a number or a string; models go to save_model, pictures to log_image."


_BACKWARDS = (
    "{name!r} at step {step} comes after step {before}: a metric's steps cannot go backwards. "
    "Log in order; continue training with reset_num_timesteps=False, or begin another run with "
    "a new ExperimentLogger."
)


class Names:
    """The names one run has used, each for one kind of thing."""

    def __init__(self) -> None:
        self.first_step: dict[str, int] = {}
        self.descriptions: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._groups: set[str] = set()
        self._given_step: dict[str, int] = {}

    def claim(
        self, names: Iterable[str], kind: str, step: int, given: bool = True, groups: Iterable[str] = ()
    ) -> None:
        """Note that *names* are of *kind* and have reached *step*, or raise and note nothing.

        *groups* are the names given as nested mappings.

        Only steps that were *given* must not go backwards, and only those of one name: a row about
        an earlier step may come late, as Stable-Baselines3's do.
        """
        names = list(names)
        for name in names:
            if (before := self._kinds.get(name, kind)) != kind:
                raise LoggingError(f"{name!r} names a {before} in this run; rename the {kind}.")
        for name in names if given else ():
            if step < (reached := self._given_step.get(name, 0)):
                raise LoggingError(_BACKWARDS.format(name=name, step=step, before=reached))
        self._note(names, kind, step, set(groups))
        if given:
            self._given_step.update(dict.fromkeys(names, step))

    def _note(self, names: list[str], kind: str, step: int, groups: set[str]) -> None:
        if groups <= self._groups and all(self._kinds.get(name) == kind for name in names):
            return
        groups, kinds = groups | self._groups, {**self._kinds, **dict.fromkeys(names, kind)}
        if both := sorted(groups & kinds.keys()):
            raise LoggingError(
                f"{both[0]!r} is a metric and a nested mapping in one run. Rename one of them, "
                f"for instance the metric as {both[0] + '/value'!r}."
            )
        for name in names:
            self._note_name(name, step)
        self._groups, self._kinds = groups, kinds

    def _note_name(self, name: str, step: int) -> None:
        self.first_step.setdefault(name, step)
        if name not in self._kinds and (hint := misspelt(name)):
            log.warning("metric '%s' is logged as it is. Did you mean '%s'?", name, hint)

    def write_table(self, path: Path) -> None:
        """Write name, description and first step of every metric to *path*, as Markdown."""
        if not self.first_step:
            return
        rows = _read_table(path)
        for name, step in self.first_step.items():
            meaning = self.descriptions.get(name) or KNOWN.get(name, "")
            meaning = meaning.replace("|", "\\|")
            before = rows.get(name, ("", step))
            rows[name] = (meaning or before[0], min(step, before[1]))
        lines = [f"| {name} | {text} | {step} |" for name, (text, step) in sorted(rows.items())]
        head = ["| name | description | first step |", "| --- | --- | --- |"]
        write_text(path, "\n".join([*head, *lines]) + "\n")


_TABLE_ROW = re.compile(r"\| (?P<name>[^|]+) \| (?P<text>.*) \| (?P<step>\d+) \|")


def _read_table(path: Path) -> dict[str, tuple[str, int]]:
    """What an earlier segment of the run wrote."""
    if not path.is_file():
        return {}
    found = (_TABLE_ROW.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {row["name"]: (row["text"], int(row["step"])) for row in found if row}


class Steps:
    """Which ``global_step`` a row belongs to.

    Without a step of its own a row belongs to the furthest step so far; before there is any, rows
    are numbered from 0.
    """

    def __init__(self) -> None:
        self._furthest: int | None = None
        self._rows = 0

    def of_row(self, step: object) -> int:
        """The step of a new row of metrics."""
        if step is None and self._furthest is None:
            self._rows += 1
        return self.of_media(step)

    def of_media(self, step: object) -> int:
        """The step of an image or a video, which by itself belongs to the row before it."""
        if step is not None:
            self.reach(whole := _whole(step))
            return whole
        return max(self._rows - 1, 0) if self._furthest is None else self._furthest

    def reach(self, step: object) -> None:
        """Let rows without a step belong to *step*, or to where the run is already."""
        self._furthest = max(_whole(step), self._furthest or 0)


def _whole(step: Any) -> int:
    try:
        whole = operator.index(step)
    except TypeError:
        whole = int(step) if isinstance(step, (float, np.floating)) and step == step // 1 else -1
    if whole < 0 or isinstance(step, (bool, np.bool_)):
        raise LoggingError(f"step={step!r} is not a number of environment steps: give 0, 1, 2, …")
    return whole


class NotFinite:
    """Says once of each metric that it has become NaN or infinite; it is logged as it is."""

    def __init__(self) -> None:
        self._mentioned: set[str] = set()

    def mention(self, row: Row) -> None:
        """Look at a row that is about to be logged."""
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value) and name not in self._mentioned:
                self._mentioned.add(name)
                log.warning("metric '%s' is %s; it is logged as it is, and said once.", name, value)
