"""A flow run that was stopped or killed: how it ends, and when it is scheduled again.

A flow run that is asked to stop ends as `Preempted`. One that is killed cannot say so: the watchdog sets its
state, `Killed`. Both messages begin with the step, which shows whether the run makes progress.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from itertools import takewhile
from uuid import UUID

from prefect import Flow, runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.loggers import LoggingAdapter, flow_run_logger
from prefect.states import AwaitingRetry, Cancelled, Crashed, Failed

from rl_research.errors import Interrupted
from rl_research.orchestration import prefect_private
from rl_research.orchestration.api_client import best_effort, short_client

_log = logging.getLogger(__name__)

PREEMPTED = "Preempted"
KILLED = "Killed"
_TRIES = 5  # stops at one and the same step before a flow run is given up
_DELAY = 10.0  # seconds, doubled with each of them


def stopped_state(interruption: Interrupted, step: int) -> State[object]:
    """Return the final state of a flow run that was asked to stop and has committed.

    `Cancelled` if the flow run is being cancelled, else `Preempted`: of type CRASHED, which is no failure to
    Prefect.
    """
    if (flow_run_id := runtime.flow_run.id) is not None:
        failure = "did not answer whether the flow run is being cancelled"
        with best_effort(failure), short_client() as client:
            if _is_being_cancelled(_history(client, UUID(flow_run_id))):
                return Cancelled(message=str(interruption), data=interruption)
    return Crashed(name=PREEMPTED, message=f"step {step}: {interruption}", data=interruption)


def killed_state(step: int, cause: str) -> State[object]:
    """Return the state of a flow run whose process was killed when *step* was its newest checkpoint."""
    return Crashed(name=KILLED, message=f"step {step}: {cause}")


def reschedule_if_preempted(
    flow: Flow[..., object], flow_run: FlowRun, state: State[object], first_delay: float = _DELAY
) -> None:
    """Schedule the same flow run again if it ended as `Preempted`; a hook for `on_crashed`.

    Not for direct runs, which nobody would pick up, and runs that are being cancelled; nor for what has been
    stopped five times at the same step. The delay is *first_delay* seconds, and doubles as long as the step
    stays.

    What a signal has ended before it could commit, and what a dying worker takes with it, is left to the
    watchdog: a worker reports such a crash once more after this hook, and would undo what it did.

    An API that does not answer costs some seconds and a line in the log; the state stays `Preempted`.
    """
    if flow_run.deployment_id is None or state.name != PREEMPTED:
        return
    log = flow_run_logger(flow_run, flow)
    failure = f"did not answer scheduling it again (`prefect flow-run retry {flow_run.id}` will)"
    with best_effort(failure, log), short_client() as client:
        schedule_again(client, flow_run.id, log, first_delay)


def schedule_again(
    client: SyncPrefectClient,
    flow_run_id: UUID,
    log: logging.Logger | LoggingAdapter = _log,
    first_delay: float = _DELAY,
) -> State[object] | None:
    """Schedule a stopped flow run again, or give it up; return its state, None if it is being cancelled.

    Given up, it is `Failed`, with the step that it does not get beyond and with what stopped it there.
    """
    history = _history(client, flow_run_id)
    if _is_being_cancelled(history):
        return None
    times = _stops_without_progress(history)
    if times >= _TRIES:
        reason = f"stopped {times} times without getting on; {history[-1].message}"
        log.error("%s: not scheduled again", reason)
        remedy = f"When that is mended: prefect flow-run retry {flow_run_id}"
        state: State[object] = Failed(message=f"{reason} {remedy}")
    else:
        delay = timedelta(seconds=first_delay * 2 ** max(0, times - 1))
        if _has_started(history):
            _grant_another_start(client, flow_run_id)
        state = AwaitingRetry(
            scheduled_time=datetime.now(timezone.utc) + delay,
            message=f"goes on in {delay.total_seconds():.0f} s after {history[-1].name}",
        )
    client.set_flow_run_state(flow_run_id, state, force=True)
    return state


def was_killed(state: State[object]) -> bool:
    """Return whether the process was ended from outside, and nobody has scheduled the flow run again."""
    return state.is_crashed() and (state.name in (PREEMPTED, KILLED) or prefect_private.was_killed(state.message))


def _grant_another_start(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Grant one retry more than there were: Prefect counts starts against the flow's own retries."""
    policy = client.read_flow_run(flow_run_id).empirical_policy
    granted = {"retries": (policy.retries or 0) + 1, "retry_type": "reschedule"}
    client.update_flow_run(flow_run_id, empirical_policy=policy.model_copy(update=granted))


def _has_started(history: Sequence[State[object]]) -> bool:
    """Return whether it ran before it was stopped; killed as it started, it has used up no retry."""
    latest = [state for state in history if state.is_running() or state.is_scheduled()][-1:]
    return any(state.is_running() for state in latest)


def _is_being_cancelled(history: Sequence[State[object]]) -> bool:
    """Return whether somebody has asked for it since the flow run was last scheduled."""
    asked = False
    for state in history:
        asked = (asked or state.is_cancelling() or state.is_cancelled()) and not state.is_scheduled()
    return asked


def _stops_without_progress(history: Sequence[State[object]]) -> int:
    """Return how often in a row the flow run was stopped at the step where it is, since it was last given up."""
    steps: list[str] = []
    for state in history:
        if state.is_failed():
            steps = []
        elif state.name in (PREEMPTED, KILLED):
            steps.append((state.message or "").partition(":")[0])
    return sum(1 for _ in takewhile(lambda step: step == steps[-1], reversed(steps)))


def _history(client: SyncPrefectClient, flow_run_id: UUID) -> list[State[object]]:
    return sorted(client.read_flow_run_states(flow_run_id), key=lambda state: state.timestamp)
