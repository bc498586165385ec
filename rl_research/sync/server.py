"""Questions of sync to the W&B server about a run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rl_research.system import retry_call
from rl_research.tracking import RESUME_STATUS, NotUnderstood, Unreachable, WandbApi

_TRIES, _TIMEOUT = 3, 15.0


@dataclass(frozen=True)
class RunThere:
    """Run as the server has it: counts of lines, when its last row was logged, and its summary."""

    rows: int = 0
    stats: int = 0
    lines: int = 0
    last_row_at: float | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


def configured() -> WandbApi:
    """Return the server, with the key, that wandb itself would use."""
    return WandbApi(timeout=_TIMEOUT)


def ask_for_run(api: WandbApi, entity: str, project: str, run_id: str) -> RunThere | None:
    """Return what the server has of the run: zeros if nothing, None if it does not understand the question.

    Raises `Refused` and, after some tries, `Unreachable`.
    """

    def question() -> dict[str, Any]:
        return api.query(RESUME_STATUS, project=project or None, entity=entity or None, name=run_id)

    try:
        data = retry_call(question, lambda e: isinstance(e, Unreachable), tries=_TRIES, pause=0.5)
    except NotUnderstood:
        return None
    bucket = (data.get("model") or {}).get("bucket")
    if not bucket:
        return RunThere()
    if bucket.get("historyLineCount") is None:
        return None
    return RunThere(
        int(bucket["historyLineCount"]),
        int(bucket.get("eventsLineCount") or 0),
        int(bucket.get("logLineCount") or 0),
        _time_of_last(bucket.get("historyTail")),
        _summary(bucket.get("summaryMetrics")),
    )


def _summary(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time_of_last(tail: str | None) -> float | None:
    try:
        lines = json.loads(tail or "[]")
        return float(json.loads(lines[-1])["_timestamp"])
    except (ValueError, LookupError, TypeError):
        return None
