"""Environments that a checkpoint brings back in the middle of their episodes: pickled, or replayed.

One that cannot be pickled (Box2D's, Atari's, a simulator's) is reset as at its last reset, and takes the actions since
again. Whether that leads to the same place is tried before the first step, proven at the first checkpoint, and seen
at each resume.
"""

from __future__ import annotations

import copy
import copyreg
import io
import pickle
import random
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import gymnasium as gym
import numpy as np

from rl_research.training.env_wrappers import Checked, close
from rl_research.training.randomness import untouched_randomness

_Env: TypeAlias = gym.Env[Any, Any]
_Replay: TypeAlias = tuple[bool, int, bytes]
_LONGEST = 1_000_000  # actions of an episode that are kept
_TRIED = 20  # steps of an episode in which a method is tried
_REACHABLE = 1_000  # objects in which generators are looked for
_NO_OWNERS = (type, ModuleType, FunctionType, MethodType)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


class Method(NamedTuple):
    """How an environment that cannot be pickled is brought back.

    *layers* of it, counted from the inside, are replayed, and those around them pickled. *seeded*: every episode begins
    with a seed of ours, for the environment's own generator is out of reach.
    """

    layers: int
    seeded: bool

    def __str__(self) -> str:
        return f"replayed from {'the seed of its episode' if self.seeded else 'the random state at its last reset'}"


class Restorable(Checked):
    """Keep and bring back the state of the environment inside, in a worker process as well as in this one."""

    recorder: _Recorder | None = None

    def record(self, method: Method | None) -> None:
        """Replay the environment from now on, by *method*; None: pickle it."""
        self.recorder = method and _Recorder(self.env, method)

    def capture_state(self) -> tuple[Any, str | None]:
        """Return what `restore_state` takes, episode and generators included, or the reason why there is none.

        Never raises: that would end a worker process.
        """
        out, recorder = io.BytesIO(), self.recorder
        pickler = _WholePickler(out)
        try:
            if recorder is not None:
                pickler.keys = {id(part): key for key, part in _parts(recorder.env).items()}
            pickler.dump(self.env)
            pickle.dump((self._seed, self._episode, self.steps), out)
            return out.getvalue() if recorder is None else recorder.captured(out.getvalue()), None
        except Exception as error:  # noqa: BLE001  # it may refuse in any way; Box2D asserts
            return None, f"{type(error).__name__} {error}".strip()

    def restore_state(self, data: Any) -> str | None:
        """Continue as the environment that `capture_state` saw; return how a replay has led elsewhere."""
        if self.recorder is None:
            self._load(data, {})
            return None
        try:
            around, *kept = pickle.loads(zlib.decompress(data[-1]))
            differs = self.recorder.replay(*kept)
            self._load(around, _parts(self.recorder.env))
            return differs
        except Exception as error:  # noqa: BLE001  # whatever it is, the replay has failed
            return f"its replay raised {type(error).__name__} {error}".strip()

    def _load(self, data: bytes, parts: Mapping[Any, Any]) -> None:
        stream = io.BytesIO(data)
        unpickler = _Unpickler(stream)
        unpickler.parts = parts
        self.env = unpickler.load()
        with suppress(EOFError):  # of a checkpoint that does not know where its episode is
            self._seed, self._episode, self.steps = pickle.load(stream)  # as trusted as the environment


