"""What SB3 records, on its way to the run's logger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from stable_baselines3.common.logger import Figure, HParam, Image, Video

from rl_research.errors import LoggingError
from rl_research.system import write_atomically
from rl_research.tracking import policy_zip
from rl_research.tracking.callback import BaseCallback, StepClock
from rl_research.tracking.rows import STEP, Row, RowWriter

if TYPE_CHECKING:
    from torch import nn

    from rl_research.tracking.logger import ExperimentLogger

_log = logging.getLogger(__name__)


class WandbCallback(BaseCallback):
    """Send everything SB3 records to an `ExperimentLogger`, one row per step.

    A drop-in for ``wandb.integration.sb3.WandbCallback`` without TensorBoard: rollout, train and
    evaluation metrics share the x axis `global_step`, and the last ``train/*`` values, which SB3 itself
    never dumps, are logged too.

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
        media: Row = {}
        for name, value in row.items():
            (media if isinstance(value, Video | Image | Figure | HParam) else scalars)[name] = value
        for name, value in media.items():
            self._guarded(name, partial(self._send_media, name, value, step))
        try:
            self.experiment.log_metrics(scalars, step)
        except LoggingError:  # one value is refused: the others are logged without it
            for name, value in scalars.items():
                self._guarded(name, partial(self.experiment.log_metrics, {name: value}, step))

    def _send_media(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, Video):
            frames = np.asarray(value.frames)
            self.experiment.log_video(name, frames, fps=int(value.fps), step=step)
        elif isinstance(value, HParam):
            self.experiment.log_config({"hparams": dict(value.hparam_dict)})
        else:
            picture = value.figure if isinstance(value, Figure) else value.image
            self.experiment.log_image(name, picture, step=step)

    def _guarded(self, name: str, send: Callable[[], None]) -> None:
        """A value that cannot be logged is reported once; it does not end a training run."""
        try:
            send()
        except LoggingError as error:
            if name not in self._refused:
                self._refused.add(name)
                _log.warning("not logged: %s", error)

    def _describe_model(self) -> dict[str, Any]:
        plain = {
            key: value
            for key, value in vars(self.model).items()
            if isinstance(value, bool | int | float | str) and not key.startswith("_")
        }
        for clock in ("start_time", "num_timesteps"):
            plain.pop(clock, None)
        return {"model": {"class": type(self.model).__name__, **plain}}

    def _save_model(self) -> None:
        self.experiment.save_model(self.model)
        if self.model_save_path is not None:
            data = policy_zip.policy_files(self.model)[policy_zip.MODEL]
            write_atomically(Path(self.model_save_path) / policy_zip.MODEL, data)


def _histograms(policy: nn.Module, log: str | None) -> dict[str, Any]:
    """Histograms in the form that W&B gives its own."""
    shown: dict[str, Any] = {}
    for name, parameter in policy.named_parameters():
        tensors = {"gradients": parameter.grad, "parameters": parameter}
        for kind, tensor in tensors.items():
            if tensor is None or log not in (kind, "all"):
                continue
            values = tensor.detach().cpu().float().numpy()
            finite = values[np.isfinite(values)]
            if finite.size:
                counts, edges = np.histogram(finite, bins=64)
                shown[f"{kind}/{name}"] = {
                    "_type": "histogram", "values": counts.tolist(), "bins": edges.tolist(),
                }  # fmt: skip
    return shown
