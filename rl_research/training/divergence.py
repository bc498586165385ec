"""A run whose numbers are no numbers any more: said with its step, before it is committed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rl_research.errors import Diverged
from rl_research.tracking import BaseCallback, StepClock

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class DivergenceCallback(BaseCallback):
    """Raise `Diverged` at the first rollout start after each *every* steps that finds NaN or infinity."""

    def __init__(self, every: int):
        super().__init__()
        self._clock = StepClock(every)

    def _on_training_start(self) -> None:
        self._clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model):
            self._clock.done(self.model)
            check(self.model)


def check(model: BaseAlgorithm) -> None:
    """Raise `Diverged` if a parameter of *model*, or a loss of its last update, is not finite."""
    import torch

    for name, parameter in model.policy.named_parameters():
        if not torch.isfinite(parameter).all():
            raise _diverged(model, f"the parameter {name}")
    for name, value in model.logger.name_to_value.items():
        if name.endswith("loss") and isinstance(value, float) and not math.isfinite(value):
            raise _diverged(model, name)


def _diverged(model: BaseAlgorithm, what: str) -> Diverged:
    return Diverged(
        f"diverged at step {model.num_timesteps}: {what} is not finite. The checkpoints before it stand. "
        "Trying again would give the same; lower algorithm.params.learning_rate, or set env.normalize=true, "
        "in a run of its own."
    )
