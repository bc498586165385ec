"""A checkpoint's manifest and a run's scores, as they are stored."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def _in_the_folder(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("it names a file outside its folder")
    return name


def _known_format(number: int) -> int:
    if number > FORMAT:
        raise ValueError(f"format {number} is newer than this program")
    return number


_FileName = Annotated[str, AfterValidator(_in_the_folder)]


class _Record(BaseModel):
    """Frozen; keys that other versions write are kept, and none is added that was not set."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def facts(self) -> dict[str, Any]:
        """Return what was set, as plain values."""
        return self.model_dump(exclude_unset=True)


class Scores(_Record):
    """A policy's return per episode; a manifest holds the summary, ``scores.json`` all of it.

    Only the mean is always there, for `CheckpointCallback` takes the facts of anybody's script.
    """

    format: int = FORMAT
    mean: float | int = Field(description="mean return over the episodes")
    std: float | int = Field(math.nan, description="standard deviation of the return, as SB3 reports it (ddof 0)")
    episodes: int = 0
    first_seed: int | None = Field(None, description="episode k was reset with first_seed + k")
    deterministic: bool | None = None
    returns: tuple[float | int, ...] = ()
    lengths: tuple[int, ...] = Field((), description="environment steps per episode")
    cut: int = Field(0, description="episodes that had no end of their own within evaluation.max_steps")
    checkpoint: str | None = Field(None, description="address of the checkpoint that was scored")

    @classmethod
    def of(
        cls, returns: Sequence[float], lengths: Sequence[int], first_seed: int, deterministic: bool, cut: int = 0
    ) -> "Scores":
        """Make the scores of episodes with these *returns* and *lengths*, of which *cut* were cut."""
        import numpy as np

        return cls(
            mean=float(np.mean(returns)),
            std=float(np.std(returns)),
            episodes=len(returns),
            first_seed=first_seed,
            deterministic=deterministic,
            returns=tuple(map(float, returns)),
            lengths=tuple(map(int, lengths)),
            **({"cut": cut} if cut else {}),
        )

    def summary(self) -> dict[str, float | int]:
        """Return ``{mean, std, episodes}``."""
        return {"mean": self.mean, "std": self.std, "episodes": self.episodes}

    def without_episodes(self) -> "Scores":
        """Return the summary, and what it takes to play the same episodes again."""
        whole = self.model_dump(exclude_unset=True, exclude={"format", "returns", "lengths", "checkpoint"})
        return Scores.model_validate(whole)


class StoredFile(_Record):
    """Size in bytes and SHA-256 of a file."""

    size: StrictInt
    sha256: StrictStr


class Manifest(_Record):
    """A checkpoint's files and everything that is known of it; without a manifest it does not exist."""

    format: Annotated[int, AfterValidator(_known_format)] = FORMAT
    global_step: StrictInt = Field(description="environment steps trained")
    files: dict[_FileName, StoredFile]
    shared: dict[_FileName, StoredFile] = Field(
        default_factory=dict, description="replay segments, which other checkpoints may share"
    )
    name: str | None = Field(None, description="name of the experiment")
    run_id: str | None = None
    created_at: str | None = Field(None, description="ISO 8601, UTC")
    config: Any = Field(None, description="the `Config`; a stranger's may be anything")
    versions: dict[str, Any] | None = None
    git: dict[str, Any] | None = None
    wandb_run_id: str | None = None
    wandb_path: str | None = None
    flow_run_id: str | None = None
    parameters_sha256: str | None = None
    scores: Annotated[Scores, AfterValidator(Scores.without_episodes)] | None = Field(
        None, description="of the evaluation while training at this very step"
    )
    final_scores: Annotated[Scores, AfterValidator(Scores.without_episodes)] | None = None
    ended: bool | None = Field(None, description="whether training ended here: at its budget, or by a callback")
    segment: int = Field(0, description="number of the process that committed it, from 0")
    parent: str | None = Field(None, description="folder of the checkpoint before")
    resumed_from: str | None = Field(None, description="folder of the one that this segment goes on from")
    resume_mode: str | None = Field(None, description="exact, replay or boundary")
    resume_reason: str | None = Field(None, description="why not exact, and what starts anew")

    def to_json(self) -> bytes:
        """Return the manifest as it is stored."""
        return (json.dumps(self.facts(), indent=2, sort_keys=True, default=str) + "\n").encode()

    def sha256(self) -> str:
        """Return the hash of everything the manifest says."""
        return _sha256(self.facts())

    def files_sha256(self) -> str:
        """Return the hash of what it says of its files, segments aside."""
        return _sha256({name: file.facts() for name, file in self.files.items()})


def _sha256(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
