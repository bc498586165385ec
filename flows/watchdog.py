"""Find flow runs whose process is gone, and schedule again what can go on.

prefect deployment run watchdog/every-5-minutes

A killed process cannot say that it was killed. A flow run that lives sends heartbeats; one that has been
silent for three of them, twice seen, and whose run nobody has open, is `Killed`. Who has it open is seen
by a lock on this machine, and for any other by the lease in its `storage.url`: renewed between the two
looks, it belongs to a machine that lives and cannot reach Prefect. What a worker itself has reported as
killed is taken up, too. Training and studies go on from what they have committed, after a delay that
grows as long as they do not get on, at most five times at the same step.
"""

# No `from __future__ import annotations`: see flows/train.py.

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from prefect import flow, get_client, get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.logging.loggers import LoggingAdapter
from prefect.states import Cancelled, Crashed

from rl_research.config import Config
from rl_research.errors import RLResearchError
from rl_research.orchestration import pipeline, recovery
from rl_research.runs import holder_of, read_record, stored_lease
from rl_research.storage import is_transient
from rl_research.studies import Study, plan_study, study_name
from rl_research.training import trained_steps

_GOES_ON = ("train", "study")
_UNDER_WAY = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
_STARTING = timedelta(minutes=5)  # from being taken by a worker to the first heartbeat
_RECENT = timedelta(days=2)  # what crashed before and was not taken up is somebody's decision
_SETTLED = timedelta(seconds=20)  # a worker reports a crash twice, some seconds apart
_SECOND_LOOK = 40.0  # seconds; more than a heartbeat, so that an API that was away is not held against it

#: What is to be seen in the store of each run that a flow run trains.
Leases = list[dict[str, Any] | None]


@flow(name="watchdog", log_prints=False)
def watchdog(silence: float = 90.0) -> list[str]:
    """Look after every flow run of this package's deployments; what was done, a line each.

    *silence* is in seconds and should be three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) or more.
    """
    log = get_run_logger()
    with get_client(sync_client=True) as client:
        done = [
            *(_bury(client, run, log) for run in _lost(client, timedelta(seconds=silence), log)),
            *(line for run in _crashed(client) if (line := _take_up(client, run, log))),
        ]
    for line in done:
        log.warning("%s", line)
    return done


def _lost(
    client: SyncPrefectClient, silence: timedelta, log: logging.Logger | LoggingAdapter
) -> Iterator[FlowRun]:
    """Flow runs that are under way to Prefect, and of which nothing is to be heard or seen."""
    under_way = _read(client, _UNDER_WAY)
    quiet = [(run, _leases(run, log)) for run in under_way if _is_quiet(client, run, silence)]
    if quiet:
        time.sleep(max(_SECOND_LOOK, *(_until_renewed(run) for run, _ in quiet)))
    for run, leases in quiet:
        now = client.read_flow_run(run.id)
        if now.state_id != run.state_id or not _is_quiet(client, now, silence) or _is_open(now):
            continue
        if reason := _to_be_spared(leases, _leases(now, log)):
            log.warning("%s: silent, but its lease in storage.url %s", run.name, reason)
        else:
            yield now


def _is_quiet(client: SyncPrefectClient, run: FlowRun, silence: timedelta) -> bool:
    assert run.state is not None
    since = [run.state.timestamp, *_heartbeats(client, run)]
    patience = max(silence, _STARTING) if run.state.is_pending() else silence
    return datetime.now(timezone.utc) - max(since) > patience


def _heartbeats(client: SyncPrefectClient, run: FlowRun) -> list[datetime]:
    beat = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    return [event.occurred for event in client.read_events(beat, limit=1).events]


def _bury(client: SyncPrefectClient, run: FlowRun, log: logging.Logger | LoggingAdapter) -> str:
    """Say for a lost flow run that it is dead, and schedule it again if it can go on."""
    assert run.state is not None
    if run.state.is_cancelling():
        message = "cancelled; its process was gone before it could say so"
        client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        return f"{run.name}: {message}"
    cause = f"no sign of life since {run.state.timestamp:%H:%M} UTC or later: its process is gone"
    if _flow_name(client, run) not in _GOES_ON:
        client.set_flow_run_state(run.id, Crashed(message=cause), force=True)
        return f"{run.name}: {cause}"
    return _go_on(client, run, cause, log)


