"""The policy on film while it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rl_research.errors import CannotRender, Interrupted
from rl_research.tracking import BaseCallback, StepClock
from rl_research.training.film import film_episode, frames_per_second

if TYPE_CHECKING:
    import gymnasium as gym
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)


class _Abandoned(Interrupted):
    """Raised by the callback's own poll; an `Interrupted` from elsewhere is not for it to catch."""


class VideoRecorderCallback(BaseCallback):
    """Film the policy every `render_freq` environment steps, between rollouts.

    An environment that fails to draw costs the film and a warning.

    :param eval_env: an environment apart from training's, with ``render_mode="rgb_array"``
    :param render_freq: environment steps between films; 0: none
    :param n_eval_episodes: episodes per film
    :param deterministic: act by the mode of the policy
    :param max_steps: longest episode that is filmed, in environment steps
    :param log_video: takes a metric name, the frames (T, H, W, C) uint8, frames per second and the step
    :param stop: asked after every step; a true answer abandons the film
    """

    def __init__(
        self,
        eval_env: gym.Env[Any, Any] | VecEnv,
        render_freq: int,
        n_eval_episodes: int = 1,
        deterministic: bool = True,
        *,
        max_steps: int = 1_000,
        log_video: Callable[[str, NDArray[np.uint8], int, int], None],
        stop: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self.eval_env = _vectorized(eval_env)
        self.render_freq = render_freq
        self.n_eval_episodes = n_eval_episodes
        self.deterministic = deterministic
        self.max_steps = max_steps
        self.log_video = log_video
        self.stop = stop
        self._clock = StepClock(render_freq)

    def _on_training_start(self) -> None:
        self._clock.start(self.model)

    def _on_rollout_start(self) -> None:
        if self._clock.due(self.model):
            self._film()

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return {"last": self._clock.last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self._clock.resume(state["last"])

    def _film(self) -> None:
        def poll() -> None:
            if self.stop():
                raise _Abandoned("stopped during a film")

        try:
            episodes = [
                film_episode(
                    self.model,
                    self.eval_env,
                    max_steps=self.max_steps,
                    deterministic=self.deterministic,
                    on_step=poll,
                )
                for _ in range(self.n_eval_episodes)
            ]
        except _Abandoned:
            return
        except CannotRender as error:
            _log.warning("no film at step %d: %s", self.model.num_timesteps, error)
            self._clock.done(self.model)
            return
        self._clock.done(self.model)
        step, fps = self.model.num_timesteps, frames_per_second(self.eval_env)
        self.log_video("eval/video", np.concatenate(episodes), fps, step)


def _vectorized(env: gym.Env[Any, Any] | VecEnv) -> VecEnv:
    if isinstance(env, VecEnv):
        return env
    single = env
    return DummyVecEnv([lambda: single])
