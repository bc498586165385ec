"""A process that uploads checkpoints for the one that trains.

Signing, hashing and sending hold Python's interpreter lock for milliseconds at a time, for which each step
of a training in the same process would wait. Here a thread of it waits for an answer instead.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, Pipe
from typing import Any

from rl_research import checkpoints
from rl_research.checkpoints import Checkpoint, Manifest
from rl_research.errors import RunTakenOver, in_a_line
from rl_research.storage import RunLease, Share, crosses_network, is_transient
from rl_research.system import when_parent_ends
from rl_research.uploads.run_storage import RunStorage

_log = logging.getLogger(__name__)
_NICE = 5  # where a core is short, training has it first
_ITS_OWN = "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2"  # signals that are for the process that trains
_START = f"""
import signal, sys
for name in "{_ITS_OWN}".split():
    signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.path[:] = {{path!r}}
from rl_research.uploads import worker
worker.serve({{number}})
"""


class UploadWorker:
    """Uploads a run's checkpoints to its store, one at a time, in a process of its own.

    Where ``storage.url`` crosses no network the calling thread does it: there is nothing to sign or to
    encrypt, and a file system may live in this very process (``memory://``, one that a user registers).

    :param storage: the run's place in the store
    :param lease: confirmed before anything is published; None where nobody else can have the run
    """

    def __init__(self, storage: RunStorage, lease: RunLease | None):
        self._storage, self._lease = storage, lease
        self._apart = crosses_network(str(storage.config.storage.url))
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, if one is needed, so that it is ready for the first checkpoint."""
        if self._apart:
            with suppress(OSError):  # a machine short of memory may have some when it is needed
                self._connected()

    def upload(self, checkpoint: Checkpoint) -> Checkpoint:
        """Do what `RunStorage.upload` does, with the same errors.

        Raises `ConnectionResetError` if the process has died; the next call starts another one.
        """
        if not self._apart:
            return self._storage.upload(checkpoint, self._confirm)
        answer = self._ask(checkpoint.address)
        if isinstance(answer, _Failure):
            if isinstance(answer.copy, RunTakenOver):
                self._confirm()  # so that training hears of it, too
            raise answer.error()
        return Checkpoint(self._storage.store(), checkpoint.name, answer)

    def end(self) -> None:
        """End the process, whatever it is doing: what it is uploading has not arrived."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _confirm(self) -> None:
        if self._lease is not None:
            self._lease.confirm()

    def _connected(self) -> Connection[Any, Any]:
        with self._lock:
            if self._ended:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the run has ended")
            if self._connection is None:
                ours, theirs = Pipe()
                with theirs:
                    words = _START.format(path=sys.path, number=theirs.fileno())
                    self._process = subprocess.Popen(
                        [sys.executable, "-c", words], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                    )
                self._connection = ours
                ours.send((os.getpid(), _log.getEffectiveLevel(), self._storage))
            return self._connection

    def _ask(self, address: str) -> _Failure | Manifest:
        try:
            connection = self._connected()
            connection.send((address, None if self._lease is None else self._lease.share))
            while True:
                answer: _Failure | Manifest | logging.LogRecord = connection.recv()
                if not isinstance(answer, logging.LogRecord):
                    return answer
                logger = logging.getLogger(answer.name)
                if logger.isEnabledFor(answer.levelno):
                    logger.handle(answer)
        except (EOFError, ConnectionError) as error:
            raise ConnectionResetError(errno.ECONNRESET, self._forget_process()) from error

    def _forget_process(self) -> str:
        """Clear away the process that has died, so that another one is started; return how it ended."""
        with self._lock:
            if self._ended or self._process is None or self._connection is None:
                return "the run has ended"
            self._connection.close()
            self._process.kill()  # if it is the connection alone that has broken
            code = self._process.wait()
            self._process = self._connection = None
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process that uploads has ended ({how})"


@dataclass(frozen=True)
class _Failure:
    """An error on its way from one process to the other; its traceback cannot be pickled and is text."""

    copy: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        """Make one of *error*, or of one that can be pickled and of which `is_transient` says the same."""
        copy: Exception = (ConnectionError if is_transient(error) else RuntimeError)(in_a_line(error))
        with suppress(Exception):  # of some clients' errors no copy can be made
            if is_transient(pickle.loads(pickle.dumps(error))) == is_transient(error):
                copy = error
        return cls(copy, "".join(traceback.format_exception(error)))

    def error(self) -> Exception:
        """Return the error, caused by its traceback in the other process."""
        if not isinstance(self.copy, OSError):  # one that has a cause means what its cause does
            self.copy.__cause__ = _Trace(self.trace)
        return self.copy


class _Trace(Exception):
    """Shows the traceback of the other process where an error is printed."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _ToParent:
    """A connection that several threads may use; it stands where logging wants a queue."""

    def __init__(self, connection: Connection[Any, Any]):
        self._connection, self._lock = connection, threading.Lock()

    def put_nowait(self, answer: Any, /) -> None:
        """Send an answer, or a log record, which the process that trains shows as its own."""
        with self._lock:
            self._connection.send(answer)


def serve(number: int) -> None:
    """Be the process: upload what is asked for through the socket *number*, until its other end closes."""
    os.nice(_NICE)
    connection: Connection[Any, Any] = Connection(number)
    parent, level, storage = connection.recv()
    # at once, so that no two processes write for one run
    when_parent_ends(number, lambda: os._exit(0), parent)
    parent_side = _ToParent(connection)
    logging.getLogger("rl_research").setLevel(level)
    logging.basicConfig(handlers=[QueueHandler(parent_side)])  # type: ignore[arg-type]  # asks for put_nowait alone
    with suppress(Exception):  # whoever asks for an upload hears of it
        storage.store()  # its client takes a while to import
    with suppress(EOFError):
        while True:
            parent_side.put_nowait(_answer(storage, *connection.recv()))


def _answer(storage: RunStorage, address: str, share: Share | None) -> _Failure | Manifest:
    lease = None if share is None else RunLease.of(share, storage.store)
    try:
        return storage.upload(checkpoints.find(address), lease.confirm if lease else lambda: None).manifest
    except Exception as error:  # noqa: BLE001  # raised where it was asked for
        return _Failure.of(error)
