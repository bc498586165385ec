"""A policy; ``plugins: [my_lab.policies]`` makes it known, ``algorithm.policy=narrow`` chooses it."""

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

import rl_research


@rl_research.register.policy("narrow")
class Narrow(ActorCriticPolicy):
    """Actor and critic of two layers each, as wide as ``algorithm.params.policy_kwargs.width`` says."""

    def __init__(self, *arguments: Any, width: int = 16, **more: Any):
        super().__init__(*arguments, **{**more, "net_arch": [width, width], "activation_fn": nn.ELU})
