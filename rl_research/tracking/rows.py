"""Metric rows: one per `global_step`, written to ``progress.csv`` and handed on.

SB3 records values under names and dumps them now and then; an evaluation dumps in between. Here all
that belongs to one step becomes one row.
"""

import csv
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger

from rl_research.system import write_atomically

STEP = "global_step"
Row = dict[str, Any]


class RowWriter(KVWriter):
    """An SB3 output format that gathers what belongs to one step and hands it to *sinks* once.

    A sink is called with the row and its step, in environment steps, when a later step begins or on `flush`.
    """

    def __init__(self, *sinks: Callable[[Row, int], None]):
        self.sinks = sinks
        self.row: Row = {}
        self.step = 0

    def write(
        self, key_values: Mapping[str, object], key_excluded: Mapping[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Take SB3's values at *step*, without those that SB3 excludes from W&B."""
        if step != self.step:
            self.flush()
            self.step = step
        for key, value in key_values.items():
            if "wandb" not in (key_excluded.get(key) or ()):
                self.row[key] = value

    def flush(self) -> None:
        """Hand what has been gathered to the sinks."""
        row, self.row = self.row, {}
        for sink in self.sinks if row else ():
            sink(row, self.step)

    def close(self) -> None:
        """Hand what is left to the sinks, which stay open: they belong to whoever made them."""
        self.flush()


def write_row(logger: Logger, values: Mapping[str, object], step: int) -> None:
    """Send *values* at *step* to every output format of *logger*, without what is pending in it."""
    for output in logger.output_formats:
        output.write(dict(values), dict.fromkeys(values, ()), step)


class ProgressFile:
    """``progress.csv``: a column per scalar metric, `global_step` first, a row per step.

    Rows are appended; a metric seen for the first time rewrites the file with one more column.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows = read_progress(path)
        self.columns = list(self.rows[0]) if self.rows else [STEP]
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            write_atomically(path, self._text(self.rows, header=True))  # without the line cut off

    def rewind(self, step: int) -> None:
        """Remove the rows from *step* on, which a resumed run writes again."""
        if self.path.exists():
            self.rows = [row for row in self.rows if int(row[STEP]) < step]
            write_atomically(self.path, self._text(self.rows, header=True))

    def __call__(self, row: Row, step: int) -> None:
        """Append the scalars of *row*."""
        texts = ((key, _scalar(value)) for key, value in row.items())
        cells = {STEP: str(step), **{key: text for key, text in texts if text is not None}}
        self.rows.append(cells)
        new = [key for key in cells if key not in self.columns]
        if new or not self.path.exists():
            self.columns += sorted(new)
            write_atomically(self.path, self._text(self.rows, header=True))
        else:
            with self.path.open("ab") as out:
                out.write(self._text([cells], header=False))
                out.flush()
                os.fsync(out.fileno())

    def _text(self, rows: list[dict[str, str]], *, header: bool) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()


def read_progress(path: Path) -> list[dict[str, str]]:
    """Return the rows of ``progress.csv``, cells as written, without what is damaged: a last line that was cut off."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\0", "").split("\n")[:-1]
    rows = csv.DictReader(f"{line}\n" for line in lines)
    return [row for row in rows if None not in row and None not in row.values() and row.get(STEP, "").isdecimal()]


def values_of_row(row: Mapping[str, str]) -> tuple[Row, int]:
    """Return a row of ``progress.csv`` as values and step, without its empty cells."""
    cells: Row = {}
    for key, text in row.items():
        if key != STEP and text:
            try:
                cells[key] = int(text) if text.lstrip("-").isdigit() else float(text)
            except ValueError:
                cells[key] = text
    return cells, int(row[STEP])


def _scalar(value: Any) -> str | None:
    if isinstance(value, bool | int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    if isinstance(value, str):
        return value
    return repr(float(value)) if getattr(value, "shape", None) == () else None
