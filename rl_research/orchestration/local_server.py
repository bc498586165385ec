"""A Prefect server and a worker on this machine: started and stopped, once each.

A process holds a lock on its pid file for as long as it lives, through a descriptor that it inherits. So
a pid file that a power cut has left behind, or whose number the system has given to somebody else, is
never taken for a process that runs, and nothing else is ever signalled.
"""

import logging
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rl_research.errors import ConfigError
from rl_research.system import living_processes, locked, try_lock

_log = logging.getLogger(__name__)

STATE = Path(".prefect-local")
HOST = "127.0.0.1"  # nobody else on the network is asked for a password, so nobody else gets in
_PORT = "4200"
_STARTING = 180.0  # seconds; the first start of a server makes its database
COMMITTING = 60.0  # seconds for flow runs to commit: checkpoint.deadline, and what W&B needs to close
_ENDING = 20.0  # seconds from the signal to SIGKILL


class Service:
    """A background process that this folder owns, with its pid file and its log."""

    def __init__(self, name: str, command: Sequence[str], state: Path) -> None:
        self.name = name
        self.command = [sys.executable, "-m", *command]
        self.pid_file = state / f"{name}.pid"
        self.log = state / "logs" / f"{name}.log"

    @property
    def pid(self) -> int | None:
        """Number of the process if it lives."""
        try:
            with self.pid_file.open() as file:
                return None if try_lock(file) else int(file.read())
        except (FileNotFoundError, ValueError):
            return None

    def start(self, env: Mapping[str, str]) -> bool:
        """Start it unless it runs; return whether it had to be started."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open("a+") as file, self.log.open("ab") as log:
            if not try_lock(file):
                return False
            file.truncate(0)
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                pass_fds=[file.fileno()],  # with it the child has the lock
                start_new_session=True,  # so that Ctrl-C in this terminal is not meant for it
                preexec_fn=_listen_to_sigint,  # noqa: PLW1509  # no other thread holds a lock it needs
            )
            file.write(str(child.pid))
            return True

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = _ENDING) -> bool:
        """Send it *number*, and SIGKILL if it lives *timeout* seconds later; return whether it ran."""
        if (pid := self.pid) is None:
            self.pid_file.unlink(missing_ok=True)
            return False
        os.kill(pid, number)
        if not _wait_until(lambda: self.pid is None, timeout):
            os.kill(pid, signal.SIGKILL)
            _wait_until(lambda: self.pid is None, timeout)
        self.pid_file.unlink(missing_ok=True)
        return True

    def log_tail(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(["", *lines[-8:]])


class LocalServer:
    """A Prefect server and a worker, with all their files in the folder *state*."""

    def __init__(self, pool: str, state: Path = STATE) -> None:
        self.state = state.absolute()
        self.port = os.environ.get("PREFECT_SERVER_API_PORT", _PORT)
        self.url = f"http://{HOST}:{self.port}/api"
        server = ["prefect", "server", "start", "--host", HOST, "--port", self.port]
        self.server = Service("server", server, self.state)
        worker = ["prefect", "worker", "start", "--pool", pool, "--type", "process"]
        self.worker = Service("worker", worker, self.state)

    @property
    def env(self) -> dict[str, str]:
        """Environment of its processes, and of whoever talks to it."""
        home = self.state / "home"
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes its own, but not the folders above it
        return {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **os.environ,
            "PREFECT_API_URL": self.url,
        }

    def start_server(self) -> None:
        """Start the server unless it runs; `ConfigError` with the end of its log if it does not answer."""
        with self._alone():
            if self.server.pid is None and answers(self.url):
                raise ConfigError(
                    f"{self.url}: a Prefect server that was not started here answers there. Use it with "
                    f"PREFECT_API_URL={self.url}, or choose another port with PREFECT_SERVER_API_PORT."
                )
            self.server.start(self.env)
            _wait_until(lambda: answers(self.url) or self.server.pid is None, _STARTING)
        if not answers(self.url):
            raise ConfigError(f"the server does not answer at {self.url}:{self.server.log_tail()}")
        (self.state / "url").write_text(self.url + "\n")

    def start_worker(self) -> None:
        """Start the worker unless it runs."""
        with self._alone():
            self.worker.start(self.env)

    def stop(self) -> None:
        """Let flow runs commit, then stop the worker and the server; it is no mistake if none runs.

        A worker that is asked to stop kills its flow runs at once, so it is itself killed first: they live
        on and get a SIGTERM, upon which they commit and wait, scheduled, for the next worker.
        """
        with self._alone():
            worker = self.worker.pid
            flow_runs = children_of(worker) if worker else set()
            self.worker.stop(signal.SIGKILL)
            for pid in flow_runs:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            if not _wait_until(lambda: not flow_runs & set(living_processes()), COMMITTING):
                _log.warning("a flow run does not end; its last checkpoint stands")
            (self.state / "url").unlink(missing_ok=True)
            self.server.stop()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let two commands at once take turns."""
        self.state.mkdir(parents=True, exist_ok=True)
        with locked(self.state / ".lock", wait=lambda holder: math.inf):
            yield


def children_of(pid: int) -> set[int]:
    """Return the living child processes of *pid*."""
    return {child for child, parent in living_processes().items() if parent == pid}


def running_url(state: Path = STATE) -> str | None:
    """Return where the server of `LocalServer` in *state* answers; None if there is none."""
    try:
        url = (state / "url").read_text().strip()
    except OSError:
        return None
    return url if answers(url, timeout=2.0) else None


def answers(url: str, timeout: float = 5.0) -> bool:
    """Return whether a Prefect API is well at *url*."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _listen_to_sigint() -> None:
    """Take SIGINT, with which Prefect stops itself; a shell's `&` would have a child ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_until(ask: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer
