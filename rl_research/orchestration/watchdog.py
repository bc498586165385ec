"""Flow runs whose process is gone: found, marked as crashed, and scheduled again if they can go on.

A killed process cannot say that it was killed. A flow run that lives sends heartbeats; one that has been
silent for three of them, at two looks, and whose run nobody has open, is `Killed`. A lock shows who has the
run open on this machine. For any other machine the lease in ``storage.url`` shows it: if it is renewed
between the two looks, it belongs to a machine that lives and cannot reach Prefect.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import cached_property

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.states import Cancelled, Crashed

from rl_research.config import Config
from rl_research.errors import RLResearchError
from rl_research.orchestration import recovery
from rl_research.orchestration.flow_runs import experiment_of
from rl_research.runs import holder_of, read_record, stored_lease
from rl_research.storage import is_transient
from rl_research.studies import plan_study, study_name
from rl_research.training import trained_steps

_log = logging.getLogger(__name__)
_RESUMABLE = ("train", "study")
_UNDER_WAY = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
_STARTING = timedelta(minutes=5)  # from being taken by a worker to the first heartbeat
_RECENT = timedelta(days=2)  # what crashed before and was not scheduled again is somebody's decision
_REPORTED = timedelta(seconds=20)  # a worker reports a crash twice, some seconds apart

#: The lease of each run that a flow run trains, as its store shows it.
Leases = Sequence[object]


class _Subject:
    """A flow run of one of our deployments, and the runs that its parameters describe."""

    def __init__(self, flow_run: FlowRun) -> None:
        assert flow_run.state is not None
        self.flow_run, self.state = flow_run, flow_run.state

    @cached_property
    def configs(self) -> list[Config]:
        """Configurations of its runs; none where its parameters are wrong, which it says itself."""
        given, flow_run_id = self.flow_run.parameters, str(self.flow_run.id)
        try:
            if {"name", "overrides", "seeds"} <= given.keys():
                name = study_name(given["name"], given.get("afresh", False), flow_run_id)
                study = plan_study(name, given["overrides"], given["seeds"], given.get("grid") or ())
                return [member.config for member in study.members]
            return [experiment_of(tuple(given["overrides"]), flow_run_id).config] if "overrides" in given else []
        except RLResearchError:
            return []

    def leases(self) -> Leases | None:
        """Return the leases of its runs; None if their store does not answer now."""
        try:
            return [stored_lease(config) for config in self.configs]
        except Exception as error:  # noqa: BLE001  # what refuses the watchdog refuses the flow run
            _log.warning("%s: its lease in storage.url cannot be read: %s", self.flow_run.name, error)
            return None if is_transient(error) else []

    def seconds_to_renew(self) -> float:
        """Return how long a holder that lives needs to renew a lease: it does so every third of it."""
        return max((c.storage.lease / 2 for c in self.configs if c.storage.url), default=0.0)

    def is_open(self) -> bool:
        """Return whether a process on this machine has a run of it open."""
        return any(holder_of(config.run_dir) for config in self.configs)

    def is_finished(self) -> bool:
        """Return whether its runs are finished: it ended while Prefect was away."""
        records = [read_record(config.run_dir) for config in self.configs]
        return bool(records) and all(record is not None and record.is_finished for record in records)

    def step(self) -> int:
        """Return the steps that its runs have committed, as far as that can be known now."""
        try:
            return sum(map(trained_steps, self.configs))
        except Exception as error:
            if not isinstance(error, RLResearchError) and not is_transient(error):
                raise
            return 0


def repair_flow_runs(client: SyncPrefectClient, silence: timedelta, second_look: float) -> list[str]:
    """Mark lost flow runs as crashed, and schedule again what can go on; return what was done, a line each.

    A flow run is lost after *silence*, seen again *second_look* seconds later. What a worker has reported as
    killed is scheduled again, too.
    """
    lost = [_mark_crashed(client, subject) for subject in _lost(client, silence, second_look)]
    return [*lost, *_resume_crashed(client)]


def _lost(client: SyncPrefectClient, silence: timedelta, second_look: float) -> Iterator[_Subject]:
    """Yield flow runs that are under way to Prefect, while no heartbeat, lock or lease shows life."""
    subjects = [_Subject(run) for run in _read(client, _UNDER_WAY) if _is_silent(client, run, silence)]
    looks = [(subject, subject.leases()) for subject in subjects]
    if looks:
        time.sleep(max(second_look, *(subject.seconds_to_renew() for subject in subjects)))
    for subject, before in looks:
        now = client.read_flow_run(subject.flow_run.id)
        moves = now.state_id != subject.flow_run.state_id or not _is_silent(client, now, silence)
        if moves or subject.is_open():
            continue
        if reason := _reason_to_spare(before, subject.leases()):
            _log.warning("%s: silent, but its lease in storage.url %s", now.name, reason)
        else:
            yield subject


def _is_silent(client: SyncPrefectClient, run: FlowRun, silence: timedelta) -> bool:
    assert run.state is not None
    heartbeat = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    heard = [event.occurred for event in client.read_events(heartbeat, limit=1).events]
    allowed = max(silence, _STARTING) if run.state.is_pending() else silence
    return datetime.now(timezone.utc) - max([run.state.timestamp, *heard]) > allowed


def _reason_to_spare(before: Leases | None, after: Leases | None) -> str | None:
    """Return why a flow run may live: a lease was renewed, or may have been; None if none was."""
    if before is None or after is None:
        return "cannot be asked; looked at again in the next round"
    if any(now is not None and now != then for then, now in zip(before, after, strict=False)):
        return "is renewed: it lives"
    return None


def _mark_crashed(client: SyncPrefectClient, subject: _Subject) -> str:
    run, state = subject.flow_run, subject.state
    _end_task_runs(client, run)
    cause = f"no sign of life since {state.timestamp:%H:%M} UTC or later: its process is gone"
    final: State[object] = Crashed(message=cause)
    if state.is_cancelling():
        cause = "cancelled; its process was gone before it could say so"
        final = Cancelled(message=cause)
    elif _is_resumable(client, run):
        return _resume(client, subject, cause)
    client.set_flow_run_state(run.id, final, force=True)
    return f"{run.name}: {cause}"


def _resume_crashed(client: SyncPrefectClient) -> Iterator[str]:
    """Schedule again what was killed, or finished while Prefect was away; yield what was done, a line each."""
    for subject in map(_Subject, _read(client, (StateType.CRASHED,))):
        age = datetime.now(timezone.utc) - subject.state.timestamp
        if age > _RECENT or not (recovery.was_killed(subject.state) or subject.is_finished()):
            continue
        time.sleep(max(0.0, (_REPORTED - age).total_seconds()))
        now = client.read_flow_run(subject.flow_run.id).state
        if now is not None and now.id == subject.state.id and _is_resumable(client, subject.flow_run):
            yield _resume(client, subject, str(now.message))


def _resume(client: SyncPrefectClient, subject: _Subject, cause: str) -> str:
    run = subject.flow_run
    _end_task_runs(client, run)
    if subject.state.name not in (recovery.KILLED, recovery.PREEMPTED):
        client.set_flow_run_state(run.id, recovery.killed_state(subject.step(), cause), force=True)
    state = recovery.schedule_again(client, run.id)
    return f"{run.name}: {cause}; {state.message if state else 'it is being cancelled'}"


def _end_task_runs(client: SyncPrefectClient, run: FlowRun) -> None:
    """Mark the task runs of *run* that its process has left behind, which would be running for ever."""
    under_way = filters.TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    left = client.read_task_runs(
        flow_run_filter=filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[run.id])),
        task_run_filter=filters.TaskRunFilter(state=filters.TaskRunFilterState(type=under_way)),
    )
    for task_run in left:
        client.set_task_run_state(task_run.id, Crashed(message="its process is gone"), force=True)


def _is_resumable(client: SyncPrefectClient, run: FlowRun) -> bool:
    return client.read_flow(run.flow_id).name in _RESUMABLE


def _read(client: SyncPrefectClient, kinds: Sequence[StateType]) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=filters.FlowRunFilter(
            tags=filters.FlowRunFilterTags(all_=["rl_research"]),
            deployment_id=filters.FlowRunFilterDeploymentId(is_null_=False),
            state=filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=list(kinds))),
        ),
        limit=200,
    )
