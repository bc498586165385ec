"""Reinforcement-learning experiments that survive the night."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_research.config import load_config
    from rl_research.tracking import ExperimentLogger

__all__ = ["ExperimentLogger", "__version__", "load_config"]

_HOME = {"ExperimentLogger": "rl_research.tracking.logger", "load_config": "rl_research.config.experiment"}


def __getattr__(name: str) -> Any:
    # Lazy, so that importing the package costs nothing.
    if name == "__version__":
        return metadata.version("rl-research")
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
