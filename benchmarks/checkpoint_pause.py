"""How long a checkpoint stops training, and how much it writes: ours beside SB3's own callback.

    python benchmarks/checkpoint_pause.py [--steps 20000] [--every 2000] [--runs 3]

SAC on Pendulum-v1 with the default buffer (1e6 transitions), which holds few. In each run the same
training is done with SB3's `CheckpointCallback(save_replay_buffer=True)` and with ours, in turn, and the
seconds that each spends in its callback are summed per checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback as SB3CheckpointCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rl_research.training import CheckpointCallback
from rl_research.training.envs import Restorable


class OurTimed(CheckpointCallback):
    """Ours, timed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def commit(self) -> Any:
        """Commit, and note how long that took."""
        before = time.perf_counter()
        made = super().commit()
        self.seconds.append(time.perf_counter() - before)
        return made


class SB3Timed(SB3CheckpointCallback):
    """SB3's, timed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def _on_step(self) -> bool:
        before = time.perf_counter()
        answer = super()._on_step()
        if self.n_calls % self.save_freq == 0:
            self.seconds.append(time.perf_counter() - before)
        return answer


def measure(callback: BaseCallback, folder: Path, steps: int) -> tuple[float, int]:
    """Train with *callback*; the median pause in seconds and the bytes written."""
    env = DummyVecEnv([lambda: Restorable(Monitor(gym.make("Pendulum-v1")))])
    model = SAC("MlpPolicy", env, seed=0, gradient_steps=1, train_freq=32, learning_starts=100)
    model.learn(steps, callback=callback)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return statistics.median(callback.seconds), written  # type: ignore[attr-defined]  # both classes above have it


def main() -> None:
    """Print a line per run and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pauses: dict[str, list[float]] = {"SB3": [], "ours": []}
    for run in range(given.runs):
        for name, cls in (("SB3", SB3Timed), ("ours", OurTimed)):
            with tempfile.TemporaryDirectory() as temporary:
                more: dict[str, Any] = {"save_replay_buffer": True}
                callback = cls(given.every, temporary, **more)
                pause, written = measure(callback, Path(temporary), given.steps)
            pauses[name].append(pause)
            print(f"run {run}  {name:<5} pause {pause * 1e3:8.1f} ms   written {written / 1e6:8.1f} MB")
    for name, values in pauses.items():
        low, middle, high = (1e3 * f(values) for f in (min, statistics.median, max))
        print(f"{name:<5} median {middle:.1f} ms (min {low:.1f}, max {high:.1f})")
    print(f"ratio ours / SB3: {statistics.median(pauses['ours']) / statistics.median(pauses['SB3']):.3f}")


if __name__ == "__main__":
    main()
