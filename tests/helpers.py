"""What several test files need: tiny experiments as words, W&B rows from disk, processes to be killed.

Run as a program, this is a nursery: it has imported everything heavy and forks one process per line it
reads, so that a run that is killed twenty times costs twenty segments, not twenty imports.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rl_research.checkpoints import Checkpoint
    from rl_research.runs import Run

#: The command in this process: its exit code, its standard output, and what it said besides.
Call = Callable[..., tuple[int, str, str]]

ON_POLICY = ("a2c", "maskable_ppo", "my_ppo", "ppo", "recurrent_ppo", "trpo")
_WALL_CLOCK = ("time/",)


def tiny(runs_dir: Path, run_id: str | None, *overrides: str) -> list[str]:
    """Overrides of an experiment that trains in a second below *runs_dir*; *overrides* have the last word."""
    name = next((o.split("=")[1] for o in overrides if o.startswith("algorithm=")), "ppo")
    if name in ON_POLICY:
        params = ["n_steps=16", *([] if name == "a2c" else ["batch_size=16"])]
    elif name == "ars":
        params = ["n_delta=1"]
    else:
        params = ["learning_starts=8", "batch_size=8", "buffer_size=300"]
    return [
        f"runs_dir='{runs_dir}'",
        *([] if run_id is None else [f"run_id={run_id}"]),
        "experiment.total_timesteps=96",
        "experiment.log_every=16",
        "evaluation.every=32",
        "evaluation.episodes=2",
        "evaluation.final_episodes=4",
        "checkpoint.every=32",
        "video.enabled=false",
        "env.max_episode_steps=40",
        "algorithm.params.policy_kwargs.net_arch=[8]",
        *(f"algorithm.params.{param}" for param in params),
        *overrides,
    ]


@contextmanager
def forgotten_plugins(package: str) -> Iterator[None]:
    """Let the modules of *package* be imported in the block, and nothing else be registered; then forget them."""
    from rl_research.config import register

    def imported() -> dict[str, Any]:
        found = [name for name in sys.modules if name.partition(".")[0] == package]
        return {name: sys.modules.pop(name) for name in found}

    kinds = register.kinds().values()
    registered, modules = {kind: dict(kind.registered) for kind in kinds}, imported()
    for kind in kinds:
        kind.registered.clear()
    yield
    imported()
    sys.modules.update(modules)
    for kind in kinds:
        kind.registered.clear()
        kind.registered.update(registered[kind])


def environment(**more: str) -> dict[str, str]:
    """This process's environment for a child, without its W&B service and its choice of Prefect's logs."""
    own = ("WANDB_SERVICE", "PREFECT_LOGGING_LEVEL")
    return {**{name: value for name, value in os.environ.items() if name not in own}, **more}


def record_of(run_dir: Path) -> dict[str, Any]:
    """The run's record."""
    found: dict[str, Any] = json.loads((run_dir / "run.json").read_text())
    return found


