"""`ExperimentLogger` in a script of Stable-Baselines3: its metrics, a film of it and the model, offline or online.

python examples/sb3_script.py
"""

from pathlib import Path

from stable_baselines3 import PPO

from rl_research import ExperimentLogger


def main(total_timesteps: int = 10_000) -> Path:
    """Train, and return the folder of the W&B run."""
    model = PPO("MlpPolicy", "CartPole-v1", seed=3)
    settings = {"wandb": {"project": "my_project", "tags": ["script"]}, "total_timesteps": total_timesteps}
    with ExperimentLogger(settings, model.env) as logger:
        model.learn(total_timesteps, callback=logger.get_callbacks())
        logger.save_model(model, name="final", metadata={"seed": 3})
    return Path(str(logger.wandb_dir))


if __name__ == "__main__":
    print(f"wandb leet run {main()}")
