"""``run.json``, the record of what a run has come to, and the other files of a run's folder by name."""

import json
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rl_research.system import write_atomically

_log = logging.getLogger(__name__)

RECORD = "run.json"
DESCRIPTION = "config.yaml"
SCORES = "scores.json"
PROGRESS = "progress.csv"
_RESULT = {
    "run_id", "run_dir", "status", "global_step", "parameters_sha256", "checkpoint",
    "scores", "published", "wandb", "flow_run_id", "seconds", "not_uploaded",
}  # fmt: skip


_Count = Annotated[int, Field(ge=0, lt=2**63)]  # a damaged one may be of any size


class _Stored(BaseModel):
    """Part of ``run.json``; keys of other versions are kept."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)


class WandbRecord(_Stored):
    """The W&B run: `finished` says whether all rows have arrived (online) or are on disk (offline)."""

    id: str | None = None
    mode: str | None = None
    wanted: str | None = None  # mode that was asked for
    reason: str | None = None  # why the mode is another one
    path: str | None = None  # ``[entity/]project/run_id``
    dir: str | None = None
    url: str | None = None
    finished: bool | None = None  # None while the run is open
    synced_at: float | None = None  # seconds since 1970


class SegmentRecord(_Stored):
    """One process's part of the run, and how the one before ended."""

    started_at: str
    after: str | None = None  # status of the one before; ``killed`` where it could not say so itself
    error: str | None = None  # with which that one has failed
    total_timesteps: _Count | None = None  # budget that it had
    away_seconds: float | None = None
    from_step: _Count | None = None


class ScoreRecord(_Stored):
    """Final score over held-out episodes."""

    mean: float
    std: float = 0.0
    episodes: int = 0


class PublishedRecord(_Stored):
    """Score that others have published for this experiment."""

    mean: FiniteFloat
    std: FiniteFloat | None = None
    source: str | None = None


class PruneRecord(_Stored):
    """Bytes that `pruning` has removed from the folder, in all."""

    at: str
    bytes: int = 0


class RunRecord(_Stored):
    """Record of a run; times are ISO 8601 in UTC, durations seconds."""

    format: int = 1
    run_id: str | None = None
    run_dir: str | None = None
    status: str = "unknown"  # running, finished, interrupted or failed
    error: str | None = None  # with which it has failed
    name: str | None = None
    algorithm: str | None = None
    env: str | None = None
    seed: _Count | None = None
    total_timesteps: _Count | None = None
    global_step: _Count | None = None
    ended: bool | None = None  # training, at global_step: by its budget, or by a callback
    parameters_sha256: str | None = None
    checkpoint: str | None = None  # newest one, in storage if it is there
    local_checkpoint: str | None = None
    not_uploaded: list[int] = Field(default_factory=list)  # steps that storage lacks
    scores: ScoreRecord | None = None
    published: PublishedRecord | None = None
    reward_threshold: float | None = None
    wandb: WandbRecord = Field(default_factory=WandbRecord)
    flow_run_id: str | None = None
    flow_run_url: str | None = None
    flow_run_ids: list[str] = Field(default_factory=list)
    segments: list[SegmentRecord] = Field(default_factory=list)
    resume_mode: str | None = None  # of the newest checkpoint
    resume_reason: str | None = None
    resume: list[dict[str, Any]] = Field(default_factory=list)
    versions: dict[str, Any] = Field(default_factory=dict)
    code: dict[str, str] = Field(default_factory=dict)  # SHA-256 of the files of plugins and environments, by module
    git: dict[str, Any] = Field(default_factory=dict)
    started_at: str | None = None
    finished_at: str | None = None
    saved_at: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    pruned: PruneRecord | None = None

    @property
    def is_finished(self) -> bool:
        """Whether everything was done, the score and the page included."""
        return self.status == "finished"

    @property
    def result(self) -> dict[str, Any]:
        """Result as the command prints and the flow returns it."""
        return self.model_dump(mode="json", include=_RESULT)

    @property
    def has_wandb_run(self) -> bool:
        """Whether anything is recorded of a W&B run."""
        return "wandb" in self.model_fields_set

    def is_of_flow_run(self, flow_run_id: str | None) -> bool:
        """Return whether the flow run *flow_run_id* has begun this run."""
        return flow_run_id is not None and self.flow_run_id == flow_run_id

    @property
    def extensions(self) -> list[tuple[int, int]]:
        """Budgets that followed the first one, each with the step at which it did; schedules were stretched there."""
        known = [s for s in self.segments if s.total_timesteps is not None]
        pairs = pairwise(known)
        return [(s.from_step or 0, s.total_timesteps or 0) for b, s in pairs if s.total_timesteps != b.total_timesteps]

    @property
    def first_budget(self) -> int | None:
        """Environment steps that the run was to have when it began."""
        return next((s.total_timesteps for s in self.segments if s.total_timesteps), self.total_timesteps)

    def begin_segment(self, flow_run_id: str | None, total_timesteps: int) -> None:
        """Note that this process takes the run up, for the flow run *flow_run_id*, to train *total_timesteps*."""
        now = utc_now()
        segment = SegmentRecord(started_at=now, total_timesteps=total_timesteps)
        if self.saved_at is not None:
            away = datetime.fromisoformat(now) - datetime.fromisoformat(self.saved_at)
            segment.away_seconds = away.total_seconds()
            segment.after = "killed" if self.status == "running" else self.status
            segment.error = self.error if segment.after == "failed" else None
            segment.from_step = self.global_step or 0
        self.segments = [*self.segments, segment]
        known = [*self.flow_run_ids, *([] if flow_run_id is None else [flow_run_id])]
        self.flow_run_ids = list(dict.fromkeys(known))

    def write(self, folder: Path) -> None:
        """Write ``run.json`` in *folder*, whole or not at all."""
        known = {"format": self.format, **self.model_dump(mode="json", exclude_unset=True)}
        text = json.dumps(known, indent=2, default=str) + "\n"
        write_atomically(folder / RECORD, text.encode())


def read_record(folder: Path) -> RunRecord | None:
    """Return the record of the run in *folder*, None if there is none that can be read.

    A damaged value counts as missing, with a warning: the checkpoints say what was trained.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it should be an object")
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        _log.warning("%s cannot be read (%s); the checkpoints tell", path, error)
        return None
    return _validated(values, path)


def _validated(values: Mapping[str, Any], path: Path) -> RunRecord:
    try:
        return RunRecord.model_validate(values)
    except ValidationError as error:
        damaged = {str(mistake["loc"][0]) for mistake in error.errors()}
        _log.warning("%s: %s cannot be read; the checkpoints tell", path, ", ".join(sorted(damaged)))
        return RunRecord.model_validate({k: v for k, v in values.items() if k not in damaged})


def utc_now() -> str:
    """Return the time as records and manifests hold it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
