"""An algorithm of one's own: PPO whose entropy bonus fades. It resumes to the same bits, for its state is SB3's.

rl-research train plugins=[examples.algorithm] algorithm.name=fading_ppo algorithm.params.ent_coef=0.01
"""

from typing import Any

from stable_baselines3 import PPO

import rl_research


@rl_research.register.algorithm("fading_ppo")
class FadingPPO(PPO):
    """PPO with an ``ent_coef`` that falls to 0 with the remaining budget."""

    def __init__(self, *arguments: Any, ent_coef: float = 0.01, **more: Any):
        super().__init__(*arguments, ent_coef=ent_coef, **more)
        self.first_ent_coef = ent_coef

    def train(self) -> None:
        """Update the policy from one rollout."""
        self.ent_coef = self.first_ent_coef * max(0.0, self._current_progress_remaining)
        super().train()
