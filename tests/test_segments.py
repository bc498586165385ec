"""W&B logs of dead processes: what is whole is read, nothing raises."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import children, environment, wandb_rows

from rl_research.tracking.logger import ExperimentLogger
from rl_research.tracking.wandb_log import read_logged, read_records

_WRITER = """
import sys, time
from rl_research.utils.logger import ExperimentLogger
logger = ExperimentLogger({"wandb": {"mode": "offline"}}, run_id="dead", run_dir=sys.argv[1])
for step in range(10, 2010, 10):
    logger.log_metrics({"train/loss": step / 7}, step=step)
    print(step, flush=True)
    time.sleep(0.01)
"""
_STEPS = list(range(10, 1510, 10))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose log has several blocks, with 150 rows at the steps 10, 20, and so on."""
    folder = tmp_path_factory.mktemp("segments")
    with ExperimentLogger({"wandb": {"mode": "offline"}}, run_id="whole", run_dir=folder) as logger:
        for step in _STEPS:
            logger.log_metrics({f"custom/metric_{i}": step / (i + 1) for i in range(12)}, step=step)
    return folder


@pytest.fixture(scope="module")
def log(run_dir: Path) -> bytes:
    """The bytes of that log."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-whole.wandb")
    return path.read_bytes()


def _steps(folder: Path, content: bytes) -> list[int]:
    segment = folder / "wandb" / "offline-run-20260101_000000-whole"
    segment.mkdir(parents=True, exist_ok=True)
    (segment / "run-whole.wandb").write_bytes(content)
    found = read_logged(folder / "wandb", "whole")
    return sorted(found.steps) if found else []


def test_every_row_of_a_finished_log_is_found(run_dir: Path, log: bytes) -> None:
    """A log longer than a block gives all its steps."""
    assert len(log) > 2 * 32768
    found = read_logged(run_dir / "wandb", "whole")
    assert found is not None
    assert sorted(found.steps) == _STEPS


def test_a_log_cut_anywhere_gives_a_prefix(tmp_path: Path, log: bytes) -> None:
    """Wherever the bytes end, nothing raises and the steps are the first ones; more bytes, more steps."""
    chance = random.Random(1)
    edges = [at + d for at in (7, 32768, 65536) for d in (-8, -7, -1, 0, 1, 6, 7, 8)]
    cuts = sorted({*range(30), *edges, *(chance.randrange(len(log)) for _ in range(80)), len(log)})
    found = [_steps(tmp_path, log[:cut]) for cut in cuts if cut >= 0]
    for steps in found:
        assert steps == _STEPS[: len(steps)]
    assert [len(steps) for steps in found] == sorted(len(steps) for steps in found)
    assert found[-1] == _STEPS


def test_a_damaged_byte_ends_the_log_there(tmp_path: Path, log: bytes) -> None:
    """A flipped byte costs the rows from there on, never those before, and raises nothing."""
    chance = random.Random(2)
    for position in [0, 3, 6, 7, 10, 13, *(chance.randrange(len(log)) for _ in range(40))]:
        damaged = bytearray(log)
        damaged[position] ^= 0xFF
        before = _steps(tmp_path, log[: position - 32768 if position > 32768 else 0])
        steps = _steps(tmp_path, bytes(damaged))
        assert steps == _STEPS[: len(steps)]
        assert len(steps) >= len(before)


@pytest.mark.parametrize(
    "content",
    [b"", b":", b":W&B", b"not a log at all", bytes(70_000), b":W&B\xe1\xbe\x00" + b"\xff" * 70_000],
    ids=["empty", "one byte", "magic only", "wrong magic", "zeros", "garbage after the header"],
)
def test_what_is_no_log_holds_no_steps(tmp_path: Path, content: bytes) -> None:
    """Files that are no log, or none yet, are read as empty."""
    assert _steps(tmp_path, content) == []


def test_random_bytes_never_raise(tmp_path: Path) -> None:
    """Garbage behind the right magic is read as nothing."""
    chance = random.Random(3)
    for _ in range(50):
        assert _steps(tmp_path, b":W&B\xe1\xbe\x00" + chance.randbytes(chance.randrange(40_000))) == []


def test_a_folder_without_logs_holds_no_steps(tmp_path: Path) -> None:
    """Where there is no segment, nobody knows what has been logged."""
    assert read_logged(tmp_path / "wandb", "whole") is None


def test_another_run_s_log_does_not_count(run_dir: Path) -> None:
    """Only segments of the run asked for are read."""
    assert read_logged(run_dir / "wandb", "hole") is None


def test_records_are_whole(run_dir: Path) -> None:
    """Every payload parses as W&B's own record."""

    (path,) = run_dir.glob("wandb/offline-run-*/run-whole.wandb")
    kinds = {record.WhichOneof("record_type") for record in read_records(path)}
    assert {"run", "history", "exit"} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("group_only", [True, False], ids=["group", "group and service"])
def test_rows_of_a_killed_writer_are_a_prefix(tmp_path: Path, group_only: bool) -> None:
    """A writer killed by SIGKILL in mid-row leaves its first rows, each once, and no half one."""
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment(),
    )  # fmt: skip
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 1500:
            break
    service = [] if group_only else children(writer.pid)
    os.killpg(writer.pid, signal.SIGKILL)
    for pid in service:
        os.kill(pid, signal.SIGKILL)
    writer.wait()
    found = read_logged(tmp_path / "wandb", "dead")
    assert found is not None
    steps = sorted(found.steps)
    assert steps == list(range(10, 2010, 10))[: len(steps)]
    assert len(steps) >= 20, "what was logged more than a second before the kill is on disk"
    assert [step for step, _ in wandb_rows(tmp_path)] == steps


def test_the_segment_being_written_can_be_left_out(run_dir: Path) -> None:
    """What this process writes itself is nothing that a segment before it has logged."""
    (log,) = run_dir.glob("wandb/offline-run-*/run-whole.wandb")
    assert read_logged(run_dir / "wandb", "whole", but=log.parent) is None


def test_a_film_is_no_row_of_numbers(tmp_path: Path) -> None:
    """The size of a film's file does not make its step count as logged; its name and step do."""
    with ExperimentLogger({"wandb": {"mode": "offline"}}, run_id="film", run_dir=tmp_path) as logger:
        logger.log_metrics({"train/loss": 1.0}, step=10)
        logger.log_video("eval/video", np.zeros((2, 16, 16, 3), np.uint8), step=20)
        logger.log_image("eval/image", np.zeros((16, 16, 3), np.uint8), step=30)
    found = read_logged(tmp_path / "wandb", "film")
    assert found is not None
    assert found.steps == {10}
    assert found.media == {("eval/video", 20), ("eval/image", 30)}