def steps_committed(run_dir: Path) -> list[int]:
    """The steps whose checkpoint folder has a manifest."""
    found = (run_dir / "checkpoints").glob("step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must not depend on how often a run was stopped: parameters, scores, evaluations, rows."""
    scores = run_dir / "scores.json"
    return {
        "parameters_sha256": record_of(run_dir)["parameters_sha256"],
        "global_step": record_of(run_dir)["global_step"],
        "scores": json.loads(scores.read_text())["returns"] if scores.exists() else None,
        "evaluations": evaluations(run_dir),
        "progress": progress(run_dir),
    }


def evaluations(run_dir: Path) -> dict[str, Any] | None:
    """The arrays of ``evaluations.npz``, as lists."""
    path = run_dir / "evaluations.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def progress(run_dir: Path) -> list[dict[str, str]]:
    """The rows of ``progress.csv`` without wall-clock values and empty cells."""
    import csv

    with (run_dir / "progress.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v and not k.startswith(_WALL_CLOCK)} for row in csv.DictReader(file)]


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """Every whole record of every W&B segment below *run_dir*, oldest segment first."""
    from rl_research.tracking.wandb_log import read_records

    for log in sorted(run_dir.glob("wandb/*run-*/run-*.wandb")):
        yield from read_records(log)


def wandb_rows(run_dir: Path) -> list[tuple[int, dict[str, Any]]]:
    """Each row of numbers over all W&B segments: its `global_step`, its cells but for wall-clock values."""
    rows = []
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") != "history":
            continue
        cells = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        numbers = {
            key: value
            for key, value in cells.items()
            if isinstance(value, int | float) and not key.startswith(("_", *_WALL_CLOCK))
        }
        step = numbers.pop("global_step", None)
        if step is not None and numbers:
            rows.append((int(step), numbers))
    return rows


def wandb_config(run_dir: Path) -> dict[str, Any]:
    """The configuration that the W&B segments of a run hold together."""
    config: dict[str, Any] = {}
    for record in wandb_records(run_dir):
        kind = record.WhichOneof("record_type")
        changes = record.run.config if kind == "run" else record.config if kind == "config" else None
        for item in changes.update if changes is not None else ():
            place = config
            *parents, leaf = item.nested_key or [item.key]
            for parent in parents:
                place = place.setdefault(parent, {})
            place[leaf] = json.loads(item.value_json)
    return config


def wandb_summary(run_dir: Path) -> dict[str, Any]:
    """What W&B's own reader makes of the newest segment."""
    segment = max(run_dir.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    program = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [program, "leet", "inspect", "--summary", "--json", segment],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ---------------------------------------------------------------- processes that are killed


class Nursery:
    """A warm process that forks the segments of runs; see the module's docstring."""

    def __init__(self, errors: Path):
        self.errors = errors
        with errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                text=True, bufsize=1, env=environment(),
            )  # fmt: skip

    def start(self, overrides: Sequence[str], die_at: int | None = None) -> Segment:
        """Fork a process that trains and scores, and kills itself before disk operation *die_at*."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([list(overrides), die_at]) + "\n")
        return Segment(self)

    def run(self, overrides: Sequence[str], die_at: int | None = None) -> int:
        """Fork one and wait for its exit code."""
        return self.start(overrides, die_at).wait()

    def read(self) -> tuple[str, int]:
        """The next thing that happened: ``("pid", n)``, ``("step", n)`` or ``("exit", code)``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the nursery died: {self.errors.read_text()[-2000:]}"
        word, number = line.split()
        return word, int(number)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


class Segment:
    """One forked process, a session leader of its own."""

    def __init__(self, nursery: Nursery):
        self._nursery = nursery
        word, self.pid = nursery.read()
        assert word == "pid"
        self.code: int | None = None
        self.step = -1

    def wait_for_step(self, step: int) -> bool:
        """Wait until training has reached *step*; False if the process ended before."""
        while self.code is None and self.step < step:
            self._next()
        return self.code is None

    def wait(self) -> int:
        """Wait for the end."""
        while self.code is None:
            self._next()
        return self.code

    def kill(self, *, with_wandb: bool) -> int:
        """SIGKILL the process group and, if told so, W&B's service, which has a session of its own."""
        if self.code is None:
            service = children(self.pid) if with_wandb else []
            for kill, pid in [(os.killpg, self.pid), *((os.kill, child) for child in service)]:
                try:
                    kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        return self.wait()

    def _next(self) -> None:
        word, number = self._nursery.read()
        if word == "step":
            self.step = number
        elif word == "exit":
            self.code = number


def children(pid: int) -> list[int]:
    """Every process below *pid*."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(status.parent.name)
            found += [child, *children(child)]
    return found


def upload(run: Run, checkpoint: Checkpoint) -> None:
    """Copy *checkpoint* to the store of *run* here and now."""

    from rl_research.uploads import upload_and_announce

    run.save(checkpoint=upload_and_announce(run, checkpoint).address)


def lives(pid: int) -> bool:
    """Whether process *pid* has not ended; one whose end nobody has asked for yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _nursery() -> None:
    import stable_baselines3  # noqa: F401  # imported once, for all segments
    import wandb  # noqa: F401

    from rl_research.config import load_config
    from rl_research.training import evaluation, stages  # noqa: F401

    load_config()
    for line in sys.stdin:
        overrides, die_at = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(0)
            sys.exit(_segment(overrides, die_at))
        _say("pid", pid)
        _, status = os.waitpid(pid, 0)
        _say("exit", os.waitstatus_to_exitcode(status))


def _segment(overrides: list[str], die_at: int | None) -> int:
    from rl_research.config import Experiment, load_config
    from rl_research.errors import RLResearchError
    from rl_research.runs.run import open_run
    from rl_research.training import stages
    from rl_research.uploads.queue import background_uploads

    config = load_config(overrides)
    if die_at is not None:
        _die_at(die_at)
    try:
        with open_run(Experiment(config, tuple(overrides))) as run, background_uploads(run) as uploads:
            checkpoint = stages.train_run(run, lambda step, total: _say("step", step), uploads)
            if stages.score_checkpoint(run, checkpoint) is not None:
                uploads.add(checkpoint)
    except RLResearchError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _die_at(count: int) -> None:
    """Kill this process by SIGKILL just before disk operation number *count*."""
    left = count

    def counted(operation: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
            return operation(*args, **kwargs)

        return wrapper

    for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def _say(word: str, number: int) -> None:
    os.write(1, f"{word} {number}\n".encode())


if __name__ == "__main__":
    _nursery()
