"""A flow of one's own: train, then see how the policy does with shorter and longer poles.

It is stopped, resumed, retried and linked as `train` is, and its answers stand in the W&B run and on Prefect's page.

python examples/own_flow.py
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from prefect import flow, task
from prefect.artifacts import create_table_artifact

import rl_research
from rl_research.checkpoints import Checkpoint
from rl_research.flows.train import train_then
from rl_research.orchestration import RETRY_TRANSIENT, name_from_overrides, reschedule_if_preempted
from rl_research.runs import Run


@task(task_run_name="a pole of {length} m", **RETRY_TRANSIENT)
def score_with_pole(address: str, length: float, episodes: int = 5) -> float:
    """Return the mean return of the checkpoint at *address* with a pole of another length."""
    policy = rl_research.load_policy(address)
    env = gym.make("CartPole-v1")
    env.unwrapped.length = length  # type: ignore[attr-defined]
    total = 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.predict(observation)[0])
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def probe(run: Run, checkpoint: Checkpoint) -> None:
    """Score other lengths, and put the answers where the run's own metrics are."""
    scores = {length: score_with_pole(checkpoint.address, length) for length in (0.25, 0.5, 1.0)}
    run.logger.log_summary({f"probe/length_{length}": score for length, score in scores.items()})
    rows = [{"pole, m": length, "mean return": score} for length, score in scores.items()]
    create_table_artifact(rows, key=f"probe-{str(run.config.run_id).lower().replace('_', '-')}")


@flow(name="train-and-probe", flow_run_name=name_from_overrides, on_crashed=[reschedule_if_preempted])
def train_and_probe(overrides: Sequence[str] = ("experiment=cartpole_ppo",)) -> dict[str, Any] | Any:
    """Train what *overrides* describe on CartPole, and probe it."""
    return train_then(overrides, probe)


if __name__ == "__main__":
    print(train_and_probe())
