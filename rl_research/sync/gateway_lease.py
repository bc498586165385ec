"""Leases of runs at a URL: one gateway at a time syncs a run, and a small object beside it says which.

They are written and read as the lease of a run that trains (`rl_research.storage`). No clock is compared with
another machine's: whoever meets a lease watches whether it changes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from rl_research.errors import StorageError
from rl_research.storage import (
    Store,
    is_gone,
    is_on_this_machine,
    is_transient,
    named,
    new_holder,
    read_lease,
    write_lease,
)
from rl_research.sync.threaded_store import ThreadedStore

_log = logging.getLogger(__name__)

FILE = ".sync-lease.json"
_END_TIMEOUT = 5.0  # seconds that the renewal may take to end
_THREADS = 8  # leases that are renewed or released at a time, whatever else the store is asked meanwhile


class RunLeases:
    """Leases that this process has, and the holders of those it has not.

    :param stores: the place that the names of leases are relative to
    :param silence: seconds after which a gateway on another machine counts as gone
    :param settling: seconds in which a gateway that has found a lease free has written its own
    """

    def __init__(self, stores: ThreadedStore, silence: float = 60.0, settling: float = 5.0):
        self._stores, self._silence, self._settling = stores, silence, settling
        self._me = new_holder()
        self._taken_at = 0.0
        self._watched: dict[str, dict[str, Any]] = {}  # leases of other machines, as they were first seen
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS)
        self._thread = threading.Thread(target=self._renew, daemon=True, name="sync leases")
        self.mine: set[str] = set()
        self.others: dict[str, str] = {}
        self.unsure: dict[str, str] = {}  # those of `mine` to be left alone this time, with the reason

    def acquire(self, names: Sequence[str]) -> None:
        """Take the free leases among *names*; one of another machine is watched for `silence` seconds."""
        contested = self._try_all(names)
        if names:  # ours are renewed while the others are watched
            self._thread.start()
        here = {name for name, holder in contested.items() if is_on_this_machine(holder)}
        self._watch({name: h for name, h in contested.items() if name not in here})
        contested |= self._try_all(self._watched)
        left = contested.keys() - self.mine - self.others.keys()
        self.others |= {name: named(contested[name]) for name in left}
        self._taken_at = time.monotonic()

    def confirm(self) -> None:
        """Give up what another process has taken in the same moment; call it before anything is sent."""
        if self.mine:
            time.sleep(max(0.0, self._taken_at + self._settling - time.monotonic()))
        for name, holder in self._read(self.mine).items():
            if not self._is_ours(holder):
                self._lose(name, holder)

    def release(self) -> None:
        """Release all leases."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_END_TIMEOUT)
        self._for_each_of_ours(self._release_one)
        self._pool.shutdown(wait=False)

    def still_has(self, store: Store, name: str) -> bool:
        """Ask *store* whether the lease *name* is still ours, and return the answer."""
        if self._is_ours(holder := read_lease(store, name)):
            return True
        self._lose(name, holder)
        return False

    def _release_one(self, store: Store, name: str) -> None:
        if not self._is_ours(read_lease(store, name)):
            return
        try:
            store.remove(name)
        except StorageError:  # no right to remove anything
            write_lease(store, self._me, name, released=True)

    def _try_all(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Take those of *names* that are free, and return the holders of the others."""
        chosen = list(names)
        holders = self._stores.each(self._try, chosen)
        return {name: holder for name, holder in zip(chosen, holders, strict=True) if holder}

    def _try(self, store: Store, name: str) -> dict[str, Any] | None:
        begun = time.monotonic()
        holder = read_lease(store, name)
        if holder is not None and not is_gone(holder) and holder != self._watched.get(name):
            return holder
        write_lease(store, self._me, name)
        self.mine.add(name)
        if (seconds := time.monotonic() - begun) > self._settling:  # another may have it by now
            self.unsure[name] = f"the store took {seconds:.0f} s to say whose it is"
        return None

    def _watch(self, contested: Mapping[str, dict[str, Any]]) -> None:
        """Watch the leases of *contested*: a holder that renews its own keeps it."""
        self._watched = dict(contested)
        if self._watched:
            who = ", ".join(sorted({named(holder) for holder in contested.values()}))
            _log.warning(
                "%s had %d W&B folders; taking them over if it is silent for %g seconds",
                who, len(contested), self._silence,
            )  # fmt: skip
        until = time.monotonic() + self._silence
        while self._watched and time.monotonic() < until:
            time.sleep(min(self._silence / 10, 1.0))
            for name, now in self._read(self._watched).items():
                if now is not None and now != self._watched[name] and not is_gone(now):
                    self.others[name] = named(now)
                    del self._watched[name]

    def _read(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        chosen = sorted(names)
        return dict(zip(chosen, self._stores.each(read_lease, chosen), strict=True))

    def _is_ours(self, holder: Mapping[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._me["token"]

    def _lose(self, name: str, holder: Mapping[str, Any] | None) -> None:
        self.mine.discard(name)
        self.others[name] = "another process" if holder is None else named(holder)

    def _renew(self) -> None:
        while not self._ended.wait(self._silence / 3):
            self._for_each_of_ours(self._renew_one)

    def _renew_one(self, store: Store, name: str) -> None:
        if not self._ended.is_set() and self.still_has(store, name):
            write_lease(store, self._me, name)

    def _for_each_of_ours(self, act: Callable[[Store, str], None]) -> None:
        """Call *act* for each in threads of our own: those of `ThreadedStore` may be fetching for minutes."""

        def attempt(name: str) -> None:
            with _failures_pass():
                act(self._stores.mine(), name)

        if chosen := sorted(self.mine):
            list(self._pool.map(attempt, chosen))


@contextmanager
def leased_runs(
    stores: ThreadedStore, names: Sequence[str], silence: float = 60.0, settling: float = 5.0
) -> Iterator[RunLeases]:
    """Hold in the block the free leases among *names*; see `RunLeases` for the seconds."""
    leases = RunLeases(stores, silence, settling)
    try:
        leases.acquire(names)
        yield leases
    finally:
        leases.release()


@contextmanager
def _failures_pass() -> Iterator[None]:
    """Pass over a lease that cannot be renewed or released; the next gateway waits until it is stale."""
    try:
        yield
    except Exception as error:
        if not is_transient(error) and not isinstance(error, StorageError):
            raise
        _log.debug("lease: %s", error)
