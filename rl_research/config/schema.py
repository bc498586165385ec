"""A `Config` and its sections: every setting with its type, bounds and meaning."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rl_research.config import messages
from rl_research.config.composition import RUN_DIR
from rl_research.config.frozen import FrozenDict, freeze
from rl_research.config.parts import Parts
from rl_research.errors import ConfigError
from rl_research.system import expanded


def _not_a_truth_value(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_not_a_truth_value)]
Steps = Annotated[Whole, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, le=2**31 - 1)]
Number = Annotated[FiniteFloat, BeforeValidator(_not_a_truth_value)]
Seconds = Annotated[Number, Field(gt=0)]
Arguments = Annotated[dict[str, Any], AfterValidator(freeze)]


class Section(BaseModel):
    """Part of a configuration: frozen, and a key that is not listed is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_set(cls, value: object) -> object:
        if value == "???":
            raise PydanticCustomError("missing_value", "is not set")
        return value


class Published(Section):
    """Score that others reached with the same settings, shown beside ours."""

    mean: Number = Field(description="mean return", examples=[500.0])
    std: Number | None = Field(None, description="its standard deviation", examples=[0.0])
    source: str = Field(min_length=1, description="where it is published", examples=["a paper"])


class ExperimentSettings(Section):
    """Name, seed and length of the training."""

    name: str | None = Field(None, description="name of the experiment", examples=["my_first"])
    seed: Seed = Field(0, description="seed of everything random in training")
    total_timesteps: Count = Field(100_000, description="environment steps to train, rounded up to whole rollouts")
    log_every: Count = Field(1_000, description="environment steps between metric rows")
    torch_threads: Count = Field(1, description="threads of torch; part of what a seed means")
    published: Published | None = Field(
        None, description="the score to compare with", examples=[{"mean": 500.0, "source": "a paper"}]
    )


class AlgorithmSettings(Section):
    """Algorithm of Stable-Baselines3 or sb3-contrib, and its constructor's arguments."""

    name: str = Field(description="algorithm", examples=["ppo"])
    policy: str = Field("MlpPolicy", description="policy class", examples=["MlpPolicy"])
    params: Arguments = Field(
        default_factory=FrozenDict, description="constructor arguments", examples=[{"gamma": 0.99}]
    )


class EnvSettings(Section):
    """Environment, and how many copies of it step together."""

    id: str = Field(min_length=1, description="gymnasium id", examples=["CartPole-v1"])
    n_envs: Count = Field(1, le=10_000, description="copies of the environment that step together")
    normalize: bool | Arguments = Field(False, description="VecNormalize: true, or its arguments", examples=["true"])
    max_episode_steps: Count | None = Field(None, description="truncate episodes after", examples=[500])
    vec_env: Literal["dummy", "subproc"] = Field("dummy", description="one process or many")
    start_method: Literal["fork", "forkserver", "spawn"] | None = Field(
        None, description="how env.vec_env=subproc starts its workers; null: as SB3 does", examples=["spawn"]
    )
    kwargs: Arguments = Field(default_factory=FrozenDict, description="arguments of gymnasium.make")
    wrappers: Parts = Field(
        (), description="wrappers, the first innermost", examples=["[{FrameStackObservation: {stack_size: 4}}]"]
    )
    vec_wrappers: Parts = Field(
        (), description="wrappers of all copies together", examples=["[{VecFrameStack: {n_stack: 4}}]"]
    )
    check: bool = Field(True, description="play a few steps before anything is written")
    replay: bool = Field(True, description="try with further copies whether a replay resumes what cannot be pickled")
    restarts: Steps = Field(0, description="times that a run goes on after an environment has failed")

    @field_validator("start_method")
    @classmethod
    def _starts_workers(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("vec_env") == "dummy":
            raise ValueError("there are no workers to start; add env.vec_env=subproc")
        return value


class WandbSettings(Section):
    """Run as Weights & Biases sees it."""

    project: str = Field("rl_research", min_length=1, max_length=128, description="W&B project")
    entity: str | None = Field(None, description="W&B user or team", examples=["my_team"])
    group: str | None = Field(None, max_length=128, description="W&B group", examples=["seeds"])
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        (), description="W&B tags", examples=["[training,ppo]"]
    )
    mode: Literal["online", "offline", "disabled"] = Field("offline", description="where rows go")
    dir: str = Field(RUN_DIR, min_length=1, description="folder that gets the wandb folder")
    name: str | None = Field(None, max_length=128, description="display name", examples=["first"])
    job_type: str | None = Field("train", max_length=64, description="W&B job type")
    notes: str | None = Field(None, description="free text", examples=["baseline"])
    max_rows: Count = Field(10_000, description="rows logged singly before blocks are averaged")
    fallback: bool = Field(True, description="go on offline where online is not possible")
    init_timeout: Seconds = Field(20.0, description="seconds to start online")
    finish_timeout: Seconds = Field(120.0, description="seconds to finish")

    @field_validator("project")
    @classmethod
    def _project_name(cls, value: str) -> str:
        if bad := sorted(set(value) & set("/\\#?%:")):
            raise ValueError(f"W&B project names cannot contain {' '.join(bad)}")
        return value


