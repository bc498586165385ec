"""A run on disk prepared for sending, or the reason why nothing of it is sent."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rl_research.sync.eligibility import Policy
from rl_research.sync.liveness import is_live
from rl_research.sync.local_runs import LocalRun, reread
from rl_research.sync.logs import LogFacts, scan
from rl_research.sync.outcome import Outcome, Verdict, outcome_of
from rl_research.sync.sent_copy import Skipped, write_copy
from rl_research.sync.server import RunThere


@dataclass
class Job:
    """A run that is to be sent."""

    run: LocalRun
    logs: list[LogFacts]  # the segments to be sent, oldest first
    problems: list[str]  # with logs that cannot be sent whole
    lock: IO[str] | None  # the file by which it is held, where the disk has locks
    there: RunThere | None = None  # what the server had before
    left_out: list[Skipped] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)

    @property
    def path(self) -> tuple[str, str, str]:
        """Entity, project and id of the W&B run."""
        first = self.logs[0]
        return first.entity, first.project, first.run_id

    @property
    def rows_before(self) -> int:
        """Rows of the run that the server had before."""
        chosen = {facts.log for facts in self.logs}
        known = self.run.ledger.segments
        others = sum(known[name]["rows"] for name, log in self.run.logs.items() if log not in chosen and name in known)
        return others + sum(part.rows for part in self.left_out)

    @property
    def rows_to_send(self) -> int:
        """Rows that are sent now."""
        return sum(facts.rows for facts in self.logs) - sum(part.rows for part in self.left_out)

    @property
    def size(self) -> int:
        """Bytes to be sent, at most."""
        return sum(facts.size + facts.payload for facts in self.logs)

    def write_copies(self, folder: Path) -> None:
        """Write the copies that are sent into *folder*; the logs themselves stay as they are."""
        summary = self.there.summary if self.there else {}
        self.copies = []
        for number, (facts, part) in enumerate(zip(self.logs, self.left_out, strict=True)):
            place = folder / f"offline-run-{number:03d}"
            self.copies.append(write_copy(facts, place, replace(part), {} if number else summary))


def prepare_job(run: LocalRun, lock: IO[str] | None, policy: Policy) -> Job | Verdict | Outcome:
    """Return what is to be sent of *run*, or why nothing is."""
    # delivered, forced and then out of reach: nothing is pending, and the server is asked again
    names = list(run.logs) if policy.force or not run.pending else run.pending
    logs = [scan(run.logs[name], run.home) for name in names]
    if is_live(run, logs, policy.quiet):
        reason = "it is being written; its end will be synced"
        return outcome_of(run.ledger, run.place, "live", reason=reason, remedy="")
    if not all(facts.exited for facts in logs):  # its writer may have had a last word meanwhile
        run = reread(run)
        logs = [scan(run.logs[name], run.home) for name in names]
    job = Job(run, sorted(filter(_has_a_run, logs), key=lambda facts: facts.start), _problems(run.home, logs), lock)
    if not job.logs:
        return Verdict("blocked", " ".join(job.problems) or "its log holds no run", "Remove its folder.")
    projects = {(facts.entity, facts.project) for facts in job.logs}
    if len(projects) > 1:
        named = ", ".join(sorted("/".join(filter(None, parts)) for parts in projects))
        return Verdict("blocked", f"its segments name several projects: {named}", "Keep them in folders of their own.")
    return job


def _has_a_run(facts: LogFacts) -> bool:
    return bool(facts.run_id)


def _problems(home: Path, logs: list[LogFacts]) -> list[str]:
    damaged = [facts for facts in logs if facts.damaged_at is not None]
    found = [
        f"{facts.log.relative_to(home)} is damaged at byte {facts.damaged_at:,}; "
        f"the {facts.rows:,} rows before that are sound."
        for facts in damaged
    ]
    lost = [path for facts in logs for path in facts.lost]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        found.append(f"lost: {lost[0]}{more}.")
    return found
