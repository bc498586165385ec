"""A run that diverges fails once, with its step, and no checkpoint holds what is no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers import record_of, steps_committed, tiny

from rl_research.config import compose_experiment, load_config
from rl_research.errors import Diverged
from rl_research.runs.run import open_run
from rl_research.training import callbacks, envs, models, stages


class Exploding(gym.Env[np.ndarray, Any]):
    """An environment whose rewards are finite, but no sum of squares of them is, from its 150th step on."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    steps = 0

    def __init__(self, continuous: bool = False):
        box = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = box if continuous else gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # noqa: ARG002  # gymnasium's form
        """Begin."""
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:  # noqa: ARG002  # nothing matters
        """One step nearer to the end of numbers."""
        self.steps += 1
        over = self.steps % 10 == 0
        return np.ones(2, np.float32), 3e38 if self.steps > 150 else 1.0, over, False, {}


gym.register("Exploding-v0", entry_point=Exploding)


def _words(runs_dir: Path, algorithm: str) -> list[str]:
    continuous = "true" if algorithm == "sac" else "false"
    return tiny(
        runs_dir, algorithm, f"algorithm={algorithm}", "env.id=Exploding-v0",
        f"env.kwargs.continuous={continuous}", "env.max_episode_steps=null",
        "evaluation.enabled=false", "wandb=disabled", "experiment.total_timesteps=512",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn", "sac"])
def test_a_diverged_run_fails_with_its_step(tmp_path: Path, algorithm: str) -> None:
    """Rewards that overflow end the run soon after, by name, each time; what is committed is finite."""
    words = _words(tmp_path, algorithm)
    said = []
    for _ in range(2):
        with (
            pytest.raises(Diverged, match=r"diverged at step \d+: .* is not finite") as failure,
            open_run(compose_experiment(words)) as run,
        ):
            stages.train_run(run)
        said.append(str(failure.value))
    step = int(said[0].split("step ")[1].split(":")[0])
    assert 150 < step < 400
    assert 0 < steps_committed(tmp_path / algorithm)[-1] <= step
    assert record_of(tmp_path / algorithm)["status"] == "failed"
    for folder in (tmp_path / algorithm / "checkpoints").glob("step-*"):
        config = load_config(words)
        model = models.build(config, envs.training_env(config))
        model.set_parameters(str(folder / "model.zip"))
        model.set_logger(_Silent())
        callbacks.raise_if_diverged(model)


class _Silent:
    name_to_value: dict[str, float] = {}  # noqa: RUF012  # nobody writes
