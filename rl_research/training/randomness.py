"""Process-wide random generators, from which SB3 draws: captured, put back, left untouched."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


def random_state() -> dict[str, Any]:
    """Return the state of the generators of Python, NumPy and torch, as snapshots keep it."""
    import torch

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def untouched_randomness(model: BaseAlgorithm | None = None, seed: int | None = None) -> Iterator[None]:
    """Leave the process-wide generators, and the one of *model*'s actions, as they were before.

    Stochastic evaluation would otherwise change training: SB3 draws from the global generators, and DQN
    explores by sampling ``model.action_space``. Inside, *seed* seeds them all.
    """
    from stable_baselines3.common.utils import set_random_seed

    before = random_state()
    space = getattr(model, "action_space", None)
    try:
        if seed is not None:
            set_random_seed(seed)
        if model is not None and space is not None:
            model.action_space = copy.deepcopy(space)
            model.action_space.seed(seed)
        yield
    finally:
        restore_random_state(before)
        if model is not None and space is not None:
            model.action_space = space
