"""An experiment's environment and algorithm, built before anything is written or trained."""

from __future__ import annotations

import logging
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rl_research.config import Config
from rl_research.errors import ConfigError, StorageError
from rl_research.runs import make_folder
from rl_research.storage import Store, is_transient
from rl_research.system import expanded
from rl_research.tracking import resolve_settings
from rl_research.training import envs, models
from rl_research.training.env_check import check_api
from rl_research.training.env_wrappers import close
from rl_research.training.randomness import random_state, restore_random_state

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

_log = logging.getLogger(__name__)


def build(config: Config) -> tuple[VecEnv, BaseAlgorithm]:
    """Return the environment that *config* trains in and its algorithm, seeded; close the environment later.

    The random generators are left as training begins with them. Raises `ConfigError`.
    """
    env = envs.training_env(config)
    try:
        return env, models.build(config, env)
    except BaseException:
        env.close()
        raise


class Prepared:
    """An experiment's environment and algorithm as `preflight` built them, for the first `train_run` alone.

    Leaving its ``with`` block closes an environment that nobody has taken.
    """

    def __init__(self, config: Config):
        self.config = config
        self._built: tuple[VecEnv, BaseAlgorithm] | None = build(config)
        self._random = random_state()

    def take(self, config: Config) -> tuple[VecEnv, BaseAlgorithm] | None:
        """Return what `build` would for *config*; None if that has been taken, or was built for another one.

        The random generators are put back to where building left them, so that what was done since
        changes no bit of the training.
        """
        alike = all(getattr(self.config, s) == getattr(config, s) for s in ("experiment", "algorithm", "env"))
        if self._built is None or not alike:
            return None
        built, self._built = self._built, None
        restore_random_state(self._random)
        return built

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        if self._built is not None:
            self._built[0].close()
            self._built = None


def preflight(config: Config) -> Prepared:
    """Find what is wrong with *config* before anything is written or trained.

    Returns what was built for that: hand it on to `train_run` in this process. Raises `ConfigError`.
    """
    env = envs.check_env(config, disable_env_checker=True)  # gymnasium's own checker says the same at length
    try:
        if config.env.check:
            check_api(config, env)
    finally:
        close(env)
    if config.storage.url is not None:
        _probe(Store(config.storage.url, config.storage.options, config.storage.timeout))
    resolve_settings(config, config.run_id or "preflight", None)
    with ExitStack() as on_failure:
        prepared = on_failure.enter_context(Prepared(config))
        make_folder(expanded(config.runs_dir))
        on_failure.pop_all()
    return prepared


def _probe(store: Store) -> None:
    """Write and remove a small object; failures that waiting may mend are left to the upload's retries."""
    name = f".probe-{secrets.token_hex(6)}"
    try:
        store.write(name, b"probe")
        store.remove(name)
    except StorageError as error:
        text = str(error)
        raise ConfigError(text if "storage.url" in text else f"storage.url={store.url}: {text}") from None
    except Exception as error:
        if not is_transient(error):
            raise
        _log.warning("storage.url=%s does not answer yet: %s", store.url, error)
