"""Callbacks and sinks that a configuration names: made for one segment of a run, and taken up by the next."""

from __future__ import annotations

import pickle
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rl_research.config import RUN_DIR, Config, made, register
from rl_research.errors import ConfigError


class OwnCallbacks:
    """The callbacks of *config* and those *given* by a script, and what a resumed run continues from."""

    def __init__(self, config: Config, run_dir: Path, given: Sequence[BaseCallback] = ()):
        self._by_name: dict[str, BaseCallback] = {}
        for part in config.callbacks:
            callback = made("callbacks", register.callback, _in_folder(part, run_dir))
            self._add(part if isinstance(part, str) else next(iter(part)), callback)
        for callback in given:
            self._add(type(callback).__name__, callback)

    def _add(self, name: str, callback: BaseCallback) -> None:
        self._by_name[f"{name}-{len(self._by_name)}" if name in self._by_name else name] = callback

    @property
    def all(self) -> list[BaseCallback]:
        """The callbacks in their order."""
        return list(self._by_name.values())

    @property
    def remark(self) -> str | None:
        """What a manifest says of callbacks that a resume starts anew."""
        forgetful = [name for name, one in self._by_name.items() if not _continues(one)]
        return f"callbacks without state() start anew: {', '.join(forgetful)}" if forgetful else None

    def state(self) -> dict[str, bytes]:
        """Return each callback's own state, pickled; `ConfigError` for one that cannot be."""
        return {name: _pickled(name, one) for name, one in self._by_name.items() if _continues(one)}

    def restore(self, states: dict[str, bytes]) -> None:
        """Give each callback what it returned as its state, and the number of SB3's calls that it has had."""
        for name in self._by_name.keys() & states.keys():
            callback: Any = self._by_name[name]
            callback.n_calls, state = pickle.loads(states[name])
            callback.restore(state)


class OwnSink:
    """A sink that *config* names as *part*, which gets each row once.

    A sink with ``rewind`` gives up its rows from the step *rows_from* on, which come again. Another one is not
    given the rows at the steps *had*, which it has got before a kill.
    """

    def __init__(self, part: Any, run_dir: Path, rows_from: int, had: Set[int]):
        self._sink = made("sinks", register.sink, _in_folder(part, run_dir))
        if not callable(self._sink):
            raise ConfigError(f"sinks={part}: it makes {self._sink!r}, which cannot be called with a row and its step.")
        self._had = had
        if hasattr(self._sink, "rewind"):
            self._sink.rewind(rows_from)
            self._had = frozenset()

    def __call__(self, row: dict[str, Any], step: int) -> None:
        """Hand on *row*."""
        if step not in self._had:
            self._sink(row, step)

    def close(self) -> None:
        """Close the sink if it can be closed."""
        if hasattr(self._sink, "close"):
            self._sink.close()


def _continues(callback: BaseCallback) -> bool:
    return all(callable(getattr(callback, method, None)) for method in ("state", "restore"))


def _in_folder(part: Any, run_dir: Path) -> Any:
    """Return *part* with the run's folder where its arguments say ``{run_dir}``."""
    if isinstance(part, dict):
        return {key: _in_folder(value, run_dir) for key, value in part.items()}
    return part.replace(RUN_DIR, str(run_dir)) if isinstance(part, str) else part


def _pickled(name: str, callback: Any) -> bytes:
    try:
        return pickle.dumps((callback.n_calls, callback.state()))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"callbacks.{name}: what its state() returns cannot be pickled: {error}.") from error
