"""What a training that fails, or that is told to stop, leaves in the run's log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor

from rl_research.tracking.logger import ExperimentLogger
from rl_research.tracking.sb3_callbacks import WandbCallback
from rl_research.training.callbacks import EvalCallback


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    while (logger := ExperimentLogger.current()) is not None:
        logger.finish()


class _Broken(BaseCallback):
    """Fails once *at* steps are done."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            raise RuntimeError("broken")
        return True


class _Recording(BaseCallback):
    """Records a value that no logger takes."""

    def _on_step(self) -> bool:
        self.logger.record("custom/actions", np.zeros(3), exclude=("stdout", "log"))
        return True


class _Child(BaseCallback):
    """Notes what it is told."""

    def __init__(self, answer: bool):
        super().__init__()
        self.answer = answer
        self.told: list[Any] = []

    def _on_training_start(self) -> None:
        self.told.append(("start", "total_timesteps" in self.locals))

    def _on_step(self) -> bool:
        self.told.append(self.num_timesteps)
        return self.answer


def _model() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, device="cpu", seed=0)


def _evaluations(freq: int, **options: Any) -> EvalCallback:
    env = Monitor(gym.make("CartPole-v1"))
    return EvalCallback(env, n_eval_episodes=1, eval_freq=freq, at_rollout_start=True, **options)


def _rows(logger: ExperimentLogger) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(logger.wandb_dir)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, text=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return [r["history"]["item"] for r in records if r["type"] == "history"]


def _fails(logger: ExperimentLogger, model: PPO) -> None:
    with logger:
        model.learn(320, callback=CallbackList([*logger.get_callbacks(), _Broken(at=100)]))


def test_a_training_that_fails_loses_no_row() -> None:
    """All three rollouts are in the log, each with the metrics of the update that followed it."""
    logger = ExperimentLogger({})
    with pytest.raises(RuntimeError, match="broken"):
        _fails(logger, _model())
    rows = _rows(logger)
    assert [row["global_step"] for row in rows] == [32, 64, 96]
    assert all("rollout/ep_rew_mean" in row and "train/loss" in row for row in rows)


def test_what_happens_before_the_end_may_log() -> None:
    """Actions run once, in order, while the logger is still open."""
    with ExperimentLogger({}) as logger:
        logger.before_finish(lambda: logger.log_metrics({"x": 1.0}, step=1))
        logger.before_finish(lambda: logger.log_metrics({"x": 2.0}, step=2))
    logger.finish()
    assert [(row["global_step"], row["x"]) for row in _rows(logger)] == [(1, 1.0), (2, 2.0)]


def test_an_action_that_fails_leaves_no_run_open() -> None:
    """The error is raised, the run is finished."""
    logger = ExperimentLogger({})
    logger.before_finish(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logger.finish()
    assert ExperimentLogger.current() is None


def test_a_value_that_is_refused_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Its row is logged without it, and it is mentioned once."""
    with ExperimentLogger({}) as logger:
        _model().learn(96, callback=CallbackList([*logger.get_callbacks(), _Recording()]))
    steps = [row["global_step"] for row in _rows(logger) if "rollout/ep_rew_mean" in row]
    assert steps == [32, 64, 96]
    assert caplog.text.count("custom/actions") == 1


def test_gradients_are_shown_and_the_model_stays_usable() -> None:
    """Histograms arrive at their steps; nothing hangs on the model when the run is finished."""
    model = _model()
    with ExperimentLogger({}) as logger:
        model.learn(96, callback=WandbCallback(logger=logger, gradient_save_freq=2, log="gradients"))
    rows = [row for row in _rows(logger) if "gradients/action_net.bias._type" in row]
    assert [row["global_step"] for row in rows] == [64]
    assert rows[0]["gradients/action_net.bias._type"] == "histogram"
    assert not any(name.startswith("parameters/") for name in rows[0])
    model.learn(32)


def test_a_child_that_says_stop_at_a_rollout_start_is_obeyed() -> None:
    """Training ends with the step that follows the evaluation, without another update."""
    model, stop = _model(), StopTrainingOnRewardThreshold(-1.0)
    evaluations = _evaluations(64, callback_on_new_best=stop)
    assert stop.parent is evaluations
    model.learn(640, callback=evaluations)
    assert (model.num_timesteps, model._n_updates) == (65, 2)


def test_stopping_one_training_does_not_stop_the_next() -> None:
    """An answer given at the very end belongs to the training that has ended."""
    model, child = _model(), _Child(answer=False)
    evaluations = _evaluations(64, callback_after_eval=child)
    model.learn(64, callback=evaluations)
    assert child.told == [("start", True), 64]
    model.learn(32, callback=evaluations, reset_num_timesteps=False)
    assert model.num_timesteps == 96


def test_a_model_that_counts_anew_is_evaluated_anew() -> None:
    """A second `learn` that resets the count does not wait for the first one's last step."""
    model, child = _model(), _Child(answer=True)
    evaluations = _evaluations(32, callback_after_eval=child)
    for _ in range(2):
        model.learn(64, callback=evaluations)
    assert child.told == [("start", True), 32, 64] * 2
