"""Promises about scores: what was published is reached with the published settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_research.config import Experiment, load_config
from rl_research.runs.run import open_run
from rl_research.training import stages


@pytest.mark.slow  # a minute of real training: the quickstart's own experiment
def test_the_quickstart_reaches_the_published_score(tmp_path: Path) -> None:
    """PPO on CartPole-v1 with the Zoo's settings solves it: mean ≥ 475 over 100 held-out episodes."""
    words = ["experiment=cartpole_ppo", "experiment.seed=1", "video.enabled=false"]
    config = load_config([*words, "wandb=disabled", f"runs_dir='{tmp_path}'", "run_id=seed-1"])
    with open_run(Experiment(config, tuple(words))) as run:
        scores = stages.score_checkpoint(run, stages.train_run(run))
    assert scores is not None
    assert len(scores.returns) == 100
    assert scores.mean >= 475.0
