"""What the W&B server has of a run, asked in the words of W&B's own client."""

from __future__ import annotations

import base64
import configparser
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_research.system import retry_call
from rl_research.tracking import api_key

_TRIES, _TIMEOUT = 3, 15.0
_REFUSALS = (401, 403)
_NOT_UNDERSTOOD = 400

# Word for word what wandb-core asks when it resumes a run: whoever serves it answers this.
_QUERY = """
query RunResumeStatus ($project: String, $entity: String, $name: String!) {
\tmodel(name: $project, entityName: $entity) {
\t\tid
\t\tname
\t\tentity {
\t\t\tid
\t\t\tname
\t\t}
\t\tbucket(name: $name, missingOk: true) {
\t\t\tid
\t\t\tname
\t\t\tsummaryMetrics
\t\t\tdisplayName
\t\t\tlogLineCount
\t\t\thistoryLineCount
\t\t\teventsLineCount
\t\t\thistoryTail
\t\t\teventsTail
\t\t\tconfig
\t\t\ttags
\t\t\tnotes
\t\t\twandbConfig(keys: ["t"])
\t\t}
\t}
}
"""


class Refused(Exception):
    """Raised when the server knows the account and says no, or does not know the account."""


class Unreachable(Exception):
    """Raised when the server does not answer; it may later."""


@dataclass(frozen=True)
class Account:
    """Where runs go and on whose behalf."""

    base_url: str
    key: str | None

    @property
    def fingerprint(self) -> str:
        """What tells this key from another without telling the key."""
        text = f"{self.base_url} {self.key or ''}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RunThere:
    """What the server has of a run: counts of lines, when its last row was logged, and its summary."""

    rows: int = 0
    stats: int = 0
    lines: int = 0
    last_row_at: float | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


def wandb_account() -> Account:
    """The server and the key that wandb itself would use, found without importing it."""
    url = os.environ.get("WANDB_BASE_URL") or _configured_url() or "https://api.wandb.ai"
    return Account(url.rstrip("/"), api_key(url))


def _configured_url() -> str | None:
    config = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    for path in (Path("wandb/settings"), Path(config).expanduser() / "settings"):
        parser = configparser.ConfigParser(default_section="", interpolation=None)
        try:
            parser.read(path)
            url = parser.get("default", "base_url", fallback=None)
        except configparser.Error:
            continue
        if url:
            return url
    return None


def ask_server(account: Account, entity: str, project: str, run_id: str) -> RunThere | None:
    """What the server has of the run; nothing of it is a `RunThere` of zeros, no answer is None.

    Raises `Refused` (401, 403) and, after some tries, `Unreachable`.
    """
    variables = {"project": project or None, "entity": entity or None, "name": run_id}
    data = _post(account, {"query": _QUERY, "variables": variables, "operationName": "RunResumeStatus"})
    if data is None:
        return None
    bucket = (data.get("model") or {}).get("bucket")
    if not bucket:
        return RunThere()
    if bucket.get("historyLineCount") is None:
        return None
    return RunThere(
        int(bucket["historyLineCount"]),
        int(bucket.get("eventsLineCount") or 0),
        int(bucket.get("logLineCount") or 0),
        _time_of_last(bucket.get("historyTail")),
        _summary(bucket.get("summaryMetrics")),
    )


def _summary(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time_of_last(tail: str | None) -> float | None:
    try:
        lines = json.loads(tail or "[]")
        return float(json.loads(lines[-1])["_timestamp"])
    except (ValueError, LookupError, TypeError):
        return None


def _post(account: Account, question: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``data`` of the answer, None if the server does not understand the question."""
    token = base64.b64encode(f"api:{account.key or ''}".encode()).decode()
    request = urllib.request.Request(
        f"{account.base_url}/graphql",
        json.dumps(question).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {token}"},
    )

    def ask() -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                found = json.load(answer)
            return found.get("data") if not found.get("errors") else None
        except urllib.error.HTTPError as error:
            if error.code in _REFUSALS:
                raise Refused(f"{account.base_url} answered {error.code} {error.reason}") from None
            if error.code == _NOT_UNDERSTOOD:
                return None
            raise Unreachable(f"{account.base_url}: {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise Unreachable(f"{account.base_url}: {getattr(error, 'reason', None) or error}") from None

    return retry_call(ask, lambda error: isinstance(error, Unreachable), tries=_TRIES, pause=0.5)
