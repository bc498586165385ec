"""The W&B run of a logger: opened online if that is possible in time, else offline; closed in time, too."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.errors import ConfigError, LoggingError
from rl_research.system import Attempt, countdown
from rl_research.tracking import provenance, wandb_private
from rl_research.tracking.metric_names import GLOBAL_STEP
from rl_research.tracking.settings import RunSettings
from rl_research.tracking.wandb_api import NoAnswer, WandbApi
from rl_research.tracking.wandb_log import Logged, has_exited

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

_ASKING, _OFFLINE = 0.25, 0.2  # of `wandb.init_timeout`: to ask first, and to start offline instead
_GRACE = 2.0  # seconds over `wandb.finish_timeout` before W&B's service is ended
_ON_DISK = 2.0  # seconds that the end of the log may take to reach the disk; it is flushed every second


class WandbRun:
    """A W&B run, as `run`; None where W&B is disabled, and then nothing is logged.

    Within ``wandb.init_timeout`` it is decided whether an online run goes on offline. If it would have to,
    raises `ConfigError` where ``wandb.fallback`` is false, `ConnectionError` where an ended run is reopened.
    """

    def __init__(self, settings: RunSettings, config: dict[str, Any]):
        self.run: Run | None = None
        self.reason: str | None = None  # why it is offline although it was meant to be online
        self._settings = settings
        if settings.wandb.mode != "disabled":
            _make_folder(settings)
            wandb_private.stage_below(str(settings.root / "wandb"))
            wandb_private.leave_inherited_service()
            self.run, self.reason = _open_in_time(settings, config)

    @property
    def mode(self) -> str:
        """Online, offline or disabled: what it turned out to be."""
        return "disabled" if self.run is None else "offline" if self.run.offline else "online"

    @property
    def path(self) -> str | None:
        """``entity/project/run_id`` (without an entity where none is known); None if disabled."""
        if self.run is None:
            return None
        entity = self._settings.wandb.entity or self.run.entity
        return "/".join(p for p in (entity, self._settings.wandb.project, self._settings.run_id) if p)

    @property
    def folder(self) -> Path | None:
        """Folder that ``wandb sync`` and ``wandb leet run`` take; None if disabled."""
        return None if self.run is None else Path(self.run.settings.sync_dir)

    @property
    def url(self) -> str | None:
        """Page of the run, now or once it is synced; offline it is known with an entity only."""
        return None if self.run is None else (self.run.settings.run_url or None)

    def logged_on_server(self) -> Logged | None:
        """Return what the server has of this run; None if it is offline or the server does not say."""
        if self.run is None or self.run.offline:
            return None
        if not self.run.resumed:
            return Logged()
        try:
            return WandbApi(str(self.run.settings.base_url)).logged(self.run.path)
        except NoAnswer as no:
            log.warning("which rows W&B has is not known (%s): those of the local logs count", no)
            return None

    def log_files(self, name: str, files: Sequence[Path], metadata: Mapping[str, Any], aliases: Sequence[str]) -> None:
        """Log *files*, which stay where they are until they are uploaded, as artifact *name*."""
        if self.run is not None:
            from wandb import Artifact

            artifact = Artifact(name, type="model", metadata=provenance.public(metadata))
            for file in files:
                artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
            wandb_private.publish_artifact(self.run, artifact, _aliases(aliases))

    def log_references(
        self,
        name: str,
        uri: str,
        files: Mapping[str, tuple[int, str]],
        metadata: Mapping[str, Any],
        aliases: Sequence[str],
        wait: float,
    ) -> None:
        """Log where *files*, names below *uri* with size and SHA-256, lie, as artifact *name*.

        It is written to the log on disk, from where W&B uploads it online when it can. Only if the run is
        online and *wait* is given, the server itself has to have it within so many seconds: `ConnectionError`
        if it has not and may later, `LoggingError` if it refuses. Then the log on disk does not have it:
        call again, with or without *wait*. The same content is stored once.
        """
        if self.run is None:
            return
        from wandb import Artifact

        artifact = Artifact(name, type="model", metadata=provenance.public(metadata))
        base = uri.rstrip("/") if "://" in uri else Path(uri).absolute().as_uri()
        for file, (size, sha256) in files.items():
            wandb_private.add_reference(artifact, file, f"{base}/{file}", size, sha256)
        if not wait or self.run.offline:
            wandb_private.publish_artifact(self.run, artifact, _aliases(aliases))
        elif problem := wandb_private.deliver_artifact(self.run, artifact, _aliases(aliases), wait):
            kind = LoggingError if wandb_private.is_refusal(problem) else ConnectionError
            raise kind(f"W&B has not taken the artifact {name}: {problem}")

    def finish(self, exit_code: int, seconds_left: Callable[[], float] | None = None) -> bool | None:
        """Finish within ``wandb.finish_timeout``, and while *seconds_left* returns more than 0.

        Return, online, whether the server has every row, and offline, whether the disk has; None if disabled.
        What is not uploaded by then is on disk, and said; W&B's service is ended, so that nothing of this run
        arrives later while another segment goes on with it.
        """
        if (run := self.run) is None:
            return None
        file, last_step = Path(run.settings.sync_file), run.step - 1
        limit = countdown(run.settings.finish_timeout + _GRACE)
        finishing = Attempt(lambda: run.finish(exit_code=exit_code))
        try:
            ended = finishing.ended_within(lambda: min(limit(), seconds_left() if seconds_left else limit()))
        except BaseException:  # a second signal: leave at once, the log first
            _end_service(file)
            raise
        problem = _why_not_delivered(run, finishing, last_step) if ended else "W&B took too long"
        if problem is None:
            return _is_on_disk(file, _ON_DISK / 2)
        _end_service(file)
        log.warning("W&B run %s is not wholly delivered (%s): the next `rl-research sync` does it", run.id, problem)
        return False


def _aliases(aliases: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(["latest", *aliases]))


def _make_folder(settings: RunSettings) -> None:
    """Make the folder that W&B, left alone, would silently move to the system's temporary one."""
    folder = settings.root / "wandb"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"wandb.dir={settings.root}: cannot write there: {reason}. "
            "Set wandb.dir (or WANDB_DIR) to a folder of yours."
        ) from None


