"""Leases in a store: of machines that share nothing but a URL, one at a time has what a lease stands for.

A lease is a small object that its holder renews. No clock is compared with another machine's: whoever meets
a lease watches whether it changes. A holder on this machine is looked up by its process instead.
"""

import datetime
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from rl_research.errors import ConfigError, RunTakenOver, StorageError
from rl_research.storage.store import Store
from rl_research.storage.transient import is_transient
from rl_research.system import machine_id, started_at

_log = logging.getLogger(__name__)

FILE = "lease.json"
_AT_ONCE = 8  # leases that are asked for at a time
_END_TIMEOUT = 5.0  # seconds that giving up a lease may take


class NotYetOurs(ConnectionError):
    """Raised while the store could not be asked whose the run is; a connection failure, so retried."""


class Lease:
    """Leases *names* of one store, of which this process has `mine` and other processes have `others`.

    :param open_store: makes the store; called in each thread, as file systems want it
    :param names: objects that are the leases
    :param silence: seconds after which a holder on another machine counts as gone
    :param race_window: seconds in which a process that has found a lease free has written its own
    :param removed_at_end: whether the objects go when the leases are given up; one that has gone while it
        was ours has been another's then. Else they stay, marked as released.
    """

    def __init__(
        self,
        open_store: Callable[[], Store],
        names: Iterable[str],
        silence: float = 60.0,
        race_window: float = 0.0,
        *,
        removed_at_end: bool = False,
    ):
        self._open_store, self._silence, self._race_window = open_store, silence, race_window
        self._removed_at_end = removed_at_end
        self._me = new_holder()
        self._acquired_at = 0.0
        self._seen: dict[str, tuple[dict[str, Any], float]] = {}  # other holders, and since when they are silent
        self._locks = {name: threading.Lock() for name in names}
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self.mine: set[str] = set()
        self.others: dict[str, str] = {}  # with the names of their holders
        self.unsure: dict[str, str] = {}  # those of `mine` that another process may have, too, with the reason

    def acquire(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Take the leases that are free; another machine's are watched for `silence` seconds.

        *on_wait* is called while they are. Raises what the store raises; after a connection failure the
        renewal goes on asking.
        """
        self._thread.start()
        try:
            self._look_at(self._locks)
            if watched := self._undecided():
                self._announce_wait(watched)
            while watched := self._undecided():
                time.sleep(min(self._silence / 10, 1.0))
                on_wait()
                self._look_at(watched)
        except BaseException as error:
            if not is_transient(error):
                self.release()
            raise
        self._acquired_at = time.monotonic()

    @contextmanager
    def held(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[Self]:
        """Have the leases that are free in the block; see `acquire`."""
        try:
            self.acquire(on_wait)
            yield self
        finally:
            self.release()

    def confirm(self) -> None:
        """Give up what another process has taken in the same moment, or since."""
        if self.mine:
            time.sleep(max(0.0, self._acquired_at + self._race_window - time.monotonic()))
        self._look_at(self.mine)

    def has(self, name: str) -> bool:
        """Ask the store whether the lease *name* is still ours, and return the answer."""
        self._look_at(self.mine & {name})
        return name in self.mine

    def release(self) -> None:
        """Give up all that is ours, as far as the store answers within seconds."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_END_TIMEOUT * (1 + len(self.mine) // _AT_ONCE))
        self._pool.shutdown(wait=False)

    def _undecided(self) -> list[str]:
        return [name for name in self._locks if name not in self.mine and name not in self.others]

    def _announce_wait(self, watched: list[str]) -> None:
        who = ", ".join(sorted({named(self._seen[name][0]) for name in watched}))
        store = self._open_store()
        what = store.address(watched[0]) if len(watched) == 1 else f"{len(watched)} leases in {store.url}"
        _log.warning("%s had %s; taken over if it is silent for %g seconds", who, what, self._silence)

    def _look_at(self, names: Iterable[str]) -> None:
        self._each(names, self._look_after)

    def _each(self, names: Iterable[str], act: Callable[[str], None]) -> None:
        # one lease needs no threads, which would delay the end of a program whose store hangs
        list(map(act, names) if len(self._locks) == 1 else self._pool.map(act, sorted(names)))

    def _look_after(self, name: str) -> None:
        """Renew what is ours, take what is nobody's, and notice what is another's."""
        with self._locks[name]:
            if name in self.others or self._ended.is_set():
                return
            begun, is_new, store = time.monotonic(), name not in self.mine, self._open_store()
            found = read_lease(store, name)
            if self._may_have(name, found):
                write_lease(store, self._me, name)
                self.mine.add(name)
                if is_new and (seconds := time.monotonic() - begun) > self._race_window > 0:
                    self.unsure[name] = f"the store took {seconds:.0f} s to say whose it is"
            elif found is None or not is_new or is_on_this_machine(found) or found != self._seen[name][0]:
                self.mine.discard(name)
                self.others[name] = "another process" if found is None else named(found)

    def _may_have(self, name: str, holder: dict[str, Any] | None) -> bool:
        if holder is None:
            return name not in self.mine or not self._removed_at_end
        if holder.get("token") == self._me["token"]:
            return True
        if name in self.mine:
            return False
        first, since = self._seen.setdefault(name, (holder, time.monotonic()))
        return is_gone(holder) or (holder == first and time.monotonic() - since > self._silence)

    def _keep(self) -> None:
        """Renew the leases until they are released, then give them up."""
        while not self._ended.wait(self._silence / 3):
            self._each(self._locks, lambda name: self._pass_over_failures(self._look_after, name))
        self._each(list(self.mine), lambda name: self._pass_over_failures(self._give_up, name))

    def _pass_over_failures(self, act: Callable[[str], None], name: str) -> None:
        """Do *act*; where it fails, whoever needs the lease asks again and fails aloud."""
        try:
            act(name)
        except Exception as error:  # noqa: BLE001  # training goes on
            if is_transient(error) or name in self.unsure:
                _log.debug("lease %s: %s", name, error)
            else:
                self.unsure[name] = str(error)
                _log.warning("the lease in the store is not renewed: %s", error)

    def _give_up(self, name: str) -> None:
        """Mark the lease as free or remove it; one that stays shows a former holder that it is lost."""
        with self._locks[name]:
            store = self._open_store()
            if (read_lease(store, name) or {}).get("token") != self._me["token"]:
                return
            if self._removed_at_end:
                with suppress(StorageError):  # no right to remove anything
                    store.remove(name)
                    return
            write_lease(store, self._me, name, released=True)


@dataclass(frozen=True)
class Share:
    """Part of a `RunLease` that is sent to another process, which confirms the lease with it."""

    run_id: str
    seconds: float
    holder: Mapping[str, Any]
    acquired: bool


class RunLease(Lease):
    """Right to publish checkpoints of one run in its store.

    :param open_store: makes the store; called in each thread, as file systems want it
    :param run_id: the run, for messages
    :param seconds: how long a holder may be silent before another machine takes the run over
    """

    def __init__(self, open_store: Callable[[], Store], run_id: str, seconds: float):
        super().__init__(open_store, [FILE], seconds)
        self.run_id, self.seconds = run_id, seconds

    @property
    def share(self) -> Share:
        """Lease as it stands, for a child process."""
        return Share(self.run_id, self.seconds, self._me, bool(self.mine))

    @classmethod
    def of(cls, share: Share, open_store: Callable[[], Store]) -> "RunLease":
        """Return the lease that *share* is of: it can be confirmed, not acquired or released."""
        lease = cls(open_store, share.run_id, share.seconds)
        lease._me = dict(share.holder)
        lease.mine = {FILE} if share.acquired else set()
        return lease

    def acquire(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Take the lease; `ConfigError` naming the holder if another process has the run open.

        A holder on this machine that has died gives it up at once, one that cannot be asked after it has
        been silent for `seconds`; *on_wait* is called while that is awaited. A store that cannot be reached
        is asked again beside training.
        """
        try:
            super().acquire(on_wait)
        except Exception as error:
            if not is_transient(error):
                raise
            _log.warning("storage.url cannot be asked who has this run open yet: %s", error)
        if holder := self.others.get(FILE):
            self.release()
            raise ConfigError(
                f"run_id={self.run_id}: {holder} has this run open. "
                "Wait for it to end, or start another run with run_id=NAME."
            )

    def check(self) -> None:
        """Raise `RunTakenOver` if another process has taken the run over. Asks nobody."""
        if holder := self.others.get(FILE):
            raise RunTakenOver(
                f"run_id={self.run_id}: {holder} has taken this run over in the store while this "
                "process could not reach it; what is committed stands there. This one stops."
            )

    def confirm(self) -> None:
        """Ask the store whether the lease is still ours; to be called before publishing a checkpoint.

        Raises `StorageError` if it is not, or has been released, and connection failures as they come.
        """
        self.check()
        self._look_at([FILE])
        self.check()
        if self._ended.is_set():  # an upload that its run has given up
            raise StorageError(f"run_id={self.run_id}: the run has ended, and its lease with it")
        if not self.mine:
            raise NotYetOurs(f"run_id={self.run_id}: whose run this is in the store is not known yet")


def holder_in(store: Store) -> str | None:
    """Return who has the run in *store* open; None if nobody does, or it is known to be gone."""
    lease = lease_in(store)
    return None if lease is None else named(lease)


def lease_in(store: Store) -> dict[str, Any] | None:
    """Return the lease of who may have the run in *store* open; one that changes is a sign of life."""
    lease = read_lease(store)
    return None if lease is None or is_gone(lease) else lease


def read_lease(store: Store, name: str = FILE) -> dict[str, Any] | None:
    """Return the lease *name* in *store*, None if there is none that can be read."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(store.read(name))
        return found if isinstance(found, dict) else None
    return None


def write_lease(store: Store, holder: Mapping[str, Any], name: str = FILE, **more: Any) -> None:
    """Say in *store* that *holder* is alive and has what *name* is the lease of."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    store.write(name, (json.dumps({**holder, "renewed_at": now, **more}) + "\n").encode())


def new_holder() -> dict[str, Any]:
    """Return this process as the holder of a lease, which its token sets apart."""
    number = os.getpid()
    who = {"host": platform.node(), "machine": machine_id(), "process": number, "since": started_at(number)}
    return {**who, "token": secrets.token_hex(8)}


def is_on_this_machine(holder: Mapping[str, Any]) -> bool:
    """Return whether the process of *holder* would be seen from here."""
    return holder.get("machine") is not None and holder.get("machine") == machine_id()


def is_gone(holder: Mapping[str, Any]) -> bool:
    """Return whether *holder* has given the lease up, or is known to have died."""
    if holder.get("released"):
        return True
    number = holder.get("process")
    if not is_on_this_machine(holder) or not isinstance(number, int):
        return False
    return holder.get("since") != started_at(number)


def named(holder: Mapping[str, Any]) -> str:
    """Return *holder* as people know it."""
    return f"process {holder.get('process')} on {holder.get('host')}"