class _Recorder:
    """Note how a layer of an environment was reset, and which actions it has taken since.

    It stands in for the layer's own methods, so that wrappers around it meet no other object.
    """

    def __init__(self, env: _Env, method: Method):
        self.env = _layers(env)[method.layers - 1]
        self._resets = 0
        self._seeded = method.seeded
        self._seeds = np.random.default_rng()
        self._begun: tuple[Any, ...] = ()
        self._actions: list[Any] = []
        self._checksum = 0
        self._inside = False  # of a reset that calls step, as LunarLander's does
        self._own: dict[str, Callable[..., Any]] = {"reset": self.env.reset, "step": self.env.step}
        vars(self.env).update(reset=self._reset, step=self._step)

    def moves_generators_by_reset(self) -> bool:
        """Reset; return whether that draws from a generator within reach."""
        before = pickle.dumps(_random_state(self.env))
        self.env.reset()
        return pickle.dumps(_random_state(self.env)) != before

    def captured(self, around: bytes) -> _Replay:
        """Return whether the episode is a later one, its steps, and all that a replay needs, with what is *around*."""
        if (steps := len(self._actions)) >= _LONGEST:
            raise ValueError(f"its episode has {_LONGEST:,} steps or more")
        kept = (self._begun, self._actions, self._checksum, _random_state(self.env), self._seeds)
        return self._resets > 1, steps, zlib.compress(pickle.dumps((around, *kept)), 1)

    def replay(
        self, begun: tuple[Any, ...], actions: list[Any], checksum: int, now: Any, seeds: np.random.Generator
    ) -> str | None:
        """Live an episode again; return what differs."""
        state, seed, options = begun
        if seed is None:
            self.env.reset(seed=0)  # makes the generators that are put back
        _put_random(self.env, state)
        self._reset(seed=seed, options=options)
        for action in actions:
            self._step(action)
        _put_random(self.env, now)  # wrappers may have drawn from it
        self._seeds = seeds
        return None if self._checksum == checksum else "replayed, its last episode gives other observations or rewards"

    def _reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if not self._inside:
            if seed is not None:
                self._seeds = np.random.default_rng(seed)
            elif self._seeded:
                seed = int(self._seeds.integers(2**31))
            self._begun = _random_state(self.env), seed, copy.deepcopy(options)
            self._actions, self._checksum, self._resets = [], 0, self._resets + 1
        return self._noted("reset", seed=seed, **({} if options is None else {"options": options}))

    def _step(self, action: Any) -> Any:
        if not self._inside and len(self._actions) < _LONGEST:
            self._actions.append(copy.deepcopy(action))
        return self._noted("step", action)

    def _noted(self, name: str, *args: Any, **given: Any) -> Any:
        if self._inside:
            return self._own[name](*args, **given)
        self._inside = True
        try:
            answer = self._own[name](*args, **given)
        finally:
            self._inside = False
        seen = answer[:-1] if isinstance(answer, tuple) else ()  # an info may hold the time of day
        self._checksum = _checksum(seen, self._checksum)
        return answer


