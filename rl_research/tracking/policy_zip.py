"""What it takes to act, as files: SB3's zip, and the statistics that normalise observations."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_research.errors import CheckpointDamaged

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecNormalize

MODEL = "model.zip"
NORMALIZER = "vecnormalize.pkl"  # SB3's own form, for SB3's own `VecNormalize.load`
STATISTICS = "vecnormalize.npz"  # the same numbers without a pickle


def policy_files(model: BaseAlgorithm) -> dict[str, bytes]:
    """What it takes to act: SB3's zip and, where observations are normalised, the statistics."""
    buffer = io.BytesIO()
    model.save(buffer)
    files = {MODEL: buffer.getvalue()}
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        files[NORMALIZER] = pickle.dumps(normalizer)
        files[STATISTICS] = normalizer_statistics(normalizer)
    return files


def normalizer_statistics(normalizer: VecNormalize) -> bytes:
    """The running means and variances of *normalizer* as an ``npz`` of float64 arrays.

    Per observation key (one nameless key where observations are arrays): mean and variance of the
    observation's shape, and the count; then those of the return.
    """
    arrays: dict[str, Any] = {}
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


def _running_statistics(normalizer: VecNormalize) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("ret", normalizer.ret_rms)]
    if normalizer.norm_obs:
        rms = normalizer.obs_rms
        found += [(f"obs/{key}", one) for key, one in (rms if isinstance(rms, dict) else {"": rms}).items()]
    return found
