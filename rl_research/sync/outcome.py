"""Outcome of a run's sync: for people, for scripts, as an exit code."""

from collections.abc import Iterable
from dataclasses import dataclass

#: state -> exit code: 0 nothing is left to do, 75 a later sync will do it, 2 somebody has to act.
EXIT_CODES = {
    "synced": 0,  # all of it arrived now
    "unchanged": 0,  # all of it had arrived before; nobody was asked
    "pushed": 0,  # stands at a URL, from where a gateway syncs it
    "live": 0,  # is being written; left alone
    "partial": 75,  # some of it arrived; the rest goes next time
    "retryable": 75,  # the server or the line failed
    "waiting": 75,  # its next try is not due
    "busy": 75,  # another sync has it
    "blocked": 2,
    "unverified": 2,  # wandb left no evidence
}
_LATER, _STUCK = 75, 2


@dataclass(frozen=True)
class Verdict:
    """State of a run after a sync, the reason, and what to do about it."""

    state: str
    reason: str = ""
    remedy: str = ""
    by_server: bool = False  # blocked by W&B's server, where the reason may have gone since


@dataclass(frozen=True)
class Outcome:
    """Outcome of one run. Counts are of the whole run, not of this attempt alone."""

    run_id: str
    folder: str
    state: str
    rows: int = 0  # acknowledged
    rows_recorded: int = 0
    repeated: int = 0
    files: int = 0
    artifacts: int = 0
    url: str = ""
    reason: str = ""
    remedy: str = ""
    flow_run_id: str | None = None

    @property
    def is_later(self) -> bool:
        """Whether another try may help while nobody does anything."""
        return EXIT_CODES[self.state] == _LATER

    def line(self) -> str:
        """Return the outcome in a line, for people."""
        counts = f"{self.rows:,} of {self.rows_recorded:,} rows"
        if self.state in ("synced", "unchanged", "pushed"):
            things = [counts, f"{self.files} files", f"{self.artifacts} artifacts", self.url]
            text = ", ".join(thing for thing in things if thing)
            text += f" ({self.repeated:,} rows more than recorded)" if self.repeated > 0 else ""
            text += f"; {self.reason}" if self.reason else ""
        else:
            text = f"{counts}: {self.reason}" if self.rows_recorded else self.reason
            text += f" {self.remedy}" if self.remedy else ""
        return f"{self.state:<10} {self.run_id}: {text}"


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """Return 2 if somebody has to act, else 75 if something is left for a later sync, else 0."""
    codes = {EXIT_CODES[outcome.state] for outcome in outcomes}
    return _STUCK if _STUCK in codes else max(codes, default=0)
