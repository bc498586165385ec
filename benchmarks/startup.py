"""Seconds from `rl-research train` to the first environment step, with a server and without one.

    python benchmarks/startup.py            # three starts each, interleaved; the medians
    python benchmarks/startup.py --starts 5

`embedded` is Prefect's own API, started by each command beside its imports, its database made before; `first`
is that with no database yet; `server` is one that runs already, as `rl-research up` keeps it; `library` is
training without a flow, the least there can be.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ENV = """
import os, time
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv


class First(CartPoleEnv):
    def step(self, action):
        if not os.path.exists(os.environ["FIRST_STEP"]):
            with open(os.environ["FIRST_STEP"], "w") as out:
                out.write(str(time.time()))
        return super().step(action)


gym.register("First-v0", entry_point=First, max_episode_steps=500)
"""
_LIBRARY = """
import sys
from rl_research.training import stages
from rl_research.config import compose_experiment
from rl_research.runs import open_run

with open_run(compose_experiment(sys.argv[1:])) as run:
    stages.train_run(run)
"""
_WORDS = [
    "env.id=first:First-v0", "algorithm.params.n_steps=64", "algorithm.params.batch_size=64",
    "experiment.total_timesteps=64", "evaluation.enabled=false", "video.enabled=false",
]  # fmt: skip


def _seconds(command: list[str], folder: Path, name: str, env: dict[str, str]) -> float:
    stamp = folder / f"{name}.stamp"
    words = [*_WORDS, f"run_id={name}", f"runs_dir='{folder / 'runs'}'"]
    began = time.time()
    subprocess.run(
        [sys.executable, *command, *words],
        env={**env, "FIRST_STEP": str(stamp), "PYTHONPATH": f"{folder}:{env.get('PYTHONPATH', '')}"},
        cwd=folder, check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    return float(stamp.read_text()) - began


@contextmanager
def _server(folder: Path, env: dict[str, str]) -> Iterator[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    own = {**env, "PREFECT_HOME": str(folder / "server"), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (folder / "server.log").open("w") as log:
        child = subprocess.Popen([*command, "--port", port], env=own, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.3)
        yield own
    finally:
        child.terminate()
        child.wait(30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--starts", type=int, default=3)
    starts = parser.parse_args().starts
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "WANDB_"))}
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first.py").write_text(_ENV)
        embedded = {**env, "PREFECT_HOME": str(folder / "embedded")}
        train = ["-m", "rl_research", "train"]
        found["first"] = [_seconds(train, folder, "first", embedded)]
        with _server(folder, env) as server:
            _seconds(train, folder, "warm", server)
            for number in range(starts):
                for kind, command, chosen in (
                    ("library", ["-c", _LIBRARY], env),
                    ("server", train, server),
                    ("embedded", train, embedded),
                ):
                    took = _seconds(command, folder, f"{kind}-{number}", chosen)
                    found.setdefault(kind, []).append(took)
    for kind, times in found.items():
        spread = " ".join(f"{seconds:.1f}" for seconds in sorted(times))
        print(f"{kind:<9} {statistics.median(times):6.1f} s   ({spread})")


if __name__ == "__main__":
    main()
