"""A study planned: an experiment under several settings and seeds, each member a run of its own."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_research.config import Config, load_config
from rl_research.errors import ConfigError
from rl_research.runs import RunRecord, read_record
from rl_research.system import expanded

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_OWN = ("run_id=", "experiment.seed=")


@dataclass(frozen=True, eq=False)
class Member:
    """One run of a study; *setting* holds the overrides that tell it from members with the same seed."""

    config: Config
    overrides: tuple[str, ...]
    setting: str
    seed: int

    @property
    def run_id(self) -> str:
        """Identity of the run, the same whenever the study is started again."""
        return str(self.config.run_id)

    @property
    def record(self) -> RunRecord:
        """Record in the run folder; empty where there is none."""
        return read_record(self.config.run_dir) or RunRecord()


@dataclass(frozen=True)
class Study:
    """A name, its members, and the folder that gets its page."""

    name: str
    members: tuple[Member, ...]

    @property
    def folder(self) -> Path:
        """Folder ``studies/NAME`` beside the folder of the runs."""
        return expanded(self.members[0].config.runs_dir).parent / "studies" / self.name

    @property
    def steps(self) -> int:
        """Environment steps that the members have committed."""
        return sum(member.record.global_step or 0 for member in self.members)


def plan_study(name: str, overrides: Sequence[str], seeds: Sequence[int], grid: Sequence[Sequence[str]] = ()) -> Study:
    """Return the study *name*: each list of overrides in *grid* on top of *overrides*, with each of *seeds*.

    Raises `ConfigError` for every mistake for which a member would be refused.
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


def study_name(name: str, afresh: bool, flow_run_id: str) -> str:
    """Return *name*; where *afresh* asks for another study for each flow run, with the end of its id."""
    return f"{name}-{flow_run_id.replace('-', '')[-6:]}" if afresh else name