class Recall:
    """How environments are brought back, and whether that has been proven, with copies that *make* makes.

    *method* is None where they are pickled, or a replay has led elsewhere. *reason* says why they are not pickled.
    Without *make* nothing is chosen or proven.
    """

    def __init__(self, make: Callable[[], _Env] | None, seed: int):
        self._make = make
        self._seed = seed
        self._differs: str | None = None
        self.proven: set[bool] = set()  # with a first episode, with a later one
        self.method: Method | None = None
        self.reason = ""

    def differs(self, replays: Sequence[_Replay]) -> str | None:
        """Replay the longest of *replays* in another copy, unless one like it has been; return what differed."""
        later, steps, _ = longest = max(replays)
        if self._make and steps and not self._differs and later not in self.proven:
            self.proven.add(later)
            self._differs = "no second copy can be made"
            with suppress(Exception), self._copy(self.method) as second:
                self._differs = second.restore_state(longest)
        return self._differs

    def choose(self) -> Method | None:
        """Find out `method` and `reason` with copies, before the first step."""
        if self._make is None:
            return None
        with suppress(Exception):  # what fails here fails in training, too, and is told there
            with self._copy() as env:
                env.reset(seed=self._seed)
                layers, refusal = _layers(env.env), env.capture_state()[1]
            if refusal is not None:
                # Gymnasium's common wrappers draw nothing, and can be pickled.
                ends = [n for n, one in enumerate(layers, 1) if type(one).__module__ != "gymnasium.wrappers.common"]
                methods = (Method(n, seeded) for n in ends for seeded in (False, True))
                self.method = next(filter(self._works, methods), None)
                how = self.method or "not replayed, for a second copy differs"
                self.reason = f"the environment cannot be pickled: {refusal}; it is {how}"
        return self.method

    def _works(self, method: Method) -> bool:
        with suppress(Exception), self._copy(method) as one:
            one.reset(seed=self._seed)
            _wander(one)
            assert one.recorder is not None
            moves = one.recorder.moves_generators_by_reset()
            one.reset()
            _wander(one)
            data, refusal = one.capture_state()
            if refusal is None and (moves or method.seeded):
                with self._copy(method) as two:
                    return two.restore_state(data) is None
        return False

    @contextmanager
    def _copy(self, method: Method | None = None) -> Iterator[Restorable]:
        """Lend another copy; it leaves no trace in this process's generators, and says nothing that training says."""
        assert self._make is not None
        with untouched_randomness(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = Restorable(self._make())
            try:
                env.record(method)
                yield env
            finally:
                close(env)


def recall_of(env: object) -> Recall | None:
    """Return the `Recall` of a training's environments; None where they are not ours."""
    return getattr(env, "recall", None)


def _wander(env: _Env) -> None:
    actions = copy.deepcopy(env.action_space)  # which copies may share with training
    actions.seed(0)
    for _ in range(_TRIED):
        if any(env.step(actions.sample())[2:4]):
            return


def _layers(env: _Env) -> list[_Env]:
    """Return *env* and what it wraps, the innermost first."""
    found = [env]
    while isinstance(found[-1], gym.Wrapper):
        found.append(found[-1].env)
    return found[::-1]


def _parts(env: _Env) -> dict[Any, Any]:
    """Return, by a key, what is replayed of *env*: its layers, and the generators that wrappers may share with them."""
    return {**dict(enumerate(_layers(env))), **_generators(env)}


def _generators(env: _Env) -> dict[Any, Any]:
    """Return the random generators that attributes lead to, by their names; those of actions are training's."""
    found: dict[Any, Any] = {}
    seen: set[int] = {id(env)}
    queue: deque[tuple[tuple[str, ...], Any]] = deque([((), env)])
    while queue and len(seen) < _REACHABLE:
        path, owner = queue.popleft()
        for name, value in list(vars(owner).items()):
            if id(value) in seen or name in ("action_space", "_action_space"):
                continue
            if isinstance(value, _GENERATORS):
                found[(*path, name)] = value
            elif hasattr(value, "__dict__") and not isinstance(value, _NO_OWNERS):
                queue.append(((*path, name), value))
                seen.add(id(value))
    return found


def _random_state(env: _Env) -> dict[Any, Any]:
    return {path: copy.deepcopy(generator) for path, generator in _generators(env).items()}


def _put_random(env: _Env, state: Mapping[Any, Any]) -> None:
    for path, generator in _generators(env).items():
        if path not in state:
            continue
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state[path].bit_generator.state
        else:
            generator.__setstate__(state[path].__getstate__())


def _checksum(value: Any, start: int) -> int:
    """Return a checksum of all numbers in *value*; of an array of more than 4,096, every n-th is taken."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for part in value:
            start = _checksum(part, start)
        return start
    array = np.asarray(value)
    return start if array.dtype.hasobject else zlib.crc32(array.ravel()[:: 1 + array.size // 4096].tobytes(), start)


class _WholePickler(pickle.Pickler):
    """Keep all of an `EzPickle`, which by itself would keep its constructor's arguments only.

    Gymnasium's MuJoCo, Box2D and Atari environments are such: their pickles load in the state before the
    first reset. All of MuJoCo's state can be pickled; Box2D's refuses, as it should.
    """

    keys: Mapping[int, Any] = {}  # of the parts that are replayed, by their ids

    def persistent_id(self, value: Any) -> Any:
        return self.keys.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if getattr(kind, "__getstate__", None) is not gym.utils.EzPickle.__getstate__:
            return NotImplemented
        return copyreg.__newobj__, (kind,), vars(value), None, None, put_state  # type: ignore[attr-defined]  # undocumented, but what pickle itself names in every pickle


class _Unpickler(pickle.Unpickler):
    """Find `put_state` also under the names that checkpoints of earlier versions give it."""

    parts: Mapping[Any, Any] = {}  # that have been replayed, by their keys

    def persistent_load(self, key: Any) -> Any:
        return self.parts[key]

    def find_class(self, module: str, name: str) -> Any:
        moved = module in ("rl_research.envs", "rl_research.training.envs") and name == put_state.__name__
        return super().find_class(__name__ if moved else module, name)


def put_state(env: object, state: dict[str, Any]) -> None:
    """Give *env*, newly made, its attributes. Pickles in checkpoints name this function."""
    vars(env).update(state)
