"""Whether what an algorithm collects and what it learns from at a time fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rl_research.config.messages import shown
from rl_research.errors import ConfigError


def check_rollout(given: Mapping[str, Any], n_envs: int) -> None:
    """Raise `ConfigError` unless minibatches divide an on-policy algorithm's rollout.

    SB3 only warns of minibatches of unequal size, and then weighs the last one's more.
    """
    rollout = given["n_steps"] * n_envs
    unit = "transition" if rollout == 1 else "transitions"
    count = f"n_steps × n_envs = {given['n_steps']} × {n_envs} = {rollout} {unit}"
    if given["normalize_advantage"] and rollout == 1:
        raise ConfigError(
            f"algorithm.params.n_steps={given['n_steps']}: a rollout of {count} has no "
            "spread to normalize by. Choose a larger n_steps."
        )
    batch_size = given.get("batch_size", rollout)
    if rollout % batch_size:
        raise ConfigError(
            f"algorithm.params.batch_size={batch_size}: it does not divide a rollout of {count}. "
            f"Choose a divisor, such as {_divisors_near(rollout, batch_size)}."
        )
    if given["normalize_advantage"] and batch_size == 1:
        raise ConfigError(
            "algorithm.params.batch_size=1: one transition has no spread to normalize by. "
            f"Choose a divisor of {rollout} that is greater, such as {rollout}."
        )


def check_replay(given: Mapping[str, Any], n_envs: int) -> None:
    """Raise `ConfigError` unless an off-policy algorithm's buffer can serve its minibatches."""
    if given["batch_size"] > given["buffer_size"]:
        raise ConfigError(
            f"algorithm.params.batch_size={given['batch_size']}: the replay buffer holds only "
            f"buffer_size = {given['buffer_size']} transitions. Choose a larger buffer_size."
        )
    freq = given["train_freq"]
    if n_envs > 1 and isinstance(freq, list | tuple) and freq[1] == "episode":
        raise ConfigError(
            f"{shown('algorithm.params.train_freq', freq)}: {n_envs} environments do not end their "
            "episodes together. Count steps, as in [1,step], or set env.n_envs=1."
        )


def _divisors_near(rollout: int, batch_size: int) -> str:
    small = [d for d in range(1, math.isqrt(rollout) + 1) if rollout % d == 0]
    divisors = {d for d in [*small, *(rollout // d for d in small)] if d > 1} or {rollout}
    return " or ".join(map(str, sorted(sorted(divisors, key=lambda d: abs(d - batch_size))[:2])))
