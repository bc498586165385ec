"""Kill training runs at random moments, again and again, and compare what they end with.

    python benchmarks/kill_and_resume.py [--kills 100] [--seed 0] [--experiment NAME …]

For each experiment an undisturbed run is trained first. Then the same run is started, its process group is
killed with SIGKILL at a random moment, and it is started again, until its share of the kills is used up or
it is done; the last segment is left alone. Parameters, metric rows (but for wall-clock values), evaluations
and final scores must be equal to the last bit. Ends with exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

EXPERIMENTS = {
    "ppo+vecnormalize": [
        "algorithm=ppo", "env=cartpole", "env.n_envs=4", "env.normalize=true",
        "algorithm.params.n_steps=64", "experiment.total_timesteps=60_000", "checkpoint.every=2_000",
        "evaluation.every=3_000",
    ],
    "sac": [
        "algorithm=sac", "env=pendulum", "experiment.total_timesteps=2_000", "checkpoint.every=100",
        "algorithm.params.buffer_size=600", "evaluation.every=250", "evaluation.episodes=3",
    ],
    "dqn": [
        "algorithm=dqn", "env=cartpole", "env.n_envs=3", "experiment.total_timesteps=24_000",
        "checkpoint.every=1_000", "evaluation.every=2_000",
    ],
    "td3+noise": [
        "algorithm=td3", "env=pendulum", "experiment.total_timesteps=2_000", "checkpoint.every=100",
        "algorithm.params.action_noise={type: ornstein_uhlenbeck, std: 0.2}", "evaluation.every=250",
        "evaluation.episodes=3",
    ],
}  # fmt: skip
_WALL_CLOCK = ("time/fps", "time/time_elapsed")
_TRAIN = """
import sys
from rl_research.training import stages
from rl_research.config import compose_experiment
from rl_research.runs import open_run
with open_run(compose_experiment(sys.argv[1:])) as run:
    stages.score_checkpoint(run, stages.train_run(run))
"""


def start(overrides: list[str], runs_dir: Path, run_id: str) -> subprocess.Popen[bytes]:
    """A process of its own group that trains and scores, or goes on with it."""
    words = [*overrides, "evaluation.final_episodes=10", f"runs_dir={runs_dir}", f"run_id={run_id}"]
    return subprocess.Popen(
        [sys.executable, "-c", _TRAIN, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must be equal."""
    record = json.loads((run_dir / "run.json").read_text())
    with (run_dir / "progress.csv").open() as file:
        rows = [{name: cell for name, cell in row.items() if name not in _WALL_CLOCK} for row in csv.DictReader(file)]
    with np.load(run_dir / "evaluations.npz") as arrays:
        evaluations = {name: arrays[name].tolist() for name in arrays.files}
    return {
        "parameters": record["parameters_sha256"],
        "scores": json.loads((run_dir / "scores.json").read_text())["returns"],
        "rows": rows,
        "evaluations": evaluations,
    }


def wait_for_the_moment(process: subprocess.Popen[bytes], run_dir: Path, chance: random.Random) -> bool:
    """Wait for a random moment; False if the process ended before it.

    One in four is any moment of the first seconds; the others come up to a second after the segment has
    committed something, so that a run that is killed often still gets somewhere.
    """
    if chance.random() < 0.25:
        return _still_runs(process, chance.uniform(0.1, 6.0))
    before = _newest(run_dir)
    while _newest(run_dir) == before:
        if not _still_runs(process, 0.02):
            return False
    return _still_runs(process, chance.uniform(0.0, 1.0))


def _newest(run_dir: Path) -> str:
    return max((path.parent.name for path in run_dir.glob("checkpoints/step-*/manifest.json")), default="")


def _still_runs(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def kill_until_done(overrides: list[str], runs_dir: Path, kills: int, chance: random.Random) -> tuple[int, int]:
    """Kill the run *kills* times at the most; how often it was, and how many segments took part."""
    done = 0
    for segment in range(1, kills + 2):
        process = start(overrides, runs_dir, "killed")
        if done < kills and wait_for_the_moment(process, runs_dir / "killed", chance):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            continue
        if process.wait() != 0:
            raise SystemExit(f"a segment ended with exit code {process.returncode}")
        return done, segment
    raise AssertionError("the last segment is never killed")


def measure(name: str, kills: int, chance: random.Random) -> tuple[int, bool]:
    """Run *name* undisturbed and killed; how many kills it took, and whether all is equal."""
    overrides, used, equal = EXPERIMENTS[name], 0, True
    while used < kills and equal:
        with tempfile.TemporaryDirectory() as folder:
            runs_dir = Path(folder)
            if start(overrides, runs_dir, "whole").wait() != 0:
                raise SystemExit(f"{name}: the undisturbed run failed")
            done, segments = kill_until_done(overrides, runs_dir, kills - used, chance)
            whole, killed = outcome(runs_dir / "whole"), outcome(runs_dir / "killed")
        different = [part for part in whole if whole[part] != killed[part]]
        used, equal = used + max(done, 1), not different
        verdict = "equal" if equal else f"DIFFERENT: {', '.join(different)}"
        print(f"{name:<18} {done:>3} kills, {segments:>3} segments: {verdict}", flush=True)
    return used, equal


def main() -> int:
    """Share the kills out over the experiments and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--experiment", nargs="*", choices=sorted(EXPERIMENTS), default=[])
    given = parser.parse_args()
    names = given.experiment or list(EXPERIMENTS)
    chance = random.Random(given.seed)
    results = [measure(name, -(-given.kills // len(names)), chance) for name in names]
    equal = all(same for _, same in results)
    print(f"{sum(used for used, _ in results)} kills: {'all equal' if equal else 'DIFFERENT'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
