"""What a sync costs: fifty runs beside `wandb sync` one by one, and ten thousand that need none.

    python benchmarks/sync.py [--runs 50] [--one-by-one 5] [--synced 10000]

The server is the double of the tests, on this machine. `wandb sync` is called for *one-by-one* of the
runs, each copied afresh, and its time is scaled up to all; both are done in one call of this program,
so that their ratio means something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import offline_runs
from wandb_server import WandbServer

from rl_research.sync import Policy, tries


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--one-by-one", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--synced", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, WandbServer() as server:
        os.environ.update(server.environment())
        made = Path(name) / "made"
        offline_runs.make(made, *(f"bare:run{n:03d}:{given.rows}" for n in range(given.runs)))
        ours = _ours(offline_runs.copy(made, Path(name) / "ours"))
        theirs = _theirs(offline_runs.copy(made, Path(name) / "theirs"), given.one_by_one)
        found = {
            "runs": given.runs,
            "rows_each": given.rows,
            "rl_research_sync_s": round(ours, 2),
            "wandb_sync_one_by_one_s": round(theirs * given.runs / given.one_by_one, 2),
            "ratio": round(theirs * given.runs / given.one_by_one / ours, 1),
            f"nothing_to_do_among_{given.synced}_cpu_s": round(
                _nothing_to_do(Path(name) / "ours", Path(name) / "synced", given.synced), 2
            ),
        }
    print(json.dumps(found, indent=2))


def _ours(folder: Path) -> float:
    return _timed([sys.executable, "-m", "rl_research", "sync", str(folder)])


def _theirs(folder: Path, number: int) -> float:
    logs = sorted(folder.rglob("offline-run-*/run-*.wandb"))[:number]
    return sum(_timed([sys.executable, "-m", "wandb", "sync", str(log)]) for log in logs)


def _timed(command: list[str]) -> float:
    before = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return time.perf_counter() - before


def _nothing_to_do(ours: Path, folder: Path, number: int) -> float:
    """The CPU seconds of a look at *number* synced runs, without the start of Python."""
    (ledger,) = list(ours.rglob("sync-run000.json"))
    text = ledger.read_text()
    (log,) = ours.rglob("offline-run-*-run000/run-run000.wandb")
    for count in range(number):
        run_id = f"copy{count:05d}"
        home = folder / run_id
        segment = home / "wandb" / log.parent.name.replace("run000", run_id)
        segment.mkdir(parents=True)
        shutil.copyfile(log, segment / f"run-{run_id}.wandb")
        (home / "run.json").write_text("{}")
        (home / "wandb" / f"sync-{run_id}.json").write_text(text.replace("run000", run_id))
    before = time.process_time()  # what others do on the machine is left out
    with tries.open_runs([str(folder)]) as runs:
        outcomes = tries.sync_runs(runs, Policy(only_due=True))
    seconds = time.process_time() - before
    assert [outcome.state for outcome in outcomes] == ["unchanged"] * number
    return seconds


if __name__ == "__main__":
    main()
