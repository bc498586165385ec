"""SB3 callbacks: a base with a logger of its own, a clock of environment steps, SB3's metrics for a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.logger import Figure, HParam, Image, Video

from rl_research.errors import LoggingError
from rl_research.system import write_atomically
from rl_research.tracking.rows import STEP, Row, RowWriter
from rl_research.tracking.saved_policy import MODEL

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from torch import nn
    from wandb import Histogram

    from rl_research.tracking.logger import ExperimentLogger

_log = logging.getLogger(__name__)
_CLOCKS = ("start_time", "num_timesteps")  # of a model, which are no settings


class BaseCallback(sb3.BaseCallback):
    """SB3's callback base, in which ``self.logger = …`` works.

    SB3 ≥ 2 made `logger` a property without a setter that returns ``self.model.logger``, so a callback that stores its
    own logger under that name fails with `AttributeError`. Here it may; a callback that stores none keeps SB3's.
    """

    _own_logger: object = None

    @property
    def logger(self) -> Any:
        """Logger that was assigned, else the algorithm's own."""
        return self.model.logger if self._own_logger is None else self._own_logger

    @logger.setter
    def logger(self, value: Any) -> None:
        self._own_logger = value

    def _on_step(self) -> bool:
        return True


class StepClock:
    """Tells when a number of environment steps has passed since the last time, whatever `n_envs` is.

    It is due at the first look at or after each multiple of *every*, and stays due until it is done, also in
    a resumed run.
    """

    def __init__(self, every: int):
        self.every = every
        self.last: int | None = None

    def start(self, model: BaseAlgorithm) -> None:
        """Count from the model's step, unless resumed; also where the model begins again at a lower one."""
        if self.last is None or self.last > model.num_timesteps:
            self.last = model.num_timesteps

    def resume(self, last: int | None) -> None:
        """Count from *last*, where a former process stopped."""
        self.last = last

    def due(self, model: BaseAlgorithm) -> bool:
        """Return whether a multiple of *every* has been reached since the last time."""
        return self.every > 0 and model.num_timesteps // self.every > (self.last or 0) // self.every

    def done(self, model: BaseAlgorithm) -> None:
        """Note that it has been done now."""
        self.last = model.num_timesteps


