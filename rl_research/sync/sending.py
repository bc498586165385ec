"""One call of ``wandb sync``, bounded in every direction, and the evidence that it leaves behind.

W&B has no Python interface for this; its command is one. It answers 0 after nearly every failure, so
nothing is read from its exit code but that it failed. wandb's private log has each request with rows, its
acknowledgement, and as an error what was lost; `SyncLog` names its phrases, pinned by ``tests/test_wandb_private.py``.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rl_research.system import ending_with_us
from rl_research.tracking import SERVICE, SyncCommand, SyncLog

_IN_PARALLEL = 12  # runs at a time in one process; more gains little
_LEAST, _BYTES_PER_SECOND = 180.0, 200_000  # a sync may take this long, and a slow line's time

Event = Mapping[str, object]


@dataclass
class Evidence:
    """Evidence of one segment in the log of a sync."""

    rows: int = 0  # acknowledged
    files: int = 0
    complete: bool = False  # its end was acknowledged
    errors: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    _pending: Event = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Take one event of the log into account."""
        text = str(event.get("msg", ""))
        if text == SyncLog.SENDING:
            self._pending = event
        elif text == SyncLog.SENT:
            self.rows += _number(self._pending, "history_lines")
            self.files += _number(self._pending, "uploaded_len")
            self.complete = self.complete or bool(self._pending.get("complete"))
            self._pending = {}
        elif SyncLog.NO_FILE in text:
            self.lost.append(str(event.get("path", "?")))
        elif text == SyncLog.HTTP_ERROR:
            self.statuses.add(_number(event, "status"))
        elif str(event.get("level", "")).startswith("ERROR") and not any(known in text for known in SyncLog.HARMLESS):
            reason = str(event.get("error") or "")
            whole = f"{text}: {reason}" if reason and reason not in text else text
            self.errors.append(" ".join(whole.split())[:300])


def _number(event: Event, key: str) -> int:
    found = event.get(key)
    return int(found) if isinstance(found, int | float) else 0


@dataclass(frozen=True)
class Sent:
    """Result of a call of ``wandb sync``."""

    code: int | None  # None: ended by us, for it took too long
    output: str
    seconds: float  # that it was given
    evidence: Mapping[str, Evidence]  # by the path of the log that was synced; empty if there is none

    @property
    def urls(self) -> dict[str, str]:
        """Page of each run, by ``entity/project/run_id``."""
        found = (SyncCommand.PAGE.search(line) for line in self.output.splitlines())
        return {match[1]: match[2] for match in found if match}


def send(logs: Sequence[Path], folder: Path, size: int = 0, held: Sequence[int] = ()) -> Sent:
    """Sync *logs*, the segments of a run in their order, with *folder* as WANDB_DIR.

    *size* is how many bytes that may be, which gives it more time. The command ends when this process does,
    also by SIGKILL. It inherits the descriptors *held*, so that a lock holds until then.
    """
    folder.mkdir(parents=True)
    output = folder / "output.txt"
    seconds = float(os.environ.get("RL_RESEARCH_SYNC_SECONDS") or _LEAST) + size / _BYTES_PER_SECOND
    command = [sys.executable, "-m", "wandb", "sync", *SyncCommand.OPTIONS, SyncCommand.PARALLEL, str(_IN_PARALLEL)]
    inherited = {name: value for name, value in os.environ.items() if name != SERVICE}
    own = {"WANDB_DIR": str(folder), "WANDB_SILENT": "false", "WANDB_MODE": "online"}
    code = None
    with output.open("wb") as out, ending_with_us() as (ending, end):
        process = subprocess.Popen(
            [*ending, *command, *map(str, logs)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**SyncCommand.BOUNDS, **inherited, **own},
            start_new_session=True,
            pass_fds=[end, *held],
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            with suppress(ProcessLookupError):  # wandb-core ends with it: nothing is left of either
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Sent(code, output.read_text(errors="replace"), seconds, _read_evidence(folder))


def _read_evidence(folder: Path) -> dict[str, Evidence]:
    found: dict[str, Evidence] = {}
    for log in sorted(folder.rglob(SyncLog.FILES)):
        with log.open(errors="replace") as lines:
            for line in lines:
                with suppress(ValueError):  # a line that was cut off by SIGKILL
                    event = json.loads(line)
                    if isinstance(event, dict) and (path := event.get("sync_path")):
                        found.setdefault(str(path), Evidence()).take(event)
    return found
