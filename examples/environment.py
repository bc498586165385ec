"""An environment and a wrapper of one's own: a cart that is told how fast the pole falls only every other step.

rl-research train plugins=[examples.environment] env.id=examples/HeavyPole-v0 'env.wrappers=[{forgetful: {every: 2}}]'
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

import rl_research


class HeavyPole(CartPoleEnv):
    """CartPole with a pole of any mass, in kilograms."""

    def __init__(self, mass: float = 0.3, **more: Any):
        super().__init__(**more)
        self.masspole = mass
        self.total_mass = self.masspole + self.masscart
        self.polemass_length = self.masspole * self.length


gym.register("examples/HeavyPole-v0", "examples.environment:HeavyPole", max_episode_steps=500)


@rl_research.register.wrapper("forgetful")
class Forgetful(gym.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Shows velocities as 0 but for every *every*-th observation."""

    def __init__(self, env: gym.Env[np.ndarray, Any], every: int = 2):
        super().__init__(env)
        self.every, self.seen = every, 0

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Return *observation*, maybe without its velocities; float32 of shape (4,)."""
        self.seen += 1
        return observation if self.seen % self.every == 0 else observation * np.array([1, 0, 1, 0], np.float32)
