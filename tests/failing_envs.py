"""Environments that fail as people's do; ``env.id=failing_envs:NAME-v0``, also in worker processes."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Sound(gym.Env[Any, Any]):
    """An environment without a fault: twenty steps of noise."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # gymnasium's form
    observation_space: Any = spaces.Box(-1, 1, (3,), np.float32)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, at: int = 5, **given: Any):
        self.render_mode, self.at, self.given = render_mode, at, given
        self.seeded: int | None = None
        self.episode = self.t = 0

    def observe(self) -> Any:
        """Return an observation."""
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode."""
        super().reset(seed=seed, options=options)
        self.seeded = self.seeded if seed is None else seed
        self.episode, self.t = self.episode + 1, 0
        return self.observe(), {}

    @property
    def is_time(self) -> bool:
        """Whether to fail now: at step `at` of the third episode."""
        return self.episode == 3 and self.t == self.at

    def step(self, action: Any) -> Any:  # noqa: ARG002  # gymnasium's form
        """Take one step."""
        self.t += 1
        return self.observe(), 1.0, self.t >= 20, False, {}

    def render(self) -> Any:
        """Return a grey picture."""
        return np.full((64, 64, 3), 100, np.uint8)


class Raises(Sound):
    """Raises in `step`; what, is an argument."""

    def step(self, action: Any) -> Any:
        """Fail in the third episode, unless it was seeded otherwise."""
        found = super().step(action)
        if self.is_time and self.seeded in self.given.get("seeds", [self.seeded]):
            raise {
                "runtime": RuntimeError, "connection": ConnectionResetError, "exit": SystemExit, "words": _WithoutWords
            }[self.given.get("error", "runtime")]("simulator failed")  # fmt: skip
        return found


class _WithoutWords(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Returns(Sound):
    """Returns in `step`, once, whatever its argument *what* says."""

    def step(self, action: Any) -> Any:
        """Return something or other in the third episode."""
        found = list(super().step(action))
        if not self.is_time:
            return tuple(found)
        place, value = {
            "five numbers": (0, np.zeros(5, np.float32)), "no observation": (0, None), "a word": (0, "word"),
            "no info": (4, None), "an episode": (4, {"episode": 3}), "success": (4, {"is_success": "maybe"}),
            "a lock": (4, {"lock": threading.Lock()}),
        }[self.given["what"]]  # fmt: skip
        found[place] = value
        return tuple(found)


class CannotBeMade(Sound):
    """Raises in its constructor."""

    def __init__(self, error: str, **given: Any):
        super().__init__(**given)
        errors = {"file": FileNotFoundError(2, "no file", "mesh.xml"), "exit": SystemExit(3), "words": _WithoutWords()}
        raise errors[error]


class Dies(Sound):
    """Is ended by the kernel in `step`."""

    def step(self, action: Any) -> Any:
        """Kill the process in the third episode."""
        found = super().step(action)
        if self.is_time:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


class Hangs(Sound):
    """Never answers in `close`, and may raise before."""

    def close(self) -> None:
        """Wait for ever."""
        signal.pause()


class NotFinite(Sound):
    """Returns NaN or infinity once."""

    def step(self, action: Any) -> Any:
        """Return a wrong number in the third episode."""
        observation, reward, *rest = super().step(action)
        if self.is_time and self.given["what"] == "observation":
            observation[1] = np.nan
        return (observation, np.inf if self.is_time and self.given["what"] == "reward" else reward, *rest)


class Endless(Sound):
    """Ends no episode."""

    def step(self, action: Any) -> Any:
        """Take one step of ever more."""
        return (*super().step(action)[:2], False, False, {})


class OldReset(Sound):
    """Resets as gym did before 0.26."""

    def reset(self, **given: Any) -> Any:
        """Return the observation alone."""
        return super().reset(**given)[0]


class NoSeed(Sound):
    """Cannot be seeded."""

    def reset(self) -> Any:  # type: ignore[override]
        """Begin an episode."""
        return super().reset()


class OldStep(Sound):
    """Steps as gym did before 0.26."""

    def step(self, action: Any) -> Any:
        """Return four values."""
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, info


class OtherShape(Sound):
    """Returns observations of another shape than it says."""

    def observe(self) -> Any:
        """Return five numbers for three."""
        return np.zeros(5, np.float32)


class FloatsForBytes(Sound):
    """Says bytes and returns fractions, which SB3's buffer would cut to zero."""

    observation_space = spaces.Box(0, 255, (3,), np.uint8)

    def observe(self) -> Any:
        """Return fractions."""
        return self.np_random.uniform(0, 1, 3)


