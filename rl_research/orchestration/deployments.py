"""What deployment.yaml declares, made true: at a server with workers, or in this very process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule

from rl_research.errors import ConfigError
from rl_research.orchestration.deployment_file import FILE, flow_of, read
from rl_research.orchestration.runner import PatientRunner


def deploy(path: Path = FILE) -> None:
    """Make the work pool and its queues as *path* declares them, and deploy everything in it.

    What was deployed before is brought up to date. Raises `ConfigError` for a mistake in the file, before
    anything is deployed, and with Prefect's own words if it refuses.
    """
    declared = read(path)["definitions"]
    pool = declared["work_pool"]
    with get_client(sync_client=True) as client:
        if pool["name"] not in {known.name for known in client.read_work_pools()}:
            _prefect("work-pool", "create", pool["name"], "--type", pool["type"])
        for queue, limit in declared["queues"].items():
            _set_limit(client, pool["name"], queue, limit)
    _prefect("deploy", "--all", "--prefect-file", path.name, folder=path.parent)


def serve(path: Path = FILE, limit: int = 2) -> None:
    """Run everything in *path* from this process, *limit* flow runs at a time, until it is stopped.

    SIGTERM or Ctrl-C has the flow runs commit first, then it ends; what was stopped waits, scheduled, for
    the next `serve` or worker. A second signal ends all at once. A deployment of the same name that was
    meant for workers makes place.
    """
    raw = read(path)
    os.environ.update(_environment(raw))
    with get_client(sync_client=True) as client:
        for entry in raw["deployments"]:
            _make_place(client, f"{flow_of(entry, path.parent).name}/{entry['name']}")
    runner = PatientRunner(limit=limit, pause_on_shutdown=False)
    for entry in raw["deployments"]:
        runner.add_deployment(_served(entry, path.parent))
    runner.run()


def _make_place(client: SyncPrefectClient, name: str) -> None:
    """Delete a deployment that waits for a worker: served under its name, it would lose where its flow is."""
    with suppress(ObjectNotFound):
        known = client.read_deployment_by_name(name)
        if known.work_pool_name is not None or known.path is None:
            client.delete_deployment(known.id)


def _set_limit(client: SyncPrefectClient, pool: str, queue: str, limit: int | None) -> None:
    try:
        known = client.read_work_queue_by_name(queue, work_pool_name=pool)
    except ObjectNotFound:
        client.create_work_queue(queue, concurrency_limit=limit, work_pool_name=pool)
    else:
        client.update_work_queue(known.id, concurrency_limit=limit)


def _prefect(*words: str, folder: Path | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *words],
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise ConfigError("\n".join([f"prefect {' '.join(words)}:", *said]))


def _environment(raw: Mapping[str, Any]) -> dict[str, str]:
    """What a worker would put into the environment of the flow runs."""
    pools = [entry["work_pool"] for entry in raw["deployments"]]
    variables = [pool.get("job_variables", {}).get("env", {}) for pool in pools]
    return {name: str(value) for found in variables for name, value in found.items()}


def _served(entry: Mapping[str, Any], folder: Path) -> RunnerDeployment:
    limit = entry.get("concurrency_limit")
    made = flow_of(entry, folder).to_deployment(
        name=entry["name"],
        description=entry.get("description"),
        tags=entry.get("tags"),
        parameters=entry.get("parameters"),
        schedules=[Schedule(**schedule) for schedule in entry.get("schedules") or ()],
        triggers=entry.get("triggers"),
        concurrency_limit=ConcurrencyLimitConfig(**limit) if isinstance(limit, dict) else limit,
    )
    assert isinstance(made, RunnerDeployment)  # a coroutine only where an event loop runs
    return made
