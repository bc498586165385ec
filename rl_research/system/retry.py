"""Retries with growing, jittered pauses, for what is no Prefect task."""

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


def retry_call(call: Callable[[], T], retryable: Callable[[BaseException], bool], *, tries: int, pause: float) -> T:
    """Return what *call* returns; repeat it, *tries* times in all, while it raises what is *retryable*.

    The pauses are those of `pause_after`. The last error is raised as it is.
    """
    from tenacity import Retrying

    return Retrying(**_options(retryable, tries, pause))(call)


async def retry_async(
    call: Callable[[], Awaitable[T]], retryable: Callable[[BaseException], bool], *, tries: int, pause: float
) -> T:
    """Do what `retry_call` does with a coroutine function."""
    from tenacity import AsyncRetrying

    async def attempt() -> T:  # tenacity awaits coroutine functions only
        return await call()

    return await AsyncRetrying(**_options(retryable, tries, pause))(attempt)


def pause_after(attempt: int, pause: float) -> float:
    """Return how many seconds to wait after failed *attempt*, counted from 1: *pause*, twice that, four times that.

    Each has a random factor of 0.5 to 1.5, so that clients that have failed together do not come back together.
    """
    return random.uniform(0.5, 1.5) * pause * 2.0 ** (attempt - 1)


def _options(retryable: Callable[[BaseException], bool], tries: int, pause: float) -> dict[str, Any]:
    from tenacity import retry_if_exception, stop_after_attempt

    return {
        "retry": retry_if_exception(retryable),
        "stop": stop_after_attempt(tries),
        "wait": lambda state: pause_after(state.attempt_number, pause),
        "reraise": True,
    }
