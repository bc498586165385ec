"""deployment.yaml, read strictly: Prefect itself passes over keys that it does not know.

`problems` finds every mistake without a server: unknown keys, schedules and triggers that Prefect cannot
use, parameters that a flow does not take, overrides that do not describe an experiment.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import construct_schedule
from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
from prefect.flows import load_flow_from_entrypoint
from pydantic import TypeAdapter, ValidationError

from rl_research.config import did_you_mean, load_config
from rl_research.errors import ConfigError, RLResearchError
from rl_research.orchestration import prefect_private

FILE = Path("deployment.yaml")
_VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")


def read(path: Path = FILE) -> dict[str, Any]:
    """Return the deployments file as plain values; `ConfigError` with a line for each mistake in it."""
    raw = parsed(path)
    if found := list(problems(raw, path.parent)):
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in found))
    return raw


def parsed(path: Path) -> dict[str, Any]:
    """Return the file as plain values, unchecked; `ConfigError` if it is no mapping."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. Start the command where deployment.yaml lies."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("deployments"), list):
        raise ConfigError(f"{path}: should be a mapping with a list `deployments`.")
    return raw


def problems(raw: Mapping[str, Any], folder: Path = Path()) -> Iterator[str]:
    """Yield the mistakes in *raw*, whose entrypoints lie below *folder*, a line each."""
    yield from _unknown(raw, {*prefect_private.deployment_keys()["file"], "definitions"}, "the file")
    yield from _unset_variables(raw)
    seen: set[tuple[str, object]] = set()
    for entry in raw["deployments"]:
        if not isinstance(entry, dict):
            yield f"{entry!r} is no deployment: it should be a mapping."
            continue
        where = str(entry.get("name"))
        for problem in dict.fromkeys(_problems_of(entry, raw, folder)):
            yield f"{where}: {problem}"
        name = (str(entry.get("entrypoint")), entry.get("name"))
        if name in seen:
            yield f"{where}: there are two of that name for {name[0]}."
        seen.add(name)


def flow_of(entry: Mapping[str, Any], folder: Path = Path()) -> Flow[..., Any]:
    """Return the flow that *entry* of the file deploys: that of a file below *folder*, or of a module."""
    entrypoint = entry["entrypoint"]
    return _flow_at(entrypoint if is_module_path(entrypoint) else str(folder.absolute() / entrypoint))


def is_module_path(entrypoint: str) -> bool:
    """Return whether *entrypoint* names a module, as ``rl_research.flows.train:train``, and no file."""
    return ".py:" not in entrypoint


@lru_cache
def _flow_at(entrypoint: str) -> Flow[..., Any]:
    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    return flow


def _problems_of(entry: dict[str, Any], raw: Mapping[str, Any], folder: Path) -> Iterator[str]:
    yield from _unknown(entry, prefect_private.deployment_keys()["deployment"], "a deployment")
    if not entry.get("name"):
        yield "has no name."
    if entry.get("sla"):
        yield "'sla' is a feature of Prefect Cloud alone."
    yield from _work_pool(entry.get("work_pool"), raw)
    yield from _limit(entry.get("concurrency_limit"))
    try:
        flow = flow_of(entry, folder)
    except Exception as error:  # noqa: BLE001  # whatever importing it raises is the answer
        yield f"entrypoint {entry.get('entrypoint')!r}: {type(error).__name__}: {error}"
        return
    given = entry.get("parameters") or {}
    yield from _parameters(given, flow, complete=False)
    for schedule in entry.get("schedules") or ():
        yield from _schedule(schedule, given, flow)
    for trigger in entry.get("triggers") or ():
        yield from _trigger(trigger, given, flow)


