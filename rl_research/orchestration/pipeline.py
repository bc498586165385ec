"""What every flow here shares: identity, names, and which failures are retried."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar
from uuid import UUID

from prefect import get_client, runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.logging.loggers import LoggingAdapter
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Failed
from prefect.tasks import Task

from rl_research.config import Config, Experiment, compose_experiment, load_config, refuse_secrets
from rl_research.errors import RLResearchError, RunTakenOver
from rl_research.storage import is_transient
from rl_research.system import without_password

_log = logging.getLogger(__name__)
_PATIENCE = 5.0  # seconds for one answer of an API that may be away
_Outcome = TypeVar("_Outcome")


def only_connection_failures(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's `retry_condition_fn`: whether waiting may mend what failed."""
    del task, task_run
    return isinstance(state.data, BaseException) and is_transient(state.data)


# No task here has tags: before each task with a tag Prefect asks the API for a slot under that tag, and
# fails the task at once where the API is away.

#: A task that takes a live run: never cached, never kept as a result.
ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

_FIRST_DELAY, _LONGEST_DELAY = 2.0, 60.0  # seconds
_MOST_DELAYS = 50  # that Prefect takes


def retried_for(seconds: float) -> dict[str, Any]:
    """Options of a task whose connection failures are retried for about *seconds*, and nothing else.

    The delays double up to a minute (longer where fifty of them would not do), and are jittered.
    """
    longest = max(_LONGEST_DELAY, 1.1 * seconds / (_MOST_DELAYS - 6))
    delays: list[float] = []
    while (left := seconds - sum(delays)) > 0:
        delays.append(min(_FIRST_DELAY * 2 ** len(delays), longest, left))
    return {
        "retries": len(delays),
        "retry_delay_seconds": delays,
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": only_connection_failures,
    }


def retried_within(seconds: float) -> dict[str, Any]:
    """The same, and not again once *seconds* have passed since the first try, however long the tries took."""

    def in_time(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
        began = task_run.start_time or datetime.now(timezone.utc)
        late = datetime.now(timezone.utc) - began > timedelta(seconds=seconds)
        return not late and only_connection_failures(task, task_run, state)

    return {**retried_for(seconds), "retry_condition_fn": in_time}


#: A task that meets a network: connection failures are retried, everything else fails at once.
RETRIED: dict[str, Any] = {**ONCE, **retried_for(300.0)}


def refused(error: RLResearchError) -> State[Any]:
    """The final state of a flow run that the user has to mend; its message is the error's one line.

    In a flow with retries the error is raised, because Prefect retries only what is raised.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow is not None and context.flow.retries:
        raise error
    return Failed(message=str(error), data=error)


def left_to_another(error: RunTakenOver) -> State[Any]:
    """End a flow run that another process has taken up without a word to Prefect: that one speaks for it."""
    if runtime.deployment.id is None:
        return refused(error)
    _log.error("%s Prefect is told nothing, for the other one speaks for this flow run.", error)
    raise Abort(str(error))


@contextmanager
def impatient_client() -> Iterator[SyncPrefectClient]:
    """A client that gives up after seconds."""
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
        get_client(sync_client=True, httpx_settings={"timeout": _PATIENCE}) as client,
    ):
        yield client


@contextmanager
def unfailing(purpose: str, log: logging.Logger | LoggingAdapter = _log) -> Iterator[None]:
    """Whatever the API does inside costs a line in the log, in which *purpose* says what for."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever the API does, the run stops as it was told
        log.warning("Prefect did not answer %s: %s", purpose, str(error) or type(error).__name__)


def api_answers() -> bool:
    """Whether Prefect's API is there; answered within seconds."""
    with unfailing("whether it is there"), impatient_client() as client:
        return client.api_healthcheck() is None
    return False


def end_task_run(task_run_id: UUID, state: State[Any]) -> None:
    """Say how a task run ended that cannot say so itself."""
    with unfailing("how a task ended"), impatient_client() as client:
        client.set_task_run_state(task_run_id, state, force=True)


@dataclass
class Witness:
    """What a flow's body has come to, for a caller to whom Prefect may not be able to say it."""

    flow_run_id: str | None = None
    outcome: Any = None
    ended: bool = False


_WITNESS: ContextVar[Witness | None] = ContextVar("witness", default=None)


@contextmanager
def witnessed() -> Iterator[Witness]:
    """Watch the flow that is called inside."""
    token = _WITNESS.set(witness := Witness())
    try:
        yield witness
    finally:
        _WITNESS.reset(token)


def told(outcome: _Outcome) -> _Outcome:
    """Tell whoever watches this flow what its body returns: *outcome*."""
    if (witness := _WITNESS.get()) is not None:
        witness.outcome, witness.ended = outcome, True
    return outcome


def experiment_of_this_run(overrides: Sequence[str]) -> Experiment:
    """The experiment, with an identity that a retried flow run shares with its first try."""
    flow_run_id = str(runtime.flow_run.id)
    if (witness := _WITNESS.get()) is not None:
        witness.flow_run_id = flow_run_id
    return experiment_of(overrides, flow_run_id)


def experiment_of(overrides: Sequence[str], flow_run_id: str) -> Experiment:
    """The experiment as the flow run *flow_run_id* trains it."""
    experiment = compose_experiment(overrides)
    refuse_secrets(overrides)
    if experiment.run_id is not None:
        return experiment
    tail = flow_run_id.replace("-", "")[-10:]  # a UUIDv7 begins with the time
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", experiment.name).strip("-_")[:40] or "run"
    return experiment.with_run_id(f"{stem}-s{experiment.config.experiment.seed}-{tail}")


def named_after_overrides() -> str:
    """A flow run's name: algorithm, environment, seed and mode, and the words that tell it from others."""
    parameters = runtime.flow_run.parameters
    words = parameters.get("overrides") or [str(parameters.get("checkpoint", "defaults"))]
    left_out = ("storage.options", "runs_dir=")
    told = [without_password(word) for word in words if not word.lstrip("+").startswith(left_out)]
    facts = experiment_in(parameters["overrides"]) if "overrides" in parameters else []
    return ": ".join(filter(None, [" ".join(facts), " ".join(told)]))[:200]


def experiment_in(overrides: Sequence[str]) -> list[str]:
    """Algorithm, environment, seed and W&B mode of an experiment; nothing where it is described wrongly."""
    try:
        return facts_of(load_config(overrides))
    except RLResearchError:
        return []


def facts_of(config: Config) -> list[str]:
    """Algorithm, environment, seed and W&B mode."""
    algorithm, env = config.algorithm.name.upper(), config.env.id
    return [algorithm, env, f"seed {config.experiment.seed}", config.wandb.mode]
