"""Lease of a store: one process at a time writes a run's checkpoints there, also between machines.

A lock on the run folder keeps processes of one machine apart; here a small object in the store,
renewed while the run is open, does it for machines that share nothing but ``storage.url``. No clock is
compared with another machine's: who meets a lease watches whether it changes.
"""

import datetime
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rl_research.errors import ConfigError, RunTakenOver, StorageError
from rl_research.storage.store import Store, is_transient
from rl_research.system import machine_id, started_at

_log = logging.getLogger(__name__)

FILE = "lease.json"
_LAST_WORD = 5.0  # seconds that giving up a lease may take when a run ends


class NotYetOurs(ConnectionError):
    """Raised while the store could not be asked whose the run is; a connection failure, so retried."""


@dataclass(frozen=True)
class Share:
    """Part of a `StoreLease` that is sent to another process, which confirms the lease with it."""

    run_id: str
    seconds: float
    holder: Mapping[str, Any]
    held: bool


class StoreLease:
    """Right to publish checkpoints of one run in a store.

    :param open_store: makes the store; called once in each thread, as file systems want it
    :param run_id: the run, for messages
    :param seconds: how long a holder may be silent before another machine takes the run over
    """

    def __init__(self, open_store: Callable[[], Store], run_id: str, seconds: float):
        self._open_store = open_store
        self.run_id = run_id
        self.seconds = seconds
        self._me = new_holder()
        self._held = False
        self._seen: tuple[dict[str, Any], float] | None = None
        self._lost: str | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="store lease")

    @property
    def share(self) -> Share:
        """Lease as it stands, for a child process."""
        return Share(self.run_id, self.seconds, self._me, self._held)

    @classmethod
    def of(cls, share: Share, open_store: Callable[[], Store]) -> "StoreLease":
        """Return the lease that *share* is of: it can be confirmed, not acquired or released."""
        lease = cls(open_store, share.run_id, share.seconds)
        lease._me, lease._held = dict(share.holder), share.held
        return lease

    def acquire(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Take the lease; `ConfigError` naming the holder if another process has the run open.

        A holder on this machine that has died gives it up at once, one that cannot be asked after it
        has been silent for `seconds`; *on_wait* is called while that is awaited. A store that cannot be
        reached is asked again beside training.
        """
        store = self._open_store()
        try:
            holder = read_lease(store)
            if holder is not None and not is_gone(holder):
                self._watch(store, holder, on_wait)
            self._write(store)
        except Exception as error:
            if not is_transient(error):
                raise
            _log.warning("storage.url cannot be asked who has this run open yet: %s", error)
        self._thread.start()

    def release(self) -> None:
        """Give the lease up, if the store can be told within seconds."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_WORD)

    def check(self) -> None:
        """Raise `RunTakenOver` if another process has taken the run over. Asks nobody."""
        if self._lost is not None:
            raise RunTakenOver(
                f"run_id={self.run_id}: {self._lost} has taken this run over in the store while this "
                "process could not reach it; what is committed stands there. This one stops."
            )

    def confirm(self) -> None:
        """Ask the store whether the lease is still ours; to be called before publishing a checkpoint.

        Raises `StorageError` if it is not, or has been released, and connection failures as they come.
        """
        self.check()
        with self._lock:
            if self._ended.is_set():  # an upload that its run has given up
                raise StorageError(f"run_id={self.run_id}: the run has ended, and its lease with it")
            self._look_after(self._open_store())
        self.check()
        if not self._held:
            raise NotYetOurs(f"run_id={self.run_id}: whose run this is in the store is not known yet")

    def _watch(self, store: Store, holder: Mapping[str, Any], on_wait: Callable[[], None]) -> None:
        """Wait whether *holder* shows a sign of life; `ConfigError` if it does."""
        if is_on_this_machine(holder):
            self._refuse(holder)
        _log.warning(
            "run_id=%s: %s had this run open; taking it over if it is silent for %g seconds",
            self.run_id, named(holder), self.seconds,
        )  # fmt: skip
        until = time.monotonic() + self.seconds
        while time.monotonic() < until:
            time.sleep(min(self.seconds / 10, 1.0))
            on_wait()
            now = read_lease(store)
            if now is None or is_gone(now):
                return
            if now != holder:
                self._refuse(now)

    def _refuse(self, holder: Mapping[str, Any]) -> None:
        raise ConfigError(
            f"run_id={self.run_id}: {named(holder)} has this run open. "
            "Wait for it to end, or start another run with run_id=NAME."
        )

    def _write(self, store: Store, **more: Any) -> None:
        write_lease(store, self._me, **more)
        self._held = True

    def _look_after(self, store: Store) -> None:
        """Renew what is ours, take what is nobody's, and notice what is another's."""
        found = read_lease(store)
        if found is None or found.get("token") == self._me["token"]:
            self._write(store)
        elif self._held:
            self._held, self._lost = False, named(found)
        elif is_gone(found) or self._silent(found):
            self._write(store)

    def _silent(self, holder: dict[str, Any]) -> bool:
        """Return whether *holder* has been seen unchanged for `seconds`; one that changes has the run."""
        if self._seen is None:
            self._seen = (holder, time.monotonic())
        if holder != self._seen[0]:
            self._lost = named(holder)
        return self._lost is None and time.monotonic() - self._seen[1] > self.seconds

    def _renew(self) -> None:
        try:
            store = self._open_store()
            while not self._ended.wait(self.seconds / 3) and self._lost is None:
                with self._lock, _connection_failures_pass():
                    self._look_after(store)
            with self._lock, _connection_failures_pass():
                self._give_up(store)
        except Exception as error:  # noqa: BLE001  # training goes on; publishing asks again and fails aloud
            _log.warning("the lease in the store is not renewed: %s", error)

    def _give_up(self, store: Store) -> None:
        """Say that the lease is free; that it stays there tells a former holder that it lost the run."""
        found = read_lease(store) if self._held else None
        if found is not None and found.get("token") == self._me["token"]:
            self._write(store, released=True)


def holder_in(store: Store) -> str | None:
    """Who says that it has the run in *store* open; None if nobody does, or it is known to be gone."""
    holder = lease_in(store)
    return None if holder is None else named(holder)


def lease_in(store: Store) -> dict[str, Any] | None:
    """Return the lease of who may have the run in *store* open; one that changes is a sign of life."""
    holder = read_lease(store)
    return None if holder is None or is_gone(holder) else holder


@contextmanager
def _connection_failures_pass() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_transient(error):
            raise
        _log.debug("lease: %s", error)


def read_lease(store: Store, name: str = FILE) -> dict[str, Any] | None:
    """Return the lease *name* in *store*, None if there is none that can be read."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(store.read(name))
        return found if isinstance(found, dict) else None
    return None


def write_lease(store: Store, holder: Mapping[str, Any], name: str = FILE, **more: Any) -> None:
    """Say in *store* that *holder* is alive and has what *name* is the lease of."""
    text = json.dumps({**holder, "renewed_at": _now(), **more}) + "\n"
    store.write(name, text.encode())


def new_holder() -> dict[str, Any]:
    """This process as the holder of a lease, told from every other one by its token."""
    return {**_this_process(), "token": secrets.token_hex(8)}


def _this_process() -> dict[str, Any]:
    return {"host": platform.node(), "machine": machine_id(), "process": os.getpid(), "since": started_at(os.getpid())}


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
    """*holder* for people."""
    return f"process {holder.get('process')} on {holder.get('host')}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
