"""Prefect's API where there is no server: one that a command brings along, and that ends with it.

Prefect would start one by itself when the first client is made: after every import, and on a port that was
free some seconds before the server took it. Of two commands that choose the same port the second takes the
first one's server for its own, and loses it in the middle of its run. Here the command listens first and
its server inherits the socket, so nobody else can have the port, and who comes early waits in line while the
server starts. Everything else is imported meanwhile. A server that dies refuses everybody, and the run goes on
without it.
"""

import atexit
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from pydantic import ValidationError

from rl_research.errors import ConfigError, in_a_line
from rl_research.orchestration import prefect_private
from rl_research.orchestration.local_server import HOST, answers
from rl_research.system import when_parent_ends

_POLL = 0.1  # seconds between two questions whether it answers
_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception): ")
_ENDING = 5.0  # seconds for what it has not written yet


class EmbeddedAPI:
    """A Prefect API in a process of its own, which ends with this one, however that ends."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # kept as long as the server
        with socket.create_server((HOST, 0), backlog=128) as listening:
            self.url = f"http://{HOST}:{listening.getsockname()[1]}/api"
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listening.fileno())],
                stdin=subprocess.PIPE,  # at its end the server knows that this process is gone
                stdout=self._log, stderr=self._log, pass_fds=[listening.fileno()],
                start_new_session=True,  # Ctrl-C is meant for the run, which has something to say to it then
            )  # fmt: skip
        atexit.register(self.close)  # before Prefect registers what it still has to say at the end

    def answers(self, timeout: float) -> bool:
        """Return whether it answers by the time it is *timeout* seconds old; if not, it is given up."""
        deadline = self._began + timeout
        while self._server.poll() is None and (left := deadline - time.monotonic()) > 0:
            if answers(self.url, left):
                return True
            time.sleep(_POLL)
        self.close()
        return False

    def last_error(self) -> str:
        """Return the last error in the server's log, else its last line."""
        text = os.pread(self._log.fileno(), 1 << 20, 0)  # the server writes on where it was
        lines = [line.strip() for line in text.decode(errors="replace").splitlines()]
        lines = list(filter(None, lines)) or ["no answer in time"]
        return next(filter(_ERROR.match, reversed(lines)), lines[-1])

    def close(self) -> None:
        """End the server; from then on everybody is refused."""
        self._server.terminate()
        try:
            self._server.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def check_settings() -> None:
    """Raise `ConfigError`, one line, if Prefect refuses a variable or a line of its files."""
    try:
        with redirect_stderr(io.StringIO()):  # where it says the same at length
            from prefect.settings import get_current_settings

            get_current_settings()
    except ValueError as error:
        reason = f"Prefect's settings cannot be read: {in_a_line(error)}"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, (error.title, *first["loc"])))
            reason = f"Prefect's setting {where}={first['input']}: {in_a_line(first['msg'])}"
        raise ConfigError(
            f"{reason}. Look at the variables PREFECT_…, at prefect.toml and .env, and in PREFECT_HOME."
        ) from None


@contextmanager
def embed_api() -> Iterator[EmbeddedAPI | None]:
    """Yield the API that this process is to use; None where Prefect knows a server, or may not embed one.

    Prefect knows a server from the environment, or from its own files and profiles. The API starts while the
    block prepares what needs it, and outlives the block; if the block raises, it is closed and forgotten.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    known = get_current_settings()
    if known.api.url or not known.server.ephemeral.enabled:
        yield None
        return
    api, before = EmbeddedAPI(), dict(os.environ)
    # It has no pages, and its address leads nowhere once the command has ended.
    variables = {"PREFECT_API_URL": api.url, "PREFECT_SERVER_UI_ENABLED": "false"}
    variables |= _past_proxies()
    os.environ.update(variables)
    refresh_global_settings_context()
    try:
        yield api
    except BaseException:
        api.close()
        for name in variables:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in variables if name in before})
        refresh_global_settings_context()
        raise


def _past_proxies() -> dict[str, str]:
    """Return the variables by which requests to this machine go to no proxy."""
    names = [name for name in ("no_proxy", "NO_PROXY") if os.environ.get(name)] or ["NO_PROXY"]
    known = {name: os.environ.get(name, "") for name in names}
    return {name: f"{hosts},{HOST}".lstrip(",") for name, hosts in known.items() if hosts.strip() != "*"}


def _serve(descriptor: int) -> None:
    """Serve the API on the socket *descriptor*, until a signal comes or the parent is gone."""
    when_parent_ends(0, _terminate)
    import uvicorn

    app = prefect_private.api_application()
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=descriptor)])
    sys.exit(0 if server.started else 3)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ENDING)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
