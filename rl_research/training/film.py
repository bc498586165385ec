"""One episode as frames, filmed in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_research.errors import CannotRender
from rl_research.training.evaluation import copy_statistics
from rl_research.training.randomness import untouched_randomness

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv


def film_episode(
    model: BaseAlgorithm,
    env: VecEnv,
    *,
    max_steps: int,
    deterministic: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:
    """Play one episode in *env* (one copy, rendering to arrays); frames (T, H, W, C), uint8.

    Training's random generators and normaliser are left as they were. *on_step* may raise to stop.
    Raises `CannotRender` where drawing fails.
    """
    if env.has_attr("restart_episodes"):
        env.env_method("restart_episodes")
    with untouched_randomness(model, 0):
        copy_statistics(model, env)
        observation: Any = env.reset()
        states, starts = None, np.ones((env.num_envs,), dtype=bool)
        frames = [_frame(env)]
        for _ in range(max_steps):
            action, states = model.predict(
                observation, state=states, episode_start=starts, deterministic=deterministic
            )
            observation, _, starts, _ = env.step(action)
            on_step()
            if starts[0]:
                break  # what would be filmed now belongs to the next episode
            frames.append(_frame(env))
    return np.stack(frames)


def frames_per_second(env: VecEnv) -> int:
    """The speed at which *env* asks to be shown."""
    metadata = env.get_attr("metadata")[0]
    return int(metadata.get("render_fps", 30))


def _frame(env: VecEnv) -> NDArray[np.uint8]:
    try:
        frame = env.render()
    except Exception as error:
        raise CannotRender(
            f"drawing failed ({type(error).__name__}: {error}). MuJoCo without a display needs the "
            "variable MUJOCO_GL=egl or osmesa; video.enabled=false asks for no film."
        ) from error
    if frame is None:
        raise ValueError("the environment renders no arrays; make it with render_mode='rgb_array'")
    return np.asarray(frame, dtype=np.uint8)
