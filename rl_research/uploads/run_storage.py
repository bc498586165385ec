"""A run's place in ``storage.url``, and the ledger of what has been uploaded to it.

``deliveries.json`` in the run folder is that ledger: neither a retry nor a resumed run does again what it
holds. It is a note and not the truth, which the store's manifests are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config
from rl_research.storage import Store
from rl_research.system import without_password, write_atomically

LEDGER = "deliveries.json"


@dataclass(frozen=True)
class RunStorage:
    """A run folder, and where its configuration wants its checkpoints besides."""

    folder: Path
    config: Config

    def store(self) -> Store:
        """Open the run's place in ``storage.url``, in the thread that uses it."""
        found = checkpoints.store_of(self.config)
        assert found is not None, "only a run with a storage.url has a place there"
        return found

    def upload(self, checkpoint: Checkpoint, confirm: Callable[[], None]) -> Checkpoint:
        """Copy *checkpoint* to the store unless it is there, and apply the run's retention to the store.

        Returns it as it lies there. *confirm* is that of `checkpoints.upload`. After scoring, the manifest
        alone is sent again. Connection failures are raised as they come.
        """
        store, ledger = self.store(), self.ledger()
        uploaded = Checkpoint(store, checkpoint.name, checkpoint.manifest)
        is_there = checkpoints.is_in(checkpoint, store)
        # Without an entry of ours, another machine has uploaded and announced it.
        announced = is_there and not ledger.knows(checkpoint) and not self.awaits_score(checkpoint)
        if not is_there:
            ledger.note(uploaded, arrived=False)
            checkpoints.upload(checkpoint, store, confirm)
        ledger.note(uploaded, announced=announced)
        kept = checkpoints.prune_store(store, checkpoints.Retention.of(self.config))
        ledger.note(uploaded, kept=kept)
        return uploaded

    def awaits_score(self, checkpoint: Checkpoint) -> bool:
        """Return whether *checkpoint* is the last of its run and has yet to get its final score."""
        section, last = self.config.evaluation, self.config.experiment.total_timesteps
        to_score = section.enabled and section.final_episodes > 0
        return to_score and checkpoint.global_step >= last and checkpoint.manifest.final_scores is None

    def ledger(self) -> "UploadLedger":
        """Read what is known of the run's checkpoints in this storage."""
        url = self.config.storage.url
        return UploadLedger(self.folder, "" if url is None else without_password(url))

    def not_uploaded(self) -> list[Checkpoint]:
        """Return the local checkpoints that have not arrived, as far as the ledger knows; oldest first."""
        ledger = self.ledger()
        return [c for c in checkpoints.local_checkpoints(self.folder) if not ledger.arrived(c)]

    def not_announced(self) -> list[Checkpoint]:
        """Return the local checkpoints that have arrived and that W&B has to be told of; oldest first."""
        ledger = self.ledger()
        arrived = [c for c in checkpoints.local_checkpoints(self.folder) if ledger.arrived(c)]
        return [c for c in arrived if not (ledger.announced(c) or self.awaits_score(c))]

    def unfinished(self) -> list[Checkpoint]:
        """Return the local checkpoints that are not uploaded or not announced; oldest first."""
        found = [*self.not_uploaded(), *self.not_announced()]
        return sorted(found, key=lambda checkpoint: checkpoint.global_step)

    def summary(self) -> dict[str, Any]:
        """Return what the run's record says: steps not uploaded, and where the newest checkpoint is."""
        ledger, newest = self.ledger(), checkpoints.local_checkpoints(self.folder)[-1:]
        addresses = [ledger.entry(c).address for c in newest if ledger.arrived(c)]
        steps = [checkpoint.global_step for checkpoint in self.not_uploaded()]
        return {"not_uploaded": steps, **({"checkpoint": addresses[0]} if any(addresses) else {})}


def mean_of(checkpoint: Checkpoint) -> float:
    """Return the mean return of *checkpoint*, minus infinity where it has none."""
    return checkpoint.mean if math.isfinite(checkpoint.mean) else -math.inf


