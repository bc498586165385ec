"""A policy at play, on seeds of its own: its returns per episode, or one episode as frames."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rl_research.checkpoints import Checkpoint, Scores
from rl_research.config import Config, check_algorithm, load_plugins, plugins_of_launcher, takes_masks
from rl_research.errors import CannotRender, CheckpointDamaged, ConfigError, Interrupted, RLResearchError, in_a_line
from rl_research.tracking import MODEL, STATISTICS, restore_statistics, video_frames
from rl_research.training import envs, models
from rl_research.training.env_wrappers import close
from rl_research.training.randomness import untouched_randomness

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

_log = logging.getLogger(__name__)

_MAX_FPS = 1000
COPIES = 8  # at most; a constant: the size of a batch can change the last bit of an action


def evaluate(
    model: BaseAlgorithm,
    env: VecEnv,
    episodes: int,
    first_seed: int,
    deterministic: bool = True,
    on_step: Callable[[], None] = lambda: None,
    on_episode: Callable[[Mapping[str, Any]], None] = lambda info: None,
) -> Scores:
    """Play *episodes* in *env* (an `envs.evaluation_env`) and leave no trace in any random generator.

    *on_step* is called after every step of every copy and may raise to stop. *on_episode* gets the `info`
    of each episode's last step.
    """
    masked = "sb3_contrib.common.maskable" if takes_masks(type(model)) else "stable_baselines3.common"
    evaluate_policy = importlib.import_module(f"{masked}.evaluation").evaluate_policy

    def after_step(locals_: dict[str, Any], _: dict[str, Any]) -> None:
        if locals_["done"]:
            on_episode(locals_["info"])
        on_step()

    _restart_episodes(env)
    with untouched_randomness(model, first_seed):  # so a stochastic policy plays alike each time
        returns, lengths = evaluate_policy(
            model, env, episodes, deterministic, callback=after_step, return_episode_rewards=True
        )
    cut = 0
    if env.has_attr("cut") and any(env.get_attr("cut")):
        limit = max(env.get_attr("max_steps"))
        cut = sum(length == limit for length in lengths)  # a copy may have cut one more than are scored
        _say_cut(cut, limit)
    return Scores.of(returns, lengths, first_seed, deterministic, cut)


@cache
def _say_cut(episodes: int, max_steps: int) -> None:
    _log.warning(
        "%d of the episodes of an evaluation did not end within %d steps and were cut there; "
        "env.max_episode_steps=N gives every episode an end, evaluation.max_steps=N these alone",
        episodes, max_steps,
    )  # fmt: skip


def evaluate_model(
    model: BaseAlgorithm, config: Config, *, episodes: int, first_seed: int, on_step: Callable[[], None] = lambda: None
) -> Scores:
    """Play *episodes* with *model* in fresh environments of *config*, normalised as in training."""
    with closing(envs.evaluation_env(config, first_seed, min(COPIES, episodes))) as env:
        _copy_statistics(model, env)
        return evaluate(model, env, episodes, first_seed, config.evaluation.deterministic, on_step)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    *,
    episodes: int | None = None,
    first_seed: int | None = None,
    trust_env: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> Scores:
    """Play the final evaluation of *checkpoint*'s own configuration, or *episodes* of it.

    The policy is rebuilt from the manifest's configuration and takes tensors and numbers only from the
    checkpoint: nothing in it is unpickled, so a stranger's checkpoint runs no code.
    """
    config = config_of(checkpoint, trust_env=trust_env)
    with loaded_policy(checkpoint, config) as model:
        return evaluate_model(
            model,
            config,
            episodes=episodes or config.evaluation.final_episodes or 100,
            first_seed=config.evaluation.seed if first_seed is None else first_seed,
            on_step=on_step,
        )


def film_episode(
    model: BaseAlgorithm,
    env: VecEnv,
    max_steps: int,
    deterministic: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:
    """Play one episode in *env* (one copy, rendering to arrays) and return its frames (T, H, W, C), uint8.

    Training's random generators and normaliser are left as they were. *on_step* may raise to stop. Call it in
    `filming`, which tells apart what a film may cost.
    """
    _restart_episodes(env)
    with untouched_randomness(model, 0):
        _copy_statistics(model, env)
        observation: Any = env.reset()
        states, starts = None, np.ones((env.num_envs,), dtype=bool)
        frames = [_frame(env)]
        for _ in range(max_steps):
            masks = {"action_masks": np.stack(env.env_method("action_masks"))} if takes_masks(type(model)) else {}
            action, states = model.predict(observation, states, starts, deterministic, **masks)
            observation, _, starts, _ = env.step(action)
            on_step()
            if starts[0]:
                break  # what would be filmed now belongs to the next episode
            frames.append(_frame(env))
    return np.stack(frames)


def frames_per_second(env: VecEnv) -> float:
    """Return the speed at which *env* asks to be shown, 30 where it names none that can be shown."""
    found = (env.get_attr("metadata")[0] or {}).get("render_fps")
    return float(found) if isinstance(found, int | float) and 0 < found <= _MAX_FPS else 30.0


@contextmanager
def filming() -> Iterator[None]:
    """Raise `CannotRender`, with the reason in a line, for whatever fails in the block; a film costs no run."""
    try:
        yield
    except (CannotRender, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, RLResearchError) else f"{type(error).__name__}: {in_a_line(error)}"
        gl = any(word in said for word in ("OpenGL", "GLFW", "EGL", "OSMesa", "gladLoadGL"))
        remedy = " MuJoCo without a display needs the variable MUJOCO_GL=egl or osmesa." if gl else ""
        raise CannotRender(f"{in_a_line(said).rstrip('.')}.{remedy} video.enabled=false asks for no film.") from error


def _frame(env: VecEnv) -> NDArray[np.uint8]:
    """Return what *env* shows, as uint8 of shape (H, W, 3)."""
    frame = env.env_method("render")[0]  # SB3's own `render` makes a black picture of floats
    if isinstance(frame, list):
        frame = frame[-1] if frame else None
    if frame is None:
        raise CannotRender("render() shows nothing; the environment needs render_mode='rgb_array'")
    picture = np.asarray(frame)
    if picture.dtype.kind == "f" and picture.size and picture.max() > 1:  # 0 to 255, though not as uint8
        picture = picture.astype(np.uint8)
    shown: NDArray[np.uint8] = video_frames(picture[None], "what render() returns")[0]
    return shown


@contextmanager
def loaded_policy(checkpoint: Checkpoint, config: Config) -> Iterator[BaseAlgorithm]:
    """Yield the algorithm of *checkpoint*, ready to act, with its normaliser's statistics."""
    data = checkpoint.read(MODEL)
    with untouched_randomness():  # SB3 seeds every generator when it builds a model
        env = envs.evaluation_env(config, config.evaluation.seed, 1)
        model = models.build_for_evaluation(config, env)
    with closing(env):
        models.load_parameters(model, data)
        if (normalizer := model.get_vec_normalize_env()) is not None:
            restore_statistics(normalizer, checkpoint.read(STATISTICS))
        yield model


