"""How many rows a run may log before they are averaged."""

from __future__ import annotations

import logging
from typing import Any

from rl_research.tracking.metrics import Row, Scalar

log = logging.getLogger(__name__)


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
        """Take a row; give back the one to emit now, if any."""
        self._pending.append((step, row))
        return self.flush() if len(self._pending) >= self._block else None

    def flush(self) -> tuple[int, Row] | None:
        """The row of the block so far, which ends with it."""
        if not self._pending:
            return None
        rows, self._pending = self._pending, []
        self._emitted += 1
        if self._emitted == self._max_rows:
            self._grow()
        return max(step for step, _ in rows), _mean([row for _, row in rows])

    def _grow(self) -> None:
        if self._block == 1:
            log.warning(
                "wandb.max_rows=%d rows are logged: from now on means over 10, later over 100, "
                "and so on. Log once per rollout, or raise wandb.max_rows.",
                self._max_rows,
            )
        self._block, self._emitted = self._block * 10, 0


def _mean(rows: list[Row]) -> Row:
    if len(rows) == 1:
        return rows[0]
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: _middle(column) for name, column in values.items()}


def _middle(column: list[Any]) -> Scalar:
    if any(isinstance(value, str) for value in column):
        return column[-1]  # type: ignore[no-any-return]  # a Scalar, as every value of a row
    return float(sum(column) / len(column))
