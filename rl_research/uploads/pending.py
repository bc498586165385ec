"""Checkpoints that a run has left behind in its folder, and how they reach its storage afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint
from rl_research.config import Config, validated
from rl_research.errors import ConfigError
from rl_research.runs import DELIVERY, DESCRIPTION, leased_folder, read_record
from rl_research.storage import StoreLease
from rl_research.system import MASK
from rl_research.uploads.run_storage import Home

_log = logging.getLogger(__name__)


def homes(runs_dir: Path) -> Iterator[Home]:
    """Every run below *runs_dir* whose own ``config.yaml`` names a ``storage.url``.

    What that file has masked is left out, so credentials come from where the store's client finds them.
    A run that was set aside (``resume=never``) is not looked at, nor one whose description cannot be read.
    """
    for description in sorted(runs_dir.expanduser().glob(f"*/{DESCRIPTION}")):
        folder = description.parent
        try:
            config = _configuration(description)
        except (ConfigError, OSError, ValueError, yaml.YAMLError) as error:
            _log.warning("%s is left out: %s", folder, str(error).splitlines()[0])
            continue
        if config.run_id == folder.name and config.storage.url is not None:
            yield Home(folder, config)


def missing(home: Home) -> list[Checkpoint]:
    """The checkpoints of the run folder that its store lacks and would keep; oldest first.

    And those of which the run folder has no note that they have arrived.
    """
    local = checkpoints.local_checkpoints(home.folder)
    store = home.store()
    everywhere = {c.name: c for c in [*checkpoints.list_checkpoints(store), *local]}
    by_step = sorted(everywhere.values(), key=lambda checkpoint: checkpoint.global_step)
    keep = checkpoints.kept(by_step, **checkpoints.retention_of(home.config))
    left = {checkpoint.name for checkpoint in home.left()}
    wanted = [checkpoint for checkpoint in local if checkpoint.name in keep]
    return [c for c in wanted if c.name in left or not checkpoints.is_in(c, store)]


@contextmanager
def held(home: Home) -> Iterator[Callable[[], None]]:
    """Hold the run while its checkpoints are delivered; what confirms that the store is still ours.

    Raises `ConfigError` if somebody has the run open, who will deliver them himself. A run that is
    started meanwhile waits.
    """
    with leased_folder(home.folder, DELIVERY):
        lease = StoreLease(home.store, str(home.config.run_id), home.config.storage.lease)
        lease.acquire()
        try:
            yield lease.confirm
        finally:
            lease.release()


def settle(home: Home) -> None:
    """Write into the run's record which steps are left, and where its newest checkpoint is."""
    if (record := read_record(home.folder)) is not None:
        for name, value in home.outcome().items():
            setattr(record, name, value)
        record.write(home.folder)


def _configuration(description: Path) -> Config:
    found = yaml.safe_load(description.read_text())
    if not isinstance(found, dict):
        raise ConfigError(f"{description}: no configuration")
    storage = dict(found.get("storage") or {})
    if MASK in str(storage.get("url")):
        raise ConfigError(
            f"storage.url={storage['url']}: its secret is not kept in {description}. "
            "Start the run again with it, or give the secret by the environment."
        )
    storage["options"] = _unmasked(storage.get("options") or {})
    return validated(Config, {**found, "storage": storage})


def _unmasked(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: _unmasked(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {key: value for key, value in plain.items() if value != MASK}
