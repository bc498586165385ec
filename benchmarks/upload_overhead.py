"""What uploads beside training cost the training: the same runs with and without a store, taken in turns.

    python benchmarks/upload_overhead.py [--rounds 5] [--steps 100000] [--url URL]

Each pair trains the same bits; printed is the ratio of the seconds in training, pair by pair, and its
median: on the clock, which only an idle machine makes worth reading, and of the training thread's own
processor time, which leaves out what it waits for the interpreter's lock. The store is a folder unless
*URL* names another. The ten checkpoints of the 100,000 steps of `cartpole_ppo` come 2.5 times as often as
by default, some two seconds apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rl_research.config import compose_experiment
from rl_research.runs.run import open_run
from rl_research.training import stages
from rl_research.uploads.queue import background_uploads


def overhead(runs_dir: Path, url: str, *, rounds: int = 5, steps: int = 100_000) -> list[tuple[float, float]]:
    """Training with uploads over training without, for each pair of runs: on the clock, and in its thread.

    The clock stops when training has ended, before what is left is flushed. A short run, which is not
    counted, imports and connects.
    """
    _seconds(runs_dir, "warm-up", url, 2_000)
    pairs = []
    for number in range(rounds):
        order = [None, url] if number % 2 else [url, None]  # neither is always the first
        seconds = {place: _seconds(runs_dir, f"round-{number}-{place is not None}", place, steps) for place in order}
        pairs.append((seconds[url][0] / seconds[None][0], seconds[url][1] / seconds[None][1]))
    return pairs


def _seconds(runs_dir: Path, run_id: str, url: str | None, steps: int) -> tuple[float, float]:
    words = [
        "experiment=cartpole_ppo",
        f"experiment.total_timesteps={steps}",
        f"checkpoint.every={max(1, steps // 10)}",
        "evaluation.enabled=false",
        "video.enabled=false",
        "wandb=disabled",
        f"runs_dir='{runs_dir}'",
        f"run_id={run_id}",
        *([] if url is None else [f"storage.url='{url}'"]),
    ]
    with open_run(compose_experiment(words)) as run, background_uploads(run) as uploads:
        began, worked = time.perf_counter(), time.thread_time()
        stages.train_run(run, uploads=uploads)
        return time.perf_counter() - began, time.thread_time() - worked


def report(ratios: Sequence[tuple[float, float]]) -> None:
    """Print what `overhead` found."""
    for name, column in zip(("on the clock", "in its thread"), zip(*ratios, strict=True), strict=True):
        shown = " ".join(f"{ratio:.3f}" for ratio in column)
        print(f"{name:<14} median {statistics.median(column):.3f}   pair by pair {shown}")
    print("training with uploads / without; 10 checkpoints per run")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--url", help="where the uploads go (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"{folder}/store"
        ratios = overhead(Path(folder, "runs"), url, rounds=given.rounds, steps=given.steps)
    report(ratios)


if __name__ == "__main__":
    main()
