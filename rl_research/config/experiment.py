"""An experiment, described once.

Everywhere in this project an experiment travels as a list of Hydra overrides, such as
``["algorithm=sac", "env=pendulum", "experiment.seed=3"]``: from the command line, in a scheduled
deployment, in one member of a study. `load_config` is the only door from that list to the frozen
`Config` that the rest of the code works with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rl_research.config import algorithms, composition, messages
from rl_research.config.overrides import as_lines
from rl_research.config.schema import (
    AlgorithmSettings,
    CheckpointSettings,
    EnvSettings,
    EvaluationSettings,
    ExperimentSettings,
    Section,
    StorageSettings,
    VideoSettings,
    WandbSettings,
)
from rl_research.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")


SectionT = TypeVar("SectionT", bound=Section)


class Config(Section):
    """One experiment, complete and checked."""

    experiment: ExperimentSettings = Field(default_factory=ExperimentSettings)
    algorithm: AlgorithmSettings = Field(examples=["ppo"])
    env: EnvSettings = Field(examples=["cartpole"])
    wandb: WandbSettings = Field(default_factory=WandbSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    video: VideoSettings = Field(default_factory=VideoSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on where the run stopped; never: start it afresh"
    )
    run_id: str | None = Field(None, description="identity of the run", examples=["cartpole_a"])
    runs_dir: str = Field("runs", min_length=1, description="folder of the run folders")

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError("use 1 to 64 letters, digits, '-', '_' and '.', as in my-run_1")
        return value

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> Config:
        first, seed = self.evaluation.seed, self.experiment.seed
        n = self.evaluation.final_episodes + self.evaluation.episodes
        if self.evaluation.enabled and first < seed + self.env.n_envs and seed < first + n:
            raise ValueError(
                f"evaluation.seed={first}: its episodes would reuse training seeds from "
                f"experiment.seed={seed} on; choose an evaluation.seed at least {n} away"
            )
        return self

    @property
    def name(self) -> str:
        """The experiment's name: given, or ``{env}__{algorithm}``."""
        return self.experiment.name or f"{self.env.id.split(':')[-1]}__{self.algorithm.name}"

    @property
    def run_dir(self) -> Path:
        """The run's folder, ``{runs_dir}/{run_id}``."""
        if self.run_id is None:
            raise ValueError("this Config describes no run yet; use `with_run_id`")
        return Path(self.runs_dir).expanduser() / self.run_id

    def with_run_id(self, run_id: str) -> Config:
        """The same experiment as the run *run_id*."""
        return validated(Config, {**self.model_dump(), "run_id": run_id})


@dataclass(frozen=True)
class Experiment:
    """An experiment as it is handed on: the overrides that describe it, and what they come to.

    `compose_experiment` makes it, once. It is not stored itself: its overrides and its configuration are,
    in the run folder, in manifests and in a flow run's parameters.
    """

    config: Config
    overrides: tuple[str, ...] = ()

    @property
    def run_id(self) -> str | None:
        """Identity of the run, None as long as it has none."""
        return self.config.run_id

    @property
    def name(self) -> str:
        """Name of the experiment: given, or ``{env}__{algorithm}``."""
        return self.config.name

    @property
    def run_dir(self) -> Path:
        """Folder of the run, ``{runs_dir}/{run_id}``; `ValueError` without a ``run_id``."""
        return self.config.run_dir

    def with_run_id(self, run_id: str) -> Experiment:
        """Return the same experiment as the run *run_id*."""
        return replace(self, config=self.config.with_run_id(run_id))


def compose_experiment(overrides: Iterable[str] = ()) -> Experiment:
    """Compose the experiment that *overrides* describe; `ConfigError` with one line per mistake."""
    lines = as_lines(overrides)
    return Experiment(load_config(lines), lines)


def load_config(overrides: Iterable[str] = ()) -> Config:
    """Compose ``configs/config.yaml`` with *overrides* and check every key and value.

    An experiment brings the settings of its algorithm, so another algorithm on top is refused.
    Its ``experiment.published`` is kept only while ``algorithm``, ``env`` and
    ``experiment.total_timesteps`` are the experiment's own; another seed, name or evaluation
    leaves the score comparable.

    Raises `ConfigError` with one line per mistake.
    """
    config = validated(Config, compose(overrides))
    check(config)
    return config


def check(config: Config) -> None:
    """Check what only the algorithm's own signatures know; `ConfigError`."""
    name, params, n_envs = config.algorithm.name, config.algorithm.params, config.env.n_envs
    algorithms.check(name, config.algorithm.policy, params)
    algorithms.check_batch(name, params, n_envs)
    if isinstance(config.env.normalize, dict):
        algorithms.check_normalize(config.env.normalize)


def compose(overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What `load_config` validates: the configuration as plain dicts, lists and scalars."""
    return composition.compose(overrides, verbatim=set(messages.texts(Config)))


def validated(section: type[SectionT], values: Mapping[str, Any] | BaseModel, prefix: str = "") -> SectionT:
    """*values* as *section*, which stands at *prefix*; `ConfigError` with one line per mistake."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(messages.explain(error, section, prefix)) from None


def settings() -> dict[str, str]:
    """Every setting's path with what it means, in the order of `Config`."""
    return dict(messages.leaves(Config))
