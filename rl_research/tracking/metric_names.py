"""The metrics that Stable-Baselines3, sb3-contrib and this project log, and what they mean."""

from __future__ import annotations

import difflib

KNOWN: dict[str, str] = {
    "rollout/ep_rew_mean": "mean return of the last 100 training episodes",
    "rollout/ep_len_mean": "mean length of the last 100 training episodes, in steps",
    "rollout/success_rate": "share of successes among the last 100 training episodes",
    "rollout/exploration_rate": "probability of a random action (DQN, QR-DQN)",
    "eval/mean_reward": "mean return of the evaluation episodes",
    "eval/std_reward": "standard deviation of the return over the evaluation episodes",
    "eval/mean_ep_length": "mean length of the evaluation episodes, in steps",
    "eval/success_rate": "share of successes among the evaluation episodes",
    "train/learning_rate": "learning rate of the last update",
    "train/n_updates": "gradient updates so far",
    "train/loss": "total loss of the last update",
    "train/policy_loss": "policy loss (A2C)",
    "train/policy_gradient_loss": "clipped policy objective, negated (PPO)",
    "train/policy_objective": "surrogate objective (TRPO)",
    "train/value_loss": "loss of the value function",
    "train/entropy_loss": "negative mean entropy of the policy",
    "train/explained_variance": "share of the returns' variance that the value function explains",
    "train/approx_kl": "approximate divergence between old and new policy (PPO)",
    "train/clip_fraction": "share of samples whose policy ratio was clipped (PPO)",
    "train/clip_range": "clipping range of the policy ratio (PPO)",
    "train/clip_range_vf": "clipping range of the value function (PPO)",
    "train/std": "mean standard deviation of the actions (continuous, on-policy)",
    "train/actor_loss": "loss of the actor (SAC, TD3, DDPG, TQC)",
    "train/critic_loss": "loss of the critics (SAC, TD3, DDPG, TQC)",
    "train/ent_coef": "entropy coefficient (SAC, TQC)",
    "train/ent_coef_loss": "loss of the entropy coefficient (SAC, TQC)",
    "train/kl_divergence_loss": "divergence between old and new policy (TRPO)",
    "train/is_line_search_success": "share of line searches that found a step (TRPO)",
    "time/fps": "environment steps per second since training began",
    "time/iterations": "rollouts so far",
    "time/episodes": "training episodes so far",
    "time/time_elapsed": "seconds since training began",
    "time/total_timesteps": "environment steps so far",
}

_LIKENESS = 0.92  # 'eval/mean_rewrd' is as like as this; 'rollout/ep_rew_max' is a name of its own


def misspelt(name: str) -> str | None:
    """The known metric that *name* is probably meant to be, unless it is known itself."""
    if name in KNOWN or "/" not in name:
        return None
    return next(iter(difflib.get_close_matches(name, KNOWN, n=1, cutoff=_LIKENESS)), None)
