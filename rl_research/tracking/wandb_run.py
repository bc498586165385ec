"""Opening a W&B run: online if that is asked for and possible in time, else offline.

The functions take the ``wandb`` module from the logger, which alone imports it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_research.errors import ConfigError
from rl_research.tracking.logged_rows import Logged
from rl_research.tracking.metrics import GLOBAL_STEP
from rl_research.tracking.settings import RunSettings
from rl_research.tracking.wandb_api import NoAnswer, WandbApi

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0  # what a killed process may lose
_STAGING = "WANDB_DATA_DIR"
_chosen_here: set[str] = set()  # what this module has set it to
_OF_BEGINNINGS = ("run_name", "run_notes", "run_group", "run_job_type", "run_tags")
_ASKING, _OFFLINE = 0.25, 0.2  # of `wandb.init_timeout`: to ask first, and to start offline instead


@dataclass(frozen=True)
class Opened:
    """A W&B run, and why it is offline although it was meant to be online."""

    run: Run
    reason: str | None = None


def open_run(wandb: Any, settings: RunSettings, config: dict[str, Any]) -> Opened:
    """The run; within ``wandb.init_timeout`` it is decided whether it goes on offline.

    Raises `ConfigError` if it would have to and ``wandb.fallback`` is false, `ConnectionError` if that
    is for an afterword.
    """
    _make_folder(settings)
    _stage_below(settings.root / "wandb")
    _leave_parents_service()
    if settings.wandb.mode != "online":
        return Opened(_init(wandb, settings, config, "offline"))
    run, reason = _online(wandb, settings, config)
    if run is not None:
        return Opened(run)
    if settings.is_afterword:
        raise ConnectionError(f"W&B is not available ({reason})")
    if not settings.wandb.fallback:
        raise ConfigError(
            f"wandb.mode=online: W&B is not available ({reason}) and wandb.fallback=false. "
            "Mend that, or go on offline with wandb.fallback=true or wandb.mode=offline."
        )
    log.warning(
        "W&B is not available (%s): this run goes on offline, and the next `rl-research sync` delivers it",
        reason,
    )  # fmt: skip
    return Opened(_init(wandb, settings, config, "offline"), reason)


def served(run: Run) -> Logged | None:
    """What the server has of the online *run*; None if it does not say."""
    if not run.resumed:
        return Logged()
    try:
        return WandbApi(str(run.settings.base_url)).logged(run.path)
    except NoAnswer as no:
        log.warning("which rows W&B has is not known (%s): those of the local logs count", no)
        return None


def _online(wandb: Any, settings: RunSettings, config: dict[str, Any]) -> tuple[Run | None, str]:
    """The run, or why there is none."""
    begun, seconds = time.monotonic(), settings.wandb.init_timeout
    base_url = str(wandb.setup().settings.base_url)
    try:
        WandbApi(base_url, min(4.0, seconds * _ASKING)).viewer()
    except NoAnswer as no:
        return None, str(no)
    left = seconds * (1 - _OFFLINE) - (time.monotonic() - begun)
    try:
        return _init(wandb, settings, config, "online", max(1.0, left)), ""
    except Exception as error:  # noqa: BLE001  # wandb raises private classes, too
        _forget_failed_init(wandb, settings.run_id)
        return None, f"{base_url}: {(str(error).splitlines() or [type(error).__name__])[0]}"


def _forget_failed_init(wandb: Any, run_id: str) -> None:
    """Give the id free, which W&B's service keeps for a failed init; that ends the service.

    `ConfigError` where another run of this process needs it.
    """
    if wandb.setup().most_recent_active_run is not None:
        raise ConfigError(
            f"run_id={run_id}: W&B failed to start it, and cannot start it offline while another "
            "W&B run of this process is open. Finish that one first, or choose wandb.mode=offline."
        )
    wandb.teardown()


def _stage_below(folder: Path) -> None:
    """Have the files of artifacts wait in the run's *folder*, so that they go where the run goes.

    W&B keeps them in the user's home, and reads the variable whenever it copies one. Where several
    runs are open in a process, the last one's folder is taken; a WANDB_DATA_DIR of the user's stays.
    """
    if os.environ.get(_STAGING) in (None, *_chosen_here):
        _chosen_here.add(str(folder))
        os.environ[_STAGING] = str(folder)


def _leave_parents_service() -> None:
    """Have a service of our own: one inherited from a parent process knows our run id as its own."""
    token = os.environ.get("WANDB_SERVICE", "")
    if token and token.split("-")[1:2] != [str(os.getpid())]:
        del os.environ["WANDB_SERVICE"]


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


def _init(wandb: Any, settings: RunSettings, config: dict[str, Any], mode: str, seconds: float = 60.0) -> Run:
    if not settings.is_afterword:
        return _begun(wandb, settings, config, mode, seconds)
    with _without_the_environments_say(wandb):
        return _begun(wandb, settings, config, mode, seconds)


@contextmanager
def _without_the_environments_say(wandb: Any) -> Iterator[None]:
    """Keep WANDB_NAME, WANDB_TAGS, … out of a run that has ended: they are meant for those that begin."""
    read = wandb.setup().settings
    kept = {name: getattr(read, name) for name in _OF_BEGINNINGS}
    try:
        for name in kept:
            setattr(read, name, None)
        yield
    finally:
        for name, value in kept.items():
            setattr(read, name, value)


def _begun(wandb: Any, settings: RunSettings, config: dict[str, Any], mode: str, seconds: float) -> Run:
    section = settings.wandb
    run: Run = wandb.init(
        mode=mode,
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
        settings=wandb.Settings(**_quiet(settings), init_timeout=seconds),
    )
    run.define_metric(GLOBAL_STEP, hidden=True)
    run.define_metric("*", step_metric=GLOBAL_STEP)
    return run


def _quiet(settings: RunSettings) -> dict[str, Any]:
    """Nothing on the console, nothing collected that nobody asked for, and everything bounded."""
    earlier = len(list((settings.root / "wandb").glob(f"*run-*-{settings.run_id}*")))
    return {
        "silent": True,
        "console": "off",
        "use_dot_wandb": False,
        "save_code": False,
        "disable_git": True,
        "disable_job_creation": True,
        "x_disable_stats": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "finish_timeout": settings.wandb.finish_timeout,
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": _FLUSH_SECONDS,
        # wandb names folders by the second: two segments of a run could share one.
        "x_sync_dir_suffix": f"{earlier + 1}" if earlier else "",
    }
