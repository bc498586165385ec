"""What callbacks stand on: a base with a logger of its own, a clock of environment steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stable_baselines3.common import callbacks as sb3

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


class BaseCallback(sb3.BaseCallback):
    """SB3's callback base, in which ``self.logger = …`` works.

    SB3 ≥ 2 made `logger` a property without a setter that returns ``self.model.logger``, so a callback
    that stores its own logger under that name fails with `AttributeError`. Here it may; a callback
    that stores none keeps SB3's.
    """

    _own_logger: Any = None

    @property
    def logger(self) -> Any:
        """What was assigned, else the algorithm's own logger."""
        return self.model.logger if self._own_logger is None else self._own_logger

    @logger.setter
    def logger(self, value: Any) -> None:
        self._own_logger = value

    def _on_step(self) -> bool:
        return True


class StepClock:
    """When a number of environment steps has passed since the last time, whatever `n_envs` is.

    Due at the first moment asked at or after each multiple of *every*; what was due and could not be done
    stays due, also in a resumed run.
    """

    def __init__(self, every: int):
        self.every = every
        self.last: int | None = None

    def start(self, model: BaseAlgorithm) -> None:
        """Count from here, unless resumed; also when the model's own count starts again."""
        if self.last is None or self.last > model.num_timesteps:
            self.last = model.num_timesteps

    def resume(self, last: int | None) -> None:
        """Count from where a former process left off."""
        self.last = last

    def due(self, model: BaseAlgorithm) -> bool:
        """Whether a multiple of *every* has been reached since the last time."""
        return self.every > 0 and model.num_timesteps // self.every > (self.last or 0) // self.every

    def done(self, model: BaseAlgorithm) -> None:
        """It has been done now."""
        self.last = model.num_timesteps