class EvaluationSettings(Section):
    """How the policy is scored: while training, and at the end on held-out seeds."""

    enabled: bool = Field(True, description="evaluate at all")
    every: Steps = Field(10_000, description="environment steps between evaluations, 0 for none")
    episodes: Count = Field(10, description="episodes per evaluation while training")
    final_episodes: Steps = Field(100, description="episodes of the final score, 0 for none")
    deterministic: bool = Field(True, description="act by the mode of the policy")
    seed: Seed = Field(1_000_000, description="episode k resets with seed + k")
    max_steps: Count | None = Field(
        None, description="longest episode; null: the environment's own limit, else 100,000", examples=[5_000]
    )


class CheckpointSettings(Section):
    """When the run is committed, and which commits are kept."""

    every: Steps = Field(25_000, description="environment steps between checkpoints, 0: the last")
    keep_last: Count = Field(2, description="newest checkpoints to keep")
    deadline: Annotated[float, Field(gt=0, le=3600)] = Field(
        25.0, description="seconds from a signal until the run has stopped, come what may"
    )
    keep_best: Steps = Field(1, description="best-scored checkpoints to keep")
    keep_every: Steps = Field(0, description="steps between those kept for ever, 0: none")


class VideoSettings(Section):
    """Which episodes are filmed, in an environment of their own."""

    enabled: bool = Field(True, description="film at all")
    every: Steps = Field(0, description="environment steps between videos, 0: only the last")
    max_steps: Count = Field(1_000, description="longest film, in environment steps")


class StorageSettings(Section):
    """Where checkpoints go besides the run folder."""

    url: str | None = Field(
        None,
        min_length=1,
        description="fsspec URL, also gs://BUCKET/PREFIX or a folder",
        examples=["s3://BUCKET/PREFIX"],
    )
    options: Arguments = Field(default_factory=FrozenDict, description="options of the fsspec class")
    lease: Seconds = Field(60.0, description="seconds of silence after which another machine takes a run over")
    timeout: Seconds = Field(60.0, description="seconds a transfer may stand still")
    retry_for: Annotated[Number, Field(ge=0)] = Field(
        900.0, description="seconds over which connection failures are tried again"
    )
    flush_timeout: Seconds = Field(600.0, description="seconds that uploads may take once the run is done")


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_])?")


class Config(Section):
    """An experiment, complete and checked."""

    experiment: ExperimentSettings = Field(default_factory=ExperimentSettings)
    algorithm: AlgorithmSettings = Field(examples=["ppo"])
    env: EnvSettings = Field(examples=["cartpole"])
    wandb: WandbSettings = Field(default_factory=WandbSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    video: VideoSettings = Field(default_factory=VideoSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    plugins: Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(
        (), description="modules that register names", examples=["[my_lab.extras]"]
    )
    callbacks: Parts = Field((), description="callbacks that plugins bring", examples=["[{my_callback: {freq: 1000}}]"])
    sinks: Parts = Field((), description="what gets each row of metrics besides W&B", examples=["[my_sink]"])
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto: go on where the run stopped; never: start it afresh"
    )
    config_dirs: tuple[str, ...] = Field(
        (), description="folders with configurations of your own, found before ours", examples=["[configs]"]
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
    def _seeds_are_apart(self) -> "Config":
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
        """Name of the experiment: given, or ``{env}__{algorithm}``."""
        return self.experiment.name or f"{self.env.id.split(':')[-1]}__{self.algorithm.name}"

    @property
    def run_dir(self) -> Path:
        """Folder of the run, ``{runs_dir}/{run_id}``; `ValueError` without a ``run_id``."""
        if self.run_id is None:
            raise ValueError("this Config describes no run yet; use `with_run_id`")
        return expanded(self.runs_dir) / self.run_id

    def with_run_id(self, run_id: str) -> "Config":
        """Return the same experiment as the run *run_id*."""
        return validated(Config, {**self.model_dump(), "run_id": run_id})


SectionT = TypeVar("SectionT", bound=Section)


def validated(section: type[SectionT], values: Mapping[str, Any] | BaseModel, prefix: str = "") -> SectionT:
    """Return *values* as *section*, which stands at *prefix*; `ConfigError` with one line per mistake."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ConfigError(messages.explain(error, section, prefix)) from None


def settings() -> dict[str, str]:
    """Return every setting's path with its meaning, in the order of `Config`."""
    fields = messages.fields_of(Config)
    sections = {path: messages.model_in(field) for path, field in fields.items() if messages.model_in(field)}
    optional = tuple(f"{path}." for path, model in sections.items() if fields[path].annotation is not model)
    return {
        path: field.description or ""
        for path, field in fields.items()
        if field.annotation is not sections.get(path, False) and not path.startswith(optional)
    }
