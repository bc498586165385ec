"""What can be found wrong with an experiment before anything is written or trained."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from rl_research.config import Config
from rl_research.errors import ConfigError, StorageError
from rl_research.runs import make_folder
from rl_research.storage import Store, is_transient
from rl_research.tracking import settings
from rl_research.training import envs, models

_log = logging.getLogger(__name__)


def preflight(config: Config) -> None:
    """Find what is wrong with *config* before anything is written or trained; `ConfigError`."""
    envs.check_env(config).close()
    if config.storage.url is not None:
        _probe(Store(config.storage.url, config.storage.options, config.storage.timeout))
    settings.resolve(config, config.run_id or "preflight", None)
    small = config.model_copy(update={"env": config.env.model_copy(update={"vec_env": "dummy"})})
    env = envs.training_env(small)
    try:
        models.build(small, env)
    finally:
        env.close()
    make_folder(Path(config.runs_dir).expanduser())


def _probe(store: Store) -> None:
    """Write and remove a small object; what waiting may mend is left to the upload's retries."""
    name = f".probe-{secrets.token_hex(6)}"
    try:
        store.write(name, b"probe")
        store.remove(name)
    except Exception as error:
        if is_transient(error):
            _log.warning("storage.url=%s does not answer yet: %s", store.url, error)
        elif isinstance(error, StorageError):
            text = str(error)
            named = text if "storage.url" in text else f"storage.url={store.url}: {text}"
            raise ConfigError(named) from None
        else:
            raise
