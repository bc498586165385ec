"""Closing a W&B run: in time, with everything on disk, knowing whether it has arrived."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.system import Attempt, lasting
from rl_research.tracking.wandb_api import NoAnswer, WandbApi

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

_BLOCK, _HEADER = 32768, 7  # of the log file, which is in LevelDB's format
_GRACE = 2.0  # seconds over ``finish_timeout`` before W&B's service is ended
_ON_DISK = 2.0  # seconds that the end of the log may take to reach the disk; it is flushed every second


def close_run(wandb: Any, run: Run, exit_code: int, patience: Callable[[], float] | None = None) -> bool:
    """Finish *run* within its ``finish_timeout`` and while *patience* has seconds left.

    Online, the result is whether the server has every row, offline, whether the disk has. What is not
    uploaded by then is on disk, and said; W&B's service is ended, so that nothing of this run arrives
    later while another segment goes on with it.
    """
    file = Path(run.settings.sync_file)
    last_step = run.step - 1
    limit = lasting(run.settings.finish_timeout + _GRACE)
    finishing = Attempt(lambda: run.finish(exit_code=exit_code))
    try:
        ended = finishing.ended_within(lambda: min(limit(), patience() if patience else limit()))
    except BaseException:  # a second signal: leave at once, the log first
        _abandon(wandb, file)
        raise
    problem = _problem(wandb, run, finishing, last_step) if ended else "W&B took too long"
    if problem is None:
        return _is_on_disk(wandb, file, _ON_DISK / 2)
    _abandon(wandb, file)
    log.warning(
        "W&B run %s is not wholly delivered (%s): the next `rl-research sync` does it", run.id, problem
    )  # fmt: skip
    return False


def _problem(wandb: Any, run: Run, finishing: Attempt[None], last_step: int) -> str | None:
    """Why the run that has been finished is not to be trusted; None if it is."""
    try:
        finishing.result()
    except (TimeoutError, OSError, wandb.Error) as error:
        return (str(error) or type(error).__name__).rstrip(".")
    if run.offline:
        return None
    try:
        found = WandbApi(str(run.settings.base_url)).last_step(run.path)
    except NoAnswer as no:
        return str(no)
    return None if found >= last_step else f"rows up to {found} of {last_step} have arrived"


def _abandon(wandb: Any, file: Path) -> None:
    """End W&B's service once the log on disk is whole; other runs of this process keep it.

    Left alone, it goes on for days, even without us.
    """
    _is_on_disk(wandb, file, _ON_DISK)
    service = wandb.setup()
    if service.most_recent_active_run is not None or service._connection is None:
        return
    process = service._connection._proc._process
    process.kill()
    process.wait()
    with suppress(OSError, SystemExit):  # it says that the service is gone
        wandb.teardown()


def _is_on_disk(wandb: Any, file: Path, seconds: float) -> bool:
    """Wait until the log on disk is complete: `finish` returns some milliseconds earlier."""
    deadline = time.monotonic() + seconds
    while not (done := _has_exited(wandb, file)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return done


def _has_exited(wandb: Any, file: Path) -> bool:
    """Whether the last block of the log, or the one before, holds an Exit record."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = max((size - 1) // _BLOCK - 1, 0) * _BLOCK
            stream.seek(start)
            blocks = stream.read()
    except OSError:
        return False
    records = wandb.proto.wandb_internal_pb2.Record
    return any(
        _exit_in(records, blocks[at : at + _BLOCK], _HEADER if start + at == 0 else 0)
        for at in range(0, len(blocks), _BLOCK)
    )


def _exit_in(records: Any, block: bytes, position: int) -> bool:
    while position + _HEADER <= len(block):
        _, size, _ = struct.unpack_from("<IHB", block, position)
        position += _HEADER + size
        if _is_exit(records, block[position - size : position]):
            return True
    return False


def _is_exit(records: Any, payload: bytes) -> bool:
    with suppress(Exception):  # protobuf's DecodeError: part of a record that spans blocks
        return bool(records.FromString(payload).WhichOneof("record_type") == "exit")
    return False
