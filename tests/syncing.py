"""What the tests of sync share: the server that W&B is pointed at, and ways to sync and to look at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import environment
from offline_runs import QUICK
from wandb_server import WandbServer

from rl_research.sync import Outcome, Policy, open_runs, sync_runs


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A W&B server of the test's own, known to W&B, which does not try for long."""
    with WandbServer() as running:
        for name, value in {**running.environment(), **QUICK}.items():
            monkeypatch.setenv(name, value)
        yield running


def sync(
    *where: Path | str, options: Mapping[str, Any] | None = None, include_online: bool = False, **policy: Any
) -> dict[str, Outcome]:
    """Sync what is in *where*, folders and URLs, once: what came of each run."""
    words = [str(place) for place in where]
    with open_runs(words, options, include_online=include_online) as runs:
        outcomes = sync_runs(runs, Policy(**policy))
    return {outcome.run_id: outcome for outcome in outcomes}


def states(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """What came of each, in a word."""
    return {run_id: outcome.state for run_id, outcome in outcomes.items()}


def command(*words: object) -> list[str]:
    """``rl-research sync`` with *words*, for a process of its own."""
    return [sys.executable, "-m", "rl_research", "sync", *map(str, words)]


def call(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``rl-research sync`` with *words* to its end."""
    return subprocess.run(
        command(*words),
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
