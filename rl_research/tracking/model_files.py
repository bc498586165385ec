"""A model as files in the run folder: whole, never overwritten, with their SHA-256."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.errors import LoggingError
from rl_research.system import make_durable, sha256
from rl_research.tracking import provenance

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
MAX_METADATA = 100 - 8  # W&B keeps 100 keys, and we add ours


@dataclass(frozen=True)
class SavedModel:
    """The folder a model was saved to, and what it holds."""

    path: Path  # model.zip
    files: dict[str, tuple[int, str]]  # name -> size, SHA-256
    step: int
    algorithm: str

    @property
    def facts(self) -> dict[str, Any]:
        """What an artifact's metadata says about the model besides the user's own."""
        return {
            "global_step": self.step,
            "algorithm": self.algorithm,
            "sha256": {name: digest for name, (_, digest) in self.files.items()},
            "versions": provenance.package_versions(),
            "git": provenance.git_state(),
            "flow_run_id": provenance.current_flow_run().get("flow_run_id"),
        }


def save(model: Any, folder: Path, name: str) -> SavedModel:
    """Write *model* to ``folder/{name}-{step}/model.zip``, VecNormalize's statistics beside it."""
    algorithm = _algorithm(model)
    step = int(algorithm.num_timesteps)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{secrets.token_hex(6)}"
    temporary.mkdir()
    try:
        algorithm.save(str(temporary / "model.zip"))
        if (normalizer := algorithm.get_vec_normalize_env()) is not None:
            normalizer.save(str(temporary / "vecnormalize.pkl"))
        for path in (*temporary.iterdir(), temporary):
            make_durable(path)
        files = {p.name: (p.stat().st_size, sha256(p)) for p in sorted(temporary.iterdir())}
        final = _renamed(temporary, folder / f"{name}-{step}")
        make_durable(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return SavedModel(final / "model.zip", files, step, type(algorithm).__name__)


def _renamed(source: Path, target: Path) -> Path:
    """Rename *source* to *target*, or to ``target-2``, ``target-3``, … where that exists."""
    number = 1
    while True:
        candidate = target if number == 1 else target.with_name(f"{target.name}-{number}")
        number += 1
        if candidate.exists():
            continue
        try:
            return source.rename(candidate)
        except OSError:
            if not candidate.exists():  # not somebody who was faster
                raise


def _algorithm(model: Any) -> BaseAlgorithm:
    from stable_baselines3.common.base_class import BaseAlgorithm

    if not isinstance(model, BaseAlgorithm):
        raise LoggingError(
            f"save_model takes a Stable-Baselines3 algorithm such as PPO, not "
            f"{type(model).__name__}. Save other things with run.log_artifact."
        )
    return model


def check_artifact(name: str, metadata: Mapping[str, Any], aliases: Sequence[str]) -> None:
    """Refuse what W&B would refuse, before anything is written."""
    if not isinstance(name, str) or not _ARTIFACT_NAME.fullmatch(name) or not name.strip("."):
        mended = re.sub(r"[^A-Za-z0-9_.-]+", "_", str(name)).strip("_.") or "model"
        raise LoggingError(
            f"{name!r} cannot name a model: use up to 128 letters, digits, '-', '_' and '.'. "
            f"For instance {mended[:128]!r}."
        )
    if isinstance(aliases, str):
        raise LoggingError(f"aliases={aliases!r} must be a list, such as [{aliases!r}].")
    for alias in aliases:
        if not isinstance(alias, str) or not alias or set(alias) & set("/:"):
            raise LoggingError(f"alias {alias!r} must be a string without '/' and ':'.")
    if len(metadata) > MAX_METADATA:
        raise LoggingError(
            f"metadata of {name!r} has {len(metadata)} keys; at most {MAX_METADATA} fit. "
            "Nest them in one mapping."
        )
