"""Stalls of a transfer: it is given up when no byte moves, however slow it is otherwise."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from fsspec.callbacks import Callback

T = TypeVar("T")
_LOOKS = 8  # how often within the timeout the progress is looked at


class Progress(Callback):  # type: ignore[misc]  # fsspec has no types
    """Bytes of a transfer that have moved, as its `value`; it may be of several files side by side."""

    def absolute_update(self, value: int) -> None:
        """Note that one of the files has come to byte *value*: what counts is that something has moved."""
        self.relative_update(value)


class Body(io.BytesIO):
    """Bytes as the body of a request, which count as *progress* as they are read towards the network."""

    def __init__(self, data: bytes, progress: Progress):
        super().__init__(data)
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next *size* bytes, as of any file."""
        piece = super().read(size)
        self._progress.relative_update(len(piece))
        return piece


async def unless_stalled(work: Callable[[], Awaitable[T]], progress: Progress, seconds: float) -> T:
    """Return the result of *work*, cancelled with `TimeoutError` when *progress* stood still for *seconds*.

    Looks are counted, not seconds: a machine that slept or computed meanwhile has not waited.
    """
    task = asyncio.ensure_future(work())
    moved, idle = progress.value, 0
    try:
        while idle < _LOOKS:
            done, _ = await asyncio.wait({task}, timeout=seconds / _LOOKS)
            if done:
                return await task
            idle = idle + 1 if progress.value == moved else 0
            moved = progress.value
        raise TimeoutError(f"no progress in {seconds:g} seconds")
    finally:
        if not task.done():  # awaited twice, an error loses its traceback
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def all_or_first_error(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of *jobs* side by side; the first error cancels the others and is raised when they ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException as error:
        if not isinstance(error, asyncio.CancelledError):  # that one has reached them, and they may be cleaning up
            for task in tasks:  # all of them before any is waited for, so that none begins anything new
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
