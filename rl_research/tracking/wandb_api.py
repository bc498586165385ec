"""A client for the questions that this project asks a W&B server itself, each bounded in time.

W&B's own client retries for minutes, verifies the account before each first question and has to be imported.
"""

import base64
import configparser
import hashlib
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rl_research.system import Attempt, countdown
from rl_research.tracking.wandb_log import Logged, row_of
from rl_research.tracking.wandb_private import DEFAULT_SERVER, RESUME_STATUS, SERVER_BEHIND_IT

_VIEWER = "query Viewer { viewer { id entity } }"
_PAGE = """query HistoryPage($entity: String, $project: String!, $name: String!,
    $first: Int64!, $end: Int64!, $size: Int!) {
    project(name: $project, entityName: $entity) {
        run(name: $name) { history(minStep: $first, maxStep: $end, samples: $size) }
    }
}"""
T = TypeVar("T", list[Any], dict[str, Any])
_ROWS = 1000  # of a page; a server samples longer ones


class NoAnswer(Exception):
    """Raised where the server does not give the answer that was asked for; says why in one line."""


class Refused(NoAnswer):
    """Raised when the server does not know the API key, or denies the account what it asks for."""


class NotUnderstood(NoAnswer):
    """Raised when the server does not support the question."""


class Unreachable(NoAnswer):
    """Raised when the server does not answer; it may later."""


@dataclass(frozen=True)
class RunThere:
    """Run as the server has it: counts of lines, when its last row was logged and its number, its summary."""

    rows: int = 0
    stats: int = 0
    lines: int = 0
    last_row_at: float | None = None
    last_step: int = -1  # W&B's own number of the last row; -1: no row
    summary: Mapping[str, object] = field(default_factory=dict)


class WandbApi:
    """A W&B server, asked with the API key that wandb would use; no question takes longer than *timeout* s.

    Without *base_url* it is the server that wandb is configured for. Every question raises `NoAnswer`, or
    what is derived from it, where there is no answer.
    """

    def __init__(self, base_url: str | None = None, timeout: float = 4.0):
        self.base_url = (base_url or _configured_url()).rstrip("/")
        self.timeout = timeout
        self.key = _api_key(self.base_url)

    @property
    def fingerprint(self) -> str:
        """Hash that tells this server and key from others without revealing the key."""
        return hashlib.sha256(f"{self.base_url} {self.key or ''}".encode()).hexdigest()[:12]

    def viewer(self) -> None:
        """Raise `NoAnswer` unless the server knows the API key."""
        if not self.query(_VIEWER).get("viewer"):
            raise Refused(f"{self.base_url} does not know the API key")

    def ask_for_run(self, entity: str, project: str, run_id: str) -> RunThere | None:
        """Return what the server has of a run: zeros if nothing, None if it does not understand the question."""
        try:
            data = self.query(RESUME_STATUS, project=project or None, entity=entity or None, name=run_id)
        except NotUnderstood:
            return None
        if not (bucket := (data.get("model") or {}).get("bucket")):
            return RunThere()
        if bucket.get("historyLineCount") is None:
            return None
        tail = _parsed(bucket.get("historyTail"), list)
        last = _parsed(tail[-1] if tail else None, dict)
        return RunThere(
            int(bucket["historyLineCount"]),
            int(bucket.get("eventsLineCount") or 0),
            int(bucket.get("logLineCount") or 0),
            float(last["_timestamp"]) if "_timestamp" in last else None,
            int(last.get("_step", -1)),
            _parsed(bucket.get("summaryMetrics"), dict),
        )

    def last_step(self, path: str) -> int:
        """Return W&B's own number of the last row of the run *path*, ``entity/project/id``; -1: no row."""
        entity, project, run_id = path.split("/")
        if (there := self.ask_for_run(entity, project, run_id)) is None:
            raise NotUnderstood(f"{self.base_url} does not say what it has of {path}")
        return there.last_step

    def logged(self, path: str) -> Logged:
        """Return the rows and media of the run *path*."""
        entity, project, run_id = path.split("/")
        rows = []
        for first in range(0, self.last_step(path) + 1, _ROWS):
            place: dict[str, object] = {"entity": entity, "project": project, "name": run_id}
            data = self.query(_PAGE, first=first, end=first + _ROWS, size=_ROWS, **place)
            if (run := (data.get("project") or {}).get("run")) is None:
                raise NoAnswer(f"{self.base_url} has no run {path}")
            rows += [row_of(_flat(json.loads(line))) for line in run["history"]]
        return Logged.of(rows)

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Return the ``data`` of the server's answer to the GraphQL query *text*."""
        attempt = Attempt(lambda: self._post(text, variables))
        if not attempt.ended_within(countdown(self.timeout)):
            raise Unreachable(f"{self.base_url} has not answered for {self.timeout:.0f} s")
        return attempt.result()

    def _post(self, text: str, variables: Mapping[str, object]) -> dict[str, Any]:
        if not self.key:
            raise Refused("no API key is set: set WANDB_API_KEY or run `wandb login`")
        token = base64.b64encode(f"api:{self.key}".encode()).decode()
        request = urllib.request.Request(
            f"{self.base_url}/graphql",
            json.dumps({"query": text, "variables": variables}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout + 1) as response:  # `query` gives up before
                answer = json.load(response)
            data, errors = answer.get("data"), answer.get("errors")
        except urllib.error.HTTPError as error:
            kind = {400: NotUnderstood, 401: Refused, 403: Refused}.get(error.code, Unreachable)
            raise kind(f"{self.base_url} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unreachable(f"{self.base_url} cannot be reached: {reason}") from None
        if errors:
            raise NotUnderstood(f"{self.base_url} does not answer: {json.dumps(errors)[:300]}")
        return data if isinstance(data, dict) else {}


def _parsed(text: object, kind: type[T]) -> T:
    """Return what *text*, JSON, holds; an empty one where it is no *kind*."""
    try:
        found = json.loads(str(text))
    except ValueError:
        found = None
    return found if isinstance(found, kind) else kind()


def _flat(cells: Mapping[str, object]) -> dict[str, Any]:
    """Return *cells* with nested mappings spelt by slashes, as the log on disk has them."""
    flat: dict[str, Any] = {}
    for name, value in cells.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {name: value} if inner is None else {f"{name}/{key}": deep for key, deep in inner.items()}
    return flat


def _api_key(base_url: str) -> str | None:
    """Return the key that wandb would use: from the environment or from netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    servers = [base_url, SERVER_BEHIND_IT] if base_url == DEFAULT_SERVER else [base_url]
    hosts = [
        urlsplit(server).netloc for server in servers
    ]  # as wandb writes it, with the port of a server of one's own
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return None
    return next((found[2] for host in hosts if (found := known.authenticators(host))), None)


def _configured_url() -> str:
    """Return the server that wandb would use: from the environment or from its settings files."""
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    config = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    for path in (Path("wandb/settings"), Path(os.path.expanduser(config), "settings")):  # noqa: PTH111  # raises nothing
        parser = configparser.ConfigParser(default_section="", interpolation=None)
        try:
            parser.read(path)
            if url := parser.get("default", "base_url", fallback=None):
                return url
        except configparser.Error:
            continue
    return DEFAULT_SERVER
