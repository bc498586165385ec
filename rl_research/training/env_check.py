"""Preflight of an environment: some steps of it under SB3's checker, before anything is written."""

import io
import time
import warnings
from contextlib import redirect_stdout
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_research.config import Config, algorithm_class, takes_masks
from rl_research.errors import ConfigError, EnvironmentFailed, EnvironmentFault
from rl_research.training.env_wrappers import Reporting

_SECONDS = 5.0  # for all steps; a step that has begun is waited for

#: In SB3's warnings, what training would get wrong without a word, or die of. Its other warnings are advice.
_FATAL = ("not supported", "non-zero start", "not based off a numpy array")
_SHIFT = "For instance gymnasium.wrappers.TransformAction(env, lambda action: action + {start}, Discrete({n}))."


def check_api(config: Config, env: gym.Env[Any, Any]) -> None:
    """Reset *env* and step it some ten times; raise `ConfigError` with the first thing that training cannot use.

    Raises `EnvironmentFailed` with what it raises itself.
    """
    from stable_baselines3.common.env_checker import check_env

    if isinstance(env.action_space, gym.Space):  # else SB3's checker says so
        env.action_space.seed(config.experiment.seed)
    try:
        if env.has_wrapper_attr("action_masks") and not takes_masks(algorithm_class(name := config.algorithm.name)):
            raise ValueError(f"{name} would not heed its action_masks(); choose algorithm=maskable_ppo")
        _check_bounds(env.action_space)
        if isinstance(env.observation_space, spaces.Box) and env.observation_space.shape == ():
            raise ValueError(f"its observations, {env.observation_space}, have no dimension; give them the shape (1,)")
        for space in (env.observation_space, env.action_space):
            if space == spaces.Dict() or 0 in (getattr(space, "shape", None) or ()):
                raise ValueError(f"its space {space} is empty")
        with warnings.catch_warnings(record=True) as said, redirect_stdout(io.StringIO()):
            warnings.simplefilter("always")
            try:
                check_env(_Tolerant(Reporting(env)))
            except _TimeOver:
                pass
            finally:
                fatal = [str(one.message) for one in said if any(words in str(one.message) for words in _FATAL)]
                _raise_first(fatal, env.action_space)
    except (AssertionError, TypeError, ValueError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigError(f"env.id={config.env.id}: {reason}. env.check=false trains without this check.") from None


def _raise_first(fatal: list[str], actions: gym.Space[Any]) -> None:
    if fatal:
        start = actions.start if isinstance(actions, spaces.Discrete) else 0
        remedy = _SHIFT.format(start=start, n=actions.n) if isinstance(actions, spaces.Discrete) and start else ""
        raise ValueError(f"{fatal[0]} {remedy}")


def _allowed(env: gym.Env[Any, Any], action: Any) -> Any:
    """Return the first action that the masks of *env* allow; *action* where it has no masks.

    Raises `ValueError` for masks that fit no action, or allow none.
    """
    if not env.has_wrapper_attr("action_masks"):
        return action
    actions, masks = env.action_space, np.asarray(env.get_wrapper_attr("action_masks")())
    sizes = [actions.n] if isinstance(actions, spaces.Discrete) else getattr(actions, "nvec", [2] * np.size(action))
    if masks.size != sum(sizes):
        raise ValueError(f"its action_masks() gives {masks.size} flags where {actions} needs {sum(sizes)}")
    parts = np.split(masks.ravel(), np.cumsum(sizes)[:-1])
    if not all(part.any() for part in parts):
        raise ValueError("its action_masks() allows no action")
    chosen = np.array([part.argmax() for part in parts], dtype=np.asarray(action).dtype)
    return chosen.reshape(np.shape(action)) if np.ndim(action) else chosen[0]


def _check_bounds(actions: gym.Space[Any]) -> None:
    """Raise `ValueError` for actions in whole numbers, and for bounds by which SAC or TD3 would scale to NaN."""
    if isinstance(actions, spaces.Box) and actions.dtype.kind != "f":
        raise ValueError(f"its actions are whole numbers, {actions}, and would be given fractions; use MultiDiscrete")
    if isinstance(actions, spaces.Box) and np.isfinite(actions.low).all() and np.isfinite(actions.high).all():
        with np.errstate(over="ignore"):
            spread = actions.high.astype(np.float32) - actions.low.astype(np.float32)
        wrong = np.flatnonzero((spread <= 0) | ~np.isfinite(spread))
        if len(wrong):
            low, high = actions.low.flat[wrong[0]], actions.high.flat[wrong[0]]
            raise ValueError(f"the bounds of its actions, {low:g} to {high:g} at index {wrong[0]}, cannot be scaled")


class _TimeOver(Exception):
    """Raised when the check has taken long enough."""


class _Tolerant(gym.Wrapper[Any, Any, Any, Any]):
    """Return what SB3's checker would refuse and training takes in the form that it accepts.

    Such are rewards and flags of NumPy's types, lists for arrays, float64 for float32, and values that are
    slightly out of bounds.
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self._until = time.monotonic() + _SECONDS

    @property
    def unwrapped(self) -> gym.Env[Any, Any]:
        """This wrapper: an environment with a method `compute_reward` is for us no goal environment."""
        return self

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        try:
            found: Any = self.env.reset(seed=seed, options=options)
        except EnvironmentFailed as error:
            if "unexpected keyword argument 'seed'" in str(error) or "'options'" in str(error):
                raise TypeError("reset() must take the arguments `seed` and `options`") from None
            raise
        if isinstance(found, tuple) and len(found) == 2:
            return self._usual(found[0]), found[1]
        return found

    def step(self, action: Any) -> Any:
        """Take one step, unless the time is over."""
        if time.monotonic() > self._until:
            raise _TimeOver
        found: Any = self.env.step(_allowed(self.env, action))
        if not (isinstance(found, tuple) and len(found) == 5):
            return found
        observation, reward, terminated, truncated, info = found
        if np.size(reward) == 1 and np.asarray(reward).dtype.kind in "biuf":
            reward = float(np.asarray(reward).item())
        flags = (bool(flag) if isinstance(flag, np.bool_) else flag for flag in (terminated, truncated))
        return self._usual(observation), reward, *flags, info

    def _usual(self, observation: Any) -> Any:
        try:
            return _usual(self.observation_space, observation)
        except EnvironmentFault as fault:
            place = self.env.get_wrapper_attr("place")()
            raise EnvironmentFault(f"{place}: the observation is {fault}. This comes from the environment.") from None


def _usual(space: gym.Space[Any], value: Any) -> Any:
    """Return *value*, an observation in *space*, with the type, and within the bounds, of its space where it can be."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict):
        return {key: _usual(space[key], part) if key in space.spaces else part for key, part in value.items()}
    if space.shape is None or space.dtype is None or isinstance(space, spaces.Discrete | spaces.Dict | spaces.Tuple):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return value
    if array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind"):
        return array if isinstance(value, list) else value
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise EnvironmentFault("NaN or infinite")
    array = array.astype(space.dtype)
    return np.asarray(np.clip(array, space.low, space.high)) if isinstance(space, spaces.Box) else array
