"""What tests with a real Prefect server need: waiting, and flow runs as the API tells them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import pytest
from helpers import record_of, steps_committed
from prefect import get_client
from prefect.client.schemas.objects import FlowRun, State

T = TypeVar("T")


def until(ask: Callable[[], T | None], seconds: float = 90.0) -> T:
    """The first true answer; the files and records asked about may not exist yet."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := ask():
                return answer
        except (OSError, ValueError, StopIteration, httpx.HTTPError):
            pass
        time.sleep(0.05)
    pytest.fail(f"not within {seconds:.0f} seconds")


def start(deployment: str, overrides: Sequence[str]) -> UUID:
    """A flow run of *deployment*, scheduled for now."""
    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name(deployment)
        words = {"overrides": list(overrides)}
        return client.create_flow_run_from_deployment(found.id, parameters=words).id


def read(flow_run_id: UUID) -> FlowRun:
    """The flow run as the API knows it now."""
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run_id)


def ended(flow_run_id: UUID) -> FlowRun | None:
    """The flow run, once its state is final and no crash."""
    found = read(flow_run_id)
    over = found.state is not None and found.state.is_final() and not found.state.is_crashed()
    return found if over else None


def history(flow_run_id: UUID) -> list[State[Any]]:
    """Its states, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run_states(flow_run_id)
    return sorted(found, key=lambda state: state.timestamp)


def training(runs_dir: Path, beyond: int = 0) -> Path | None:
    """The folder of the one run in *runs_dir*, once it has committed a step after *beyond*."""
    (folder,) = (f for f in runs_dir.iterdir() if f.is_dir() and not f.name.startswith("."))
    running = record_of(folder)["status"] == "running"
    return folder if running and max(steps_committed(folder), default=0) > beyond else None


def send(folder: Path, name: str) -> None:
    """Signal the process that has the run in *folder* open."""
    holder = re.search(r"process (\d+)", (folder / ".lease").read_text())
    assert holder
    os.kill(int(holder[1]), getattr(signal, name))
