"""Retries with growing, jittered pauses, for what is no Prefect task."""

import random
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def retry_call(call: Callable[[], T], retryable: Callable[[BaseException], bool], *, tries: int, pause: float) -> T:
    """Return what *call* returns; repeat it, *tries* times in all, while it raises what is *retryable*.

    The pauses are *pause* seconds, twice that, four times that, each with a random factor of 0.5 to 1.5, so
    that clients that have failed together do not come back together. The last error is raised as it is.
    """
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

    def jittered(state: RetryCallState) -> float:
        return random.uniform(0.5, 1.5) * pause * 2.0 ** (state.attempt_number - 1)

    attempts = Retrying(
        retry=retry_if_exception(retryable), stop=stop_after_attempt(tries), wait=jittered, reraise=True
    )
    return attempts(call)
