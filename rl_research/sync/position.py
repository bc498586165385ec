"""Which rows of a run the server has already, so that none is sent twice."""

from __future__ import annotations

from collections.abc import Sequence

from rl_research.sync.logs import LogFacts, timestamps
from rl_research.sync.sealing import LeftOut
from rl_research.sync.server import RunThere


class Unclear(Exception):
    """Raised when the server has rows that the logs do not account for."""


def rows_delivered(logs: Sequence[LogFacts], there: RunThere) -> int:
    """How many of the rows in *logs*, which follow one another, the server has.

    W&B appends, so what it has of them is their beginning, and its last row tells where that ends.
    Rows of other segments may stand before. Raises `Unclear`.
    """
    total = sum(facts.rows for facts in logs)
    if 0 in (there.rows, total):
        return 0
    if there.last_row_at is None:
        if there.rows > total:
            raise Unclear(f"it has {there.rows:,} rows, and {total:,} are recorded here")
        return there.rows
    times = [at for facts in logs for at in timestamps(facts.log)]
    matches = [number + 1 for number, at in enumerate(times) if at == there.last_row_at]
    if matches:
        found = there.rows if there.rows in matches else matches[-1]
        if found > there.rows:
            raise Unclear(f"it has {there.rows:,} rows, the last of which is row {found:,} here")
        return found
    known = [at for at in times if at is not None]
    if known and min(known) <= there.last_row_at:
        raise Unclear("its last row is not among those recorded here, and later than the first")
    return 0


def shares(logs: Sequence[LogFacts], there: RunThere) -> list[LeftOut]:
    """What is left out of each of *logs*."""
    rows = rows_delivered(logs, there)
    stats, lines = (there.stats, there.lines) if rows else (0, 0)
    parts = []
    for facts in logs:
        part = LeftOut(min(rows, facts.rows), min(stats, facts.stats), min(lines, facts.lines))
        rows, stats, lines = rows - part.rows, stats - part.stats, lines - part.lines
        parts.append(part)
    return parts
