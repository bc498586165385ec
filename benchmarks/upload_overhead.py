"""What uploads beside training cost the training: the same runs with and without a store, taken in turns.

    python benchmarks/upload_overhead.py [--rounds 5] [--steps 100000] [--url URL] [--option KEY=VALUE …]

Each pair trains the same bits; printed is the ratio of the seconds in training, pair by pair, and its
median: on the clock, which only an idle machine makes worth reading, and of the training thread's own
processor time, which leaves out what it waits for the interpreter's lock. The store is a folder unless
*URL* names another; behind a proxy that answers a share of requests with 503 (`--option endpoint_url=…`) it shows
what hiccups cost. The ten checkpoints of the 100,000 steps of `cartpole_ppo` come 2.5 times as often as
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


def overhead(
    runs_dir: Path, url: str, *, rounds: int = 5, steps: int = 100_000, options: Sequence[str] = ()
) -> list[tuple[float, float]]:
    """Training with uploads over training without, for each pair of runs: on the clock, and in its thread.

    The clock stops when training has ended, before what is left is flushed. A short run, which is not
    counted, imports and connects.
    """
    words = [f"storage.url='{url}'", *(f"storage.options.{option}" for option in options)]
    _seconds(runs_dir, "warm-up", words, 2_000)
    pairs = []
    for number in range(rounds):
        order = [False, True] if number % 2 else [True, False]  # neither is always the first
        found = {sent: _seconds(runs_dir, f"round-{number}-{sent}", words if sent else [], steps) for sent in order}
        pairs.append((found[True][0] / found[False][0], found[True][1] / found[False][1]))
    return pairs


def _seconds(runs_dir: Path, run_id: str, storage: Sequence[str], steps: int) -> tuple[float, float]:
    words = [
        "experiment=cartpole_ppo",
        f"experiment.total_timesteps={steps}",
        f"checkpoint.every={max(1, steps // 10)}",
        "evaluation.enabled=false",
        "video.enabled=false",
        "wandb=disabled",
        f"runs_dir='{runs_dir}'",
        f"run_id={run_id}",
        *storage,
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
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the store's client")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"{folder}/store"
        ratios = overhead(Path(folder, "runs"), url, rounds=given.rounds, steps=given.steps, options=given.option)
    report(ratios)


if __name__ == "__main__":
    main()
