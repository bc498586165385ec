"""Which gateway syncs which runs at a URL: a small object beside each, renewed while it is at work.

As with the lease of a run that trains (`rl_research.storage.lease`) no clock is compared with another
machine's: who meets a lease watches whether it changes.
"""

from __future__ import annotations

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
from rl_research.sync.stores import Stores

_log = logging.getLogger(__name__)

FILE = ".sync-lease.json"
SILENCE = 60.0  # seconds after which a gateway on another machine counts as gone
_SETTLING = 5.0  # seconds in which who has found a lease free has taken it, or lets it be
_LAST_WORD = 5.0  # seconds that the renewing may take to end
_AT_A_TIME = 8  # leases that are renewed or given up, whatever else the place is asked meanwhile


class Hold:
    """The leases that this process has, and who has the others.

    :param stores: the place that their names are relative to
    """

    def __init__(self, stores: Stores):
        self._stores = stores
        self._me = new_holder()
        self._seconds = SILENCE
        self._taken_at = 0.0
        self._silent: dict[str, dict[str, Any]] = {}  # what another machine's process had, if it has
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_A_TIME)
        self._thread = threading.Thread(target=self._renew, daemon=True, name="sync leases")
        self.mine: set[str] = set()
        self.others: dict[str, str] = {}
        self.unsure: dict[str, str] = {}  # of `mine`, to be left alone this time: why

    def take(self, names: Sequence[str]) -> None:
        """Take what of *names* is nobody's; a holder that cannot be asked is watched for `SILENCE`."""
        contested = self._taken_of(names)
        if names:  # what is ours is renewed while the others are outwaited
            self._thread.start()
        here = {name for name, holder in contested.items() if is_on_this_machine(holder)}
        self._outwait({name: h for name, h in contested.items() if name not in here})
        contested |= self._taken_of(self._silent)
        left = contested.keys() - self.mine - self.others.keys()
        self.others |= {name: named(contested[name]) for name in left}
        self._taken_at = time.monotonic()

    def confirm(self) -> None:
        """Give up what another process has taken in the same moment; to be called before anything is sent."""
        if self.mine:
            time.sleep(max(0.0, self._taken_at + _SETTLING - time.monotonic()))
        for name, holder in self._read(self.mine).items():
            if not self._is_ours(holder):
                self._lose(name, holder)

    def release(self) -> None:
        """Give all up."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORD)
        self._for_each_of_ours(self._give_up)
        self._pool.shutdown(wait=False)

    def still_has(self, store: Store, name: str) -> bool:
        """Ask *store* whether *name* is still ours; if not, it is another's from now on."""
        if self._is_ours(holder := read_lease(store, name)):
            return True
        self._lose(name, holder)
        return False

    def _give_up(self, store: Store, name: str) -> None:
        if not self._is_ours(read_lease(store, name)):
            return
        try:
            store.remove(name)
        except StorageError:  # no right to remove anything
            write_lease(store, self._me, name, released=True)

    def _taken_of(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Take those of *names* that are free; the holders of the others."""
        chosen = list(names)
        holders = self._stores.each(self._try, chosen)
        return {name: holder for name, holder in zip(chosen, holders, strict=True) if holder}

    def _try(self, store: Store, name: str) -> dict[str, Any] | None:
        begun = time.monotonic()
        holder = read_lease(store, name)
        if holder is not None and not is_gone(holder) and holder != self._silent.get(name):
            return holder
        write_lease(store, self._me, name)
        self.mine.add(name)
        if (seconds := time.monotonic() - begun) > _SETTLING:  # another may have it by now
            self.unsure[name] = f"the store took {seconds:.0f} s to say whose it is"
        return None

    def _outwait(self, contested: Mapping[str, dict[str, Any]]) -> None:
        """Watch the holders of *contested*: who shows a sign of life keeps what he has."""
        self._silent = dict(contested)
        if self._silent:
            who = ", ".join(sorted({named(holder) for holder in contested.values()}))
            _log.warning(
                "%s had %d W&B folders; taking them over if it is silent for %g seconds",
                who, len(contested), self._seconds,
            )  # fmt: skip
        until = time.monotonic() + self._seconds
        while self._silent and time.monotonic() < until:
            time.sleep(min(self._seconds / 10, 1.0))
            for name, now in self._read(self._silent).items():
                if now is not None and now != self._silent[name] and not is_gone(now):
                    self.others[name] = named(now)
                    del self._silent[name]

    def _read(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        chosen = sorted(names)
        return dict(zip(chosen, self._stores.each(read_lease, chosen), strict=True))

    def _is_ours(self, holder: Mapping[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._me["token"]

    def _lose(self, name: str, holder: Mapping[str, Any] | None) -> None:
        self.mine.discard(name)
        self.others[name] = "another process" if holder is None else named(holder)

    def _renew(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            self._for_each_of_ours(self._renew_one)

    def _renew_one(self, store: Store, name: str) -> None:
        if not self._ended.is_set() and self.still_has(store, name):
            write_lease(store, self._me, name)

    def _for_each_of_ours(self, act: Callable[[Store, str], None]) -> None:
        """*act* on each in threads of our own: those of the place may be fetching for minutes."""

        def attempt(name: str) -> None:
            with _failures_pass():
                act(self._stores.mine(), name)

        if chosen := sorted(self.mine):
            list(self._pool.map(attempt, chosen))


@contextmanager
def holding(stores: Stores, names: Sequence[str]) -> Iterator[Hold]:
    """Hold what can be had of *names*, until the end."""
    hold = Hold(stores)
    try:
        hold.take(names)
        yield hold
    finally:
        hold.release()


@contextmanager
def _failures_pass() -> Iterator[None]:
    """A lease that cannot be renewed or given up stops nobody's sync; the next gateway outwaits it."""
    try:
        yield
    except Exception as error:
        if not is_transient(error) and not isinstance(error, StorageError):
            raise
        _log.debug("lease: %s", error)
