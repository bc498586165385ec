"""A run on its way to the server: what of its logs is sent, and what is known of it so far."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from rl_research.sync.liveness import is_live
from rl_research.sync.local_runs import LocalRun, Policy, reread
from rl_research.sync.logs import LogFacts, scan
from rl_research.sync.outcome import Outcome, Verdict
from rl_research.sync.sending import Evidence
from rl_research.sync.sent_copy import Skipped, write_copy
from rl_research.tracking import RunThere


@dataclass
class Job:
    """A run that is to be sent."""

    run: LocalRun
    lock: IO[str] | Exception | None = None  # the file that is locked, or why it is not
    logs: list[LogFacts] = field(default_factory=list)  # the segments to be sent, oldest first
    problems: list[str] = field(default_factory=list)  # with logs that cannot be sent whole
    there: RunThere | None = None  # what the server had before
    left_out: list[Skipped] = field(default_factory=list)  # of each log, for the server has it
    folder: Path = Path()  # gets the copies
    copies: list[Path] = field(default_factory=list)  # of the logs, which stay as they are
    evidence: list[Evidence] = field(default_factory=list)  # of the copies that wandb got to
    outcome: Outcome | None = None  # None: it goes on

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
        others = sum(known[name].rows for name, log in self.run.logs.items() if log not in chosen and name in known)
        return others + sum(part.rows for part in self.left_out)

    @property
    def rows_to_send(self) -> int:
        """Rows that are sent now."""
        return sum(facts.rows for facts in self.logs) - sum(part.rows for part in self.left_out)

    @property
    def size(self) -> int:
        """Bytes to be sent, at most."""
        return sum(facts.size + facts.payload for facts in self.logs)

    def read_logs(self, policy: Policy) -> Verdict | Outcome | None:
        """Read what is to be sent; return why nothing of it is, if so."""
        run = self.run
        # delivered, forced and then out of reach: nothing is pending, and the server is asked again
        names = list(run.logs) if policy.force or not run.pending else run.pending
        logs = [scan(run.logs[name], run.home) for name in names]
        if is_live(run, logs):
            return run.outcome(Verdict("live", "it is being written; its end will be synced"))
        if not all(facts.exited for facts in logs):  # its writer may have had a last word meanwhile
            self.run = reread(run)
            logs = [scan(run.logs[name], run.home) for name in names]
        self.logs = sorted((facts for facts in logs if facts.run_id), key=lambda facts: facts.start)
        self.problems = _problems(run.home, logs)
        if not self.logs:
            return Verdict("blocked", " ".join(self.problems) or "its log holds no run", "Remove its folder.")
        if len(projects := {"/".join(filter(None, (facts.entity, facts.project))) for facts in self.logs}) > 1:
            reason = f"its segments name several projects: {', '.join(sorted(projects))}"
            return Verdict("blocked", reason, "Keep them in folders of their own.")
        return None

    def write_copies(self) -> None:
        """Write the copies that are sent."""
        summary = self.there.summary if self.there else {}
        for number, (facts, part) in enumerate(zip(self.logs, self.left_out, strict=True)):
            place = self.folder / f"offline-run-{number:03d}"
            self.copies.append(write_copy(facts, place, replace(part), {} if number else summary))


def _problems(home: Path, logs: list[LogFacts]) -> list[str]:
    found = [
        f"{facts.log.relative_to(home)} is damaged at byte {facts.damaged_at:,}; "
        f"the {facts.rows:,} rows before that are sound."
        for facts in logs
        if facts.damaged_at is not None
    ]
    lost = [path for facts in logs for path in facts.lost]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        found.append(f"lost: {lost[0]}{more}.")
    return found
