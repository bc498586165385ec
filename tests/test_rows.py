"""One row per step, whole, in order, and still there after a restart."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from rl_research.tracking.rows import ProgressFile, RowWriter, read_progress, write_row

Rows = list[tuple[int, dict[str, Any]]]


def _writer() -> tuple[RowWriter, Rows]:
    rows: Rows = []
    return RowWriter(lambda row, step: rows.append((step, dict(row)))), rows


# ---------------------------------------------------------------- gathering


def test_what_belongs_to_one_step_is_one_row() -> None:
    """Writes at one step are joined, the later value wins, and a new step hands the row on."""
    writer, rows = _writer()
    writer.write({"a": 1, "b": 1}, {}, 10)
    writer.write({"b": 2, "c": 3}, {}, 10)
    assert rows == []
    writer.write({"a": 4}, {}, 20)
    assert rows == [(10, {"a": 1, "b": 2, "c": 3})]
    writer.close()
    assert rows[1:] == [(20, {"a": 4})]


def test_nothing_is_handed_on_twice_or_empty() -> None:
    """Flushing again, closing after flushing and writing nothing make no rows."""
    writer, rows = _writer()
    writer.flush()
    writer.write({}, {}, 5)
    writer.flush()
    writer.write({"a": 1}, {}, 6)
    for _ in range(2):
        writer.flush()
    writer.close()
    assert rows == [(6, {"a": 1})]


@pytest.mark.parametrize(
    ("excluded", "kept"),
    [((), True), (None, True), (("tensorboard",), True), (("wandb",), False), (("csv", "wandb"), False)],
)  # fmt: skip
def test_an_exclusion_holds_for_its_format_only(excluded: Any, kept: bool) -> None:
    """What is excluded from W&B stays out; what is excluded from TensorBoard does not."""
    writer, rows = _writer()
    writer.write({"a": 1, "b": 2}, {"a": excluded}, 1)
    writer.flush()
    assert rows == [(1, {"a": 1, "b": 2} if kept else {"b": 2})]


def test_every_sink_gets_every_row() -> None:
    """Several sinks see the same rows."""
    one: list[int] = []
    other: list[int] = []
    writer = RowWriter(lambda _, step: one.append(step), lambda _, step: other.append(step))
    for step in (1, 2, 3):
        writer.write({"a": step}, {}, step)
    writer.flush()
    assert one == other == [1, 2, 3]


def test_a_row_of_its_own_takes_nothing_pending_along() -> None:
    """`write_row` reaches every format and leaves SB3's pending values for SB3's own dump."""
    writer, rows = _writer()
    logger = Logger(None, [writer])
    logger.record("train/loss", 1.0)
    write_row(logger, {"eval/mean_reward": 5.0}, 100)
    writer.flush()
    assert rows == [(100, {"eval/mean_reward": 5.0})]
    logger.dump(200)
    writer.flush()
    assert rows[1:] == [(200, {"train/loss": 1.0})]


# ---------------------------------------------------------------- progress.csv


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_as_they_come(tmp_path: Path) -> None:
    """After every call the file holds every row, `global_step` first, a missing value as an empty cell."""
    file = ProgressFile(tmp_path / "progress.csv")
    file({"b": 1, "a": 2.5}, 10)
    assert (tmp_path / "progress.csv").read_text() == "global_step,a,b\n10,2.5,1\n"
    file({"a": 3}, 20)
    assert (tmp_path / "progress.csv").read_text() == "global_step,a,b\n10,2.5,1\n20,3,\n"
    file({"z": 1, "c": "text"}, 30)
    assert _read(tmp_path / "progress.csv")[0] == {
        "global_step": "10", "a": "2.5", "b": "1", "c": "", "z": "",
    }  # fmt: skip
    assert _read(tmp_path / "progress.csv")[2]["c"] == "text"
    assert file.rows[-1]["global_step"] == "30"
    assert [p.name for p in tmp_path.iterdir()] == ["progress.csv"]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (1, "1"),
        (True, "1"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e-300, "1e-300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (np.float64(0.1), "0.1"),
        (np.float32(0.1), "0.10000000149011612"),
        (np.int64(7), "7"),
        (torch.tensor(0.5), "0.5"),
        (np.array(0.5), "0.5"),
        ('a "quoted", text\nof two lines', 'a "quoted", text\nof two lines'),
        ("ünïcödé", "ünïcödé"),
    ],
    ids=repr,
)
def test_a_scalar_survives_to_the_last_bit(tmp_path: Path, value: Any, cell: str) -> None:
    """Numbers of every library are written so that reading them gives the same number; texts as they are."""
    path = tmp_path / "progress.csv"
    ProgressFile(path)({"a": value}, 1)
    assert _read(path) == [{"global_step": "1", "a": cell}]
    assert read_progress(path) == [{"global_step": "1", "a": cell}]


@pytest.mark.parametrize("value", [np.zeros(3), [1, 2], None, {"a": 1}, object(), torch.zeros(2)])
def test_what_is_no_scalar_is_left_out(tmp_path: Path, value: Any) -> None:
    """Images, lists and such have no column; the rest of their row is written."""
    path = tmp_path / "progress.csv"
    ProgressFile(path)({"a": value, "b": 1}, 1)
    assert _read(path) == [{"global_step": "1", "b": "1"}]


def test_a_reopened_file_goes_on(tmp_path: Path) -> None:
    """A second process appends to what the first wrote, with the same columns."""
    path = tmp_path / "progress.csv"
    ProgressFile(path)({"b": 1, "a": 2}, 10)
    again = ProgressFile(path)
    assert again.rows[-1]["global_step"] == "10"
    again({"a": 3}, 20)
    again({"new": 4}, 30)
    assert [row["global_step"] for row in _read(path)] == ["10", "20", "30"]
    assert _read(path)[0] == {"global_step": "10", "a": "2", "b": "1", "new": ""}


@pytest.mark.parametrize(
    ("step", "kept"), [(0, []), (10, []), (11, ["10"]), (25, ["10", "20"]), (99, ["10", "20", "30"])]
)
def test_rewinding_forgets_what_is_written_again(tmp_path: Path, step: int, kept: list[str]) -> None:
    """Rows from a step on are taken away, on disk too, and those before it stay as they were."""
    path = tmp_path / "progress.csv"
    file = ProgressFile(path)
    for at in (10, 20, 30):
        file({"a": at}, at)
    file.rewind(step)
    assert [row["global_step"] for row in _read(path)] == kept
    file({"a": 1}, 40)
    assert [row["global_step"] for row in _read(path)] == [*kept, "40"]
    assert ProgressFile(path).rows[-1]["global_step"] == "40"


def test_rewinding_a_new_file_makes_none(tmp_path: Path) -> None:
    """Where nothing has been written there is nothing to rewind, and no last step."""
    file = ProgressFile(tmp_path / "progress.csv")
    file.rewind(0)
    assert list(tmp_path.iterdir()) == []
    assert file.rows == []


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_cut_off_by_a_kill_is_no_row(tmp_path: Path, cut: int) -> None:
    """Wherever the last line breaks off, the rows before it are read, and the next one is whole."""
    path = tmp_path / "progress.csv"
    file = ProgressFile(path)
    file({"a": 1.25, "b": 2.5}, 10)
    file({"a": 3.25, "b": 4.5}, 20)
    path.write_bytes(path.read_bytes()[:-cut])
    assert [row["global_step"] for row in read_progress(path)] == ["10"]
    again = ProgressFile(path)
    assert again.rows[-1]["global_step"] == "10"
    again.rewind(15)
    again({"a": 5.25, "b": 6.5}, 20)
    assert [(row["global_step"], row["b"]) for row in _read(path)] == [("10", "2.5"), ("20", "6.5")]


def test_appending_after_a_cut_off_line_glues_nothing_together(tmp_path: Path) -> None:
    """Also without a rewind, a row appended after a torn line stands on a line of its own."""
    path = tmp_path / "progress.csv"
    file = ProgressFile(path)
    file({"a": 1}, 10)
    file({"a": 2}, 20)
    path.write_bytes(path.read_bytes()[:-2])
    ProgressFile(path)({"a": 3}, 30)
    assert [(row["global_step"], row["a"]) for row in _read(path)] == [("10", "1"), ("30", "3")]


def test_a_file_that_is_none_is_empty(tmp_path: Path) -> None:
    """A missing file has no rows; one with a header only has none either."""
    path = tmp_path / "progress.csv"
    assert read_progress(path) == []
    path.write_text("global_step,a\n")
    assert read_progress(path) == []
    ProgressFile(path)({"a": 1}, 5)
    assert _read(path) == [{"global_step": "5", "a": "1"}]


def test_damaged_bytes_cost_their_row_alone(tmp_path: Path) -> None:
    """Zeros, other bytes and rows of another length in ``progress.csv`` end no run."""
    path = tmp_path / "progress.csv"
    path.write_bytes(b"global_step,a\n10,1\n\0\0\xff,2\n20\n30,1,2\nx,1\n40,\xe2\x80\xa8\n5")
    assert [row["global_step"] for row in read_progress(path)] == ["10", "40"]
    ProgressFile(path).rewind(20)
    assert path.read_text() == "global_step,a\n10,1\n"
