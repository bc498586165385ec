"""A store that several threads use at once."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from rl_research.errors import StorageError
from rl_research.storage import Store, is_transient
from rl_research.sync.outcome import Verdict
from rl_research.system import masked

_AT_A_TIME = 16  # folders that are listed, files that are fetched

T = TypeVar("T")
R = TypeVar("R")


class ThreadedStore:
    """Store at *url* for several threads, in a ``with`` block.

    An object store's client serves them all; of a file system that is one connection each has its own.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None):
        self._open: Callable[[], Store] = partial(Store, url, options)
        self._first = self._open()
        self.url = self._first.url  # without a password
        self._own = threading.local()
        self._pool = ThreadPoolExecutor(_AT_A_TIME)

    def __enter__(self) -> "ThreadedStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def mine(self) -> Store:
        """Return the store of the calling thread."""
        if self._first.fs.async_impl:
            return self._first
        if not hasattr(self._own, "store"):
            self._own.store = self._open()
        found: Store = self._own.store
        return found

    def each(self, ask: Callable[[Store, T], R], items: Iterable[T]) -> list[R]:
        """Return what *ask* returns for each of *items*, several at a time."""
        return list(self._pool.map(lambda item: ask(self.mine(), item), items))


def verdict_of(error: Exception) -> Verdict:
    """Return the verdict on a place, or a run there, that failed with *error*; a bug is raised again."""
    if is_transient(error):
        text = " ".join(masked(str(error)).split())[:300].rstrip(".")
        return Verdict("retryable", f"{text or type(error).__name__}.")
    if isinstance(error, StorageError):
        return Verdict("blocked", str(error))
    raise error
