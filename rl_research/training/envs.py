"""Vectorised environments of a `Config`: for training, evaluation and film."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from rl_research.config import (
    Config,
    did_you_mean,
    import_module,
    load_plugins,
    made,
    name_and_arguments,
    register,
    spelt,
)
from rl_research.errors import CannotRender, ConfigError, EnvironmentFailed, in_a_line
from rl_research.training.env_wrappers import Checked, InWorker, close, failure, name_of
from rl_research.training.restorable import Recall, Restorable

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


_log = logging.getLogger(__name__)

_Count = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]

_LONG = 10_000  # steps after which one word is said of an episode that may have
_MAX_STEPS = 100_000  # of an evaluation's episode, where neither the environment nor the configuration has a limit


@cache
def _say_long(name: str) -> None:
    _log.warning(
        "%s: an evaluation's episode has not ended within %s steps; it is cut after %s. env.max_episode_steps=N gives "
        "every episode an end, evaluation.max_steps=N these alone", name, f"{_LONG:,}", f"{_MAX_STEPS:,}",
    )  # fmt: skip


class SeededEpisodes(Checked):
    """Reset the k-th time with seed ``first + k * stride``, whatever seed is asked for.

    So episode k is the same episode however many copies share the work, and an evaluation depends on
    nothing but the policy. An episode of *max_steps* steps is cut there, and counted in `cut`.
    """

    def __init__(self, env: gym.Env[Any, Any], first: int, stride: int = 1, max_steps: int | None = None):
        super().__init__(env)
        self.first, self.stride, self.max_steps = first, stride, max_steps
        self.next_seed = first
        self.cut = 0

    def restart_episodes(self) -> None:
        """Begin the series again."""
        self.next_seed, self.cut = self.first, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start the next episode of the series; *seed* is not asked for."""
        seed, self.next_seed = self.next_seed, self.next_seed + self.stride
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Take one step; the last one that an episode may have truncates it."""
        observation, reward, terminated, truncated, info = super().step(action)
        if self.steps == _LONG and self.max_steps == _MAX_STEPS:
            _say_long(name_of(self))
        if self.steps == self.max_steps and not (terminated or truncated):
            self.cut, truncated = self.cut + 1, True
        return observation, reward, terminated, truncated, info


class _Anew(gym.Wrapper[Any, Any, Any, Any]):
    """Put *env* into *wrappers* anew for each series of episodes: what a wrapper has seen before must not count."""

    def __init__(self, env: gym.Env[Any, Any], wrappers: _Count):
        super().__init__(wrappers(env))
        self._bare, self._wrappers = env, wrappers

    def restart_episodes(self) -> None:
        """Begin the series again."""
        self.env = self._wrappers(self._bare)


def _in_worker(trainer: int, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return InWorker(_restorable(env), trainer)


def _restorable(env: gym.Env[Any, Any]) -> Restorable:
    """Return *env*, which SB3 has put into a Monitor, as `Restorable`; without that if env.wrappers names another."""
    from stable_baselines3.common.env_util import is_wrapped
    from stable_baselines3.common.monitor import Monitor

    assert isinstance(env, Monitor)
    return Restorable(env.env if is_wrapped(env.env, Monitor) else env)


def training_env(config: Config) -> VecEnv:
    """Return ``env.n_envs`` copies, seeded ``seed, seed + 1, …``, normalised if the config says so."""
    from stable_baselines3.common.env_util import make_vec_env

    from rl_research.training.vec_envs import ReportingDummyVecEnv, ReportingSubprocVecEnv

    in_workers = config.env.vec_env == "subproc"
    venv = make_vec_env(
        partial(check_env, config),
        n_envs=config.env.n_envs,
        seed=config.experiment.seed,
        vec_env_cls=ReportingSubprocVecEnv if in_workers else ReportingDummyVecEnv,
        vec_env_kwargs={"start_method": config.env.start_method} if in_workers else None,
        wrapper_class=partial(_in_worker, os.getpid()) if in_workers else _restorable,
    )
    make_copies = partial(check_env, config) if config.env.replay else None
    venv.recall = Recall(make_copies, config.experiment.seed)  # type: ignore[attr-defined]  # a snapshot asks for it
    return _wrapped(config, venv, training=True)


def evaluation_env(config: Config, first_seed: int, copies: int) -> VecEnv:
    """Return *copies* environments in which episode k is reset with ``first_seed + k``.

    SB3's `evaluate_policy` gives what does not divide to the last copies, so the last begins.
    """
    from stable_baselines3.common.monitor import Monitor

    from rl_research.training.vec_envs import ReportingDummyVecEnv

    def scored(i: int, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        limit = config.evaluation.max_steps or (env.spec and env.spec.max_episode_steps) or _MAX_STEPS
        return Monitor(SeededEpisodes(env, first_seed + copies - 1 - i, copies, limit))

    def copy(i: int) -> gym.Env[Any, Any]:
        return check_env(config, partial(scored, i))

    return _wrapped(config, ReportingDummyVecEnv([partial(copy, i) for i in range(copies)]), training=False)


def film_env(config: Config, seed: int) -> VecEnv:
    """Return one environment that renders to arrays and shares nothing with any other.

    Raises `CannotRender` unless it says that it renders to arrays, and takes the argument that asks for it.
    """
    from rl_research.training.vec_envs import ReportingDummyVecEnv

    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # arrays need no screen to complain about

    close(probe := check_env(config, disable_env_checker=True))
    if "rgb_array" not in ((probe.metadata or {}).get("render_modes") or ()):
        raise CannotRender(f"{config.env.id} does not render to arrays")

    def copy() -> gym.Env[Any, Any]:
        try:
            seeded = partial(SeededEpisodes, first=seed)
            return check_env(config, seeded, render_mode="rgb_array", disable_env_checker=True)
        except ConfigError as error:
            if "render_mode" not in str(error):
                raise
            raise CannotRender(f"{config.env.id} says that it renders, but takes no argument render_mode") from None

    return _wrapped(config, ReportingDummyVecEnv([copy]), training=False)


def _make(config: Config, count: _Count | None, **more: Any) -> gym.Env[Any, Any]:
    """Make one copy, the same for whatever it is used.

    *count* wraps it where its returns and episodes are counted: at the Monitor that ``env.wrappers`` names, else
    around all wrappers.
    """
    load_plugins(config.plugins)  # a worker process has not imported them
    import_module_of(config)
    limit = config.env.max_episode_steps
    bounds = {} if limit is None else {"max_episode_steps": limit}
    env = gym.make(config.env.id, **{**config.env.kwargs, **bounds, **more})
    in_wrappers = partial(_in_wrappers, config, count)
    return _Anew(env, in_wrappers) if count and config.env.wrappers else in_wrappers(env)


def _in_wrappers(config: Config, count: _Count | None, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    from stable_baselines3.common.monitor import Monitor

    for part in config.env.wrappers:
        if count and register.wrapper.find("env.wrappers", name_and_arguments(part)[0]) is Monitor:
            env, count = count(env), None
        else:
            env = made("env.wrappers", register.wrapper, part, env)
    return count(env) if count else env


def import_module_of(config: Config) -> None:
    """Import the module of an id such as ``my_module:MyEnv-v0``, also from the current folder, as ``python -m`` does.

    Raises `ConfigError` if there is no such module or the machine lacks what it needs, and `EnvironmentFailed`
    for an error of its own.
    """
    env_id = config.env.id
    name, colon, _ = env_id.rpartition(":")
    if not colon:
        if env_id not in gym.registry:
            with suppress(ImportError):
                ale_py = importlib.import_module("ale_py")  # registers Atari games; the extra `atari` brings it
                ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        return
    if not (all(name.split(".")) and name.isprintable()):
        raise ConfigError(f"env.id={spelt(env_id)}: a module and an environment are written my_module:MyEnv-v0.")
    try:
        import_module(f"env.id={env_id}", name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the module does when it is imported
        failed = failure(f"env.id={env_id}: importing {name}", error)
        if isinstance(error, OSError | ImportError | SyntaxError | SystemExit):  # no bug: the line says it all
            own = None if isinstance(error, SyntaxError) else error.__traceback__
            place = f" Look at {own.tb_frame.f_code.co_filename}, line {own.tb_lineno}." if own else ""
            raise ConfigError(f"{failed}{place}") from None
        raise failed from None


def _wrapped(config: Config, venv: VecEnv, *, training: bool) -> VecEnv:
    """Wrap *venv* as all are wrapped: as the config names, images channels-first, and normalised if it says so.

    SB3 adds a VecTransposeImage to training's alone, and outside of VecNormalize, so that the two differ. A
    VecNormalize that does not train is frozen and leaves rewards unscaled.
    """
    from stable_baselines3.common.vec_env import VecNormalize

    from rl_research.training.vec_envs import ContiguousImages

    for part in config.env.vec_wrappers:
        venv = made("env.vec_wrappers", register.vec_wrapper, part, venv)
    if _has_images_to_transpose(venv.observation_space):
        venv = ContiguousImages(venv)
    if config.env.normalize is False:
        return venv
    given = {} if config.env.normalize is True else dict(config.env.normalize)
    # Rewards are scaled by the spread of the discounted return, so the discount is the algorithm's.
    given.setdefault("gamma", config.algorithm.params.get("gamma", 0.99))
    if not training:
        given.update(training=False, norm_reward=False)
    try:
        return VecNormalize(venv, **given)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"env.normalize={config.env.normalize}: {error}") from None


def check_env(config: Config, count: _Count | None = None, **more: Any) -> gym.Env[Any, Any]:
    """Return one copy, made with *more* arguments, and wrapped by *count* as `_make` says.

    Raises `ConfigError` if the id or the arguments are wrong or a package is missing, and `EnvironmentFailed` for
    what else its constructor raises.
    """
    env_id = config.env.id
    try:
        return _make(config, count, **more)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound) as error:
        module, colon, name = env_id.rpartition(":")
        hint = did_you_mean(name, gym.registry, f"{module}{colon}") or f" {' '.join(str(error).split())}"
        if env_id.startswith("ALE/") or "NoFrameskip" in env_id:
            hint = " Atari games come with pip install 'rl-research[atari]'."
        raise ConfigError(f"env.id={env_id}: no such environment is registered.{hint}") from None
    except gym.error.DeprecatedEnv as error:
        raise ConfigError(f"env.id={env_id}: {error}") from None
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        extra = ", or pip install 'rl-research[box2d]'" if "box2d" in str(error).lower() else ""
        raise ConfigError(f"env.id={env_id}: {in_a_line(error)}{extra}.") from None
    except (AssertionError, KeyError, TypeError, ValueError, gym.error.Error) as error:
        said = f"no {error}" if isinstance(error, KeyError) else in_a_line(error)
        raise ConfigError(f"env.id={env_id} with env.kwargs={spelt(config.env.kwargs)}: {said}") from None
    except (EnvironmentFailed, ConfigError):
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the environment's
        raise failure(f"env.id={env_id}: its constructor", error) from None


def reward_threshold(config: Config) -> float | None:
    """Return the mean return at which gymnasium calls the environment solved; None if it does not say."""
    import_module_of(config)  # which so far may have been imported by worker processes alone
    threshold = gym.spec(config.env.id.rpartition(":")[2]).reward_threshold
    return None if threshold is None else float(threshold)


def _has_images_to_transpose(space: gym.Space[Any]) -> bool:
    """Return whether SB3 would put a VecTransposeImage around observations of *space*."""
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

    parts = space.spaces.values() if isinstance(space, gym.spaces.Dict) else [space]
    return any(is_image_space(part) and not is_image_space_channels_first(part) for part in parts)  # type: ignore[arg-type]  # an image space is a Box
