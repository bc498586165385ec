"""How far a training run is: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

_log = logging.getLogger(__name__)
_LINE_EVERY = 10.0  # seconds between lines where there is no terminal


class ProgressCallback(BaseCallback):
    """Show the steps done of *total* on standard error, and report them to *on_progress*."""

    def __init__(self, total: int, label: str, on_progress: Callable[[int, int], None]):
        super().__init__()
        self.total = total
        self.label = label
        self.on_progress = on_progress
        self._bar: tqdm[None] | None = None
        self._last_line = time.monotonic()

    def _on_training_start(self) -> None:
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total,
                initial=self.model.num_timesteps,
                desc=self.label,
                unit="step",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
            )
        self._show()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._show()

    def _on_training_end(self) -> None:
        self._last_line = 0.0
        self._show()
        self.close()

    def close(self) -> None:
        """Leave the terminal tidy, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self) -> None:
        step = self.model.num_timesteps
        self.on_progress(step, self.total)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(self._score(), refresh=False)
        elif time.monotonic() - self._last_line >= _LINE_EVERY:
            self._last_line = time.monotonic()
            _log.info("%s: %d of %d steps%s", self.label, step, self.total, self._score(", "))

    def _score(self, before: str = "") -> str:
        infos = self.model.ep_info_buffer
        if not infos:
            return ""
        mean = sum(info["r"] for info in infos) / len(infos)
        return f"{before}mean return {mean:.1f}"
