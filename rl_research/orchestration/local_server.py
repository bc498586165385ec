"""A Prefect server and a worker on this machine: started and stopped, once each.

A process holds a lock on its pid file for as long as it lives, through a descriptor that it inherits. So a
pid file that a power cut has left behind, or whose number the system has given to somebody else, is never
taken for a process that runs, and nothing else is ever signalled.
"""

import http.client
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

from rl_research.errors import ConfigError, in_a_line
from rl_research.orchestration.worker import COMMITTING
from rl_research.system import locked, try_lock

STATE = Path(".prefect-local")
HOST = "127.0.0.1"  # nobody else on the network is asked for a password, so nobody else gets in
_PORT = "4200"
_STARTING = 180.0  # seconds; the first start of a server makes its database
_ENDING = 20.0  # seconds from the signal to SIGKILL


class Service:
    """A background process that this folder owns, with its pid file and its log."""

    def __init__(self, name: str, state: Path) -> None:
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

    def start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Start it as ``python -m`` *command* unless it runs; return whether it had to be started."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.pid_file.open("a+") as file, self.log.open("ab") as log:
            if not try_lock(file):
                return False
            file.truncate(0)
            child = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(env),
                pass_fds=[file.fileno()],  # with it the child has the lock
                start_new_session=True,  # so that Ctrl-C in this terminal is not meant for it
            )
            file.write(str(child.pid))
            return True

    def stop(self, timeout: float = _ENDING) -> bool:
        """Send it SIGTERM, and SIGKILL if it lives *timeout* seconds later; return whether it ran."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGTERM)
            if not _wait_until(lambda: self.pid is None, timeout):
                os.kill(pid, signal.SIGKILL)
                _wait_until(lambda: self.pid is None, _ENDING)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None


class LocalServer:
    """A Prefect server and a worker, with all their files in the folder *state*."""

    def __init__(self, state: Path = STATE) -> None:
        self.state = state.absolute()
        self.port = os.environ.get("PREFECT_SERVER_API_PORT", _PORT)
        self.url = f"http://{HOST}:{self.port}/api"
        self.server = Service("server", self.state)
        self.worker = Service("worker", self.state)

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
            self.server.start(["prefect", "server", "start", "--host", HOST, "--port", self.port], self.env)
            _wait_until(lambda: answers(self.url) or self.server.pid is None, _STARTING)
        if not answers(self.url):
            tail = self.server.log.read_text(errors="replace").splitlines()[-8:]
            raise ConfigError("\n".join([f"the server does not answer at {self.url}:", *tail]))
        (self.state / "url").write_text(self.url + "\n")

    def start_worker(self, pool: str) -> None:
        """Start a worker of *pool* unless it runs."""
        with self._alone():
            self.worker.start(["rl_research.orchestration.worker", pool], self.env)

    def stop(self) -> None:
        """Let flow runs commit, then stop the worker and the server; it is no mistake if none runs.

        Raises `ConfigError` in a folder where none was ever started.
        """
        if not self.state.exists():
            raise ConfigError(f"{self.state}: not there. Start the command in the folder of the project.")
        with self._alone():
            self.worker.stop(COMMITTING + _ENDING)
            (self.state / "url").unlink(missing_ok=True)
            self.server.stop()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let two commands at once take turns."""
        self.state.mkdir(parents=True, exist_ok=True)
        with locked(self.state / ".lock", wait=lambda holder: math.inf):
            yield


def running_url(state: Path = STATE) -> str | None:
    """Return where the server of `LocalServer` in *state* answers; None if there is none."""
    try:
        url = (state / "url").read_text().strip()
    except OSError:
        return None
    return url if answers(url, timeout=2.0) else None


def answers(url: str, timeout: float = 5.0) -> bool:
    """Return whether a Prefect API is well at *url*."""
    with suppress(OSError, ValueError):
        ask_health(url, timeout)
        return True
    return False


def ask_health(url: str, timeout: float) -> None:
    """Raise `OSError` or `ValueError` unless a Prefect API is well at *url*."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout) as answer:
            if answer.read(100).lstrip().startswith(b"<"):
                raise ValueError("but a web page")
    except http.client.HTTPException as error:
        raise ValueError(in_a_line(error)) from None


def _wait_until(ask: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer
