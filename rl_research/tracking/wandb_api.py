"""The few questions we ask a W&B server ourselves, each bounded in time.

W&B's own client retries for minutes, and verifies the account before each first question.
"""

from __future__ import annotations

import base64
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from rl_research.system import Attempt, lasting
from rl_research.tracking.logged_rows import Logged

_VIEWER = "query Viewer { viewer { id entity } }"
_RUN = """query OneRun($entity: String, $project: String!, $name: String!) {
    project(name: $project, entityName: $entity) { run(name: $name) { historyKeys } }
}"""
_PAGE = """query HistoryPage($entity: String, $project: String!, $name: String!,
    $first: Int64!, $end: Int64!, $size: Int!) {
    project(name: $project, entityName: $entity) {
        run(name: $name) { history(minStep: $first, maxStep: $end, samples: $size) }
    }
}"""
_ROWS = 1000  # of a page; a server samples longer ones


class NoAnswer(Exception):
    """Raised where the server does not give the answer that was asked for; says why in one line."""


class WandbApi:
    """A W&B server at *base_url*; no question takes longer than *timeout* seconds. `NoAnswer`."""

    def __init__(self, base_url: str, timeout: float = 4.0):
        self.base_url = base_url.rstrip("/")
        self.timeout = timeout

    def viewer(self) -> None:
        """Raise `NoAnswer` unless the server knows the API key."""
        if not self._ask(_VIEWER).get("viewer"):
            raise NoAnswer(f"{self.base_url} does not know the API key")

    def last_step(self, path: str) -> int:
        """W&B's own number of the last row of the run *path*, ``entity/project/id``; -1: no row."""
        return int((self._run(_RUN, path).get("historyKeys") or {}).get("lastStep", -1))

    def logged(self, path: str) -> Logged:
        """The rows and media of the run *path*."""
        last = self.last_step(path)
        rows = [
            json.loads(line)
            for first in range(0, last + 1, _ROWS)
            for line in self._run(_PAGE, path, first=first, end=first + _ROWS, size=_ROWS)["history"]
        ]
        steps = frozenset(step for row in rows if (step := _step(row)) is not None and _numbers(row))
        media = frozenset((name, step) for row in rows for name, step in _media(row))
        return Logged(steps, media)

    def _run(self, query: str, path: str, **more: Any) -> dict[str, Any]:
        entity, project, name = path.split("/")
        data = self._ask(query, entity=entity, project=project, name=name, **more)
        found: dict[str, Any] | None = (data.get("project") or {}).get("run")
        if found is None:
            raise NoAnswer(f"{self.base_url} has no run {path}")
        return found

    def _ask(self, query: str, **variables: Any) -> dict[str, Any]:
        attempt = Attempt(lambda: self._post(query, variables))
        if not attempt.ended_within(lasting(self.timeout)):
            raise NoAnswer(f"{self.base_url} has not answered for {self.timeout:.0f} s")
        return attempt.result()

    def _post(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if not (key := api_key(self.base_url)):
            raise NoAnswer("no API key is set: set WANDB_API_KEY or run `wandb login`")
        token = base64.b64encode(f"api:{key}".encode()).decode()
        request = urllib.request.Request(
            f"{self.base_url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                data = json.load(answer).get("data")
        except urllib.error.HTTPError as error:
            raise NoAnswer(f"{self.base_url} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            reason = getattr(error, "reason", None) or error
            raise NoAnswer(f"{self.base_url} cannot be reached: {reason}") from None
        return data if isinstance(data, dict) else {}


def api_key(base_url: str) -> str | None:
    """The key that wandb would use: from the environment or from netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    host = urlsplit(base_url).netloc  # as wandb writes it, with the port of a server of one's own
    try:
        return (netrc.netrc(os.environ.get("NETRC")).authenticators(host) or ("", "", None))[2]
    except (OSError, netrc.NetrcParseError):
        return None


def _step(row: Mapping[str, Any]) -> int | None:
    step = row.get("global_step")
    return None if step is None else int(step)


def _numbers(row: Mapping[str, Any]) -> bool:
    """Whether *row* holds a metric; NaN and infinity come as words."""
    return any(
        isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")
        for name, value in row.items()
        if not name.startswith("_") and name != "global_step"
    )


def _media(row: Mapping[str, Any]) -> list[tuple[str, int]]:
    step = _step(row)
    if step is None:
        return []
    return [
        (name, step)
        for name, value in row.items()
        if isinstance(value, Mapping) and str(value.get("_type")).endswith("-file")
    ]
