"""SB3's vectorised environments, which say what has gone wrong in an environment and where.

What an environment raises becomes `EnvironmentFailed` with the environment's own traceback, also from a worker
process; a worker that dies is named with its signal. A reward or an observation that is not finite is an
`EnvironmentFault`. SB3 shows an `EOFError` of its pipe instead, and waits for its workers for ever.
"""

import atexit
import math
import pickle
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecTransposeImage

from rl_research.errors import EnvironmentFailed, EnvironmentFault, in_a_line
from rl_research.training.env_wrappers import FAILURE, close, name_of

_TO_END = 5.0  # seconds that workers may take to close their environments


class ReportingDummyVecEnv(DummyVecEnv):
    """Environments in this process, each in a `Reporting`."""

    def step_wait(self) -> Any:
        """Return observations, rewards, dones and infos."""
        try:
            step = super().step_wait()
        except (TypeError, pickle.PickleError) as error:  # SB3 copies them
            what = f"{name_of(self.envs[0])}: what step() returns cannot be copied, such as an object in its info"
            raise EnvironmentFault(f"{what}: {in_a_line(error)}.") from None
        return _finite(self, step)

    def close(self) -> None:
        """Close every environment; an error of one of them is a warning."""
        for env in self.envs:
            close(env)


class ReportingSubprocVecEnv(SubprocVecEnv):
    """Environments in worker processes, each in an `InWorker`; none of them outlives this one."""

    def __init__(self, env_fns: list[Callable[[], gym.Env[Any, Any]]], start_method: str | None = None):
        try:
            super().__init__(env_fns, start_method)
        except (EOFError, OSError):
            raise self._died() from None
        self.remotes = tuple(_Pipe(remote, self._died) for remote in self.remotes)
        atexit.register(self.close)  # runs before multiprocessing's own, which waits for workers without end

    def reset(self) -> Any:
        """Return the observations with which new episodes begin."""
        observations = super().reset()
        _raise_reported(self.reset_infos)
        return observations

    def step_wait(self) -> Any:
        """Return observations, rewards, dones and infos."""
        step = super().step_wait()
        _raise_reported([*step[3], *self.reset_infos])
        return _finite(self, step)

    def close(self) -> None:
        """Let every worker close its environment, for some seconds; then end it."""
        if self.closed:
            return
        self.closed = True
        with suppress(EnvironmentFailed):
            for remote in self.remotes:
                remote.send(("close", None))
        until = monotonic() + _TO_END
        for process in self.processes:
            process.join(max(0.0, until - monotonic()))
        _kill(self.processes)
        atexit.unregister(self.close)
        for remote in self.remotes:
            remote.close()

    def _died(self) -> EnvironmentFailed:
        until = monotonic() + _TO_END
        while not (ended := [p for p in self.processes if p.exitcode is not None]) and monotonic() < until:
            self.processes[0].join(0.1)
        _kill(self.processes)
        if not ended:
            return EnvironmentFailed("env.vec_env=subproc: a worker closed its connection. Look for its words above.")
        number, code = self.processes.index(ended[0]), ended[0].exitcode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"
        why = "A machine that is short of memory does that." if code == -signal.SIGKILL else "Look for its words above."
        return EnvironmentFailed(f"env.vec_env=subproc: worker {number + 1} of {len(self.processes)} {how}. {why}")


class ContiguousImages(VecTransposeImage):
    """Images channels-first, in memory too: a convolution's last bits depend on that, and a pickle does not keep it."""

    def transpose_observations(self, observations: Any) -> Any:
        """Return *observations* with channels-first images."""
        found = super().transpose_observations(observations)
        if isinstance(found, dict):
            return {key: np.ascontiguousarray(part) for key, part in found.items()}
        return np.ascontiguousarray(found)


class _Pipe:
    """SB3's connection to a worker, which names the worker's end."""

    def __init__(self, connection: Any, died: Callable[[], EnvironmentFailed]):
        self._connection, self._died = connection, died
        self.close = connection.close

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._died() from None

    def recv(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _raise_reported(infos: Sequence[dict[str, Any]]) -> None:
    for info in infos:
        if (error := info.get(FAILURE)) is not None:
            raise error


def _finite(env: DummyVecEnv | SubprocVecEnv, step: Any) -> Any:
    """Return *step*; raise `EnvironmentFault` where a reward or an observation of it is NaN or infinite."""
    observations, rewards, dones, infos = step
    last: dict[int, Any] = {int(index): infos[index]["terminal_observation"] for index in dones.nonzero()[0]}
    if _is_finite(rewards) and _is_finite(observations) and all(map(_is_finite, last.values())):
        return step
    for index, reward in enumerate(rewards):
        ended = index in last
        seen = {key: part[index] for key, part in observations.items()} if isinstance(observations, dict) else None
        for what, value, before in [
            ("reward", reward, ended),
            ("observation", last.get(index), True),
            ("observation", observations[index] if seen is None else seen, False),
        ]:
            if value is not None and not _is_finite(value):
                (place,) = env.env_method("place", ended=before, indices=index)
                raise EnvironmentFault(
                    f"{place}: the {what} is {_described(value)}. This comes from the environment, not from learning."
                )
    return step


def _is_finite(value: Any) -> bool:
    """Return whether all floats of an observation are finite; a look at anything else would cost and tell nothing."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    array = np.asarray(value)
    if array.dtype.kind != "f" or math.isfinite(np.vdot(array, array)):  # a third of the time of the look itself
        return True
    return bool(np.isfinite(array).all())


def _described(value: Any) -> str:
    """Return what is not finite in *value*, in few words."""
    if isinstance(value, dict):
        key = next(key for key, part in value.items() if not _is_finite(part))
        return f"{_described(value[key])} under {key!r}"
    kind = "NaN" if np.isnan(value).any() else "infinite"
    wrong = np.argwhere(~np.isfinite(value))
    return kind if np.ndim(value) == 0 else f"{kind} at index {', '.join(map(str, wrong[0]))}"
