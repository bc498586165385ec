"""Preflight finds mistakes before anything is written, and training goes on with what it has built."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import environment, outcome, tiny
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_research.config import Config, Experiment, load_config
from rl_research.errors import ConfigError
from rl_research.runs.run import open_run
from rl_research.training import models, stages
from rl_research.training.preparation import Prepared, preflight


def _train(config: Config, prepared: Prepared | None = None) -> dict[str, Any]:
    with open_run(Experiment(config)) as run:
        stages.train_run(run, prepared=prepared)
    return outcome(config.run_dir)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("env.normalize=true", "env.n_envs=2"),
        ("algorithm=sac", "env=pendulum", "env.normalize=true"),
        ("algorithm=dqn",),
        ("algorithm=td3", "env=pendulum", "algorithm.params.action_noise={type: normal, std: 0.2}"),
        pytest.param(("env.n_envs=2", "env.vec_env=subproc"), marks=pytest.mark.slow),
    ],
    ids=lambda words: " ".join(words) or "ppo",
)
def test_training_goes_on_with_what_preflight_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Nothing is built twice, and the bits are those of a run that builds for itself."""
    whole = _train(load_config(tiny(tmp_path, "whole", *words, "wandb=disabled")))
    config = load_config(tiny(tmp_path, "handed", *words, "wandb=disabled"))
    with preflight(config) as prepared:
        random.random(), np.random.rand(5), torch.rand(7), torch.manual_seed(3)  # only the draw counts
        monkeypatch.setattr(models, "build", _refuse)
        assert _train(config, prepared) == whole


def _refuse(*_: object) -> BaseAlgorithm:
    raise AssertionError("built twice")


def test_what_was_built_is_used_once_and_for_its_own_experiment(tmp_path: Path) -> None:
    """A retry, or another experiment, gets nothing from it, and so builds its own."""
    config = load_config(tiny(tmp_path, "mine", "wandb=disabled"))
    with preflight(config) as prepared:
        assert prepared.take(load_config(tiny(tmp_path, "mine", "experiment.seed=1"))) is None
        renamed = load_config(tiny(tmp_path, "yours", "wandb=disabled"))
        built = prepared.take(renamed)
        assert built is not None, "the identity of the run is no part of what is built"
        built[0].close()
        assert prepared.take(renamed) is None
        assert _train(renamed, prepared)["parameters_sha256"]


def test_storage_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    """A store that refuses is one line before anything is trained."""
    (tmp_path / "file").write_text("in the way")
    words = tiny(tmp_path / "runs", "mine", f"storage.url='{tmp_path / 'file' / 'store'}'")
    with pytest.raises(ConfigError, match=r"storage\.url"):
        preflight(load_config(words))
    assert not (tmp_path / "runs").exists()


def test_whether_a_run_is_finished_is_known_without_torch() -> None:
    """What a study, the watchdog and a repeated command ask first imports no library of training."""
    code = "import sys; from rl_research.training import finished_result, trained_steps; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert not {"torch", "stable_baselines3", "wandb", "prefect"} & set(done.stdout.split())
