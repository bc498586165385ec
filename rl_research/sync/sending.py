"""One call of ``wandb sync``, bounded in every direction, and what it leaves behind.

W&B has no Python interface for this; its command is one. It answers 0 after nearly every failure, so
nothing is read from its exit code but that it failed.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rl_research.system import ending_with_us
from rl_research.tracking import SERVICE, SyncCommand

_IN_PARALLEL = 12  # runs at a time in one process; more gains little
_LEAST, _BYTES_PER_SECOND = 180.0, 200_000  # a sync may take this long, and a slow line's time
_POLL = 0.2


@dataclass(frozen=True)
class Sent:
    """Result of a call of ``wandb sync``."""

    folder: Path  # its own WANDB_DIR
    code: int | None  # None: ended by us, for it took too long
    output: str
    seconds: float  # that it was given

    @property
    def urls(self) -> dict[str, str]:
        """Page of each run, by ``entity/project/run_id``."""
        found = (SyncCommand.PAGE.search(line) for line in self.output.splitlines())
        return {match[1]: match[2] for match in found if match}


def seconds_allowed(size: int) -> float:
    """Return how long a sync of *size* bytes may take."""
    given = float(os.environ.get("RL_RESEARCH_SYNC_SECONDS") or _LEAST)
    return given + size / _BYTES_PER_SECOND


def send(
    logs: Sequence[Path],
    folder: Path,
    *,
    seconds: float,
    held: Sequence[int] = (),
    on_done: Callable[[int], None] = lambda done: None,
) -> Sent:
    """Sync *logs*, the segments of a run in their order, with *folder* as WANDB_DIR.

    The command ends when this process does, also by SIGKILL. It inherits the descriptors *held*, so that
    a lock holds until then. *on_done* is told how many logs wandb says it has finished.
    """
    folder.mkdir(parents=True)
    output = folder / "output.txt"
    command = [sys.executable, "-m", "wandb", "sync", *SyncCommand.OPTIONS]
    with output.open("wb") as out, ending_with_us() as (leashed, end):
        process = subprocess.Popen(
            [*leashed, *command, SyncCommand.PARALLEL, str(_IN_PARALLEL), *map(str, logs)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(folder),
            start_new_session=True,
            pass_fds=[end, *held],
        )
        try:
            code = _wait(process, seconds, lambda: on_done(_text(output).count(SyncCommand.DONE)))
        finally:
            _end(process)
    return Sent(folder, code, _text(output), seconds)


def _environment(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != SERVICE}
    own = {"WANDB_DIR": str(folder), "WANDB_SILENT": "false", "WANDB_MODE": "online"}
    return {**SyncCommand.BOUNDS, **inherited, **own}


def _wait(process: subprocess.Popen[bytes], seconds: float, tick: Callable[[], None]) -> int | None:
    waited = 0.0
    while waited < seconds:
        try:
            return process.wait(timeout=_POLL)
        except subprocess.TimeoutExpired:
            waited += _POLL
            tick()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End *process* and wandb-core with it; nothing is left of either."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(output: Path) -> str:
    return output.read_text(errors="replace")
