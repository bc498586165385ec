"""A policy and a features extractor of one's own, chosen by name.

rl-research train plugins=[examples.policy] algorithm.policy=tall algorithm.params.policy_kwargs.height=3
rl-research train plugins=[examples.policy] algorithm.params.policy_kwargs.features_extractor_class=squares
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import rl_research


@rl_research.register.policy("tall")
class Tall(ActorCriticPolicy):
    """Actor and critic of *height* layers of 16 units each."""

    def __init__(self, *arguments: Any, height: int = 2, **more: Any):
        super().__init__(*arguments, **{**more, "net_arch": [16] * height})


@rl_research.register.features_extractor("squares")
class Squares(BaseFeaturesExtractor):
    """Gives the network each number of an observation, and its square."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=2 * spaces.flatdim(observation_space))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return features of shape (batch, 2 n) for observations of shape (batch, n)."""
        flat = observations.flatten(1)
        return torch.cat([flat, flat.square()], dim=1)
