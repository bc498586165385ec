"""`ExperimentLogger` without Stable-Baselines3: REINFORCE in a single file, as CleanRL would write it.

python examples/plain_loop.py
"""

from pathlib import Path

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Categorical

from rl_research import ExperimentLogger


def main(episodes: int = 200, seed: int = 1, learning_rate: float = 0.01) -> Path:
    """Train, and return the folder of the W&B run."""
    env = gym.make("CartPole-v1")
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    settings = {"wandb": {"project": "my_project"}, "seed": seed, "learning_rate": learning_rate}
    with ExperimentLogger(settings, env) as logger:
        step = 0
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            rewards, likelihoods, over = [], [], False
            while not over:
                actions = Categorical(logits=network(torch.as_tensor(observation)))
                action = actions.sample()
                likelihoods.append(actions.log_prob(action))
                observation, reward, terminated, truncated, _ = env.step(action.item())
                rewards.append(float(reward))
                step, over = step + 1, terminated or truncated
            returns = torch.tensor(rewards).flip(0).cumsum(0).flip(0)
            loss = -(torch.stack(likelihoods) * (returns - returns.mean())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            logger.log_metrics({"rollout/ep_rew": sum(rewards), "train/loss": loss.item()}, step=step)
        torch.save(network.state_dict(), logger.dir / "network.pt")
    return Path(str(logger.wandb_dir))


if __name__ == "__main__":
    print(f"wandb leet run {main()}")
