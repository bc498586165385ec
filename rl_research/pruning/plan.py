"""Rules of a pruning, the removals that they lead to, and the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl_research.errors import StorageError

DAY = 86400.0


@dataclass(frozen=True)
class Rules:
    """Rules that say what may be removed.

    :param grace: seconds that an orphan, or a checkpoint that is not kept, must be old
    :param budget: bytes that the run folders of a place may take; None: any number
    :param older_than: seconds since a run has finished before a budget may touch it
    :param local_checkpoints: let a budget remove checkpoints that lie nowhere else
    :param dry_run: remove nothing
    :param options: of the file systems
    """

    grace: float = DAY
    budget: int | None = None
    older_than: float = 7 * DAY
    local_checkpoints: bool = False
    dry_run: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    now: float = field(default_factory=time.time)

    @property
    def before(self) -> float:
        """Time before which a file is older than the grace period, in seconds since 1970."""
        return self.now - self.grace


@dataclass(frozen=True)
class Removal:
    """Something that goes: where it lies, its bytes, why, and how it is removed."""

    path: str
    size: int
    reason: str
    remove: Callable[[], None] = field(repr=False, compare=False)


@dataclass
class Pruned:
    """Result for a place: what was removed, what was spared and why, what could not be removed."""

    place: str
    rules: Rules
    runs: int = 0
    bytes_before: int = 0
    removed: list[Removal] = field(default_factory=list)
    spared: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def bytes_removed(self) -> int:
        """Bytes of the removed files."""
        return sum(removal.size for removal in self.removed)

    @property
    def bytes_left(self) -> int:
        """Bytes that the runs there still hold."""
        return self.bytes_before - self.bytes_removed

    def carry_out(self, removals: Sequence[Removal]) -> None:
        """Remove, unless it is a dry run; a refusal is noted and ends it for this run."""
        for removal in removals:
            try:
                if not self.rules.dry_run:
                    removal.remove()
            except (PermissionError, StorageError) as error:
                self.refuse(removal.path, error)
                return
            self.removed.append(removal)

    def spare(self, path: str, reason: str) -> None:
        """Note that *path* was left alone; once for the same reason."""
        if (path, reason) not in self.spared:
            self.spared.append((path, reason))

    def refuse(self, path: str, error: Exception) -> None:
        """Note that *path* could not be removed."""
        named = getattr(error, "filename", None) or path
        denied = isinstance(error, PermissionError)
        self.refused.append(f"cannot prune {named}: no right to" if denied else f"{path}: {error}")

    def described(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "place": self.place,
            "runs": self.runs,
            "removed": [{"path": r.path, "bytes": r.size, "reason": r.reason} for r in self.removed],
            "bytes_removed": self.bytes_removed,
            "bytes_left": self.bytes_left,
            "spared": [{"path": path, "reason": reason} for path, reason in self.spared],
            "refused": self.refused,
        }
