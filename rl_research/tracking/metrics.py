"""Metric values: what may be logged, as a plain row, at which step, how often."""

import logging
import math
import operator
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from rl_research.errors import LoggingError, in_a_line, shown
from rl_research.tracking.metric_names import check_name

log = logging.getLogger(__name__)

Scalar = bool | int | float | str
Row = dict[str, Scalar]

_MOST = 10_000  # metrics in a row


def flatten(metrics: object) -> dict[str, Any]:
    """Return *metrics* with nested mappings spelt by slashes: ``{"a": {"b": 1}}`` is ``{"a/b": 1}``."""
    row: dict[str, Any] = {}
    for number, (name, value) in enumerate(_named_values(metrics)):
        if name in row:
            raise LoggingError(f"metric {name!r} is given twice in one row.")
        if number == _MOST:
            raise LoggingError(f"a row has more than {_MOST:,} metrics and groups of them. Log fewer.")
        if not isinstance(value, Mapping):
            row[name] = value
    return row


def _named_values(metrics: object, group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in *metrics*, groups too. Where they hold themselves, the length of a name is the bound."""
    if not isinstance(metrics, Mapping):
        raise LoggingError(
            f"metrics must be a mapping from names to numbers, not {type(metrics).__name__}. "
            'For instance {"eval/mean_reward": 150.0}.'
        )
    try:
        items = list(metrics.items())
    except Exception as error:  # noqa: BLE001  # of a mapping of the user's own
        raise LoggingError(f"metrics of type {type(metrics).__name__} cannot be read: {in_a_line(error)}") from None
    for key, value in items:
        name = check_name(f"{group}{check_name(key)}")
        yield name, value
        if isinstance(value, Mapping):
            yield from _named_values(value, f"{name}/")


def scalar(name: str, value: Any) -> Scalar:
    """Return *value* as a plain number or string; raise `LoggingError` with name, type and remedy."""
    try:
        if isinstance(value, np.generic) or _holds_one(value):
            value = value.item()
        if isinstance(value, str) or (isinstance(value, bool | int | float) and abs(value) < 2**63):
            return value
        if isinstance(value, int | float | Decimal | Fraction | np.floating):
            return _float(value)
        shape = None if getattr(value, "shape", None) is None else tuple(value.shape)
    except Exception as error:  # noqa: BLE001  # a property or a conversion of the object's own
        kind = type(value).__name__
        raise LoggingError(f"metric {name!r}, of type {kind}, cannot be read: {in_a_line(error)}") from None
    kind = f"of type {type(value).__name__}" if shape is None else f"a {type(value).__name__} of shape {shape}"
    raise LoggingError(f"metric {name!r} is {kind}. {_remedy(value, len(shape or ()))}")


def scalars(metrics: object) -> Row:
    """Return *metrics* as one flat row of plain values."""
    return {name: scalar(name, value) for name, value in flatten(metrics).items()}


def _float(value: Any) -> float:
    """Return *value* as a float, infinite where it is beyond the largest."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _holds_one(value: Any) -> bool:
    """Return whether *value* is a NumPy array or a torch tensor with exactly one element."""
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype != object
    return callable(getattr(value, "numel", None)) and hasattr(value, "item") and value.numel() == 1


def _remedy(value: object, rank: int) -> str:
    if value is None:
        return "Leave it out of the row, or log float('nan')."
    if isinstance(value, complex):
        return "Log its real and imaginary part under two names."
    if rank == 4:
        return "Frames go to log_video."
    if rank in (2, 3):
        return "Pictures go to log_image; of other arrays log a number, such as the mean."
    if rank == 1 or isinstance(value, (list, tuple)):
        return "Log a number, such as the mean, or each element under its own name."
    return "Log a number or a string; models go to save_model, pictures to log_image."


class Steps:
    """Source of the ``global_step`` that a row belongs to.

    Without a step of its own a row belongs to the furthest step so far; before there is any, rows are numbered from 0.
    """

    def __init__(self) -> None:
        self._furthest: int | None = None
        self._rows = 0

    def of_row(self, step: object) -> int:
        """Return the step of a new row of metrics."""
        if step is None and self._furthest is None:
            self._rows += 1
        return self.of_media(step)

    def of_media(self, step: object) -> int:
        """Return the step of an image or a video: without its own it belongs to the row before it."""
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
    except Exception:  # noqa: BLE001  # of a number of the user's own
        whole = int(step) if isinstance(step, (float, np.floating)) and step == step // 1 else -1
    if not 0 <= whole < 2**63 or isinstance(step, (bool, np.bool_)):
        raise LoggingError(f"step={shown(step)} is not a number of environment steps: give 0, 1, 2, …")
    return whole


class Thinner:
    """Bounds the rows of a run: row by row at first, then means over blocks of 10, of 100, ….

    The block grows tenfold each time *max_rows* rows have been emitted, so which rows are averaged
    depends on their number only. A block's row carries the mean of every number, the last of
    everything else, and the block's latest step.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._block = 1
        self._emitted = 0
        self._pending: list[tuple[int, Row]] = []

    def add(self, step: int, row: Row) -> tuple[int, Row] | None:
        """Take a row; return the one to emit now, if any."""
        self._pending.append((step, row))
        return self.flush() if len(self._pending) >= self._block else None

    def flush(self) -> tuple[int, Row] | None:
        """Return the row of the block so far, and begin another block."""
        if not self._pending:
            return None
        rows, self._pending = self._pending, []
        self._emitted += 1
        if self._emitted == self._max_rows:
            if self._block == 1:
                log.warning(
                    "wandb.max_rows=%d rows are logged: from now on means over 10, later over 100, "
                    "and so on. Log once per rollout, or raise wandb.max_rows.",
                    self._max_rows,
                )
            self._block, self._emitted = self._block * 10, 0
        return max(step for step, _ in rows), rows[0][1] if len(rows) == 1 else _mean([row for _, row in rows])


def _mean(rows: list[Row]) -> Row:
    """Return the mean of each number that *rows* have, and the last value of what is a string in any of them."""
    columns: dict[str, list[Scalar]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    means: Row = {}
    for name, column in columns.items():
        numbers = [value for value in column if not isinstance(value, str)]
        means[name] = float(sum(numbers) / len(column)) if len(numbers) == len(column) else column[-1]
    return means
