"""Which tasks Prefect retries, for how long, and upon which failures.

No task here has tags: before each task with a tag Prefect asks the API for a slot under that tag, and
fails the task at once where the API is away.
"""

from datetime import datetime, timedelta, timezone
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from rl_research.storage import is_transient

_FIRST_DELAY, _LONGEST_DELAY = 2.0, 60.0  # seconds
_MOST_DELAYS = 50  # that Prefect takes


def is_transient_failure(task: Task[..., object], task_run: TaskRun, state: State[object]) -> bool:
    """Return whether waiting may mend what failed; Prefect's `retry_condition_fn`."""
    del task, task_run
    return isinstance(state.data, BaseException) and is_transient(state.data)


def retry_for(seconds: float) -> dict[str, Any]:
    """Return options of a task whose transient failures are retried for about *seconds*, and no others.

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
        "retry_condition_fn": is_transient_failure,
    }


def retry_within(seconds: float) -> dict[str, Any]:
    """Return the options of `retry_for`, with no retry later than *seconds* after the first try began."""

    def in_time(task: Task[..., object], task_run: TaskRun, state: State[object]) -> bool:
        now = datetime.now(timezone.utc)
        late = now - (task_run.start_time or now) > timedelta(seconds=seconds)
        return not late and is_transient_failure(task, task_run, state)

    return {**retry_for(seconds), "retry_condition_fn": in_time}


#: Options of a task that takes a live run: never cached, never kept as a result, not retried.
NO_RETRIES: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}

#: Options of a task that meets a network: transient failures are retried, all others fail at once.
RETRY_TRANSIENT: dict[str, Any] = {**NO_RETRIES, **retry_for(300.0)}
