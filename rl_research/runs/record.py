"""The files of a run's folder by name, and ``run.json``, the record of what the run has come to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

RECORD = "run.json"
SCORES = "scores.json"
PROGRESS = "progress.csv"
DESCRIPTION = "config.yaml"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the run in *folder*, None if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        _log.warning("%s cannot be read (%s); the checkpoints tell", folder / RECORD, error)
        return None
    return record if isinstance(record, dict) and _is_sound(record) else None


def _is_sound(record: Mapping[str, Any]) -> bool:
    numbers = (record.get("global_step") or 0, record.get("seconds") or 0)
    return all(isinstance(number, int | float) for number in numbers)


def result_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the command prints and the flow returns of a run's record."""
    names = (
        "run_id", "run_dir", "status", "global_step", "parameters_sha256", "checkpoint",
        "scores", "published", "wandb", "flow_run_id", "seconds",
    )  # fmt: skip
    return {**{name: record.get(name) for name in names}, "not_uploaded": left_of(record)}


def left_of(record: Mapping[str, Any]) -> list[int]:
    """The steps whose checkpoints *record* says have not reached ``storage.url``."""
    return list(record.get("not_uploaded") or [])


def is_of_flow_run(record: Mapping[str, Any], flow_run_id: str | None) -> bool:
    """Whether *record* is of a run that this very flow run has begun."""
    return flow_run_id is not None and record.get("flow_run_id") == flow_run_id


def flow_runs(record: Mapping[str, Any], now: str | None) -> list[str]:
    """The flow runs that have worked on the run of *record*, oldest first, with the one of *now*."""
    known = [*(record.get("flow_run_ids") or []), *([] if now is None else [now])]
    return list(dict.fromkeys(known))


def segments(record: Mapping[str, Any], now: str) -> list[dict[str, Any]]:
    """The processes that have had the run of *record*, and the one that takes it up *now*.

    Each but the first says how the one before left it (``killed``, where it could not say so itself), at
    which step, and how many seconds before.
    """
    segment: dict[str, Any] = {"started_at": now}
    if saved := record.get("saved_at"):
        away = datetime.fromisoformat(now) - datetime.fromisoformat(saved)
        left = "killed" if record.get("status") == "running" else record.get("status")
        segment |= {"after": left, "away_seconds": away.total_seconds()}
        segment["from_step"] = record.get("global_step") or 0
    return [*(record.get("segments") or []), segment]
