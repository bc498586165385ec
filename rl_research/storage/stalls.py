"""Stalls of a transfer: it is given up when no byte moves, however slow it is otherwise."""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_LOOKS = 8  # how often within the patience the progress is looked at


class Progress:
    """Bytes of a transfer that have moved; fsspec takes it as a callback."""

    def __init__(self) -> None:
        self.moved = 0

    def set_size(self, size: int | None) -> None:
        """Told by clients; of no interest here."""

    def relative_update(self, inc: int = 1) -> None:
        """*inc* more bytes."""
        self.moved += inc

    def absolute_update(self, value: int) -> None:
        """*value* bytes in all."""
        self.moved = value


class Body(io.BytesIO):
    """Bytes of a file as the body of a request: they tell *progress* as they are read towards the network."""

    def __init__(self, progress: Progress):
        super().__init__()
        self._progress = progress

    def fill(self, source: Path, start: int, size: int) -> None:
        """Hold the *size* bytes of *source* from *start* on; memory for as many is used again."""
        if len(self.getbuffer()) != size:
            super().__init__(bytes(size))
        with source.open("rb") as file, self.getbuffer() as memory:
            file.seek(start)
            held = file.readinto(memory)
        self.truncate(held)
        self.seek(0)

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
    moved, idle = progress.moved, 0
    try:
        while idle < _LOOKS:
            done, _ = await asyncio.wait({task}, timeout=seconds / _LOOKS)
            if done:
                return await task
            idle = idle + 1 if progress.moved == moved else 0
            moved = progress.moved
        raise TimeoutError(f"no progress in {seconds:g} seconds")
    finally:
        await _ended(task)


def until_stalled(progress: Progress, seconds: float) -> Callable[[], float]:
    """Return how many seconds are left, asked again and again, until *progress* stood still for *seconds*."""
    moved, since = progress.moved, time.monotonic()

    def left() -> float:
        nonlocal moved, since
        if progress.moved != moved:
            moved, since = progress.moved, time.monotonic()
        return since + seconds - time.monotonic()

    return left


async def all_or_first_error(jobs: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """Do *jobs* side by side; the first error cancels the others and is raised when they have ended."""
    tasks = [asyncio.ensure_future(job()) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # all of them before any is waited for, so that none begins anything new
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ended(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
