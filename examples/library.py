"""The pipeline from a script: train three seeds, list them, act with the best.

python examples/library.py
"""

from collections.abc import Sequence

import gymnasium as gym

import rl_research


def main(overrides: Sequence[str] = ("env=cartpole", "experiment.total_timesteps=8_192")) -> float:
    """Train what *overrides* describe with three seeds, and return what the best policy reaches in an episode."""
    for seed in range(3):
        rl_research.train([*overrides, f"experiment.seed={seed}", f"run_id=library-{seed}"])
    runs = rl_research.list_runs()  # flat dicts: pandas.DataFrame(runs) is a table
    best = max((run for run in runs if run["run_id"].startswith("library-")), key=lambda run: run["scores.mean"])

    policy = rl_research.load_policy(best["run_dir"])
    env = gym.make(policy.config.env.id)
    observation, _ = env.reset(seed=42)
    total, over = 0.0, False
    while not over:
        action, _ = policy.predict(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    print(main())
