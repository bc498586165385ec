"""Wrappers that every environment gets: they say what it has raised, and at which step of which episode."""

import logging
import os
import signal
import traceback
from typing import Any

import gymnasium as gym
import numpy as np

from rl_research.errors import EnvironmentFailed, EnvironmentFault, in_a_line, printable, shown
from rl_research.system import keep_streams, when_process_ends

_log = logging.getLogger(__name__)

FAILURE = "rl_research_failure"  # key of an `info` in which a worker hands its environment's error on
_FOR_TRAINER = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # signals of the process group that the trainer answers
_AROUND = {
    "rl_research",
    "stable_baselines3",
    "gymnasium",
    "importlib",
}  # packages whose frames lead to an environment's


class Reporting(gym.Wrapper[Any, Any, Any, Any]):
    """Raise what the environment inside raises as `EnvironmentFailed`, and know where its episode is."""

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self._seed: int | None = None
        self._episode = self.steps = 0
        self._ended = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        self._ended = self.place()
        self._episode = self._episode + 1 if seed is None else 0
        self._seed, self.steps = self._seed if seed is None else seed, 0
        try:
            return self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever it is, it is the environment's
            raise self._failure("reset", error) from None

    def step(self, action: Any) -> Any:
        """Take one step of it."""
        self.steps += 1
        try:
            return self.env.step(action)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # likewise
            raise self._failure("step", error) from None

    def place(self, *, ended: bool = False) -> str:
        """Return the environment and where its episode is, for people; *ended*: where the one before has ended."""
        if ended:
            return self._ended
        seed = "" if self._seed is None else f" with seed {self._seed}"
        episode = f"episode {self._episode + 1} since the reset{seed}" if self._episode else f"the episode{seed}"
        return f"{name_of(self)}, step {self.steps} of {episode}"

    def _failure(self, method: str, error: BaseException) -> EnvironmentFailed:
        if isinstance(error, EnvironmentFailed):
            return error
        return failure(f"{self.place()}: {method}()", error)


class Checked(Reporting):
    """Raise `EnvironmentFault` for what an environment returns and SB3 would stumble over, soon or late."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        return self._checked(super().reset(seed=seed, options=options), "reset() must return an observation and a dict")

    def step(self, action: Any) -> Any:
        """Take one step."""
        return self._checked(super().step(action), "step() must return five values, the last of them a dict")

    def _checked(self, found: Any, form: str) -> Any:
        if not isinstance(found, tuple | list) or len(found) < 2 or not isinstance(info := found[-1], dict):
            reason = f"{form}, not {shown(found)}"
        elif not _has_form(self.observation_space, found[0]):
            reason = (
                f"the observation, {shown(found[0])}, does not have the form of its space, {self.observation_space}"
            )
        elif not isinstance(info.get("episode", {}), dict):
            reason = "its info holds 'episode', where Stable-Baselines3 keeps an episode's return; name it otherwise"
        elif not isinstance(info.get("is_success"), bool | float | int | np.bool_ | np.number | None):
            reason = f"its info's is_success must be true or false, not {shown(info['is_success'])}"
        else:
            return found
        raise EnvironmentFault(f"{self.place()}: {reason}. This comes from the environment, not from learning.")


def _has_form(space: gym.Space[Any], value: Any) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return isinstance(value, dict) and all(key in value and _has_form(space[key], value[key]) for key in space)
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return False
    return array.shape == space.shape and array.dtype.kind in "biuf"


class InWorker(gym.Wrapper[Any, Any, Any, Any]):
    """Hand the errors of a `Reporting` on from a worker process, which ends with the process *trainer*.

    The signals of its process group are for that one.
    """

    def __init__(self, env: gym.Env[Any, Any], trainer: int):
        super().__init__(env)
        keep_streams()
        for name in _FOR_TRAINER:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        when_process_ends(trainer, lambda: os._exit(1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; an error is in the `info`."""
        try:
            return self.env.reset(seed=seed, options=options)
        except (EnvironmentFailed, EnvironmentFault) as error:
            return self.observation_space.sample(), {FAILURE: error}

    def step(self, action: Any) -> Any:
        """Take one step; an error is in the `info`."""
        try:
            return self.env.step(action)
        except (EnvironmentFailed, EnvironmentFault) as error:
            return self.observation_space.sample(), 0.0, False, False, {FAILURE: error}


def close(env: gym.Env[Any, Any]) -> None:
    """Close *env*; an error in that is a warning, for it may be the second one and would hide the first."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001  # whatever it is, the environment has done its work
        _log.warning("%s: close() raised %s: %s", name_of(env), type(error).__name__, in_a_line(error))


def name_of(env: gym.Env[Any, Any]) -> str:
    """Return how messages name *env*."""
    return f"env.id={env.spec.id if env.spec else type(env.unwrapped).__name__}"


def failure(what: str, error: BaseException) -> EnvironmentFailed:
    """Return the error that says what *what* has raised; its traceback begins in the user's own code."""
    frames = error.__traceback__
    while frames and frames.tb_next and frames.tb_frame.f_globals.get("__name__", "").split(".")[0] in _AROUND:
        frames = frames.tb_next
    trace = printable("".join(traceback.format_exception(error.with_traceback(frames))))
    kind, said = type(error).__name__, in_a_line(error).rstrip(".")
    return EnvironmentFailed(f"{what} raised {kind if said == kind else f'{kind}: {said}'}.", trace)
