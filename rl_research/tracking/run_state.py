"""Where a W&B run is: on the server, on disk, and what of it has arrived."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.tracking import wandb_run
from rl_research.tracking.logged_rows import Logged
from rl_research.tracking.settings import RunSettings

if TYPE_CHECKING:
    from wandb import Run


class Whereabouts:
    """What an `ExperimentLogger` knows of its W&B run besides what it logs."""

    run_id: str
    run: Run | None = None
    reason: str | None = None  # why the run is offline although it was meant to be online
    finished: bool | None = None  # None: it is open
    _settings: RunSettings

    @property
    def mode(self) -> str:
        """Online, offline or disabled: what it turned out to be."""
        return "disabled" if self.run is None else "offline" if self.run.offline else "online"

    @property
    def path(self) -> str | None:
        """``entity/project/run_id`` (without an entity where none is known); None if disabled."""
        if self.run is None:
            return None
        entity = self._settings.wandb.entity or self.run.entity
        return "/".join(p for p in (entity, self._settings.wandb.project, self.run_id) if p)

    @property
    def wandb_dir(self) -> Path | None:
        """The folder that ``wandb sync`` and ``wandb leet run`` take; None if disabled."""
        return None if self.run is None else Path(self.run.settings.sync_dir)

    @property
    def url(self) -> str | None:
        """Where the run is, or will be once synced; offline it is known with an entity only."""
        return None if self.run is None else (self.run.settings.run_url or None)

    @property
    def record(self) -> dict[str, Any]:
        """What ``run.json`` says of the W&B run; `finished` is None while it is open.

        Then it says whether all rows have arrived (online) or are on disk (offline).
        """
        return {
            "id": self.run_id,
            "mode": self.mode,
            "wanted": self._settings.wandb.mode,
            "reason": self.reason,
            "path": self.path,
            "dir": None if self.wandb_dir is None else str(self.wandb_dir),
            "url": self.url,
            "finished": self.finished,
        }

    def served(self) -> Logged | None:
        """What the server has of this run; None if the run is offline or the server does not say."""
        if self.run is None or self.mode != "online":
            return None
        return wandb_run.served(self.run)
