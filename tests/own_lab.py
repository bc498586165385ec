"""A plugin as a user writes one, with one of each kind: ``plugins=[own_lab]``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from rl_research import register


@register.features_extractor("narrow")
class Narrow(BaseFeaturesExtractor):
    """One small layer."""

    def __init__(self, observation_space: gym.Space[Any], width: int = 8):
        super().__init__(observation_space, width)
        self.layer = torch.nn.Linear(math.prod(observation_space.shape or ()), width)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return torch.tanh(self.layer(observations.flatten(1)))


@register.policy("gentle")
class Gentle(ActorCriticPolicy):
    """SB3's policy with a constructor as SB3's documentation writes it."""

    def __init__(self, *args: Any, gain: float = 1.0, **kwargs: Any):
        self.gain = gain
        super().__init__(*args, **kwargs)


@register.activation("squared")
class Squared(torch.nn.Module):
    """Squared ReLU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values, activated."""
        return torch.relu(values) ** 2


@register.optimizer("plain_sgd")
class PlainSGD(torch.optim.SGD):
    """SGD under another name."""


@register.schedule("cosine")
class Cosine:
    """From *start* to *end* along half a cosine."""

    def __init__(self, start: float, end: float = 0.0):
        self.start, self.end = start, end

    def __call__(self, remaining: float) -> float:
        """Return the value where *remaining* of the progress, from 1 to 0, is left."""
        return self.end + (self.start - self.end) * (1 - math.cos(math.pi * max(remaining, 0))) / 2


@register.wrapper("noisy_reward")
class NoisyReward(gym.RewardWrapper[Any, Any]):
    """Add noise from a generator of its own, more with every step."""

    def __init__(self, env: gym.Env[Any, Any], scale: float = 0.1):
        super().__init__(env)
        self.scale, self.count, self.noise = scale, 0, np.random.default_rng(1)

    def reward(self, reward: Any) -> float:
        """Return the reward with noise."""
        self.count += 1
        return float(reward) + self.scale * self.noise.random() * math.log(1 + self.count)


@register.vec_wrapper("smooth")
class Smooth(VecEnvWrapper):
    """Observations, averaged over time."""

    def __init__(self, venv: VecEnv, keep: float = 0.5):
        super().__init__(venv)
        self.keep, self.seen = keep, np.zeros((), np.float32)

    def reset(self) -> Any:
        """Begin anew."""
        self.seen = np.asarray(self.venv.reset())
        return self.seen

    def step_wait(self) -> Any:
        """Return the averages."""
        seen, *rest = self.venv.step_wait()
        self.seen = np.asarray(self.keep * self.seen + (1 - self.keep) * np.asarray(seen), np.float32)
        return self.seen, *rest


@register.algorithm("my_ppo")
class MyPPO(PPO):
    """PPO whose entropy bonus fades with each update."""

    def __init__(self, *args: Any, decay: float = 0.9, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.decay, self.updates, self.drawn = decay, 0, np.random.default_rng(3)

    def train(self) -> None:
        """Update."""
        self.updates += 1
        self.ent_coef = self.decay**self.updates * float(self.drawn.random())
        super().train()


@register.algorithm("my_sac")
class MySAC(SAC):
    """SAC that counts what it has learned from."""

    def __init__(self, *args: Any, calm: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.calm, self.batches = calm, 0

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update, with another discount each time."""
        self.batches += gradient_steps
        self.gamma = 1 - self.calm / (10 + self.batches)
        super().train(gradient_steps, batch_size)


@register.callback("counting")
class Counting(BaseCallback):
    """Record the number of rollouts every *freq* of them, and act on it."""

    def __init__(self, freq: int):
        super().__init__()
        self.freq, self.rollouts = freq, 0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts % self.freq == 0:
            self.logger.record("own/rollouts", self.rollouts)
            self.model.gamma = 0.9 + 0.001 * self.rollouts  # type: ignore[attr-defined]  # every algorithm here has it

    def _on_step(self) -> bool:
        return True

    def state(self) -> dict[str, int]:
        """What a resumed run continues from."""
        return {"rollouts": self.rollouts}

    def restore(self, state: Mapping[str, int]) -> None:
        """Continue."""
        self.rollouts = state["rollouts"]


@register.callback("forgetful")
class Forgetful(BaseCallback):
    """A callback without a state."""

    def _on_step(self) -> bool:
        return True


@register.callback("early")
class Early(BaseCallback):
    """End training at the step *at*."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


@register.sink("steps")
class Steps:
    """Append the step of each row to a file."""

    def __init__(self, path: str):
        self.path = Path(path)

    def __call__(self, row: Mapping[str, Any], step: int) -> None:
        """Take a row."""
        with self.path.open("a") as file:
            file.write(f"{step} {len(row)}\n")


@register.sink("exact_steps")
class ExactSteps(Steps):
    """The same, which takes back what comes again."""

    def rewind(self, step: int) -> None:
        """Forget the rows from *step* on."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.write_text("".join(f"{line}\n" for line in lines if int(line.split()[0]) < step))