def _open_in_time(settings: RunSettings, config: dict[str, Any]) -> tuple[Run, str | None]:
    """Return the run, and why it is offline if it should not be."""
    if settings.wandb.mode != "online":
        return _init(settings, config, "offline"), None
    run, reason = _open_online(settings, config)
    if run is not None:
        return run, None
    if settings.reopens:
        raise ConnectionError(f"W&B is not available ({reason})")
    if not settings.wandb.fallback:
        raise ConfigError(
            f"wandb.mode=online: W&B is not available ({reason}) and wandb.fallback=false. "
            "Mend that, or go on offline with wandb.fallback=true or wandb.mode=offline."
        )
    log.warning(
        "W&B is not available (%s): this run goes on offline, and the next `rl-research sync` delivers it", reason
    )
    return _init(settings, config, "offline"), reason


def _open_online(settings: RunSettings, config: dict[str, Any]) -> tuple[Run | None, str]:
    """Return the run, or why there is none."""
    begun, seconds = time.monotonic(), settings.wandb.init_timeout
    base_url = wandb_private.base_url()
    try:
        WandbApi(base_url, min(4.0, seconds * _ASKING)).viewer()
    except NoAnswer as no:
        return None, str(no)
    left = seconds * (1 - _OFFLINE) - (time.monotonic() - begun)
    try:
        return _init(settings, config, "online", max(1.0, left)), ""
    except Exception as error:  # noqa: BLE001  # wandb raises private classes, too
        _free_run_id(settings.run_id)
        return None, f"{base_url}: {(str(error).splitlines() or [type(error).__name__])[0]}"


def _free_run_id(run_id: str) -> None:
    """Free the id that W&B's service keeps for a failed init, by ending the service.

    Raises `ConfigError` where another run of this process needs it.
    """
    import wandb

    if wandb_private.has_active_run():
        raise ConfigError(
            f"run_id={run_id}: W&B failed to start it, and cannot start it offline while another "
            "W&B run of this process is open. Finish that one first, or choose wandb.mode=offline."
        )
    wandb.teardown()


def _init(settings: RunSettings, config: dict[str, Any], mode: str, seconds: float = 60.0) -> Run:
    import wandb

    section = settings.wandb
    earlier = len(list((settings.root / "wandb").glob(f"*run-*-{settings.run_id}*")))
    bounds = {"init_timeout": seconds, "finish_timeout": section.finish_timeout}
    with wandb_private.settings_of_beginnings_ignored() if settings.reopens else nullcontext():
        run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            id=settings.run_id,
            project=section.project,
            entity=section.entity,
            group=section.group,
            name=section.name,
            notes=section.notes,
            job_type=section.job_type,
            tags=[*section.tags, *(["prefect"] if "prefect" in config else [])],
            dir=str(settings.root),
            config=config,
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**wandb_private.quiet_settings(earlier + 1), **bounds),
        )
    run.define_metric(GLOBAL_STEP, hidden=True)
    run.define_metric("*", step_metric=GLOBAL_STEP)
    return run


def _why_not_delivered(run: Run, finishing: Attempt[None], last_step: int) -> str | None:
    """Return why the run that has been finished is not to be trusted; None if it is."""
    import wandb

    try:
        finishing.result()
    except (TimeoutError, OSError, wandb.Error) as error:
        return (str(error) or type(error).__name__).rstrip(".")
    if run.offline:
        return None
    try:
        found = WandbApi(str(run.settings.base_url)).last_step(run.path)
    except NoAnswer as no:
        return str(no)
    return None if found >= last_step else f"rows up to {found} of {last_step} have arrived"


def _end_service(file: Path) -> None:
    """End W&B's service once the log on disk is whole, unless another run of this process needs it."""
    import wandb

    _is_on_disk(file, _ON_DISK)
    if not wandb_private.has_active_run() and wandb_private.kill_service():
        with suppress(OSError, SystemExit):  # it says that the service is gone
            wandb.teardown()


def _is_on_disk(file: Path, seconds: float) -> bool:
    """Wait until the log on disk is complete: `Run.finish` returns some milliseconds earlier."""
    left = countdown(seconds)
    while not (done := has_exited(file)) and left() > 0:
        time.sleep(0.005)
    return done