class Nested(Sound):
    """Has a Dict in a Dict."""

    observation_space = spaces.Dict({"a": spaces.Dict({"b": spaces.Box(-1, 1, (2,), np.float32)})})

    def observe(self) -> Any:
        """Return such a one."""
        return {"a": {"b": np.zeros(2, np.float32)}}


class FromOne(Sound):
    """Counts its actions from one."""

    action_space = spaces.Discrete(2, start=1)


class MultiFromOne(Sound):
    """Counts the choices of its actions from one."""

    action_space = spaces.MultiDiscrete([2, 2], start=[1, 1])


class WholeNumbers(Sound):
    """Has a box of integers for its actions."""

    action_space = spaces.Box(0, 10, (1,), np.int64)


class Scalar(Sound):
    """Observes a single number."""

    observation_space = spaces.Box(-1, 1, (), np.float32)

    def observe(self) -> Any:
        """Return it."""
        return np.float32(0.5)


class NoRange(Sound):
    """Has an action whose lower bound is its upper one."""

    action_space = spaces.Box(np.array([-1, 2], np.float32), np.array([1, 2], np.float32))


class TooWide(Sound):
    """Has an action whose range float32 cannot hold."""

    action_space = spaces.Box(-3e38, 3e38, (1,), np.float32)


class Sloppy(Sound):
    """Does what no checker likes and every training takes: NumPy's types, a list, values out of bounds."""

    def observe(self) -> Any:
        """Return a list of Python's floats, one of them out of bounds."""
        return [1.5, 0.0, -0.25]

    def step(self, action: Any) -> Any:
        """Return NumPy's own float and flags."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.float32(reward), np.bool_(terminated), np.bool_(truncated), info

    def compute_reward(self) -> float:
        """Do what SB3 takes for the sign of a goal environment."""
        return 1.0


class Image(Sound):
    """Shows pictures with their channels last."""

    observation_space = spaces.Box(0, 255, (40, 40, 1), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def observe(self) -> Any:
        """Return noise."""
        return self.np_random.integers(0, 255, (40, 40, 1), dtype=np.uint8)


class NoRenderMode(Sound):
    """Says that it renders, and cannot be asked to."""

    def __init__(self) -> None:
        super().__init__()


class Shows(Sound):
    """Shows whatever its argument *shown* says."""

    def render(self) -> Any:
        """Return something or other."""
        frames = {
            "floats": np.full((64, 64, 3), 0.5),
            "large_floats": np.full((64, 64, 3), 128.0),
            "grey": np.full((64, 64), 128, np.uint8),
            "list": [np.full((64, 64, 3), 128, np.uint8)],
            "booleans": np.ones((64, 64, 3), bool),
            "none": None,
            "empty": np.zeros((0, 0, 3), np.uint8),
            "nothing": [],
            "text": "a picture",
        }
        if (shown := self.given["shown"]) == "growing":
            return np.zeros((64 + 2 * self.t, 64, 3), np.uint8)
        if shown == "raises":
            raise RuntimeError("no brush")
        if shown == "exits":
            raise SystemExit(5)
        return frames[shown]


class OddSpeed(Sound):
    """Asks to be shown at no frame a second."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 0}  # noqa: RUF012  # gymnasium's form


for _kind in Sound, *Sound.__subclasses__():
    gym.register(f"{_kind.__name__}-v0", f"failing_envs:{_kind.__name__}")
