"""A policy as files: SB3's zip, the statistics that normalise observations, and where they come from."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_research.errors import CheckpointDamaged, LoggingError, shown
from rl_research.system import make_durable, unused, write_atomically
from rl_research.tracking import provenance

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.running_mean_std import RunningMeanStd
    from stable_baselines3.common.vec_env import VecNormalize

MODEL = "model.zip"
NORMALIZER = "vecnormalize.pkl"  # SB3's own form, for SB3's own `VecNormalize.load`
STATISTICS = "vecnormalize.npz"  # the same numbers without a pickle
MAX_METADATA = 100 - 8  # W&B keeps 100 keys of an artifact, and we add ours
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


def policy_files(model: BaseAlgorithm) -> dict[str, bytes]:
    """Return what it takes to act: SB3's zip and, where observations are normalised, the statistics."""
    buffer = io.BytesIO()
    model.save(buffer)
    files = {MODEL: buffer.getvalue()}
    if (normalizer := model.get_vec_normalize_env()) is not None:
        files[NORMALIZER] = pickle.dumps(normalizer)
        files[STATISTICS] = normalizer_statistics(normalizer)
    return files


def normalizer_statistics(normalizer: VecNormalize) -> bytes:
    """Return the running means and variances of *normalizer* as an ``npz`` of float64 arrays.

    Per observation key (one nameless key where observations are arrays): mean and variance of the
    observation's shape, and the count; then those of the return.
    """
    arrays: dict[str, Any] = {}  # as `np.savez` is typed
    for prefix, rms in _running_statistics(normalizer):
        arrays |= {f"{prefix}/mean": rms.mean, f"{prefix}/var": rms.var, f"{prefix}/count": rms.count}
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def restore_statistics(normalizer: VecNormalize, data: bytes) -> None:
    """Put the statistics that `normalizer_statistics` wrote into *normalizer*."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for prefix, rms in _running_statistics(normalizer):
                rms.mean, rms.var = arrays[f"{prefix}/mean"], arrays[f"{prefix}/var"]
                rms.count = arrays[f"{prefix}/count"].item()
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointDamaged(f"{STATISTICS} does not fit its configuration: {error}") from None


def _running_statistics(normalizer: VecNormalize) -> list[tuple[str, RunningMeanStd]]:
    found = [("ret", normalizer.ret_rms)]
    if normalizer.norm_obs:
        rms = normalizer.obs_rms
        found += [(f"obs/{key}", one) for key, one in (rms if isinstance(rms, dict) else {"": rms}).items()]
    return found


def save_policy(model: object, folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Write *model*, whole or not at all, to a new folder ``{name}-{step}`` in *folder*.

    Return the path of its ``model.zip``, and facts for an artifact's metadata. No folder is overwritten:
    where it exists, ``-2``, ``-3``, … is appended.
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    if not isinstance(model, BaseAlgorithm):
        raise LoggingError(
            f"save_model takes a Stable-Baselines3 algorithm such as PPO, not "
            f"{type(model).__name__}. Save other things with run.log_artifact."
        )
    files = {file: data for file, data in policy_files(model).items() if file != STATISTICS}
    temporary = folder / f".writing-{secrets.token_hex(6)}"
    try:
        for file, data in files.items():
            write_atomically(temporary / file, data)
        final = temporary.rename(unused(folder / f"{name}-{model.num_timesteps}"))
        make_durable(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final / MODEL, {
        "global_step": model.num_timesteps,
        "algorithm": type(model).__name__,
        "sha256": {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        "versions": provenance.package_versions(),
        "git": provenance.git_state(),
        "flow_run_id": provenance.current_flow_run().get("flow_run_id"),
    }


def check_artifact(name: str, metadata: Mapping[str, object] | None, aliases: Sequence[str]) -> dict[str, object]:
    """Return *metadata* as W&B can keep it; raise `LoggingError` for what it would refuse."""
    if not isinstance(name, str) or not _ARTIFACT_NAME.fullmatch(name) or not name.strip("."):
        mended = re.sub(r"[^A-Za-z0-9_.-]+", "_", name if isinstance(name, str) else "").strip("_.") or "model"
        raise LoggingError(
            f"{shown(name)} cannot name a model: use up to 128 letters, digits, '-', '_' and '.'. "
            f"For instance {mended[:128]!r}."
        )
    if not isinstance(metadata, Mapping | None):
        raise LoggingError(f"metadata of {name!r} must be a mapping, not {type(metadata).__name__}.")
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise LoggingError(f"aliases={shown(aliases)} must be a list, such as [{shown(aliases)}].")
    for alias in aliases:
        if not isinstance(alias, str) or not alias or set(alias) & set("/:") or not alias.isprintable():
            raise LoggingError(f"alias {shown(alias)} must be a string in one line, without '/' and ':'.")
    facts = provenance.public({} if metadata is None else metadata)
    if len(facts) > MAX_METADATA:
        raise LoggingError(
            f"metadata of {name!r} has {len(facts)} keys; at most {MAX_METADATA} fit. Nest them in one mapping."
        )
    return facts
