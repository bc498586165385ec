"""The loggers that are open in this process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from rl_research.errors import ConfigError

if TYPE_CHECKING:
    from rl_research.tracking.logger import ExperimentLogger

_open: list[ExperimentLogger] = []
_lock = threading.Lock()


def latest() -> ExperimentLogger | None:
    """The one that was opened last and is not finished."""
    with _lock:
        mine = [logger for logger in _open if logger._pid == os.getpid()]
    return mine[-1] if mine else None


def register(logger: ExperimentLogger) -> None:
    """Note that *logger* is open; `ConfigError` if its run is being logged already."""
    with _lock:
        if any(other.run_id == logger.run_id and other._pid == logger._pid for other in _open):
            raise ConfigError(
                f"run_id={logger.run_id} is being logged already: finish() that logger first, "
                "or give another run_id."
            )
        _open.append(logger)


def unregister(logger: ExperimentLogger) -> None:
    """Note that *logger* is finished."""
    with _lock:
        if logger in _open:
            _open.remove(logger)
