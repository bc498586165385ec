"""A run's checkpoints in a table: the score of each, and whether it is whole."""

import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from rl_research.checkpoints.checkpoint import Checkpoint, by_score, describe, step_of, survey
from rl_research.checkpoints.manifest import Scores
from rl_research.errors import CheckpointError
from rl_research.storage import Store


class Listed(BaseModel):
    """A step's folder in a listing; it counts as valid if it has no *problem*."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str
    global_step: int
    scores: Scores | None = None
    final_scores: Scores | None = None
    bytes: int | None = None
    created_at: str | None = None
    age: float | None = None
    best: bool = False
    latest: bool = False
    problem: str | None = None
    valid: bool = False

    @field_serializer("scores", "final_scores")
    def _as_recorded(self, scores: Scores | None) -> dict[str, Any] | None:
        return None if scores is None else scores.facts()


def list_folders(store: Store, *, verify: bool = False) -> list[Listed]:
    """Return what is known of each step's folder in *store*, oldest first, damaged ones included.

    A checkpoint counts as whole if every file has the size that its manifest says; *verify* reads and
    hashes them all.
    """
    found, others = survey(store)
    sizes = {path: entry.size for path, entry in store.entries().items()}
    best = by_score(found)[-1:]
    rows = []
    for checkpoint in found:
        problem = _problem(checkpoint, sizes, verify)
        rows.append(
            Listed(
                checkpoint=checkpoint.address,
                global_step=checkpoint.global_step,
                scores=checkpoint.manifest.scores,
                final_scores=checkpoint.manifest.final_scores,
                bytes=checkpoint.size,
                created_at=checkpoint.manifest.created_at,
                age=_age(checkpoint.manifest.created_at),
                best=checkpoint in best,
                latest=checkpoint is found[-1],
                problem=problem,
                valid=problem is None,
            )
        )
    for name, error in others.items():
        step = step_of(name)
        rows.append(Listed(checkpoint=store.path(name), global_step=step, problem=describe(error)))
    return sorted(rows, key=lambda row: row.global_step)


def _problem(checkpoint: Checkpoint, sizes: dict[str, int], verify: bool) -> str | None:
    try:
        checkpoint.check_sizes(sizes)
        if verify:
            checkpoint.verify()
    except CheckpointError as error:
        return str(error)
    return None


def _age(created_at: str | None) -> float | None:
    """Return the seconds since *created_at*, None if it is no time with a zone."""
    try:
        created = datetime.datetime.fromisoformat(created_at or "")
        return (datetime.datetime.now(datetime.timezone.utc) - created).total_seconds()
    except (ValueError, TypeError):
        return None
