"""An environment and a wrapper; ``plugins: [my_lab.envs]`` makes both known."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import rl_research

Observation = NDArray[np.float32]


class Corridor(gym.Env[Observation, np.int64]):
    """Walk from the left end of a corridor to its right end; a step costs 0.1, arriving pays 1.

    Observations: position, float32 of shape (1,). Actions: 0 left, 1 right.
    """

    def __init__(self, length: int = 10):
        self.length = length
        self.observation_space = gym.spaces.Box(0, length, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.position = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin near the left end."""
        super().reset(seed=seed, options=options)
        self.position = int(self.np_random.integers(self.length // 4 + 1))
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take one step."""
        self.position = max(0, self.position + (1 if action else -1))
        arrived = self.position >= self.length
        return self._seen(), 1.0 if arrived else -0.1, arrived, False, {}

    def _seen(self) -> Observation:
        return np.array([self.position], np.float32)


gym.register("my_lab/Corridor-v0", "my_lab.envs:Corridor", max_episode_steps=100)


@rl_research.register.wrapper("centred")
class Centred(gym.ObservationWrapper[Observation, np.int64, Observation]):
    """Shows positions as numbers from -1 to 1."""

    def __init__(self, env: gym.Env[Observation, np.int64]):
        super().__init__(env)
        assert isinstance(env.observation_space, gym.spaces.Box)
        self.low, self.high = env.observation_space.low, env.observation_space.high
        self.observation_space = gym.spaces.Box(-1, 1, self.low.shape, np.float32)

    def observation(self, observation: Observation) -> Observation:
        """Return *observation* between its bounds."""
        centred: Observation = 2 * (observation - self.low) / (self.high - self.low) - 1
        return centred
