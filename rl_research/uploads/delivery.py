"""A checkpoint brought to ``storage.url`` and told to Weights & Biases, once each.

``deliveries.json`` in the run folder holds what has been done, so that neither a retry nor a resumed run
does it again. It is a note, not the truth: the store's manifests are that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config
from rl_research.credentials import without_password
from rl_research.errors import LoggingError
from rl_research.files import write_atomically
from rl_research.run import Run
from rl_research.storage import Store
from rl_research.utils.logger import ExperimentLogger

_log = logging.getLogger(__name__)

RECORD = "deliveries.json"
PATIENCE = 30.0  # seconds that W&B's server may take for the record of one checkpoint
_TRIES = 3  # after which its record is left to the log on disk


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

    def bring(self, checkpoint: Checkpoint, confirm: Callable[[], None]) -> Checkpoint:
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
        checkpoints.prune_store(store, **checkpoints.retention_of(self.config))
        return uploaded

    def awaits_score(self, checkpoint: Checkpoint) -> bool:
        """Whether *checkpoint* is the last of its run and has yet to get its final score."""
        last = checkpoint.global_step >= self.config.experiment.total_timesteps
        section = self.config.evaluation
        to_score = section.enabled and section.final_episodes > 0
        return last and to_score and "final_scores" not in checkpoint.manifest

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
            c
            for c in found
            if not (deliveries.arrived(c) and (deliveries.told(c) or self.awaits_score(c)))
        ]

    def outcome(self) -> dict[str, Any]:
        """What the run's record says of it: the steps left, and where the newest checkpoint is."""
        left = [checkpoint.global_step for checkpoint in self.left()]
        newest = checkpoints.local_checkpoints(self.folder)[-1:]
        address = self.deliveries().address(newest[0]) if newest else None
        return {"not_uploaded": left, **({"checkpoint": address} if address else {})}


def deliver(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """Bring *checkpoint* to ``storage.url`` and tell W&B; where there is none, the run folder is its home.

    What has been done is not done again. Raises `CheckpointMissing` if retention has removed it;
    connection failures leave as they came. A W&B server that is away holds up no other checkpoint for
    long: after some tries the artifact is left to the log on disk, which W&B sends when it can.
    """
    checkpoint = checkpoints.find(checkpoint.address)
    if run.config.storage.url is None:
        return checkpoint
    confirm = run.store_lease.confirm if run.store_lease else lambda: None
    home = Home(run.dir, run.config)
    uploaded = home.bring(checkpoint, confirm)
    patient = not run.stop and home.deliveries().failures(uploaded) < _TRIES
    try:
        announce(run, uploaded, wait=PATIENCE if patient else 0.0)
    except ConnectionError:
        home.deliveries().note(uploaded, arrived=True, failed=True)
        raise
    except LoggingError as error:
        _log.warning("step %d has arrived, but %s", uploaded.global_step, error)
    return uploaded


def announce(run: Run, checkpoint: Checkpoint, wait: float = 0.0) -> None:
    """Tell the W&B run where *checkpoint* lies, with everything its manifest says; once for its content.

    The last one of a run is told of when it has its final score. *wait* and what is raised where the
    server does not take it are `ExperimentLogger.log_checkpoint`'s.
    """
    home = Home(run.dir, run.config)
    deliveries = home.deliveries()
    if home.awaits_score(checkpoint) or deliveries.told(checkpoint):
        return
    tell(run.logger, home, checkpoint, wait)
    deliveries.note(checkpoint, arrived=True, told=True)


def tell(logger: ExperimentLogger, home: Home, checkpoint: Checkpoint, wait: float = 0.0) -> None:
    """Log where *checkpoint* of the run in *home* lies, whether or not it has been logged before."""
    deliveries = home.deliveries()
    aliases = ["latest", f"step-{checkpoint.global_step}"]
    if deliveries.is_best(checkpoint):
        aliases.append("best")
    name = f"{home.config.run_id}-checkpoint"
    facts = {**facts_of(checkpoint), "storage_url": deliveries.place or None}
    uri = checkpoint.store.address(checkpoint.name)
    logger.log_checkpoint(name, uri, checkpoint.files, facts, aliases=aliases, wait=wait)


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is shown of *checkpoint* elsewhere: its manifest's facts, and its files' sizes and hashes."""
    left_out = ("files", "shared", "config")
    facts = {k: v for k, v in checkpoint.manifest.items() if k not in left_out}
    return {
        **facts,
        "bytes": sum(size for size, _ in checkpoint.paths().values()),
        "sizes": {name: size for name, (size, _) in checkpoint.files.items()},
        "sha256": {name: sha256 for name, (_, sha256) in checkpoint.files.items()},
    }


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
        return self._noted(checkpoint).get("arrived") == _digest(checkpoint.manifest)

    def address(self, checkpoint: Checkpoint) -> str | None:
        """Where *checkpoint* has arrived, None if it has not."""
        address = self._noted(checkpoint).get("address")
        return str(address) if address and self.arrived(checkpoint) else None

    def told(self, checkpoint: Checkpoint) -> bool:
        """Whether W&B has been told where these files are."""
        return self._noted(checkpoint).get("told") == _digest(checkpoint.manifest["files"])

    def failures(self, checkpoint: Checkpoint) -> int:
        """How often W&B could not be told."""
        return int(self._noted(checkpoint).get("failures", 0))

    def is_best(self, checkpoint: Checkpoint) -> bool:
        """Whether no checkpoint told of before, or kept beside it, has a better score."""
        kept = [mean_of(other) for other in checkpoints.list_checkpoints(checkpoint.store)]
        return mean_of(checkpoint) >= max([*kept, self._best]) > -math.inf

    def note(
        self, checkpoint: Checkpoint, *, arrived: bool, told: bool = False, failed: bool = False
    ) -> None:
        """Write down how far *checkpoint* is on its way to its address."""
        noted = {**self._noted(checkpoint), "place": self.place, "address": checkpoint.address}
        noted["arrived"] = _digest(checkpoint.manifest) if arrived else None
        if failed:
            noted["failures"] = self.failures(checkpoint) + 1
        if told:
            noted["told"] = _digest(checkpoint.manifest["files"])
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


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
