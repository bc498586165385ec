"""A run's place in ``storage.url``, and the ledger of what has been uploaded to it.

``deliveries.json`` in the run folder is that ledger: neither a retry nor a resumed run does again what it
holds. It is a note and not the truth, which the store's manifests are.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config
from rl_research.storage import Store
from rl_research.system import without_password, write_atomically

LEDGER = "deliveries.json"


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint as it lies in the store, and the best mean return of all that is kept there."""

    checkpoint: Checkpoint
    best_kept: float


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

    def upload(self, checkpoint: Checkpoint, confirm: Callable[[], None]) -> Uploaded:
        """Copy *checkpoint* to the store unless it is there, and apply the run's retention to the store.

        *confirm* is that of `checkpoints.upload`. After scoring, the manifest alone is sent again.
        Connection failures are raised as they come.
        """
        store, ledger = self.store(), self.ledger()
        uploaded = Checkpoint(store, checkpoint.name, checkpoint.manifest)
        if checkpoints.is_in(checkpoint, store):
            # Without an entry of ours, another machine has uploaded and announced it.
            announced = not ledger.knows(checkpoint) and not self.awaits_score(checkpoint)
            ledger.note(uploaded, arrived=True, announced=announced)
        else:
            ledger.note(uploaded, arrived=False)
            checkpoints.upload(checkpoint, store, confirm)
            ledger.note(uploaded, arrived=True)
        kept = checkpoints.prune_store(store, checkpoints.Retention.of(self.config))
        return Uploaded(uploaded, max(map(mean_of, kept), default=-math.inf))

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
        newest = checkpoints.local_checkpoints(self.folder)[-1:]
        address = self.ledger().address(newest[0]) if newest else None
        steps = [checkpoint.global_step for checkpoint in self.not_uploaded()]
        return {"not_uploaded": steps, **({"checkpoint": address} if address else {})}


def mean_of(checkpoint: Checkpoint) -> float:
    """Return the mean return of *checkpoint*, minus infinity where it has none."""
    return checkpoint.mean if math.isfinite(checkpoint.mean) else -math.inf


class UploadLedger:
    """Entries of the run folder *folder* on checkpoints in the storage *place*, a URL without its password.

    *place* is empty where the run folder is all there is.
    """

    def __init__(self, folder: Path, place: str) -> None:
        self._folder, self.place = folder, place
        found = _read(folder / LEDGER)
        self._entries: dict[str, Any] = found.get("checkpoints", {})
        best = found.get("best")
        self._best = -math.inf if best is None else float(best)

    def knows(self, checkpoint: Checkpoint) -> bool:
        """Return whether there is an entry of *checkpoint* for any storage."""
        return checkpoint.name in self._entries

    def arrived(self, checkpoint: Checkpoint) -> bool:
        """Return whether *checkpoint* has arrived with this very manifest."""
        return self._entry(checkpoint).get("arrived") == checkpoint.manifest.sha256()

    def address(self, checkpoint: Checkpoint) -> str | None:
        """Return where *checkpoint* has arrived, None if it has not."""
        address = self._entry(checkpoint).get("address")
        return str(address) if address and self.arrived(checkpoint) else None

    def announced(self, checkpoint: Checkpoint) -> bool:
        """Return whether W&B has been told where these files are."""
        return self._entry(checkpoint).get("told") == checkpoint.manifest.files_sha256()

    def failures(self, checkpoint: Checkpoint) -> int:
        """Return how often W&B could not be told."""
        return int(self._entry(checkpoint).get("failures", 0))

    def is_best(self, checkpoint: Checkpoint, best_kept: float | None = None) -> bool:
        """Return whether no checkpoint that was announced, or is kept beside it, has a better score.

        The store is asked for *best_kept* if the caller does not know it.
        """
        if best_kept is None:
            kept = checkpoints.list_checkpoints(checkpoint.store)
            best_kept = max(map(mean_of, kept), default=-math.inf)
        return mean_of(checkpoint) >= max(best_kept, self._best) > -math.inf

    def note(self, checkpoint: Checkpoint, *, arrived: bool, announced: bool = False, failed: bool = False) -> None:
        """Write how far *checkpoint* is on its way to its address."""
        entry = {**self._entry(checkpoint), "place": self.place, "address": checkpoint.address}
        entry["arrived"] = checkpoint.manifest.sha256() if arrived else None
        if failed:
            entry["failures"] = self.failures(checkpoint) + 1
        if announced:
            entry["told"] = checkpoint.manifest.files_sha256()
            self._best = max(mean_of(checkpoint), self._best)
        here = {c.name for c in checkpoints.local_checkpoints(self._folder)}
        entries = {**self._entries, checkpoint.name: entry}
        self._entries = {name: entries[name] for name in sorted(entries) if name in here}
        best = self._best if math.isfinite(self._best) else None
        text = json.dumps({"best": best, "checkpoints": self._entries}, indent=2) + "\n"
        write_atomically(self._folder / LEDGER, text.encode())

    def _entry(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        entry = self._entries.get(checkpoint.name, {})
        return entry if entry.get("place") == self.place else {}


def _read(path: Path) -> dict[str, Any]:
    """Return the ledger at *path*, an empty one if it cannot be read: the store can be asked again."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found.get("checkpoints"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}