def config_of(checkpoint: Checkpoint, *, trust_env: bool = False) -> Config:
    """Return the configuration in *checkpoint*'s manifest, for whatever device there is.

    An id such as ``my_module:MyEnv-v0`` imports ``my_module``, and its plugins are modules, too: without
    *trust_env* they are refused, but for plugins that who launches the program has named. Raises
    `CheckpointDamaged` if the configuration cannot be read, `ConfigError` if it cannot be used.
    """
    try:
        config = Config.model_validate(_without_device(checkpoint.manifest.config))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointDamaged(f"{checkpoint.address}: its configuration is unreadable: {reason}") from None
    module, colon, _ = config.env.id.rpartition(":")
    if colon and not trust_env:
        raise ConfigError(
            f"{checkpoint.address}: its environment {config.env.id} would import the module {module}. "
            "If that module is yours, say so with --trust-env."
        )
    foreign = [name for name in config.plugins if name not in plugins_of_launcher()]
    if foreign and not trust_env:
        raise ConfigError(
            f"{checkpoint.address}: it needs the plugins {', '.join(foreign)}, which would be imported. "
            "If they are yours, say so with --trust-plugins."
        )
    load_plugins(config.plugins)
    check_algorithm(config)
    close(envs.check_env(config))
    return config


def _without_device(config: Mapping[str, Any]) -> dict[str, Any]:
    algorithm = dict(config["algorithm"])
    algorithm["params"] = {k: v for k, v in algorithm.get("params", {}).items() if k != "device"}
    return {**config, "algorithm": algorithm}


def _restart_episodes(env: VecEnv) -> None:
    if env.has_attr("restart_episodes"):
        env.env_method("restart_episodes")


def _copy_statistics(model: BaseAlgorithm, env: VecEnv) -> None:
    """Give *env* the normaliser's statistics that *model* trains with, if it has any."""
    from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

    if model.get_vec_normalize_env() is not None and isinstance(env, VecNormalize):
        assert model.env is not None
        sync_envs_normalization(model.env, env)
