"""sb3-contrib's ARS, so that it goes on where it stopped and logs what its candidates reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sb3_contrib
from stable_baselines3.common.utils import safe_mean

from rl_research.training.randomness import random_state, restore_random_state


class ARS(sb3_contrib.ARS):
    """Augmented random search whose zip holds the weights and the generators from which a rollout is drawn.

    sb3-contrib's own draws its candidates just before the rollout start at which a snapshot is taken, loads with
    weights of zero, and measures the progress of its schedules from the last `learn` on.
    """

    drawn_from: Mapping[str, Any] | None = None
    derived = ("weights",)  # tensors that say once more what the policy's say

    def _setup_model(self) -> None:
        weights = self.weights  # None in a new model
        super()._setup_model()
        if weights is not None:
            self.weights = weights

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed a new model; one that was loaded goes on in environments that are where they were."""
        if self.weights is None:
            super().set_random_seed(seed)

    def _update_current_progress_remaining(self, num_timesteps: int, _: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, self._total_timesteps)

    def _do_one_update(self, callback: Any, async_eval: Any) -> None:
        self.drawn_from = self.drawn_from or random_state()
        restore_random_state(self.drawn_from)
        super()._do_one_update(callback, async_eval)
        self.drawn_from = None

    def evaluate_candidates(self, candidate_weights: Any, callback: Any, async_eval: Any) -> Any:
        """Return what each of the candidates scores, and log the mean with the update that it leads to."""
        returns = super().evaluate_candidates(candidate_weights, callback, async_eval)
        for name, key in (("rollout/ep_rew_mean", "r"), ("rollout/ep_len_mean", "l")):
            self.logger.record(name, safe_mean([episode[key] for episode in self.ep_info_buffer or ()]))
        return returns
