"""Evidence of what arrived in a sync, read from wandb's private log, and the verdict on it.

`SyncLog` names its phrases. It has each request with rows, its acknowledgement, and as an
error what was lost. Where there is no evidence the verdict is "unverified". Pinned by
``tests/test_wandb_private.py``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_research.sync.eligibility import wandb_version
from rl_research.sync.job import Job
from rl_research.sync.outcome import Verdict
from rl_research.sync.sending import Sent
from rl_research.sync.server import RunThere
from rl_research.tracking import SyncLog


@dataclass
class Evidence:
    """Evidence of one segment in the log of a sync."""

    rows: int = 0  # acknowledged
    offset: int | None = None  # where the first of them went
    files: int = 0
    complete: bool = False  # its end was acknowledged
    errors: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    _pending: Mapping[str, Any] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of the log into account."""
        text = str(event.get("msg", ""))
        if text == SyncLog.SENDING:
            self._pending = event
        elif text == SyncLog.SENT:
            self._acknowledge()
        elif SyncLog.NO_FILE in text:
            self.lost.append(str(event.get("path", "?")))
        elif text == SyncLog.HTTP_ERROR:
            self.statuses.add(int(event.get("status") or 0))
        elif _is_loss(text, event):
            self.errors.append(_one_line(text, event))

    def _acknowledge(self) -> None:
        request, self._pending = self._pending, {}
        rows = int(request.get("history_lines") or 0)
        if rows and self.offset is None:
            self.offset = int(request.get("history_offset") or 0)
        self.rows += rows
        self.files += int(request.get("uploaded_len") or 0)
        self.complete = self.complete or bool(request.get("complete"))


def read_evidence(folder: Path) -> dict[str, Evidence]:
    """Return the evidence below *folder* by the path of the log that was synced; empty if there is none."""
    found: dict[str, Evidence] = {}
    for event in _events(folder):
        if path := event.get("sync_path"):
            found.setdefault(path, Evidence()).take(event)
    return found


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    for log in sorted(folder.rglob(SyncLog.FILES)):
        with log.open(errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a line that was cut off by SIGKILL
                if isinstance(event, dict):
                    yield event


def _is_loss(text: str, event: Mapping[str, Any]) -> bool:
    is_error = str(event.get("level", "")).startswith("ERROR")
    return is_error and not any(words in text for words in SyncLog.HARMLESS)


def _one_line(text: str, event: Mapping[str, Any]) -> str:
    reason = str(event.get("error") or "")
    whole = f"{text}: {reason}" if reason and reason not in text else text
    return " ".join(whole.split())[:300]


_MAX_REFUSALS = 5  # refusals, other than for missing rights, after which a run is blocked
_NO_RIGHTS = frozenset({401, 403})
_REFUSALS = frozenset({400, 404, 409, 413, 422})
_REMEDIES = {
    401: "Set WANDB_API_KEY to a key of this server, or run `wandb login`.",
    403: "Ask for the right to write to this project, or name another entity.",
    404: "Check the entity and the project; does the project exist?",
    413: "A row or a file is larger than the server takes.",
}
_FORCE = "Put it back, then: rl-research sync --force"


def judge(job: Job, found: Mapping[str, Evidence], sent: Sent) -> Verdict:
    """Return the verdict of the evidence, before the server is asked again."""
    parts = [found.get(str(copy)) for copy in job.copies]
    seen = [part for part in parts if part is not None]
    statuses = set().union(*(part.statuses for part in seen)) if seen else set()
    if not (reason := _shortfall(job, seen, sent)):
        return _of_losses(job, seen)
    if not seen and sent.code is not None:
        return _without_evidence(sent)
    if refused := sorted(statuses & _NO_RIGHTS):
        return Verdict("blocked", f"{reason} (HTTP {refused[0]}).", _REMEDIES[refused[0]])
    state = "partial" if any(part.rows for part in seen) else "retryable"
    if refused := sorted(statuses & _REFUSALS):
        stuck = job.run.ledger.attempts + 1 >= _MAX_REFUSALS
        remedy = _REMEDIES.get(refused[0], "")
        return Verdict("blocked" if stuck else state, f"{reason} (HTTP {refused[0]}).", remedy)
    status = f" (HTTP {max(statuses)})" if statuses else ""
    return Verdict(state, f"{reason}{status}.")


def _shortfall(job: Job, seen: list[Evidence], sent: Sent) -> str:
    """Return what is missing for a success, in a few words; empty if nothing is."""
    errors = [error for part in seen for error in part.errors]
    rows = sum(part.rows for part in seen)
    if errors:
        return errors[0].rstrip(".")
    if sent.code is None and not all(part.complete for part in seen):
        return f"no end after {sent.seconds:.0f} s"
    if len(seen) < len(job.copies):
        return "wandb did not get to all of its segments"
    if rows < job.rows_to_send:
        return f"{rows:,} of {job.rows_to_send:,} rows were acknowledged"
    if not all(part.complete for part in seen):
        return "its end was not acknowledged"
    if not all(copy.with_name(f"{copy.name}.synced").exists() for copy in job.copies):
        return "wandb does not say that it is done"
    return ""


def _of_losses(job: Job, seen: list[Evidence]) -> Verdict:
    """Return the verdict where everything that could be sent was sent."""
    lost = [f"lost: {path}." for part in seen for path in part.lost]
    problems = [*job.problems, *(text for text in lost if not job.problems)]
    if not problems:
        return Verdict("synced")
    return Verdict("blocked", f"{' '.join(problems)} Everything else has arrived.", _FORCE)


def _without_evidence(sent: Sent) -> Verdict:
    said = [line.removeprefix("wandb: ") for line in sent.output.splitlines() if line.strip()]
    last = said[-1][:200] if said else f"exit code {sent.code}"
    if sent.code:
        if "API key" in sent.output or "No API" in sent.output:
            return Verdict("blocked", f"wandb: {last}", _REMEDIES[401])
        return Verdict("retryable", f"wandb: {last}")
    return Verdict(
        "unverified",
        f"wandb {wandb_version()} left no evidence of what arrived.",
        "Install wandb>=0.31,<0.32, then: rl-research sync --force",
    )


def confirm(job: Job, verdict: Verdict, there: RunThere | None) -> Verdict:
    """Return *verdict*; a success stands only if the server, where it answers, has all rows."""
    if verdict.state != "synced" or there is None or job.there is None:
        return verdict
    expected = job.there.rows + job.rows_to_send
    if there.rows < expected:
        reason = f"the server has {there.rows:,} rows of {expected:,} that it acknowledged."
        return Verdict("partial", reason)
    return verdict