def _best(found: Iterable[Checkpoint]) -> float | None:
    """Return the best mean return of *found*, None where none has one; JSON has no infinity."""
    best = max(map(mean_of, found), default=-math.inf)
    return best if math.isfinite(best) else None


class UploadEntry(BaseModel):
    """How far a checkpoint is on its way to *address* in the storage *place*."""

    model_config = ConfigDict(extra="allow")

    place: str = ""
    address: str | None = None
    arrived: str | None = None  # hash of the manifest that has arrived
    told: str | None = None  # hash of the files that W&B knows
    failures: int = 0  # times that W&B could not be told
    best_kept: float | None = None  # best mean return in the store when it had arrived


class _Entries(BaseModel):
    """``deliveries.json``; *best* is the best mean return that W&B has been told."""

    model_config = ConfigDict(extra="allow")

    best: float | None = None
    checkpoints: dict[str, UploadEntry] = Field(default_factory=dict)


class UploadLedger:
    """Entries of the run folder *folder* on checkpoints in the storage *place*, a URL without its password.

    *place* is empty where the run folder is all there is. A ledger that cannot be read counts as empty, for
    the store can be asked again.
    """

    def __init__(self, folder: Path, place: str) -> None:
        self._folder, self.place = folder, place
        try:
            self._stored = _Entries.model_validate_json((folder / LEDGER).read_bytes())
        except (OSError, ValidationError):
            self._stored = _Entries()

    def entry(self, checkpoint: Checkpoint) -> UploadEntry:
        """Return what is known of *checkpoint* in this storage."""
        found = self._stored.checkpoints.get(checkpoint.name)
        return found if found and found.place == self.place else UploadEntry()

    def knows(self, checkpoint: Checkpoint) -> bool:
        """Return whether there is an entry of *checkpoint* for any storage."""
        return checkpoint.name in self._stored.checkpoints

    def arrived(self, checkpoint: Checkpoint) -> bool:
        """Return whether *checkpoint* has arrived with this very manifest."""
        return self.entry(checkpoint).arrived == checkpoint.manifest.sha256()

    def announced(self, checkpoint: Checkpoint) -> bool:
        """Return whether W&B has been told where these files are."""
        return self.entry(checkpoint).told == checkpoint.manifest.files_sha256()

    def is_best(self, checkpoint: Checkpoint, *, ask_store: bool) -> bool:
        """Return whether no checkpoint that was announced, or is kept beside it, has a better score.

        What is kept is known from a fresh upload. The store is listed where it is not, or with *ask_store*.
        """
        entry = self.entry(checkpoint)
        if ask_store or "best_kept" not in entry.model_fields_set:
            best_kept = _best(checkpoints.list_checkpoints(checkpoint.store))
        else:
            best_kept = entry.best_kept
        known = [best for best in (best_kept, self._stored.best) if best is not None]
        return bool(known) and mean_of(checkpoint) >= max(known)

    def note(
        self, checkpoint: Checkpoint, *, arrived: bool = True, announced: bool = False, failures: int = 0,
        kept: Sequence[Checkpoint] | None = None,
    ) -> None:  # fmt: skip
        """Write how far *checkpoint* is on its way to its address, and what is *kept* beside it there."""
        stored, entry = self._stored, self.entry(checkpoint).model_copy()
        entry.place, entry.address = self.place, checkpoint.address
        entry.arrived = checkpoint.manifest.sha256() if arrived else None
        entry.failures += failures
        if announced:
            entry.told = checkpoint.manifest.files_sha256()
        if kept is not None:
            entry.best_kept = _best(kept)
        local = {c.name for c in checkpoints.local_checkpoints(self._folder)}
        entries = {**stored.checkpoints, checkpoint.name: entry}
        stored.checkpoints = {name: entries[name] for name in sorted(entries) if name in local}
        means = [*([checkpoint.mean] if announced else []), *([] if stored.best is None else [stored.best])]
        stored.best = max(filter(math.isfinite, means), default=None)
        text = stored.model_dump_json(indent=2, exclude_unset=True) + "\n"
        write_atomically(self._folder / LEDGER, text.encode())
