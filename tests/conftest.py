"""What every test stands on: a clean environment, tiny experiments, an environment that tells its seed."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import Call
from servers import az, gcs, s3, sftp  # noqa: F401  # fixtures, for every test file
from syncing import server  # noqa: F401  # W&B, where a file has no other

from rl_research.cli import command
from rl_research.config import Config, load_config

_FOREIGN = ("WANDB_", "PREFECT_API_", "PREFECT_PROFILE", "PREFECT_HOME")
_QUIET = {
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # read when gcsfs is imported; the emulator has none
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",  # tiny networks gain nothing from threads, and tests run side by side
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}
_FOLDERS = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "PREFECT_HOME", "SB3_LOGDIR")

_TINY = {
    "on": ("n_steps=16",),
    "minibatches": ("batch_size=16", "n_epochs=2"),
    "off": ("learning_starts=8", "batch_size=8", "buffer_size=300"),
}
_KIND = {
    "a2c": ("on",),
    "ppo": ("on", "minibatches"),
    "maskable_ppo": ("on", "minibatches"),
    "recurrent_ppo": ("on", "minibatches"),
    "dqn": ("off",),
    "sac": ("off",),
    "td3": ("off",),
    "ddpg": ("off",),
}

_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Forget the developer's accounts and profiles before anything reads them."""
    for name in list(os.environ):
        if name.startswith(_FOREIGN):
            del os.environ[name]
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    for number, handler in usual.items():
        if signal.getsignal(number) is signal.SIG_IGN:  # which every child would inherit
            signal.signal(number, handler)
    home = config.stash[_home] = tempfile.TemporaryDirectory(prefix="rl-research-tests-", ignore_cleanup_errors=True)
    for name in _FOLDERS:
        folder = Path(home.name) / name.lower()
        folder.mkdir()
        os.environ[name] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    config.stash[_home].cleanup()


@pytest.fixture(autouse=True)
def _own_prefect_variables() -> Iterator[None]:
    """A command that runs in this process names its server to Prefect; the next test does not inherit that."""
    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    yield
    after = {name for name in os.environ if name.startswith("PREFECT_")}
    if before != {name: os.environ[name] for name in after}:
        for name in after - set(before):
            del os.environ[name]
        os.environ.update(before)
        from prefect.context import refresh_global_settings_context  # not before its variables are set

        refresh_global_settings_context()


class SeedEcho(gym.Env[np.ndarray, int]):
    """An environment whose return is the seed of its last reset, whatever is done in it.

    An episode lasts ``1 + seed % 3`` steps; the observation is ``(seed % 7, steps done)``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  # gymnasium's form
    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, shift: int = 0):
        self.render_mode = render_mode
        self.shift = shift
        self.seed, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ARG002  # gymnasium's form
        """Begin; without a seed this is episode -1."""
        super().reset(seed=seed)
        self.seed, self.steps = -1 if seed is None else seed, 0
        return self._seen(), {}

    def step(self, action: int) -> Any:  # noqa: ARG002  # nothing matters
        """One step nearer to the end."""
        self.steps += 1
        over = self.steps > self.seed % 3
        return (self._seen(), float(self.seed + self.shift) if over else 0.0, over, False, {"is_success": True})

    def render(self) -> Any:
        """A picture as grey as the episode is old."""
        return np.full((8, 8, 3), 10 * self.steps, dtype=np.uint8)

    def _seen(self) -> np.ndarray:
        return np.array([self.seed % 7, self.steps], dtype=np.float32)


gym.register("SeedEcho-v0", entry_point=SeedEcho)

TinyConfig = Callable[..., Config]


@pytest.fixture
def tiny_config(tmp_path: Path) -> TinyConfig:
    """A factory: overrides -> a `Config` that trains in a fraction of a second below `tmp_path`.

    Overrides are Hydra's, ``tiny_config("algorithm=sac", "env=pendulum")``; a choice may be a keyword.
    """

    def make(*overrides: str, **choices: Any) -> Config:
        given = [*(f"{key}={value}" for key, value in choices.items()), *overrides]
        chosen = dict(text.split("=", 1) for text in given)
        kinds = _KIND.get(chosen.get("algorithm", "ppo"), ())
        params = [setting for kind in kinds for setting in _TINY[kind]]
        tiny = {
            "runs_dir": f"'{tmp_path / 'runs'}'",
            "run_id": "tiny",
            "wandb": "disabled",
            "experiment.total_timesteps": 64,
            "experiment.log_every": 16,
            "evaluation.every": 32,
            "evaluation.episodes": 2,
            "evaluation.final_episodes": 4,
            "checkpoint.every": 32,
            "algorithm.params.policy_kwargs.net_arch": "[8]",
            **{f"algorithm.params.{p.split('=')[0]}": p.split("=")[1] for p in params},
        }
        defaults = [f"{key}={value}" for key, value in tiny.items() if key not in chosen]
        return load_config([*defaults, *given])

    return make


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Call:
    """Run the command in this process; its exit code, standard output, and what it said besides."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        caplog.clear()
        try:
            code = command.main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err + caplog.text

    return run


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A Prefect API of the session's own; asked for by name, because it takes half a minute."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=180),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),  # a second less per flow
    ):
        yield


@pytest.fixture
def api(prefect_api: None) -> str:
    """The address of the session's Prefect API, for child processes."""
    del prefect_api
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())
