"""Which checkpoints are kept, and what a killed process left behind."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from rl_research.checkpoints.checkpoint import (
    FOLDER,
    INTENT,
    MANIFEST,
    REPLAY,
    Checkpoint,
    list_checkpoints,
    survey,
)
from rl_research.checkpoints.references import warn_of_passed_over
from rl_research.checkpoints.writer import FORMER, remove_folder
from rl_research.config import Config
from rl_research.storage import Store

_log = logging.getLogger(__name__)


def retention_of(config: Config) -> dict[str, int]:
    """Which checkpoints *config* keeps, as `prune` and `prune_store` take it."""
    return config.checkpoint.model_dump(include={"keep_last", "keep_best", "keep_every"})


def prune(
    run_dir: Path, *, keep_last: int, keep_best: int, keep_every: int = 0, in_use: Collection[str] = ()
) -> list[str]:
    """Remove from the run folder what neither `kept` nor *in_use* names; return the names that went."""
    _settle_replacements(run_dir / FOLDER)
    store = Store(run_dir / FOLDER)
    _, gone = _remove_all_but(store, keep_last, keep_best, keep_every, in_use)
    sweep(run_dir)
    return [checkpoint.name for checkpoint in gone]


def prune_store(store: Store, *, keep_last: int, keep_best: int, keep_every: int = 0) -> list[Checkpoint]:
    """The same in a run's *store*, with the replay segments that nothing kept there needs; what stays."""
    stay, gone = _remove_all_but(store, keep_last, keep_best, keep_every)
    if gone and (needed := needed_segments(store)) is not None:
        for segment in {name for checkpoint in gone for name in checkpoint.shared} - needed:
            store.remove(f"{REPLAY}/{segment}")
    return stay


def _remove_all_but(
    store: Store, keep_last: int, keep_best: int, keep_every: int, in_use: Collection[str] = ()
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """What stays, and what has gone."""
    found = list_checkpoints(store)
    keep = kept(found, keep_last, keep_best, keep_every) | set(in_use)
    gone = [checkpoint for checkpoint in found if checkpoint.name not in keep]
    for checkpoint in gone:
        remove(checkpoint)
    return [checkpoint for checkpoint in found if checkpoint.name in keep], gone


def remove(checkpoint: Checkpoint) -> None:
    """Remove *checkpoint* from its store, but for its segments; first it stops being a checkpoint."""
    checkpoint.store.remove(f"{checkpoint.name}/{MANIFEST}")
    checkpoint.store.remove(checkpoint.name)


def kept(found: Sequence[Checkpoint], keep_last: int, keep_best: int, keep_every: int = 0) -> set[str]:
    """The names of those of *found*, oldest first, that stay.

    They are the *keep_last* newest, the *keep_best* best-scored, of every *keep_every* environment
    steps the first at or after the multiple, and the one that the newest segment has gone on from.
    """
    scored = sorted((c for c in found if c.mean == c.mean), key=lambda c: (c.mean, c.global_step))
    best = scored[len(scored) - keep_best :] if keep_best else []
    names = {c.name for c in [*found[-keep_last:], *best, *_milestones(found, keep_every)]}
    in_use = {c.manifest.resumed_from for c in found[-1:]}
    return names | {c.name for c in found if c.name in in_use}


def _milestones(found: Sequence[Checkpoint], every: int) -> list[Checkpoint]:
    if not every:
        return []
    first: dict[int, Checkpoint] = {}
    for checkpoint in found:
        first.setdefault(checkpoint.global_step // every, checkpoint)
    return [checkpoint for multiple, checkpoint in first.items() if multiple]


def needed_segments(store: Store, but: Collection[str] = ()) -> set[str] | None:
    """The replay segments that the checkpoints in *store* but *but* need, and those on their way there.

    None where that cannot be told, because a manifest cannot be read: then all of them stay.
    """
    found, others = survey(store)
    needed = {name for c in found if c.name not in but for name in c.shared}
    for folder in others.keys() - set(but):
        if store.size(f"{folder}/{MANIFEST}") is not None:
            return None
        needed |= _announced(store, folder)
    return needed


def _announced(store: Store, folder: str) -> set[str]:
    """The segments that an upload under way to *folder* counts on."""
    try:
        return set(json.loads(store.read(f"{folder}/{INTENT}"))["shared"])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return set()


def sweep(run_dir: Path) -> None:
    """Remove what a killed process left half-written, and replay segments that nobody needs.

    A folder newer than every checkpoint that has lost its manifest is reported before it goes.
    """
    parent = run_dir / FOLDER
    _settle_replacements(parent)
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


def _settle_replacements(parent: Path) -> None:
    """Undo a replacement that was cut off between its two renames, and end one that was cut off later."""
    for former in parent.glob(f".step-*{FORMER}"):
        final = former.with_name(former.name.removeprefix(".").removesuffix(FORMER))
        if final.exists() or not (former / MANIFEST).exists():
            remove_folder(former)
        else:
            former.rename(final)