def _crashed(client: SyncPrefectClient) -> Iterator[FlowRun]:
    """Flow runs that were killed, or that finished when nobody could be told, and that can go on."""
    now = datetime.now(timezone.utc)
    for run in _read(client, (StateType.CRASHED,)):
        assert run.state is not None
        recent = now - run.state.timestamp < _RECENT
        if recent and (recovery.was_killed(run.state) or _is_finished(run)):
            yield run


def _take_up(client: SyncPrefectClient, run: FlowRun, log: logging.Logger | LoggingAdapter) -> str | None:
    assert run.state is not None
    age = datetime.now(timezone.utc) - run.state.timestamp
    time.sleep(max(0.0, (_SETTLED - age).total_seconds()))
    now = client.read_flow_run(run.id).state
    if now is None or now.id != run.state.id or _flow_name(client, run) not in _GOES_ON:
        return None
    return _go_on(client, run, str(now.message), log)


def _go_on(client: SyncPrefectClient, run: FlowRun, cause: str, log: logging.Logger | LoggingAdapter) -> str:
    if run.state_name not in (recovery.KILLED, recovery.PREEMPTED):
        dead = recovery.killed(_step(run), cause)
        client.set_flow_run_state(run.id, dead, force=True)
    state = recovery.go_on(client, run.id, log)
    return f"{run.name}: {cause}; {state.message if state else 'it is being cancelled'}"


def _read(client: SyncPrefectClient, kinds: Sequence[StateType]) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            tags=FlowRunFilterTags(all_=["rl_research"]),
            deployment_id=FlowRunFilterDeploymentId(is_null_=False),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(kinds))),
        ),
        limit=200,
    )


def _flow_name(client: SyncPrefectClient, run: FlowRun) -> str:
    return client.read_flow(run.flow_id).name


def _config(run: FlowRun) -> Config | None:
    """The experiment that *run* trains; None if it trains none, or none that can be."""
    overrides = run.parameters.get("overrides")
    if overrides is None or "seeds" in run.parameters:
        return None
    try:
        return pipeline.experiment_of(overrides, str(run.id)).config
    except RLResearchError:
        return None


def _configs(run: FlowRun) -> list[Config]:
    """The experiment that *run* trains, or those of a study's members; none if there is none that can be."""
    if (config := _config(run)) is not None:
        return [config]
    try:
        planned = _study(run)
    except RLResearchError:
        return []
    return [] if planned is None else [member.config for member in planned.members]


def _study(run: FlowRun) -> Study | None:
    given = run.parameters
    if not {"name", "overrides", "seeds"} <= given.keys():
        return None
    name = study_name(given["name"], given.get("afresh", False), str(run.id))
    return plan_study(name, given["overrides"], given["seeds"], given.get("grid") or ())


def _leases(run: FlowRun, log: logging.Logger | LoggingAdapter) -> Leases | None:
    """The leases of *run* in its store; None if that does not answer now."""
    try:
        return [stored_lease(config) for config in _configs(run)]
    except Exception as error:  # noqa: BLE001  # what refuses the watchdog refuses the run, which says so
        log.warning("%s: its lease in storage.url cannot be read: %s", run.name, error)
        return None if is_transient(error) else []


def _to_be_spared(before: Leases | None, after: Leases | None) -> str | None:
    """Why not to bury a run: a lease was renewed, or may have been; None if none was."""
    if before is None or after is None:
        return "cannot be asked; looked at again in the next round"
    if any(now is not None and now != then for then, now in zip(before, after, strict=False)):
        return "is renewed: it lives"
    return None


def _until_renewed(run: FlowRun) -> float:
    """Seconds in which a holder of *run* that lives has renewed its lease: it does so every third of it."""
    return max((c.storage.lease / 2 for c in _configs(run) if c.storage.url), default=0.0)


def _is_open(run: FlowRun) -> bool:
    config = _config(run)
    return config is not None and holder_of(config.run_dir) is not None


def _is_finished(run: FlowRun) -> bool:
    config = _config(run)
    record = None if config is None else read_record(config.run_dir)
    return record is not None and record.is_finished


def _step(run: FlowRun) -> int:
    """How far it has come, as far as that can be known now."""
    try:
        if (config := _config(run)) is not None:
            return trained_steps(config)
        return 0 if (planned := _study(run)) is None else planned.steps
    except Exception as error:
        if not isinstance(error, RLResearchError) and not is_transient(error):
            raise
        return 0
