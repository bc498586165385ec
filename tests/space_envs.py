"""Environments of every space that the algorithms know, short and seeded: ``space_envs:Spaces-v0`` and its kin."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "dict": spaces.Dict({"seen": spaces.Box(-1, 1, (2,), np.float32), "mode": spaces.Discrete(3)}),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(2),
}


class Spaces(gym.Env[Any, Any]):
    """Show random observations for ten steps or so; small actions are rewarded."""

    def __init__(self, observations: str = "vector", actions: str = "Discrete") -> None:
        self.observation_space = OBSERVATIONS[observations]
        self.action_space = ACTIONS[actions]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ARG002  # as Gymnasium names it
        """Begin an episode."""
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(5, 12))
        return self._observation(self.observation_space), {}

    def step(self, action: Any) -> Any:
        """Take one step."""
        self.left -= 1
        reward = float(self.np_random.random() - np.square(action).sum())
        return self._observation(self.observation_space), reward, self.left <= 0, False, {}

    def _observation(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._observation(part) for key, part in space.items()}
        if isinstance(space, spaces.Discrete):
            return int(self.np_random.integers(space.n))
        assert isinstance(space, spaces.Box)
        return self.np_random.uniform(space.low, space.high).astype(space.dtype)


class Masked(Spaces):
    """End the test if an action is taken that the mask forbids: the one with the number of steps left, modulo 2."""

    def action_masks(self) -> Any:
        """Return which actions may be taken, one flag per action of each part."""
        space = self.action_space
        sizes = [space.n] if isinstance(space, spaces.Discrete) else getattr(space, "nvec", [2] * 2)
        return np.concatenate([np.arange(size) != self.left % 2 for size in sizes])

    def step(self, action: Any) -> Any:
        """Take one step that the mask allows."""
        assert not np.any(np.asarray(action) == self.left % 2), "a masked action was taken"
        return super().step(action)


class NoneAllowed(Masked):
    """Allow nothing."""

    def action_masks(self) -> Any:
        """Return no flag that is true."""
        return np.zeros(3, bool)


class TooFew(Masked):
    """Know of two actions only."""

    def action_masks(self) -> Any:
        """Return two flags."""
        return np.ones(2, bool)


class Goal(gym.Env[Any, Any]):
    """Walk to a point of a line within eight steps."""

    def __init__(self, actions: str = "Box") -> None:
        point = spaces.Box(-5, 5, (1,), np.float32)
        self.observation_space = spaces.Dict({"observation": point, "achieved_goal": point, "desired_goal": point})
        self.action_space = ACTIONS[actions]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # noqa: ARG002  # as Gymnasium names it
        """Begin an episode."""
        super().reset(seed=seed)
        self.at, self.goal, self.left = np.zeros(1), self.np_random.uniform(-3, 3, 1), 8
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        """Take one step."""
        self.at = np.clip(self.at + np.ravel(action)[0] - isinstance(self.action_space, spaces.Discrete), -5, 5)
        self.left -= 1
        reward = float(self.compute_reward(self.at, self.goal, {}))
        return self._observation(), reward, reward == 0, self.left <= 0, {"is_success": reward == 0}

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> Any:  # noqa: ARG002  # as SB3 calls it
        """Return 0 at the goal and -1 elsewhere."""
        return -(np.abs(achieved_goal - desired_goal).max(axis=-1) > 0.5).astype(np.float32)

    def _observation(self) -> Any:
        at, goal = (value.astype(np.float32) for value in (self.at, self.goal))
        return {"observation": at, "achieved_goal": at, "desired_goal": goal}


gym.register("Spaces-v0", Spaces)
gym.register("Masked-v0", Masked)
gym.register("NoneAllowed-v0", NoneAllowed)
gym.register("TooFew-v0", TooFew)
gym.register("Goal-v0", Goal, max_episode_steps=8)
