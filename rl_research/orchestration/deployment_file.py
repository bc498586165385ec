"""deployment.yaml, read strictly: Prefect itself passes over keys that it does not know.

`problems` finds every mistake without a server: unknown keys, schedules and triggers that Prefect cannot
use, parameters that a flow does not take, overrides that do not describe an experiment.
"""

import inspect
import os
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import construct_schedule
from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
from prefect.flows import load_flow_from_entrypoint
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler as Validate,
    WrapValidator,
    model_validator,
)

from rl_research.config import Section, did_you_mean, load_config, validated
from rl_research.errors import ConfigError, RLResearchError

FILE = Path("deployment.yaml")
_VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")


def _check_keys(values: Any, known: Collection[str]) -> None:
    for key in values if isinstance(values, Mapping) else ():
        if key not in known:
            raise ValueError(f"'{key}' is not a key here.{did_you_mean(str(key), known)}")


class _WorkPool(Section):
    name: str
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)


class _Limit(ConcurrencyLimitConfig, Section):
    pass


def _as_limit(value: Any) -> Any:
    return {"limit": value} if isinstance(value, int) else value


class _Schedule(Section):
    slug: str  # by which another deploy knows it
    cron: str | None = None
    interval: timedelta | None = None
    rrule: str | None = None
    timezone: str | None = None
    anchor_date: datetime | None = None
    day_or: bool = True
    active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_be_meant(self) -> "_Schedule":
        if len({"cron", "interval", "rrule"} & self.model_fields_set) != 1:
            raise ValueError("give exactly one of cron, interval and rrule")
        if self.interval is not None and self.anchor_date is None:
            raise ValueError("an interval without anchor_date begins anew at every deploy")
        construct_schedule(self.interval, self.anchor_date, self.cron, self.rrule, self.timezone)
        return self


def _strict_trigger(given: Any, validate: Validate) -> Any:
    trigger = validate(given)
    _check_keys(given, type(trigger).model_fields)
    if trigger.type == "event" and not trigger.expect:
        raise ValueError("a trigger without 'expect' would fire at every event")
    return trigger


class Deployment(Section):
    """A flow with its parameters, when it runs and where."""

    name: str
    entrypoint: str
    work_pool: _WorkPool
    version: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    enforce_parameter_schema: bool | None = None
    schedules: list[_Schedule] = Field(default_factory=list)
    paused: bool | None = None
    concurrency_limit: Annotated[_Limit | None, BeforeValidator(_as_limit)] = None
    triggers: list[Annotated[DeploymentTriggerTypes, WrapValidator(_strict_trigger)]] = Field(default_factory=list)
    build: Any = None
    push: Any = None
    pull: Any = None


class _NewPool(Section):
    name: str
    type: str


class _Definitions(BaseModel):
    """Work pool and queues, made before anything is deployed; other keys are YAML's anchors."""

    work_pool: _NewPool
    queues: dict[str, int | None]  # flow runs at a time, by queue; None: no limit


class DeploymentsFile(Section):
    """Whole content of deployment.yaml."""

    definitions: _Definitions
    deployments: list[Deployment]
    name: str | None = None
    prefect_version: str | None = Field(None, alias="prefect-version")
    build: Any = None
    push: Any = None
    pull: Any = None


def read(path: Path = FILE) -> DeploymentsFile:
    """Return the file at *path*; `ConfigError` with a line for each mistake in it."""
    raw = parsed(path)
    if found := list(problems(raw, path.parent)):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in found))
    return DeploymentsFile.model_validate(raw)


def parsed(path: Path) -> dict[str, Any]:
    """Return the file as plain values, unchecked; `ConfigError` if it has no list of deployments."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Start the command where deployment.yaml lies.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("deployments"), list):
        raise ConfigError(f"{path}: should be a mapping with a list `deployments`.")
    return raw


def problems(raw: Mapping[str, Any], folder: Path = Path()) -> Iterator[str]:
    """Yield the mistakes in *raw*, whose entrypoints lie below *folder*, a line each."""
    for name in sorted({name for name in _VARIABLE.findall(str(raw)) if name not in os.environ}):
        yield f"{{{{ ${name} }}}}: the environment has no {name}."  # Prefect would store the braces
    try:
        file = validated(DeploymentsFile, {**raw, "deployments": []})
    except ConfigError as error:
        yield from str(error).splitlines()
        return
    seen = set()
    for given in raw["deployments"]:
        where = given.get("name") if isinstance(given, Mapping) else given
        try:
            entry = validated(Deployment, given)
            found = list(_problems_of(entry, file.definitions, folder))
        except ConfigError as error:
            found = str(error).splitlines()
        else:
            if (entry.entrypoint, entry.name) in seen:
                yield f"{where}: there are two of that name for {entry.entrypoint}."
            seen.add((entry.entrypoint, entry.name))
        yield from (f"{where}: {problem}" for problem in dict.fromkeys(found))


@lru_cache
def flow_of(entrypoint: str, folder: Path = Path()) -> Flow[..., object]:
    """Return the flow at *entrypoint*: in a file below *folder*, or in a module."""
    path = str(folder.absolute() / entrypoint) if ".py:" in entrypoint else entrypoint
    flow: Flow[..., object] = load_flow_from_entrypoint(path, use_placeholder_flow=False)
    return flow


def _problems_of(entry: Deployment, declared: _Definitions, folder: Path) -> Iterator[str]:
    queue = str(entry.work_pool.work_queue_name)
    if queue not in declared.queues:
        hint = did_you_mean(queue, declared.queues)
        yield f"work_queue_name: {queue!r} is not in definitions.queues.{hint}"
    if entry.work_pool.name != declared.work_pool.name:
        yield f"work_pool: {entry.work_pool.name!r} is not the pool of definitions.work_pool."
    try:
        flow = flow_of(entry.entrypoint, folder)
    except Exception as error:  # noqa: BLE001  # whatever importing it raises is the answer
        yield f"entrypoint {entry.entrypoint!r}: {type(error).__name__}: {error}"
        return
    yield from _parameters(entry.parameters, flow, complete=False)
    for start in [*entry.schedules, *entry.triggers]:
        yield from _parameters({**entry.parameters, **(start.parameters or {})}, flow, complete=True)


def _parameters(given: Mapping[str, Any], flow: Flow[..., object], complete: bool) -> Iterator[str]:
    """Yield mistakes in what *flow* is given; *complete* if nobody adds to it when it starts."""
    accepted = inspect.signature(flow.fn).parameters
    required = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    missing = ", ".join(sorted(required - set(given)))
    try:
        _check_keys(given, accepted)
        if not missing:
            flow.validate_parameters(dict(given))
            for more in given.get("grid") or [[]] if "overrides" in given else ():
                load_config([*given["overrides"], *more])
        elif complete:
            yield f"starts by itself without {missing}."
    except RLResearchError as error:
        yield f"overrides: {error}"
    except Exception as error:  # noqa: BLE001  # Prefect's own error types vary; the text is the answer
        yield f"parameters: {' '.join(str(error).split())}"
