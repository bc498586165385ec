"""Which checkpoints are kept, and what a killed process left behind."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_research.checkpoints.checkpoint import (
    FOLDER,
    INTENT,
    MANIFEST,
    REPLAY,
    Checkpoint,
    by_score,
    list_checkpoints,
    read_manifest,
    survey,
    warn_of_passed_over,
)
from rl_research.checkpoints.writer import settle_replacements
from rl_research.config import Config
from rl_research.storage import Store


@dataclass(frozen=True)
class Retention:
    """Numbers of checkpoints that stay: the newest, the best-scored, one per *keep_every* steps (0: none)."""

    keep_last: int
    keep_best: int
    keep_every: int = 0

    @classmethod
    def of(cls, config: Config) -> "Retention":
        """Return the retention that *config* asks for."""
        section = config.checkpoint
        return cls(section.keep_last, section.keep_best, section.keep_every)

    @classmethod
    def recorded_in(cls, checkpoint: Checkpoint) -> "Retention | None":
        """Return the retention that the manifest of *checkpoint* records, None if it records none."""
        try:
            section = checkpoint.manifest.config["checkpoint"]
            return cls(section["keep_last"], section.get("keep_best", 0), section.get("keep_every", 0))
        except (LookupError, TypeError, AttributeError):
            return None

    def kept(self, found: Sequence[Checkpoint]) -> set[str]:
        """Return the names of those of *found*, oldest first, that stay.

        Of every *keep_every* environment steps it is the first at or after the multiple. The one that the
        newest segment has gone on from stays, too.
        """
        best = by_score(found)[-self.keep_best :] if self.keep_best else []
        names = {c.name for c in [*found[-self.keep_last :], *best, *self._milestones(found)]}
        in_use = {c.manifest.resumed_from for c in found[-1:]}
        return names | {c.name for c in found if c.name in in_use}

    def _milestones(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        first: dict[int, Checkpoint] = {}
        for checkpoint in found if self.keep_every else ():
            first.setdefault(checkpoint.global_step // self.keep_every, checkpoint)
        return [checkpoint for multiple, checkpoint in first.items() if multiple]


def prune(run_dir: Path, retention: Retention, in_use: Collection[str] = ()) -> list[str]:
    """Remove from the run folder what neither *retention* nor *in_use* names; return the names that went."""
    settle_replacements(run_dir / FOLDER)
    _, gone = _remove_all_but(Store(run_dir / FOLDER), retention, in_use)
    sweep(run_dir)
    return [checkpoint.name for checkpoint in gone]


def prune_store(store: Store, retention: Retention) -> list[Checkpoint]:
    """Do the same in a run's *store*, with the replay segments that nothing needs; return what stays."""
    stay, gone = _remove_all_but(store, retention)
    segments = {name for checkpoint in gone for name in checkpoint.segments}
    if segments and (needed := needed_segments(store)) is not None:  # which reads every manifest again
        for segment in segments - needed:
            store.remove(f"{REPLAY}/{segment}")
    return stay


def _remove_all_but(
    store: Store, retention: Retention, in_use: Collection[str] = ()
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Return what stays, and what has gone."""
    found = list_checkpoints(store)
    keep = retention.kept(found) | set(in_use)
    gone = [checkpoint for checkpoint in found if checkpoint.name not in keep]
    for checkpoint in gone:
        remove(checkpoint)
    return [checkpoint for checkpoint in found if checkpoint.name in keep], gone


def remove(checkpoint: Checkpoint) -> None:
    """Remove *checkpoint* from its store, but for its segments; first it stops being a checkpoint."""
    checkpoint.store.remove(f"{checkpoint.name}/{MANIFEST}")
    checkpoint.store.remove(checkpoint.name)


def needed_segments(store: Store, but: Collection[str] = ()) -> set[str] | None:
    """Return the replay segments that checkpoints in *store* need, *but* aside, and those on their way there.

    None where that cannot be known, because a manifest cannot be read: then all of them stay.
    """
    found, others = survey(store)
    needed = {name for c in found if c.name not in but for name in c.segments}
    for folder in others.keys() - set(but):
        if store.size(f"{folder}/{MANIFEST}") is not None:
            return None
        announced = read_manifest(store, f"{folder}/{INTENT}")  # an upload under way counts on them
        needed |= set(announced.shared) if announced else set()
    return needed


def sweep(run_dir: Path) -> None:
    """Remove what a killed process left half-written, and replay segments that no checkpoint needs.

    A folder newer than every checkpoint that has lost its manifest is reported before it goes.
    """
    parent = run_dir / FOLDER
    settle_replacements(parent)
    for orphan in [*parent.glob(".*.tmp"), *(parent / REPLAY).glob(".*.tmp")]:
        shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
    store = Store(parent)
    found, others = survey(store)
    bare = {n: error for n, error in others.items() if not (parent / n / MANIFEST).exists()}
    warn_of_passed_over(store, found[-1] if found else None, bare)
    for name in bare:
        shutil.rmtree(parent / name)
    if (needed := needed_segments(store)) is not None:
        for segment in (parent / REPLAY).glob("rows-*"):
            if segment.name not in needed:
                segment.unlink()
