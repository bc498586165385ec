"""The W&B run of a logger: opened online if that is possible in time, else offline; closed in time, too."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rl_research.errors import ConfigError, in_a_line, shown
from rl_research.system import Attempt, countdown
from rl_research.tracking import provenance, wandb_private
from rl_research.tracking.metric_names import GLOBAL_STEP
from rl_research.tracking.settings import RunSettings
from rl_research.tracking.wandb_api import NoAnswer, WandbApi
from rl_research.tracking.wandb_log import has_exited

if TYPE_CHECKING:
    from wandb import Artifact, Run

log = logging.getLogger(__name__)

_ASKING, _OFFLINE = 0.25, 0.2  # of `wandb.init_timeout`: to ask first, and to start offline instead
_GRACE = 2.0  # seconds over `wandb.finish_timeout` before W&B's service is ended
_ON_DISK = 2.0  # seconds that the end of the log may take to reach the disk; it is flushed every second


def open_run(settings: RunSettings, config: Mapping[str, object]) -> tuple[Run | None, str | None]:
    """Return the W&B run, None where W&B is disabled, and why it is offline although it was meant to be online.

    Within ``wandb.init_timeout`` it is decided whether an online run goes on offline. If it would have to,
    raises `ConfigError` where ``wandb.fallback`` is false, `ConnectionError` where an ended run is reopened.
    """
    if settings.wandb.mode == "disabled":
        return None, None
    _make_folder(settings)
    wandb_private.stage_below(str(settings.root / "wandb"))
    wandb_private.keep_logs_below(str(settings.root / "wandb" / "cache"))
    wandb_private.leave_inherited_service()
    if settings.wandb.mode != "online":
        return _init(settings, config, "offline"), None
    try:
        return _open_online(settings, config), None
    except ConnectionError as error:
        reason = str(error)
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


def new_artifact(name: str, metadata: Mapping[str, object]) -> Artifact:
    """Return an artifact of type ``model`` without files."""
    from wandb import Artifact

    return Artifact(name, type="model", metadata=provenance.public(metadata))


def log_artifact(run: Run, artifact: Artifact, aliases: Sequence[str], wait: float = 0.0) -> None:
    """Log *artifact*, whose files stay where they are until they are uploaded. The same content is stored once.

    It is written to the log on disk, from where W&B uploads it online when it can. Only if the run is online and *wait*
    is given, the server itself has to have it within so many seconds: `ConnectionError` if it has not and may later,
    `LoggingError` if it refuses. Then the log on disk does not have it: call again, with or without *wait*.
    """
    names = list(dict.fromkeys(["latest", *aliases]))
    if not wait or run.offline:
        wandb_private.publish_artifact(run, artifact, names)
    else:
        wandb_private.deliver_artifact(run, artifact, names, wait)


def finish_run(run: Run, exit_code: int, seconds_left: Callable[[], float] | None = None) -> bool:
    """Finish within ``wandb.finish_timeout``, and while *seconds_left* returns more than 0.

    Return, online, whether the server has every row, and offline, whether the disk has. What is not uploaded
    by then is on disk, and said; W&B's service is ended, so that nothing of this run arrives later while
    another segment goes on with it.
    """
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


def _make_folder(settings: RunSettings) -> None:
    """Make the folder that W&B, left alone, would silently move to the system's temporary one."""
    folder = settings.root / "wandb"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")
        str(folder).encode()  # as W&B's service gets it
    except UnicodeEncodeError:
        raise ConfigError(
            f"wandb.dir={str(settings.root)!a}: W&B needs folders whose names are UTF-8. "
            "Set PYTHONUTF8=1 or LC_ALL=C.UTF-8 where they are, or wandb.dir (WANDB_DIR) to another folder."
        ) from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(
            f"wandb.dir={settings.root}: cannot write there: {reason}. "
            "Set wandb.dir (or WANDB_DIR) to a folder of yours."
        ) from None


def _open_online(settings: RunSettings, config: Mapping[str, object]) -> Run:
    """Return the run; raise `ConnectionError` with the reason if there is none in time.

    W&B's service keeps the id of a failed init, so it is ended then. Raises `ConfigError` where another run
    of this process needs the service.
    """
    import wandb

    begun, seconds = time.monotonic(), settings.wandb.init_timeout
    api = WandbApi(timeout=min(4.0, seconds * _ASKING))
    try:
        api.viewer()
    except NoAnswer as no:
        raise ConnectionError(str(no)) from None
    left = seconds * (1 - _OFFLINE) - (time.monotonic() - begun)
    try:
        return _init(settings, config, "online", max(1.0, left))
    except Exception as error:  # noqa: BLE001  # wandb raises private classes, too
        if wandb_private.has_active_run():
            raise ConfigError(
                f"run_id={settings.run_id}: W&B failed to start it, and cannot start it offline while another "
                "W&B run of this process is open. Finish that one first, or choose wandb.mode=offline."
            ) from None
        wandb.teardown()
        raise ConnectionError(f"{api.base_url}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None


def _init(settings: RunSettings, config: Mapping[str, object], mode: str, seconds: float = 60.0) -> Run:
    import wandb

    section = settings.wandb
    earlier = len(list((settings.root / "wandb").glob(f"*run-*-{settings.run_id}*")))
    bounds = {"init_timeout": seconds, "finish_timeout": section.finish_timeout}
    refusals = nullcontext() if mode == "online" else _refusals_in_a_line()  # which goes on offline
    with refusals, wandb_private.settings_of_beginnings_ignored() if settings.reopens else nullcontext():
        run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            id=settings.run_id,
            tags=[*section.tags, *(["prefect"] if "prefect" in config else [])],
            dir=str(settings.root),
            **section.model_dump(include={"project", "entity", "group", "name", "notes", "job_type"}),
            config=dict(config),
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**wandb_private.quiet_settings(earlier + 1), **bounds),
        )
    run.define_metric(GLOBAL_STEP, hidden=True)
    run.define_metric("*", step_metric=GLOBAL_STEP)
    return run


@contextmanager
def _refusals_in_a_line() -> Iterator[None]:
    """Raise `ConfigError` for a variable, or a line of a file, that W&B refuses in its own words."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, ValueError) or type(error).__module__.startswith("wandb.")):
            raise
        said = in_a_line(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc']))}={shown(first['input'])}: {in_a_line(first['msg'])}"
        raise ConfigError(
            f"W&B's settings cannot be used: {said}. Look at the variables WANDB_… and at wandb/settings."
        ) from None


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
