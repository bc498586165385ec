"""The library from a script: train, evaluate, act and list runs, without a command line and without Prefect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from helpers import environment, tiny
from stable_baselines3.common.callbacks import BaseCallback

import rl_research
from rl_research.config import overrides_of
from rl_research.errors import CheckpointMissing, ConfigError, Interrupted
from rl_research.training import evaluation


class Counting(BaseCallback):
    """Counts steps, and goes on counting in a resumed run."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def _on_step(self) -> bool:
        self.steps += 1
        return True

    def state(self) -> int:
        """What a resumed run goes on from."""
        return self.steps

    def restore(self, state: int) -> None:
        """Go on from there."""
        self.steps = state


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on Pendulum that normalises."""
    runs_dir = tmp_path_factory.mktemp("library") / "runs"
    words = tiny(runs_dir, "mine", "env=pendulum", "env.normalize=true", "wandb=disabled")
    record = rl_research.train(words)
    assert record.is_finished
    return Path(str(record.run_dir))


def test_train_returns_the_record_and_calls_the_callers_callbacks(tmp_path: Path) -> None:
    """A run without an id gets one, and a callback that was handed over sees every step."""
    counting = Counting()
    record = rl_research.train(tiny(tmp_path / "runs", None, "wandb=disabled"), callbacks=[counting])
    assert record.status == "finished"
    assert record.scores is not None
    assert counting.steps == record.global_step == 96
    assert str(record.run_id).startswith("CartPole-v1__ppo-s0-")


class Stopping(Counting):
    """Sends this process SIGTERM at a step, as a scheduler would."""

    def _on_step(self) -> bool:
        super()._on_step()
        if self.steps == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return True


def test_a_stopped_run_goes_on_with_the_callers_callback(tmp_path: Path) -> None:
    """`Interrupted` after a commit; the next call goes on to the same bits, and the callback counts every step once."""
    whole = rl_research.train(tiny(tmp_path / "runs", "whole", "wandb=disabled"))
    words = tiny(tmp_path / "runs", "stopped", "wandb=disabled")
    with pytest.raises(Interrupted, match="stopped and committed at step 48 of 96"):
        rl_research.train(words, callbacks=[stopping := Stopping()])
    assert stopping.steps == 48
    record = rl_research.train(words, callbacks=[again := Stopping()])
    assert (record.parameters_sha256, again.steps) == (whole.parameters_sha256, 96)


def test_train_takes_a_config_and_recognises_a_finished_run(trained: Path) -> None:
    """A `Config` is as good as overrides, and a finished run is not trained again."""
    words = tiny(trained.parent, "mine", "env=pendulum", "env.normalize=true", "wandb=disabled")
    before = (trained / "run.json").read_bytes()
    record = rl_research.train(rl_research.load_config(words))
    assert record.is_finished
    assert (trained / "run.json").read_bytes() == before


@pytest.mark.parametrize("experiment", ["cartpole_ppo", "pendulum_sac", "lunarlander_dqn", "pong_ppo"])
def test_a_config_is_described_by_overrides(experiment: str) -> None:
    """The command that a page shows for a run of a `Config` composes that very `Config`."""
    config = rl_research.load_config([f"experiment={experiment}", "experiment.seed=3", "wandb.notes='a, b: {c}'"])
    assert rl_research.load_config(overrides_of(config)) == config
    assert overrides_of(rl_research.load_config()) == ()


def test_a_mistake_is_raised_before_anything_is_written(tmp_path: Path) -> None:
    """A wrong setting is a `ConfigError` of one line, and leaves no folder."""
    with pytest.raises(ConfigError, match="Did you mean 'learning_rate'"):
        rl_research.train(tiny(tmp_path / "runs", "mine", "algorithm.params.learning_rat=1"))
    with pytest.raises(ConfigError, match="callbacks"):
        rl_research.train(tiny(tmp_path / "runs", "mine"), callbacks=[lambda: None])  # type: ignore[list-item]
    assert not (tmp_path / "runs").exists()


def test_evaluate_plays_what_the_command_plays(trained: Path) -> None:
    """The scores are those of the run's own final evaluation, episode by episode."""
    scores = rl_research.evaluate(str(trained))
    assert scores.episodes == len(scores.returns) == 4
    found = rl_research.list_runs(trained.parent)
    assert (scores.mean, scores.std) == (found[0]["scores.mean"], found[0]["scores.std"])
    with pytest.raises(CheckpointMissing):
        rl_research.evaluate("nothing", runs_dir=str(trained.parent))


def test_a_loaded_policy_acts_on_what_the_environment_shows(trained: Path) -> None:
    """`predict` normalises as the run has, so it returns in a plain environment what the evaluation returned."""
    policy = rl_research.load_policy("mine@latest", runs_dir=str(trained.parent))
    env = gym.make("Pendulum-v1", max_episode_steps=40)
    first = policy.config.evaluation.seed
    observation, _ = env.reset(seed=first)
    total, over = 0.0, False
    while not over:
        action, _ = policy.predict(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    assert total == pytest.approx(rl_research.evaluate(str(trained), episodes=1).returns[0], abs=1e-4)
    assert policy.predict(np.stack([observation] * 3))[0].shape == (3, 1)
    assert not np.allclose(policy.normalized(observation), observation)


def test_runs_are_flat_records(trained: Path) -> None:
    """Each run is a flat dict of settings and results, under the names that overrides and ``run.json`` have."""
    (found,) = rl_research.list_runs(trained.parent)
    expected = {
        "run_id": "mine", "status": "finished", "global_step": 96, "algorithm.name": "ppo", "env.id": "Pendulum-v1",
        "experiment.seed": 0, "algorithm.params.n_steps": 16, "run_dir": str(trained),
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert not any(isinstance(value, dict) for value in found.values())
    assert rl_research.list_runs(trained / "nothing") == []


def test_a_stranger_s_environment_is_not_imported(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_policy` imports what a checkpoint names only if it is told to."""
    real = evaluation.config_of
    asked = []
    monkeypatch.setattr(evaluation, "config_of", lambda c, *, trust_env=False: asked.append(trust_env) or real(c))
    rl_research.load_policy(str(trained))
    rl_research.load_policy(str(trained), trust_plugins=True)
    assert asked == [False, True]


@pytest.mark.slow
def test_the_library_needs_no_prefect(tmp_path: Path) -> None:
    """A script that trains and acts never imports Prefect."""
    words = tiny(tmp_path / "runs", "mine", "wandb=disabled")
    code = (
        f"import sys, rl_research; rl_research.train({words!r}); "
        f"rl_research.load_policy({str(tmp_path / 'runs' / 'mine')!r}); print('prefect' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=240, env=environment(), cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
