"""A double of a W&B server: the real client speaks to it over real sockets, and tests make it fail.

    with WandbServer() as server:
        subprocess.run([...], env={**os.environ, **server.environment()})
        assert server.run("my-run").steps == [16, 32]

Kinds of requests: each GraphQL operation by its name (``UpsertBucket``, ``CommitArtifact``, …),
``file_stream`` for rows, ``file`` for files of runs, ``artifact`` for files of artifacts, ``manifest``.

Run as a program it serves until its standard input ends and prints its URL. From another process
`inspect` and `order` do what `run` and `fail` do here.
"""

from __future__ import annotations

import argparse
import base64
import collections
import gzip
import json
import re
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from graphql_answers import Document, Unknown
from wandb_backend import HISTORY, Backend, Refused, ServedArtifact, ServedRun

KEY = "0123456789" * 4
_STREAM = re.compile(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream")


@dataclass
class Failure:
    """An order to fail requests of one kind; counted, and revocable by `end`."""

    match: str  # a kind, "graphql" for all operations, "*" for everything
    status: int | None = None
    close: bool = False
    hang: float = 0.0  # seconds, before anything else happens
    run_id: str | None = None
    times: int | None = None  # None: for ever
    after: int = 0  # requests that pass first
    carried_out: bool = False  # then only the answer is lost
    rows: bool = False  # only requests that bring rows
    seen: int = 0
    hits: int = 0

    def end(self) -> None:
        """Fail nothing from now on."""
        self.times = self.hits

    def claims(self, request: _Request) -> bool:
        """Whether this request is to fail; counts it."""
        graphql = request.is_graphql and self.match == "graphql"
        fits = self.match in ("*", request.kind) or graphql
        if not fits or self.run_id not in (None, request.run_id):
            return False
        if self.rows and not request.brings_rows:
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.seen += 1
        if self.seen <= self.after:
            return False
        self.hits += 1
        return True


@dataclass
class _Request:
    kind: str
    is_graphql: bool = False
    run_id: str | None = None
    body: Any = None
    place: tuple[str, ...] = field(default=())

    @property
    def brings_rows(self) -> bool:
        """Whether rows of metrics are in it."""
        return self.kind == "file_stream" and HISTORY in (self.body.get("files") or {})


class WandbServer:
    """A server on a free port of 127.0.0.1, from ``with`` to the end of the block."""

    def __init__(self, key: str = KEY, entity: str = "tester", port: int = 0):
        self.key, self.entity = key, entity
        self.backend = Backend(entity, lambda: self.public_url)
        self.requests: collections.Counter[str] = collections.Counter()
        self.unanswered: list[str] = []  # what the client asked and this double does not know
        self._failures: list[Failure] = []
        self._released = threading.Event()
        handler = type("Handler", (_Handler,), {"server_double": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]
        self.public_url = f"http://127.0.0.1:{self.port}"  # what upload URLs begin with
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """What a client needs in its environment; *url* where it goes through a proxy."""
        return {"WANDB_BASE_URL": url or self.public_url, "WANDB_API_KEY": self.key, "WANDB_ERROR_REPORTING": "false"}

    def adopt(self, monkeypatch: Any, url: str | None = None) -> None:
        """Point W&B in this very process here, until *monkeypatch* is undone.

        W&B reads its environment once per service, so the service of earlier tests is ended. The next
        test that wants another server has to do the same.
        """
        import wandb

        for name, value in self.environment(url).items():
            monkeypatch.setenv(name, value)
        wandb.teardown()

    # ------------------------------------------------------------ what tests ask

    def run(self, run_id: str, project: str | None = None, entity: str | None = None) -> ServedRun:
        """The only run with this id (in *project* of *entity*); KeyError."""
        with self.backend.lock:
            found = [
                run
                for (e, p, r), run in self.backend.runs.items()
                if r == run_id and project in (None, p) and entity in (None, e)
            ]
        if len(found) != 1:
            known = sorted("/".join(path) for path in self.backend.runs)
            raise KeyError(f"{len(found)} runs {run_id!r}; there are {known}")
        return found[0]

    @property
    def run_ids(self) -> list[str]:
        """The ids of all runs."""
        with self.backend.lock:
            return [run_id for _, _, run_id in self.backend.runs]

    def artifacts(self, collection: str | None = None) -> list[ServedArtifact]:
        """Every version the server was told of, pending ones too, oldest first."""
        with self.backend.lock:
            found = list(self.backend.artifacts.values())
        return [a for a in found if collection in (None, a.collection)]

    def forbid(self, place: str) -> None:
        """Answer 403 for ``entity`` or ``entity/project``."""
        self.backend.forbidden.add(place)

    def fail(
        self,
        match: str,
        *,
        status: int | None = None,
        close: bool = False,
        hang: float = 0.0,
        run: str | None = None,
        n: int | None = None,
        after: int = 0,
        lose_answer: bool = False,
        rows: bool = False,
    ) -> Failure:
        """Fail requests of the kind *match*, of *run*, *n* times (for ever) *after* so many that pass.

        With *status* they get that answer, with *close* a closed connection, with *hang* so many seconds
        of silence first. With *lose_answer* the request is carried out before its connection is closed.
        With *rows* only requests that bring rows fail.
        """
        failure = Failure(match, status, close or lose_answer, hang, run, n, after, carried_out=lose_answer, rows=rows)
        self._failures.append(failure)
        return failure

    def heal(self) -> None:
        """Fail nothing from now on; let go of requests that hang."""
        self._failures.clear()
        self._released.set()
        self._released = threading.Event()

    # ------------------------------------------------------------ what happens to a request

    def failure_of(self, request: _Request) -> Failure | None:
        """Count *request*; the first order that claims it."""
        with self.backend.lock:
            self.requests[request.kind] += 1
            return next((f for f in list(self._failures) if f.claims(request)), None)

    def wait(self, seconds: float) -> None:
        """Hang, until `heal` or the end of the server."""
        self._released.wait(seconds)

    def carry_out(self, request: _Request) -> tuple[int, bytes]:
        """Status and body of the answer."""
        with self.backend.lock:
            try:
                if request.is_graphql:
                    return 200, self._graphql(request.body)
                if request.kind == "file_stream":
                    return 200, self._file_stream(request)
                return 200, self._store(request)
            except KeyError as error:
                return 404, _errors(f"not found: {error}")
            except Refused as refusal:
                return refusal.status, _errors(str(refusal))
            except Unknown as unknown:
                self.unanswered.append(str(unknown))
                return 400, _errors(str(unknown))

    def _graphql(self, body: Any) -> bytes:
        document = Document(body["query"])
        data = document.answer(self.backend.root, body.get("variables") or {})
        return json.dumps({"data": data}).encode()

    def _file_stream(self, request: _Request) -> bytes:
        entity, project, run_id = request.place
        self.backend.check_access(entity, project)
        self.backend.known_run(entity, project, run_id).take(request.body)
        return json.dumps({"exitcode": None, "limits": {}}).encode()

    def _store(self, request: _Request) -> bytes:
        if request.kind == "file":
            entity, project, run_id, name = request.place
            files = self.backend.known_run(entity, project, run_id).files
        else:
            artifact = self.backend.artifacts.get(request.place[0])
            if artifact is None:
                raise Refused("no such artifact", 404)
            if request.kind == "manifest":
                if request.body is not None:
                    artifact.raw_manifest = request.body
                return artifact.raw_manifest or b""
            name, files = request.place[1], artifact.files
        if request.body is not None:
            files[name] = request.body
            return b""
        if name not in files:
            raise Refused(f"no file {name}", 404)
        return files[name]

    def facts(self) -> dict[str, Any]:
        """Everything that `inspect` tells another process."""
        with self.backend.lock:
            return {
                "requests": dict(self.requests),
                "unanswered": self.unanswered,
                "runs": {run.path: _facts(run) for run in self.backend.runs.values()},
            }


class _Handler(BaseHTTPRequestHandler):
    server_double: WandbServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """GraphQL, a file stream, or an order."""
        body = self._body()
        if self.path == "/double/fail":
            self.server_double.fail(**json.loads(body))
            self._answer(200, b"{}")
        elif self.path == "/double/heal":
            self.server_double.heal()
            self._answer(200, b"{}")
        elif (request := self._request(body)) is None:
            self._answer(404, _errors(f"nothing at {self.path}"))
        elif self._is_known():
            self._serve(request)
        else:
            self.server_double.requests["unauthorized"] += 1
            self._answer(401, _errors("user is not logged in"))

    def do_PUT(self) -> None:
        """A file."""
        body = self._body()
        self._serve(self._storage(body))

    def do_GET(self) -> None:
        """A file, or what `inspect` asks."""
        if self.path == "/double":
            self._answer(200, json.dumps(self.server_double.facts()).encode())
        elif self.path.startswith("/storage/"):
            self._serve(self._storage(None))
        else:
            self.server_double.requests["other"] += 1
            self._answer(404, _errors(f"nothing at {self.path}"))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _serve(self, request: _Request) -> None:
        failure = self.server_double.failure_of(request)
        if failure is not None:
            if failure.hang:
                self.server_double.wait(failure.hang)
            if failure.carried_out:
                self.server_double.carry_out(request)
            if failure.close:
                self.close_connection = True
                return
            if failure.status is not None:
                self._answer(failure.status, _errors(f"ordered to fail with {failure.status}"))
                return
        self._answer(*self.server_double.carry_out(request))

    def _request(self, body: bytes) -> _Request | None:
        if self.path == "/graphql":
            parsed = json.loads(body)
            variables = parsed.get("variables") or {}
            return _Request(_operation(parsed["query"]), True, _run_id(variables), parsed)
        if found := _STREAM.fullmatch(self.path.split("?")[0]):
            place = tuple(unquote(part) for part in found.groups())
            return _Request("file_stream", run_id=place[2], body=json.loads(body), place=place)
        return None

    def _storage(self, body: bytes | None) -> _Request:
        _, _, kind, *place = (unquote(part) for part in self.path.split("/"))
        if kind == "run":
            *head, name = (*place[:3], "/".join(place[3:]))
            return _Request("file", run_id=place[2], body=body, place=(*head, name))
        artifact = self.server_double.backend.artifacts.get(place[0])
        run_id = None if artifact is None else artifact.run.run_id
        return _Request(kind, run_id=run_id, body=body, place=(place[0], "/".join(place[1:])))

    def _is_known(self) -> bool:
        given = self.headers.get("Authorization", "")
        wanted = base64.b64encode(f"api:{self.server_double.key}".encode()).decode()
        return given == f"Basic {wanted}"

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client did not wait


def _operation(query: str) -> str:
    found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
    return found.group(1) if found else "anonymous"


def _run_id(variables: dict[str, Any]) -> str | None:
    places = (variables, variables.get("input") or {})
    names = ("runName", "run", "name")
    return next((str(p[n]) for p in places for n in names if p.get(n)), None)


def _errors(message: str) -> bytes:
    return json.dumps({"errors": [{"message": message}], "data": None}).encode()


def _facts(run: ServedRun) -> dict[str, Any]:
    return {
        "rows": run.rows,
        "steps": run.steps,
        "summary": run.summary,
        "config": run.config,
        "state": run.state,
        "exit_code": run.exit_code,
        "files": {name: len(data) for name, data in run.files.items()},
        "artifacts": [
            {"name": a.collection, "state": a.state, "aliases": a.aliases, "entries": a.entries} for a in run.artifacts
        ],
    }


def inspect(url: str) -> dict[str, Any]:
    """What the server at *url*, in another process, has got so far."""
    with urllib.request.urlopen(f"{url}/double", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def order(url: str, **failure: Any) -> None:
    """`WandbServer.fail` at the server in another process; without arguments `WandbServer.heal`."""
    path = "fail" if failure else "heal"
    urllib.request.urlopen(f"{url}/double/{path}", json.dumps(failure).encode(), timeout=10).close()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--entity", default="tester")
    chosen = parser.parse_args()
    with WandbServer(chosen.key, chosen.entity, chosen.port) as server:
        sys.stdout.write(f"{server.public_url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
