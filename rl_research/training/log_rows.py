"""When SB3's metrics become a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rl_research.tracking import BaseCallback, StepClock

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class LogRows(BaseCallback):
    """Dump SB3's metrics when an update is complete, so that a row holds one step's values only.

    SB3 dumps before the update and so shows every ``train/*`` a rollout late, and the last never.
    """

    def __init__(self, every: int):
        super().__init__()
        self._clock = StepClock(every)

    def _on_training_start(self) -> None:
        self._clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model):
            self._dump(self.model)

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > (self._clock.last or 0):
            self._dump(self.model)

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return {"last": self._clock.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._clock.resume(state["last"])

    def _dump(self, model: BaseAlgorithm) -> None:
        self._clock.done(model)
        if hasattr(model, "rollout_buffer"):
            rollout = model.n_steps * model.n_envs  # type: ignore[attr-defined]  # on-policy algorithms have it
            model.dump_logs(model.num_timesteps // rollout)  # type: ignore[call-arg]  # on-policy ones count iterations
        else:
            model.dump_logs()
