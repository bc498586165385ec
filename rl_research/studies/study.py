"""A study: an experiment under several settings and seeds, each member a run in a process of its own.

One process per run, because Stable-Baselines3 draws from process-wide random generators.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_research.config import Config, load_config
from rl_research.errors import ConfigError, Interrupted
from rl_research.runs import holder_of, read_record
from rl_research.statistics import bootstrap_interval, iqm
from rl_research.system import StopRequest, write_atomically
from rl_research.training import finished_result

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_OWN = ("run_id=", "experiment.seed=")
_POLL = 0.2  # seconds between two looks at the members
_CLOSING = 60.0  # seconds that a member gets to commit, once the study is asked to stop


@dataclass(frozen=True, eq=False)
class Member:
    """One run of a study: *setting* is what tells it from others besides its seed."""

    config: Config
    overrides: tuple[str, ...]
    setting: str
    seed: int

    @property
    def run_id(self) -> str:
        """Its identity, the same whenever the study is started again."""
        return str(self.config.run_id)

    @property
    def record(self) -> Mapping[str, Any]:
        """What its run folder tells."""
        return read_record(self.config.run_dir) or {}


@dataclass(frozen=True)
class Study:
    """A name, its members, and the folder that gets its page."""

    name: str
    members: tuple[Member, ...]

    @property
    def folder(self) -> Path:
        """``studies/NAME`` beside the folder of the runs."""
        return Path(self.members[0].config.runs_dir).expanduser().parent / "studies" / self.name

    @property
    def steps(self) -> int:
        """Environment steps that its members have committed; grows as long as the study gets on."""
        return sum(int(member.record.get("global_step") or 0) for member in self.members)


def plan(
    name: str, overrides: Sequence[str], seeds: Sequence[int], grid: Sequence[Sequence[str]] = ()
) -> Study:
    """The study *name*: each list of overrides in *grid* on top of *overrides*, with each of *seeds*.

    Raises `ConfigError` for whatever one of its members would be refused for.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"study '{name}': use 1 to 40 letters, digits, '-' and '_' as its name.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"study {name}: seeds={list(seeds)}: give each seed once, and one at least.")
    for word in (*overrides, *(word for more in grid for word in more)):
        if word.lstrip("+").startswith(_OWN):
            raise ConfigError(f"'{word}': a study gives each member its own; use seeds and the name.")
    members = [_member(name, overrides, more, seed) for more in (grid or [[]]) for seed in seeds]
    if len({member.run_id for member in members}) < len(members):
        raise ConfigError(f"study {name}: two entries of the grid are the same.")
    return Study(name, tuple(members))


def _member(name: str, overrides: Sequence[str], more: Sequence[str], seed: int) -> Member:
    described = json.dumps([sorted(overrides), sorted(more)]).encode()
    digest = hashlib.sha256(described).hexdigest()[:6]
    words = (
        f"wandb.group={name}", *overrides, *more,
        f"experiment.seed={seed}", f"run_id={name}-{digest}-s{seed}",
    )  # fmt: skip
    return Member(load_config(words), words, " ".join(more), seed)


def run(
    study: Study, stop: StopRequest, at_a_time: int = 1, find_api: Callable[[], str | None] = lambda: None
) -> None:
    """Run every member that is not finished, *at_a_time* processes at once; failures stop nobody else.

    *find_api* is asked before each for a Prefect API that answers; without one it brings its own.

    Asked to stop, it passes that on, waits until the members have committed, and raises `Interrupted`.
    A member that another process has open, such as what a killed study has left, is waited for.
    """
    logs = study.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(study.members)
    running: dict[Member, subprocess.Popen[bytes]] = {}
    try:
        while (waiting or running) and not stop:
            running = {member: child for member, child in running.items() if child.poll() is None}
            waiting = [member for member in waiting if finished_result(member.config) is None]
            for member in [m for m in waiting if not holder_of(m.config.run_dir)]:
                if len(running) < at_a_time and member not in running:
                    waiting.remove(member)
                    running[member] = _start(member, logs, find_api())
            time.sleep(_POLL)
    finally:
        _end(list(running.values()))
    if stop:
        assert stop.by is not None
        raise Interrupted(f"{stop.by.name}: study {study.name} stopped at {study.steps} steps")


def _start(member: Member, logs: Path, api: str | None) -> subprocess.Popen[bytes]:
    _log.info("%s: %s", member.run_id, member.setting or "as it is")
    # The flow run of the study is not the member's.
    others = ("PREFECT__", "PREFECT_API_URL")
    env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    env |= {"PREFECT_API_URL": api} if api else {}
    with (logs / f"{member.run_id}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "rl_research", "train", *member.overrides],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
            start_new_session=True,  # Ctrl-C is meant for the study, which passes it on
        )  # fmt: skip


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _CLOSING
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def result(study: Study) -> dict[str, Any]:
    """The scores of each setting over its seeds; written to ``study.json``, too."""
    settings = list(dict.fromkeys(member.setting for member in study.members))
    found = {
        "name": study.name,
        "folder": str(study.folder),
        "settings": [_setting(name, [m for m in study.members if m.setting == name]) for name in settings],
        "failed": [m.run_id for m in study.members if m.record.get("status") != "finished"],
    }
    text = json.dumps(found, indent=2) + "\n"
    write_atomically(study.folder / "study.json", text.encode())
    return found


def _setting(name: str, members: Sequence[Member]) -> dict[str, Any]:
    done = [m for m in members if m.record.get("status") == "finished" and m.record.get("scores")]
    means = [float(member.record["scores"]["mean"]) for member in done]
    interval = bootstrap_interval(means, "iqm") if means else None
    return {
        "setting": name,
        "scores": {str(member.seed): mean for member, mean in zip(done, means, strict=True)},
        "runs": {str(member.seed): str(member.config.run_dir) for member in members},
        "iqm": iqm(means) if means else None,
        "interval": None if interval is None else list(interval),
    }
