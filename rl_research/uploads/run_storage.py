"""What a run folder has brought to ``storage.url``, and what is noted there of it.

``deliveries.json`` in the run folder holds what has been done, so that neither a retry nor a resumed run
does it again. It is a note, not the truth: the store's manifests are that.
"""

from __future__ import annotations

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

RECORD = "deliveries.json"


@dataclass(frozen=True)
class Arrival:
    """A checkpoint as it lies in the store, and the best mean return of all that is kept there."""

    checkpoint: Checkpoint
    best_kept: float


@dataclass(frozen=True)
class Home:
    """A run folder, and where its configuration wants its checkpoints besides."""

    folder: Path
    config: Config

    def store(self) -> Store:
        """The run's place in ``storage.url``; to be made in the thread that uses it."""
        found = checkpoints.store_of(self.config)
        assert found is not None, "only a run with a storage.url has a second home"
        return found

    def bring(self, checkpoint: Checkpoint, confirm: Callable[[], None]) -> Arrival:
        """Copy *checkpoint* to the store, unless it is there; *confirm* as in `checkpoints.upload`.

        Sent again after scoring, it is the manifest alone that travels. Connection failures leave as
        they came.
        """
        store, deliveries = self.store(), self.deliveries()
        uploaded = Checkpoint(store, checkpoint.name, checkpoint.manifest)
        if checkpoints.is_in(checkpoint, store):
            # Without a note of ours, another machine has brought it there, and told of it.
            told = not deliveries.knows(checkpoint) and not self.awaits_score(checkpoint)
            deliveries.note(uploaded, arrived=True, told=told)
        else:
            deliveries.note(uploaded, arrived=False)
            checkpoints.upload(checkpoint, store, confirm)
            deliveries.note(uploaded, arrived=True)
        kept = checkpoints.prune_store(store, **checkpoints.retention_of(self.config))
        return Arrival(uploaded, max(map(mean_of, kept), default=-math.inf))

    def awaits_score(self, checkpoint: Checkpoint) -> bool:
        """Whether *checkpoint* is the last of its run and has yet to get its final score."""
        last = checkpoint.global_step >= self.config.experiment.total_timesteps
        section = self.config.evaluation
        to_score = section.enabled and section.final_episodes > 0
        return last and to_score and checkpoint.manifest.final_scores is None

    def deliveries(self) -> Deliveries:
        """What is noted of the run's checkpoints and of this storage."""
        url = self.config.storage.url
        return Deliveries(self.folder, "" if url is None else without_password(url))

    def left(self) -> list[Checkpoint]:
        """The local checkpoints that, as far as is noted here, have not arrived; oldest first."""
        deliveries, found = self.deliveries(), checkpoints.local_checkpoints(self.folder)
        return [checkpoint for checkpoint in found if not deliveries.arrived(checkpoint)]

    def to_do(self) -> list[Checkpoint]:
        """The local checkpoints that have not arrived, or that W&B has not been told of; oldest first."""
        deliveries, found = self.deliveries(), checkpoints.local_checkpoints(self.folder)
        return [
            c for c in found if not (deliveries.arrived(c) and (deliveries.told(c) or self.awaits_score(c)))
        ]

    def outcome(self) -> dict[str, Any]:
        """What the run's record says of it: the steps left, and where the newest checkpoint is."""
        left = [checkpoint.global_step for checkpoint in self.left()]
        newest = checkpoints.local_checkpoints(self.folder)[-1:]
        address = self.deliveries().address(newest[0]) if newest else None
        return {"not_uploaded": left, **({"checkpoint": address} if address else {})}


def mean_of(checkpoint: Checkpoint) -> float:
    """The mean return of *checkpoint*; minus infinity where it has none."""
    return checkpoint.mean if math.isfinite(checkpoint.mean) else -math.inf


class Deliveries:
    """What has arrived in a storage and been told of, as the run folder notes it.

    :param folder: the run's
    :param place: the storage's URL without a password; empty where the run folder is all there is
    """

    def __init__(self, folder: Path, place: str) -> None:
        self._folder, self.place = folder, place
        noted = _read(folder / RECORD)
        self._checkpoints: dict[str, Any] = noted.get("checkpoints", {})
        best = noted.get("best")
        self._best = -math.inf if best is None else float(best)

    def knows(self, checkpoint: Checkpoint) -> bool:
        """Whether there is any note of *checkpoint*."""
        return checkpoint.name in self._checkpoints

    def arrived(self, checkpoint: Checkpoint) -> bool:
        """Whether *checkpoint* has arrived, with every word of its manifest."""
        return self._noted(checkpoint).get("arrived") == checkpoint.manifest.sha256()

    def address(self, checkpoint: Checkpoint) -> str | None:
        """Where *checkpoint* has arrived, None if it has not."""
        address = self._noted(checkpoint).get("address")
        return str(address) if address and self.arrived(checkpoint) else None

    def told(self, checkpoint: Checkpoint) -> bool:
        """Whether W&B has been told where these files are."""
        return self._noted(checkpoint).get("told") == checkpoint.manifest.files_sha256()

    def failures(self, checkpoint: Checkpoint) -> int:
        """How often W&B could not be told."""
        return int(self._noted(checkpoint).get("failures", 0))

    def is_best(self, checkpoint: Checkpoint, best_kept: float | None = None) -> bool:
        """Whether no checkpoint told of before, or kept beside it, has a better score.

        The store is asked what is kept there if the caller does not know the *best_kept* of it.
        """
        if best_kept is None:
            kept = checkpoints.list_checkpoints(checkpoint.store)
            best_kept = max(map(mean_of, kept), default=-math.inf)
        return mean_of(checkpoint) >= max(best_kept, self._best) > -math.inf

    def note(
        self, checkpoint: Checkpoint, *, arrived: bool, told: bool = False, failed: bool = False
    ) -> None:
        """Write down how far *checkpoint* is on its way to its address."""
        noted = {**self._noted(checkpoint), "place": self.place, "address": checkpoint.address}
        noted["arrived"] = checkpoint.manifest.sha256() if arrived else None
        if failed:
            noted["failures"] = self.failures(checkpoint) + 1
        if told:
            noted["told"] = checkpoint.manifest.files_sha256()
            self._best = max(mean_of(checkpoint), self._best)
        here = {c.name for c in checkpoints.local_checkpoints(self._folder)}
        entries = {**self._checkpoints, checkpoint.name: noted}
        self._checkpoints = {name: entries[name] for name in sorted(entries) if name in here}
        best = self._best if math.isfinite(self._best) else None
        text = json.dumps({"best": best, "checkpoints": self._checkpoints}, indent=2) + "\n"
        write_atomically(self._folder / RECORD, text.encode())

    def _noted(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        noted = self._checkpoints.get(checkpoint.name, {})
        return noted if noted.get("place") == self.place else {}


def _read(path: Path) -> dict[str, Any]:
    """The notes at *path*; none where there are none that can be read, for everything can be asked again."""
    try:
        noted = json.loads(path.read_text())
        return noted if isinstance(noted.get("checkpoints"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}
