"""A callback and a sink of one's own. A killed run goes on with the callback's count, and no row is written twice.

rl-research train plugins=[examples.callback] 'callbacks=[{falls: {warn_at: 100}}]' \\
    'sinks=[{jsonl: {path: "{run_dir}/rows.jsonl"}}]'
"""

import json
import logging
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

import rl_research


@rl_research.register.callback("falls")
class Falls(BaseCallback):
    """Logs how often an episode has ended as ``custom/falls``."""

    def __init__(self, warn_at: int = 1_000):
        super().__init__()
        self.warn_at, self.falls = warn_at, 0

    def _on_step(self) -> bool:
        before, self.falls = self.falls, self.falls + int(self.locals["dones"].sum())
        if before < self.warn_at <= self.falls:
            logging.getLogger(__name__).warning("%d falls at step %d", self.falls, self.num_timesteps)
        self.logger.record("custom/falls", self.falls)
        return True

    def state(self) -> int:
        """Return what a resumed run continues from; without this method it would count from 0."""
        return self.falls

    def restore(self, state: int) -> None:
        """Continue from there."""
        self.falls = state


@rl_research.register.sink("jsonl")
class Lines:
    """Appends each row of metrics to a file, as a line of JSON."""

    def __init__(self, path: str):
        self.path = Path(path)

    def __call__(self, row: dict[str, Any], step: int) -> None:
        """Write the row at *step*."""
        with self.path.open("a") as file:
            file.write(json.dumps({"global_step": step, **row}, default=float) + "\n")
