"""The import path of `ExperimentLogger` that scripts use; the logger itself is in `rl_research.tracking`."""

from rl_research.tracking import ExperimentLogger

__all__ = ["ExperimentLogger"]
