"""Environments that cannot be pickled; ``env.id=replayed_envs:NAME-v0``, also in processes of their own."""

from __future__ import annotations

import os
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class _Simulator:
    """What holds the state, a generator and a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generator = np.random.default_rng(7)
        self.state = np.zeros(3)

    def push(self, by: float) -> None:
        self.state = np.tanh(0.8 * self.state + by + self.noise())

    def noise(self) -> Any:
        return 0.3 * self.generator.standard_normal(3)


class Held(gym.Env[Any, Any]):
    """A simulator whose generator is an attribute; no seed reaches it. Its reset calls step, as LunarLander's does."""

    observation_space: Any = spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, discrete: bool = False):
        if discrete:
            self.action_space = spaces.Discrete(2)
        self.simulator = _Simulator()
        self.resets = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        super().reset(seed=seed, options=options)
        self.resets += 1
        self.steps = -1
        self.simulator.state = self.simulator.noise()
        return self.step(np.zeros(1))[0], {}

    def step(self, action: Any) -> Any:
        """Push, for 23 steps."""
        self.steps += 1
        self.simulator.push(0.2 * float(np.sum(action)) - 0.1)
        state = self.simulator.state
        return state.astype(np.float32), float(state.sum()), bool(abs(state[0]) > 0.9), self.steps >= 23, {}


class Hidden(Held):
    """A simulator whose generator nobody reaches but by a seed, as in C++."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        if seed is not None or self.resets == 0:
            generator = np.random.default_rng(seed)
            self.simulator.noise = lambda: 0.3 * generator.standard_normal(3)  # type: ignore[method-assign]
        return super().reset(seed=seed, options=options)


class Harder(Held):
    """A simulator whose every episode is another one, whatever its generator says."""

    def step(self, action: Any) -> Any:
        """Push less from episode to episode."""
        return super().step(np.asarray(action) / self.resets)


class Drifting(Held):
    """A simulator that drifts by chance, from its *after*-th step on."""

    def __init__(self, after: int = 0):
        super().__init__()
        self.left = after

    def step(self, action: Any) -> Any:
        """Drift and push."""
        self.left -= 1
        if self.left < 0:
            self.simulator.state += os.urandom(1)[0] / 2560
        return super().step(action)


class Elsewhere(Held):
    """A simulator that differs from machine to machine."""

    def step(self, action: Any) -> Any:
        """Push by what the machine makes of it."""
        return super().step(np.asarray(action) + float(os.environ.get("OTHER_MACHINE", "0")))


class Nudged(gym.Wrapper[Any, Any, Any, Any]):
    """Begin with random steps, as SB3's NoopReset does, in two of three episodes, as its EpisodicLife; count them."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self.generator = np.random.default_rng(3)
        self.episodes = 0
        self.seen: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode, truly or not."""
        self.episodes += 1
        if self.episodes % 3 == 1:
            self.seen = self.env.reset(seed=seed, options=options)[0]
        for _ in range(self.generator.integers(1, 4)):
            self.seen = self.env.step(self.env.action_space.sample() * 0)[0]
        return self.seen, {}

    def step(self, action: Any) -> Any:
        """Pay less from episode to episode; end every seventh step."""
        seen, reward, *ends, info = self.env.step(action)
        return seen, float(reward) / self.episodes, ends[0] or self.generator.random() < 0.1, False, info


def nudged(**given: Any) -> Nudged:
    """Return what ``Nudged-v0`` is."""
    return Nudged(Held(**given))


for name in ("Held", "Hidden", "Harder", "Drifting", "Elsewhere"):
    gym.register(f"{name}-v0", entry_point=f"{__name__}:{name}")
gym.register("Nudged-v0", entry_point=f"{__name__}:nudged")
