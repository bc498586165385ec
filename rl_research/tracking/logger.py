"""The logger of a run: metrics, configuration, media and models, for Weights & Biases and the run folder."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.config import Config
from rl_research.errors import ConfigError, LoggingError, shown
from rl_research.system import unused
from rl_research.tracking import media, provenance, saved_policy, wandb_private, wandb_run
from rl_research.tracking.metric_names import GLOBAL_STEP, Names, check_name
from rl_research.tracking.metrics import Row, Steps, Thinner, scalars
from rl_research.tracking.settings import RunSettings, plain_config, resolve_settings
from rl_research.tracking.wandb_api import NoAnswer, WandbApi
from rl_research.tracking.wandb_log import Logged

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

log = logging.getLogger(__name__)

_open: list[ExperimentLogger] = []  # those of this process, and of the one it was forked from
_open_lock = threading.Lock()


class ExperimentLogger:
    """One run's metrics, configuration, media and models.

    *config* is a `Config` or any mapping, a ``DictConfig`` too, with a ``wandb`` section (project, group, tags, mode,
    dir, entity, …), or settings that are resolved already; *env* an environment whose id and spaces are recorded.
    ``WANDB_MODE``, ``WANDB_DIR``, ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_RUN_GROUP``, ``WANDB_TAGS``,
    ``WANDB_NAME``, ``WANDB_NOTES`` and ``WANDB_JOB_TYPE`` win over the section: who launches a program decides.
    (`wandb.init` has it the other way round.)

    The run's id is *run_id*, else ``config.run_id``, else ``WANDB_RUN_ID``, else the end of the
    current Prefect flow run's id, else new. Files go to *run_dir*, else to a folder named after the
    run: below ``runs_dir``, below an explicit ``wandb.dir``, or below ``runs``.

    >>> with ExperimentLogger({"wandb": {"project": "my_project"}}) as logger:
    ...     logger.log_metrics({"eval/mean_reward": 150.0}, step=1000)
    """

    def __init__(
        self,
        config: Config | Mapping[Any, Any] | RunSettings,
        env: object = None,
        *,
        run_id: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(config, RunSettings):
            config = resolve_settings(config, run_id, run_dir)
        self._settings, self.run_id, self.dir, section = config, config.run_id, config.dir, config.wandb
        self._lock = threading.RLock()
        self._names, self._steps = Names(), Steps()
        self._thinner = Thinner(section.max_rows)
        self._left_out = Logged()
        self._filmed: set[Path] = set()
        self._last_actions: list[Callable[[], None]] = []
        self._pid, self._finished = os.getpid(), False
        self._register()
        try:
            run, self.reason = wandb_run.open_run(config, config.facts(env))
        except BaseException:
            self._unregister()
            raise
        self.run, self.mode = run, "disabled"
        self.path: str | None = None
        self.url: str | None = None  # offline it is known with an entity only
        self.wandb_dir: Path | None = None
        if run is not None:
            self.mode = "offline" if run.offline else "online"
            self.path = "/".join(filter(None, (section.entity or run.entity, section.project, self.run_id)))
            self.url, self.wandb_dir = run.settings.run_url or None, Path(run.settings.sync_dir)
        self.finished: bool | None = None
        atexit.register(self._finish_at_exit)

    @classmethod
    def current(cls) -> ExperimentLogger | None:
        """Return the logger this process opened last and has not finished."""
        with _open_lock:
            return next((logger for logger in reversed(_open) if logger._pid == os.getpid()), None)

    @property
    def record(self) -> dict[str, Any]:
        """W&B run as ``run.json`` records it; `finished` is None while it is open.

        Then it says whether all rows have arrived (online) or are on disk (offline).
        """
        return {
            "id": self.run_id,
            "mode": self.mode,
            "wanted": self._settings.wandb.mode,
            "reason": self.reason,
            "path": self.path,
            "dir": None if self.wandb_dir is None else str(self.wandb_dir),
            "url": self.url,
            "finished": self.finished,
        }

    def served(self) -> Logged | None:
        """Return what the server has of this run; None if the run is offline or the server does not say."""
        if self.run is None or self.run.offline:
            return None
        if not self.run.resumed:
            return Logged()
        try:
            return WandbApi(str(self.run.settings.base_url)).logged(self.run.path)
        except NoAnswer as no:
            log.warning("which rows W&B has is not known (%s): those of the local logs count", no)
            return None

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Log one row of numbers at *step*, the number of environment steps so far.

        Nested mappings are spelt with slashes. A row without *step* belongs to the last step given;
        before any is given, rows are numbered 0, 1, 2, …. A metric's steps cannot go backwards.
        """
        self._check_open()
        if not (row := scalars(metrics)):
            return
        with self._lock:
            at = self._steps.of_row(step)
            self._names.claim(row, "metric", at, step is not None)
            self._names.warn_if_not_finite(row)
            self._emit(self._thinner.add(at, row))

    def leave_out(self, logged: Logged) -> None:
        """Log nothing of *logged* again: earlier segments did. It counts where rows are averaged."""
        self._left_out = logged

    def reach(self, step: int) -> None:
        """Let what is logged without a step belong to *step*, if it is later than those before."""
        with self._lock:
            self._steps.reach(step)

    def describe_metrics(self, descriptions: Mapping[str, str]) -> None:
        """Describe metrics in ``run.config["metrics"]`` and the run folder's metrics.md."""
        self._check_open()
        _check_mapping(descriptions, "describe_metrics")
        texts = {
            check_name(name): provenance.text(description) for name, description in plain_config(descriptions).items()
        }
        with self._lock:
            self._names.descriptions.update(texts)
            self._update_config({"metrics": dict(self._names.descriptions)})

    def log_config(self, config: Mapping[str, object]) -> None:
        """Merge *config* into the run's configuration; what looks like a secret becomes ``***``."""
        self._check_open()
        _check_mapping(config, "log_config")
        self._update_config(provenance.public(plain_config(config)))

    def log_summary(self, values: Mapping[str, object]) -> None:
        """Set final values of the run, such as its score, beside the last value of each metric."""
        self._check_open()
        row = scalars(values)
        with self._lock:
            if self.run is not None:
                self.run.summary.update(row)

    def log_image(self, name: str, image: object, step: int | None = None, caption: str | None = None) -> None:
        """Log an array, tensor, PIL image, matplotlib figure or picture file; see `media`."""
        self._check_open()
        pixels = media.image_pixels(image, check_name(name))
        with self._lock:
            if self._is_new(name, at := self._claim(name, "image", step)):
                from wandb import Image

                self._log(at, {name: Image(pixels, caption=None if caption is None else provenance.text(caption))})

    def log_video(self, name: str, video: object, fps: float = 30, step: int | None = None) -> None:
        """Log frames, which become ``videos/{name}-{step}.mp4`` in the run folder, or a file."""
        self._check_open()
        check_name(name)
        film = media.video_path(video, name) if isinstance(video, (str, os.PathLike)) else None
        frames = None if film else media.video_frames(video, name)
        with self._lock:
            at = self._claim(name, "video", step)
            if frames is not None:
                target = self.dir / "videos" / f"{name}-{at}.mp4"  # a killed segment's is the same film, and replaced
                film = media.write_video(frames, unused(target) if target in self._filmed else target, fps)
                self._filmed.add(film)
            if self._is_new(name, at):
                from wandb import Video

                self._log(at, {name: Video(str(film))})

    def save_model(
        self,
        model: object,
        name: str = "model",
        metadata: Mapping[str, object] | None = None,
        aliases: Sequence[str] = (),
    ) -> Path:
        """Save *model*, with its VecNormalize statistics, and log it as artifact *name*.

        Returns the path of ``models/{name}-{step}/model.zip`` in the run folder, written in every
        mode; it must stay there until the run is synced. Step, SHA-256, versions and ids are added
        to *metadata*, ``latest`` and ``step-N`` to *aliases*.
        """
        self._check_open()
        given = saved_policy.check_artifact(name, metadata, aliases)
        path, facts = saved_policy.save_policy(model, self.dir / "models", name)
        facts = {**given, **facts, "run_id": self.run_id}
        if self.run is not None:
            artifact = wandb_run.new_artifact(name, facts)
            for file in sorted(path.parent.iterdir()):
                artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
            wandb_run.log_artifact(self.run, artifact, [f"step-{facts['global_step']}", *aliases])
        return path

    def log_checkpoint(
        self,
        name: str,
        uri: str,
        files: Mapping[str, tuple[int, str]],
        metadata: Mapping[str, object],
        aliases: Sequence[str] = (),
        wait: float = 0.0,
    ) -> None:
        """Log where a checkpoint is: *files* maps names below *uri* to size and SHA-256.

        W&B uploads that when it can, unless the run is online and *wait* gives it so many seconds: then
        `ConnectionError` says that the server has not taken it, and nothing has been logged.
        """
        self._check_open()
        facts = {**saved_policy.check_artifact(name, metadata, aliases), "uri": uri}
        _check_mapping(files, "log_checkpoint")
        if not isinstance(uri, str):
            raise LoggingError(f"uri={shown(uri)} must be a URL or a path, as text.")
        if self.run is not None:
            artifact = wandb_run.new_artifact(name, facts)
            base = uri.rstrip("/") if "://" in uri else Path(uri).absolute().as_uri()
            for file, (size, sha256) in files.items():
                wandb_private.add_reference(artifact, file, f"{base}/{file}", size, sha256)
            wandb_run.log_artifact(self.run, artifact, aliases, wait)

    def get_callbacks(self) -> list[BaseCallback]:
        """Return what ``model.learn(callback=…)`` needs so that its metrics arrive here."""
        from rl_research.tracking.sb3_callbacks import WandbCallback

        return [WandbCallback(logger=self)]

    def before_finish(self, action: Callable[[], None]) -> None:
        """Run *action*, which may still log, when `finish` is called."""
        self._last_actions.append(action)

    def finish(self, exit_code: int = 0, seconds_left: Callable[[], float] | None = None) -> None:
        """Log what is pending and finish the run, in ``wandb.finish_timeout`` seconds at most.

        Earlier where *seconds_left*, called again and again, returns 0 or less.
        """
        with self._lock:
            if self._finished:
                return
            try:
                for action in self._last_actions:
                    action()
                self._emit(self._thinner.flush())
                self._names.write_table(self.dir / "metrics.md")
            finally:
                self._finished = True
                atexit.unregister(self._finish_at_exit)
                self._unregister()
                if self.run is not None:
                    self.finished = wandb_run.finish_run(self.run, exit_code, seconds_left)

    def __enter__(self) -> ExperimentLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(exit_code=0 if kind is None else 1)

    def _register(self) -> None:
        """Note that this logger is open; raise `ConfigError` if its run is being logged already."""
        with _open_lock:
            if any(other.run_id == self.run_id and other._pid == self._pid for other in _open):
                raise ConfigError(
                    f"run_id={self.run_id} is being logged already: finish() that logger first, or give another run_id."
                )
            _open.append(self)

    def _unregister(self) -> None:
        with _open_lock:
            _open.remove(self)

    def _check_open(self) -> None:
        if self._finished:
            again = f"ExperimentLogger(…, run_id={self.run_id!r})"
            raise LoggingError(f"this run is finished: log before finish(), or open {again} again.")

    def _finish_at_exit(self) -> None:
        if self._pid == os.getpid():
            self.finish(exit_code=1 if getattr(sys, "last_value", None) else 0)

    def _claim(self, name: str, kind: str, step: int | None) -> int:
        at = self._steps.of_media(step)
        self._names.claim([name], kind, at, given=step is not None)
        return at

    def _is_new(self, name: str, step: int) -> bool:
        """Return whether a picture or film is to be logged: no segment before this one has."""
        return self.run is not None and (name, step) not in self._left_out.media

    def _log(self, step: int, row: Mapping[str, object]) -> None:
        self._check_open()
        if self.run is not None:
            self.run.log({**row, GLOBAL_STEP: step})

    def _emit(self, row: tuple[int, Row] | None) -> None:
        if row is not None and row[0] not in self._left_out.steps:
            self._log(*row)

    def _update_config(self, values: Mapping[str, object]) -> None:
        if self.run is not None:
            with self._lock:
                self.run.config.update(values, allow_val_change=True)  # type: ignore[no-untyped-call]


def _check_mapping(value: object, method: str) -> None:
    if not isinstance(value, Mapping):
        raise LoggingError(f"{method} takes a mapping, not {type(value).__name__}.")