class WandbCallback(BaseCallback):
    """Send everything SB3 records to an `ExperimentLogger`, one row per step.

    A drop-in for ``wandb.integration.sb3.WandbCallback`` without TensorBoard: rollout, train and evaluation metrics
    share the x axis `global_step`, and the last ``train/*`` values, which SB3 itself never dumps, are logged too.

    :param verbose: as in SB3
    :param model_save_path: folder that also gets ``model.zip`` whenever the model is saved
    :param model_save_freq: environment steps between saved models; 0: only at the end, and only if
        `model_save_path` is given
    :param gradient_save_freq: training steps between histograms of gradients; 0: none
    :param log: what those histograms show: gradients, parameters, all
    :param logger: where rows go
    """

    def __init__(
        self,
        verbose: int = 0,
        model_save_path: str | None = None,
        model_save_freq: int = 0,
        gradient_save_freq: int = 0,
        log: Literal["gradients", "parameters", "all"] | None = "all",
        *,
        logger: ExperimentLogger,
    ):
        super().__init__(verbose)
        self.experiment = logger
        self.model_save_path = model_save_path
        self.model_save_freq = model_save_freq
        self.gradient_save_freq = gradient_save_freq
        self.log = log
        self.writer = RowWriter(self._send)
        self._clock = StepClock(model_save_freq)
        self._refused: set[str] = set()
        self._updates_seen = self._updates_logged = self._updates_shown = 0
        logger.before_finish(self._wind_up)  # SB3 announces no end of a training that fails

    def _on_training_start(self) -> None:
        self._clock.start(self.model)
        self.model.logger.output_formats.append(self.writer)
        self.experiment.log_config(self._describe_model())
        self._updates_logged = self._updates_shown = self._updates

    def _on_step(self) -> bool:
        self.experiment.reach(self.model.num_timesteps)
        if self._clock.due(self.model):
            self._clock.done(self.model)
            self._save_model()
        return True

    def _on_rollout_start(self) -> None:
        self._flush_train()
        self._show_tensors()

    def _on_training_end(self) -> None:
        if self._updates > self._updates_logged:
            self._log_train()
        self.writer.flush()
        self._show_tensors()
        self.model.logger.output_formats.remove(self.writer)
        if self.model_save_path is not None:
            self._save_model()

    def _wind_up(self) -> None:
        self._flush_train()
        self.writer.flush()

    @property
    def _updates(self) -> int:
        """Updates so far as SB3 has last recorded them; its next dump takes the number away."""
        recorded = self.model.logger.name_to_value.get("train/n_updates", self._updates_seen)
        self._updates_seen = int(recorded)
        return self._updates_seen

    def _show_tensors(self) -> None:
        """Log histograms of the update before; `Run.watch` needs the global run, which is not ours."""
        every, run = self.gradient_save_freq, self.experiment.run
        if every > 0 and run is not None and self._updates // every > self._updates_shown // every:
            self._updates_shown = self._updates
            if shown := _histograms(self.model.policy, self.log):
                run.log({**shown, STEP: self.model.num_timesteps})

    def _flush_train(self) -> None:
        """Log an update's ``train/*`` at the step of that update; SB3 dumps them a rollout later."""
        if self.writer.row and self.writer.step == self.model.num_timesteps:
            self._log_train()

    def _log_train(self) -> None:
        self._updates_logged = self._updates
        pending = self.model.logger.name_to_value
        train = {key: value for key, value in pending.items() if key.startswith("train/")}
        if train:
            self.writer.write(train, self.model.logger.name_to_excluded, self.model.num_timesteps)

    def _send(self, row: Row, step: int) -> None:
        scalars: Row = {}
        for name, value in row.items():
            if isinstance(value, Video | Image | Figure | HParam):
                with self._refusal_reported(name):
                    self._send_media(name, value, step)
            else:
                scalars[name] = value
        try:
            self.experiment.log_metrics(scalars, step)
        except LoggingError:  # one value is refused: the others are logged without it
            for name, value in scalars.items():
                with self._refusal_reported(name):
                    self.experiment.log_metrics({name: value}, step)

    def _send_media(self, name: str, value: Video | Image | Figure | HParam, step: int) -> None:
        match value:
            case Video():
                self.experiment.log_video(name, np.asarray(value.frames), fps=int(value.fps), step=step)
            case Image():
                self.experiment.log_image(name, value.image, step=step)
            case Figure():
                self.experiment.log_image(name, value.figure, step=step)
            case HParam():
                self.experiment.log_config({"hparams": dict(value.hparam_dict)})

    @contextmanager
    def _refusal_reported(self, name: str) -> Iterator[None]:
        """Report once a value that cannot be logged in the block, which must not end a training run."""
        try:
            yield
        except LoggingError as error:
            if name not in self._refused:
                self._refused.add(name)
                _log.warning("not logged: %s", error)

    def _describe_model(self) -> dict[str, object]:
        plain = {
            key: value
            for key, value in vars(self.model).items()
            if isinstance(value, bool | int | float | str) and not key.startswith("_") and key not in _CLOCKS
        }
        return {"model": {"class": type(self.model).__name__, **plain}}

    def _save_model(self) -> None:
        saved = self.experiment.save_model(self.model)
        if self.model_save_path is not None:
            write_atomically(Path(self.model_save_path) / MODEL, saved)


def _histograms(policy: nn.Module, log: str | None) -> dict[str, Histogram]:
    """Return histograms of the policy's gradients, its parameters or both."""
    from wandb import Histogram

    shown: dict[str, Histogram] = {}
    for name, parameter in policy.named_parameters():
        tensors = {"gradients": parameter.grad, "parameters": parameter}
        for kind, tensor in tensors.items():
            if tensor is not None and log in (kind, "all"):
                values = tensor.detach().cpu().float().numpy()
                if (finite := values[np.isfinite(values)]).size:
                    shown[f"{kind}/{name}"] = Histogram(np_histogram=np.histogram(finite, bins=64))
    return shown