def _work_pool(pool: Any, raw: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(pool, dict):
        yield "has no work_pool, so nobody would run it."
        return
    yield from _unknown(pool, prefect_private.deployment_keys()["work_pool"], "a work_pool")
    declared = raw.get("definitions") or {}
    known = {str(name) for name in (declared.get("queues") or {})}
    if str(queue := pool.get("work_queue_name")) not in known:
        yield f"work_queue_name: {queue!r} is not in definitions.queues.{did_you_mean(str(queue), known)}"
    if pool.get("name") != (declared.get("work_pool") or {}).get("name"):
        yield f"work_pool: {pool.get('name')!r} is not the pool of definitions.work_pool."


def _limit(limit: Any) -> Iterator[str]:
    if limit is None or isinstance(limit, int):
        return
    yield from _unknown(limit, prefect_private.deployment_keys()["concurrency_limit"], "a concurrency_limit")
    strategies = [strategy.value for strategy in ConcurrencyLimitStrategy]
    if (strategy := limit.get("collision_strategy", "ENQUEUE")) not in strategies:
        yield f"collision_strategy: {strategy!r} is none of {', '.join(strategies)}."


def _schedule(schedule: Any, given: Mapping[str, Any], flow: Flow[..., Any]) -> Iterator[str]:
    try:
        known = prefect_private.parsed_schedule(schedule)
        construct_schedule(
            interval=known.interval,
            anchor_date=schedule.get("anchor_date"),
            cron=known.cron,
            rrule=known.rrule,
            timezone=known.timezone,
        )
    except (ValidationError, ValueError, TypeError) as error:
        yield f"schedule {schedule}: {_line(error)}"
        return
    if not known.slug:
        yield f"schedule {schedule}: has no slug, by which another deploy would know it."
    if known.interval is not None and not known.anchor_date:
        yield f"schedule {known.slug}: an interval without anchor_date begins anew at every deploy."
    yield from _parameters({**given, **known.parameters}, flow, complete=True)


def _trigger(trigger: Any, given: Mapping[str, Any], flow: Flow[..., Any]) -> Iterator[str]:
    adapter: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
    try:
        known = adapter.validate_python(trigger)
    except ValidationError as error:
        yield f"trigger {trigger}: {_line(error)}"
        return
    yield from _unknown(trigger, prefect_private.field_names(type(known)), "a trigger")
    if trigger.get("type", "event") == "event" and not trigger.get("expect"):
        yield "a trigger without 'expect' would fire at every event."
    yield from _parameters({**given, **(trigger.get("parameters") or {})}, flow, complete=True)


def _parameters(given: Mapping[str, Any], flow: Flow[..., Any], complete: bool) -> Iterator[str]:
    """Yield mistakes in what *flow* is given; *complete* if nobody adds to it when it starts."""
    accepted = inspect.signature(flow.fn).parameters
    unknown = list(_unknown(given, accepted, f"a parameter of {flow.name}"))
    yield from unknown
    required = {name for name, parameter in accepted.items() if parameter.default is parameter.empty}
    if unknown or ((missing := required - set(given)) and not complete):
        return
    if missing:
        yield f"starts by itself without {', '.join(sorted(missing))}."
        return
    try:
        flow.validate_parameters(dict(given))
    except Exception as error:  # noqa: BLE001  # Prefect's own error types vary; the text is the answer
        yield f"parameters: {_line(error)}"
    else:
        yield from _overrides(given)


def _overrides(given: Mapping[str, Any]) -> Iterator[str]:
    if "overrides" not in given:
        return
    for more in given.get("grid") or [[]]:
        try:
            load_config([*given["overrides"], *more])
        except RLResearchError as error:
            yield f"overrides: {error}"


def _unknown(values: Any, known: Collection[str], what: str) -> Iterator[str]:
    if not isinstance(values, Mapping):
        yield f"{values!r}: {what} should be a mapping."
        return
    for key in values:
        if key not in known:
            yield f"{key!r} is not a key of {what}.{did_you_mean(str(key), known)}"


def _unset_variables(raw: Mapping[str, Any]) -> Iterator[str]:
    """Yield the variables that the environment lacks; Prefect would store the braces themselves."""
    for name in sorted({name for name in _VARIABLE.findall(str(raw)) if name not in os.environ}):
        yield f"{{{{ ${name} }}}}: the environment has no {name}."


def _line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, found['loc'])) or 'it'}: {found['msg']}" for found in error.errors()
        )
    return " ".join(str(error).split())
