"""A run's checkpoints in a table: what each is worth, and whether it is whole."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from rl_research.checkpoints.checkpoint import Checkpoint, survey
from rl_research.checkpoints.manifest import Scores
from rl_research.checkpoints.references import best_of, why_none
from rl_research.errors import CheckpointError
from rl_research.storage import Entry, Store


def listed(store: Store, *, verify: bool = False) -> list[dict[str, Any]]:
    """What is known of each step's folder in *store*, oldest first; damaged ones say their problem.

    A checkpoint counts as valid if every file has the size that its manifest says; *verify* reads and
    hashes them all.
    """
    found, others = survey(store)
    entries = store.entries()
    best, latest = best_of(found), found[-1] if found else None
    rows = [
        {
            **_facts(checkpoint),
            "best": checkpoint is best,
            "latest": checkpoint is latest,
            "problem": _problem(checkpoint, entries, verify),
        }
        for checkpoint in found
    ]
    rows += [_none(store, name, error) for name, error in others.items()]
    for row in rows:
        row["valid"] = row["problem"] is None
    return sorted(rows, key=lambda row: row["global_step"])


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "checkpoint": checkpoint.address,
        "global_step": checkpoint.global_step,
        "scores": _plain(manifest.scores),
        "final_scores": _plain(manifest.final_scores),
        "bytes": checkpoint.size,
        "created_at": manifest.created_at,
        "age": _age(manifest.created_at),
    }


def _plain(scores: Scores | None) -> dict[str, Any] | None:
    return None if scores is None else scores.facts()


def _none(store: Store, name: str, error: CheckpointError) -> dict[str, Any]:
    blank = dict.fromkeys(["scores", "final_scores", "bytes", "created_at", "age"])
    return {
        "checkpoint": store.path(name),
        "global_step": int(name.removeprefix("step-")),
        **blank,
        "best": False,
        "latest": False,
        "problem": why_none(error),
    }


def _problem(checkpoint: Checkpoint, entries: Mapping[str, Entry], verify: bool) -> str | None:
    for path, (size, _) in checkpoint.paths().items():
        there = entries[path].size if path in entries else "no"
        if there != size:
            return f"{path}: {there} bytes, where the manifest says {size}"
    if verify:
        try:
            checkpoint.verify()
        except CheckpointError as error:
            return str(error)
    return None


def _age(created_at: Any) -> float | None:
    """Seconds since *created_at*, as manifests write it."""
    try:
        created = datetime.datetime.fromisoformat(str(created_at))
        return (datetime.datetime.now(datetime.timezone.utc) - created).total_seconds()
    except (ValueError, TypeError):
        return None
