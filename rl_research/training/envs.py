"""Vectorised environments of a `Config`: for training, evaluation and film."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from rl_research.config import Config, did_you_mean
from rl_research.errors import CannotRender, ConfigError

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Reset the k-th time with seed ``first + k * stride``, whatever seed is asked for.

    So episode k is the same episode however many copies share the work, and an evaluation depends on
    nothing but the policy.
    """

    def __init__(self, env: gym.Env[Any, Any], first: int, stride: int = 1):
        super().__init__(env)
        self.first, self.stride = first, stride
        self.next_seed = first

    def restart_episodes(self) -> None:
        """Begin the series again."""
        self.next_seed = self.first

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Start the next episode of the series; *seed* is not asked for."""
        seed, self.next_seed = self.next_seed, self.next_seed + self.stride
        return self.env.reset(seed=seed, options=options)


class Restorable(gym.Wrapper[Any, Any, Any, Any]):
    """Pickle the environment inside and take it back, in a worker process as well as in this one."""

    def capture_state(self) -> tuple[bytes | None, str | None]:
        """Return the environment inside as a pickle, episode and generators included, or the reason why not.

        Never raises: that would end a worker process.
        """
        data = io.BytesIO()
        try:
            _WholePickler(data).dump(self.env)
        except Exception as error:  # noqa: BLE001  # it may refuse in any way; Box2D asserts
            return None, f"{type(error).__name__} {error}".strip()
        return data.getvalue(), None

    def restore_state(self, data: bytes) -> None:
        """Continue as the environment that `capture_state` saw."""
        self.env = _Unpickler(io.BytesIO(data)).load()


class _WholePickler(pickle.Pickler):
    """Keep all of an `EzPickle`, which by itself would keep its constructor's arguments only.

    Gymnasium's MuJoCo, Box2D and Atari environments are such: their pickles load in the state before the
    first reset. All of MuJoCo's state can be pickled; Box2D's refuses, as it should.
    """

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if getattr(kind, "__getstate__", None) is not gym.utils.EzPickle.__getstate__:
            return NotImplemented
        return copyreg.__newobj__, (kind,), vars(value), None, None, put_state  # type: ignore[attr-defined]  # undocumented, but what pickle itself names in every pickle


class _Unpickler(pickle.Unpickler):
    """Find this module also under the name that checkpoints of version 0.1 give it."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(__name__ if module == "rl_research.envs" else module, name)


def put_state(env: object, state: dict[str, Any]) -> None:
    """Give *env*, newly made, its attributes. Pickles in checkpoints name this function."""
    vars(env).update(state)


class RestorableInWorker(Restorable):
    """`Restorable` in a worker process, which leaves the signals of its process group to the main one."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def training_env(config: Config) -> VecEnv:
    """Return ``env.n_envs`` copies, seeded ``seed, seed + 1, …``, normalised if the config says so."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    in_workers = config.env.vec_env == "subproc"
    venv = make_vec_env(
        config.env.id,
        n_envs=config.env.n_envs,
        seed=config.experiment.seed,
        env_kwargs=_make_arguments(config),
        vec_env_cls=SubprocVecEnv if in_workers else DummyVecEnv,
        wrapper_class=RestorableInWorker if in_workers else Restorable,
    )
    return normalized(config, venv, training=True)


def evaluation_env(config: Config, first_seed: int, copies: int) -> VecEnv:
    """Return *copies* environments in which episode k is reset with ``first_seed + k``.

    SB3's `evaluate_policy` gives what does not divide to the last copies, so the last begins.
    """
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    def copy(i: int) -> gym.Env[Any, Any]:
        env = gym.make(config.env.id, **_make_arguments(config))
        return Monitor(SeededEpisodes(env, first_seed + copies - 1 - i, copies))

    venv = DummyVecEnv([lambda i=i: copy(i) for i in range(copies)])  # type: ignore[misc]  # mypy cannot type a defaulted lambda
    return normalized(config, venv, training=False)


def film_env(config: Config, seed: int) -> VecEnv:
    """Return one environment that renders to arrays and shares nothing with any other."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # arrays need no screen to complain about

    def copy() -> gym.Env[Any, Any]:
        env = gym.make(config.env.id, **{**_make_arguments(config), "render_mode": "rgb_array"})
        return SeededEpisodes(env, seed)

    return normalized(config, DummyVecEnv([copy]), training=False)


def normalized(config: Config, venv: VecEnv, *, training: bool) -> VecEnv:
    """Wrap *venv* in a VecNormalize if the config asks for one; frozen and unscaled when not training."""
    from stable_baselines3.common.vec_env import VecNormalize

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


def check_env(config: Config) -> gym.Env[Any, Any]:
    """Return one copy. Raises `ConfigError` if the id or the arguments are wrong or a package is missing."""
    env_id = config.env.id
    try:
        return gym.make(env_id, **_make_arguments(config))
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound) as error:
        hint = did_you_mean(env_id, list(gym.registry)) or f" {' '.join(str(error).split())}"
        raise ConfigError(f"env.id={env_id}: no such environment is registered.{hint}") from None
    except gym.error.DeprecatedEnv as error:
        raise ConfigError(f"env.id={env_id}: {error}") from None
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        extra = ", or pip install 'rl-research[box2d]'" if "box2d" in str(error).lower() else ""
        raise ConfigError(f"env.id={env_id}: {error}{extra}.") from None
    except (AssertionError, KeyError, TypeError, ValueError, gym.error.Error) as error:
        given = dict(config.env.kwargs)
        raise ConfigError(f"env.id={env_id} with env.kwargs={given}: {error}") from None


def reward_threshold(config: Config) -> float | None:
    """Return the mean return at which gymnasium calls the environment solved; None if it does not say."""
    threshold = gym.spec(config.env.id.rpartition(":")[2]).reward_threshold
    return None if threshold is None else float(threshold)


def check_can_film(config: Config) -> None:
    """Raise `CannotRender` unless the environment says that it renders to arrays."""
    with closing(check_env(config)) as env:
        if "rgb_array" not in env.metadata.get("render_modes", ()):
            raise CannotRender(f"{config.env.id} does not render to arrays")


def _make_arguments(config: Config) -> dict[str, Any]:
    limit = config.env.max_episode_steps
    return {**config.env.kwargs, **({} if limit is None else {"max_episode_steps": limit})}
